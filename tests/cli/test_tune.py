"""`flowmaps tune`: a run that other commands take, its curves, resume, and mistakes in one line."""

import json

import pytest
from PIL import Image

FEW = (
    "--count", 20, "--run.batch", 32, "--run.precision", "fp32", "--run.preview-every", 2, "--run.save-every", 2,
)  # fmt: skip


@pytest.mark.parametrize(
    "method",
    [("nft", "--set.beta", 0.5), ("tilt", "--set.rounds", 2), ("backprop", "--set.output", 3)],
)
def test_every_method_leaves_a_run_that_others_take(call, runs, tmp_path, method) -> None:
    out = tmp_path / "run"
    more = ("--method", *method, "--run.steps", 4, "--out", out, *FEW)
    status, said, err = call("tune", runs / "map", "--reward", "brightness", *more)
    assert (status, "deviations" in said) == (0, True), err
    rows = json.loads((out / "tuning.json").read_text())["rows"]
    assert [row["step"] for row in rows] == [0, 2, 4]
    assert set(rows[0]["rewards"]) == {"brightness", "symmetry"}
    assert rows[0]["kl_path"] == rows[0]["moved"] == 0
    assert rows[-1]["kl_path"] > 0
    for picture in ("tuning.png", "samples.png"):
        with Image.open(out / picture) as image:
            assert min(image.size) > 100
    assert call("sample", out, "-n", 4, "--out", tmp_path / "a.png")[0] == 0
    assert call("steer", out, "-n", 2, "--particles", 4, "--out", tmp_path / "b.png")[0] == 0


def test_a_reward_of_ones_own_and_rewards_held_out(call, runs, tmp_path) -> None:
    mine = tmp_path / "mine.py"
    mine.write_text("def left(x):\n    return x[..., :4].mean((1, 2, 3)).detach()\n")
    more = ("--reward", f"{mine}:left", "--held", "symmetry", "--run.steps", 1, *FEW)
    status, said, err = call("tune", runs / "map", *more, "--out", tmp_path / "run")
    assert (status, "mine.py:left by nft" in said) == (0, True), err
    row = json.loads((tmp_path / "run" / "tuning.json").read_text())["rows"][0]
    assert list(row["rewards"]) == ["mine.py:left", "symmetry"]
    status, _, err = call(
        "tune", runs / "map", *more, "--method", "backprop", "--out", tmp_path / "other"
    )
    assert (status, "the reward has none" in err) == (2, True)


def test_a_resumed_run_is_the_run_that_was_not_stopped(call, runs, tmp_path, monkeypatch) -> None:
    from flowmaps.report.tuning import Curves

    whole, cut = tmp_path / "whole", tmp_path / "cut"
    more = (*FEW, "--run.steps", 6)
    assert call("tune", runs / "map", *more, "--out", whole)[0] == 0
    look = Curves.__call__

    def stopping(self, event) -> None:
        look(self, event)
        if event.state.step == 3:
            raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(Curves, "__call__", stopping)
        assert call("tune", runs / "map", *more, "--out", cut)[0] == 130
    status, _, err = call("tune", "--resume", cut)
    assert status == 0, err
    rows, again = (
        json.loads((folder / "tuning.json").read_text())["rows"] for folder in (whole, cut)
    )
    assert rows == again


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--reward", "beauty"), "FILE.py:NAME"),
        (("--reward", "class:3"), "--classifier FILE"),
        (("--method", "best"), "nft"),
        (("--set.bta", 1), "did you mean 'beta'?"),
        (("--set.beta", "much"), "valid number"),
        (("--method", "backprop", "--set.output", 0), "an anchor"),
        (("--run.setps", 3), "did you mean '--run.steps'?"),
    ],
)
def test_mistakes_are_one_line(call, runs, tmp_path, arguments, said) -> None:
    status, _, err = call("tune", runs / "map", *FEW, *arguments, "--out", tmp_path / "x")
    assert (status, said in err) == (2, True), err


def test_models_of_velocities_and_missing_runs(call, runs, tmp_path) -> None:
    status, _, err = call("tune", runs / "teacher", "--method", "tilt", "--out", tmp_path / "x")
    assert (status, "model of velocities" in err) == (2, True)
    walk = ("--set.diagonal", 1, "--set.ends", 0, "--set.jumps", 2, "--run.steps", 1, *FEW)
    status, _, err = call("tune", runs / "teacher", *walk, "--out", tmp_path / "walk")
    assert status == 0, err
    assert json.loads((tmp_path / "walk" / "tuning.json").read_text())["jumps"] == [8, 16, 32]
    status, _, err = call("tune", "--reward", "brightness")
    assert (status, "tune which model" in err) == (2, True)
    status, _, err = call("tune", "--resume", tmp_path)
    assert (status, "not the folder of a run" in err) == (2, True)
