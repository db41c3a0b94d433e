"""`flowmaps train`: what is written, how it is resumed, and how a configuration comes together."""

import json
import os
import signal

import pytest
import yaml

TINY = ("--net", "mlp-tiny", "--run.batch", 64, "--run.precision", "fp32", "--run.compile", "no")


def test_a_run_leaves_checkpoints_previews_and_what_to_do_next(call, tmp_path) -> None:
    out = tmp_path / "run"
    status, said, noise = call(
        *("train", "mean_flow", *TINY, "--run.steps", 6, "--run.preview-every", 3, "--out", out)
    )
    assert status == 0
    assert noise.splitlines()[0].startswith("machine: ")
    assert "step 6" in noise
    assert f"flowmaps sample {out} --steps 1" in said
    assert sorted(p.name for p in (out / "previews").iterdir()) == [
        "step-00000003.png",
        "step-00000006.png",
    ]
    assert json.loads((out / "config.json").read_text())["run"]["steps"] == 6


def test_a_second_run_does_not_overwrite(call, runs) -> None:
    before = (runs / "map" / "config.json").read_bytes()
    status, _, err = call("train", "mean_flow", *TINY, "--out", runs / "map")
    assert status == 2
    assert "already holds a run; resume it with --resume" in err
    assert (runs / "map" / "config.json").read_bytes() == before


def test_previews_of_points_and_of_a_velocity_model(call, tmp_path) -> None:
    out = tmp_path / "run"
    arguments = ["--data", "toy:moons", "--run.steps", 3, "--out", out]
    status, said, _ = call("train", "flow_matching", *TINY, *arguments)
    assert status == 0
    assert "--solver heun" in said
    assert f"train lmd --set.through target --teacher {out} --data toy:moons --net mlp-tiny" in said
    assert (out / "previews" / "step-00000003.png").read_bytes().startswith(b"\x89PNG")
    assert call("sample", out, "--out", tmp_path / "p.png", "--solver", "heun", "-n", 20)[0] == 0


def test_ctrl_c_says_how_to_go_on_and_that_works(call, tmp_path, monkeypatch) -> None:
    from flowmaps.train import hooks

    out = tmp_path / "run"
    plain = hooks.Progress.__call__

    def interrupt(self, event) -> None:
        plain(self, event)
        if event.state.step == 3:
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(hooks.Progress, "__call__", interrupt)
    arguments = ["train", "mean_flow", *TINY, "--run.steps", 7, "--out", out]
    status, said, err = call(*arguments)
    assert (status, said) == (130, "")
    assert f"flowmaps train --resume {out}" in err
    monkeypatch.setattr(hooks.Progress, "__call__", plain)
    status, _, err = call("train", "--resume", out)
    assert status == 0
    assert "resuming mean_flow" in err
    assert "step 7" in err
    steps = sorted(p.name for p in (out / "checkpoints").iterdir())
    assert steps[-1] == "step-00000007"


def test_print_config_is_a_config(call, tmp_path) -> None:
    arguments = ["--set.diagonal", "0.5", "--run.lr", "3e-4", "--guidance.scale", "2"]
    status, said, err = call("train", "mean_flow", *arguments, "--print-config")
    assert (status, err) == (0, "")
    shown = yaml.safe_load(said)
    assert shown["recipe"] == "mean_flow"
    assert shown["set"] == {"diagonal": 0.5}
    assert shown["run"]["lr"] == 3e-4
    assert shown["guidance"]["scale"] == 2
    file = tmp_path / "run.yaml"
    file.write_text(said)
    status, again, _ = call("train", "--config", file, "--run.steps", 7, "--print-config")
    assert status == 0
    assert yaml.safe_load(again) == shown | {"run": shown["run"] | {"steps": 7}}


def test_without_guidance_flags_there_is_no_guidance(call) -> None:
    assert yaml.safe_load(call("train", "--print-config")[1])["guidance"] is None


def test_set_as_json_and_by_name_agree(call) -> None:
    by_name = call("train", "mean_flow", "--set.p", "0.5", "--set.mean=-1", "--print-config")[1]
    at_once = call("train", "mean_flow", "--set", '{"p": 0.5, "mean": -1}', "--print-config")[1]
    assert by_name == at_once


def test_a_recipe_of_another_package_need_not_name_its_types(call, monkeypatch) -> None:
    """An argument without an annotation is taken as it is written; it was a KeyError."""
    from flowmaps import recipes

    def theirs(diagonal=0.25):
        return recipes.get("mean_flow", diagonal=diagonal)

    known = recipes.all_recipes()
    monkeypatch.setattr(recipes, "all_recipes", lambda: known | {"theirs": theirs})
    status, said, err = call("train", "theirs", "--set.diagonal", "0.5", "--print-config")
    assert (status, err) == (0, "")
    assert yaml.safe_load(said)["set"] == {"diagonal": 0.5}


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("run: {setps: 3}", "no field is called 'run.setps' (did you mean 'run.steps'?)"),
        ("run: {lr: 0}", "run.lr: input should be greater than 0; got 0"),
        ("recipe: [", "neither yaml nor json"),
        ("3", "valid dictionary"),
    ],
)
def test_a_bad_file_is_one_line(call, tmp_path, content, expected) -> None:
    file = tmp_path / "run.yaml"
    file.write_text(content)
    status, _, err = call("train", "--config", file)
    assert status == 2
    assert expected in err
    assert len(err.splitlines()) == 1


@pytest.mark.parametrize(
    ("recipe", "data", "folder"),
    [
        ("lsd", "digits", "lsd-digits"),
        ("psd", "toy:moons", "psd-toy-moons"),
        ("esd", "../my pics/", "esd-my-pics"),
    ],
)
def test_the_default_folder_names_recipe_and_data(recipe, data, folder) -> None:
    from flowmaps.cli.train import default_folder
    from flowmaps.train.run import Config

    assert default_folder(Config(recipe=recipe, data=data)).as_posix() == f"runs/{folder}"


def test_only_the_first_process_prints(call, tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("RANK", "1")
    out = tmp_path / "run"
    status, said, err = call("train", "mean_flow", *TINY, "--run.steps", 2, "--out", out)
    assert (status, said, err) == (0, "", "")
