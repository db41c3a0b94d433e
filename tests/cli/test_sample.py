"""`flowmaps sample`: same seed, same bytes; sample i depends on the seed and on i only."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file


def draw(call, runs, tmp_path, name, *arguments, run="map"):
    out = tmp_path / name
    status, _, err = call("sample", runs / run, "--out", out, *arguments)
    assert status == 0, err
    return out


@pytest.mark.parametrize("suffix", ["npy", "png", "safetensors"])
def test_same_seed_same_bytes(call, runs, tmp_path, suffix) -> None:
    first, second, other = (
        draw(call, runs, tmp_path, f"{i}.{suffix}", "-n", 12, "--seed", seed).read_bytes()
        for i, seed in enumerate((5, 5, 6))
    )
    assert first == second
    assert first != other


@pytest.mark.parametrize("way", [(), ("--steps", 3, "--grid", "karras"), ("--solver", "dopri5")])
def test_few_samples_are_the_first_of_many(call, runs, tmp_path, way) -> None:
    few = np.load(draw(call, runs, tmp_path, "few.npy", "-n", 7, "--batch", 16, *way))
    many = np.load(draw(call, runs, tmp_path, "many.npy", "-n", 37, "--batch", 16, *way))
    assert few.shape == (7, 1, 8, 8)
    assert few.dtype == np.float32
    np.testing.assert_array_equal(few, many[:7])


def test_noise_does_not_depend_on_the_batch(runs) -> None:
    from flowmaps.cli.draw import open_model

    model = open_model(runs / "map")
    whole = model.noise(3, 0, 11)
    parts = torch.cat([model.noise(3, 0, 4), model.noise(3, 4, 11)])
    torch.testing.assert_close(whole, parts, rtol=0, atol=0)
    assert (
        abs(float(model.noise(0, 0, 2000).std()) - 1) < 0.01
    )  # 8 standard errors of 128,000 draws


def test_classes_come_in_turn_or_as_asked(call, runs, tmp_path) -> None:
    in_turn = load_file(draw(call, runs, tmp_path, "a.safetensors", "-n", 13))
    assert in_turn["labels"].tolist() == [i % 10 for i in range(13)]
    only = load_file(draw(call, runs, tmp_path, "b.safetensors", "-n", 13, "--class", "3"))
    assert only["labels"].tolist() == [3] * 13
    same = only["samples"][3] == in_turn["samples"][3]
    assert bool(same.all())


def test_an_unknown_class_names_those_there_are(call, runs) -> None:
    status, _, err = call("sample", runs / "map", "--class", "12")
    assert status == 2
    assert "no class is called '12'" in err
    assert "there are 0, 1, 2" in err


def test_a_class_per_column(call, runs, tmp_path) -> None:
    with Image.open(draw(call, runs, tmp_path, "grid.png", "-n", 20)) as grid:
        assert grid.width > 4 * grid.height


def test_a_solver_walks_and_a_velocity_model_is_told_to(call, runs, tmp_path) -> None:
    out = tmp_path / "x.npy"
    status, said, err = call(
        *("sample", runs / "teacher", "--solver", "heun", "--steps", 4, "-n", 3),
        *("--out", out, "--json"),
    )
    assert status == 0
    found = json.loads(said)
    assert (found["nfe"], found["sampler"], found["n"]) == (8, "4 heun steps", 3)
    assert err == ""
    assert "cannot jump" in call("sample", runs / "teacher", "--out", out)[2]


def test_weights_are_chosen(call, runs, tmp_path) -> None:
    kinds = [
        draw(call, runs, tmp_path, f"{ema}.npy", "--ema", ema).read_bytes()
        for ema in ("0", "2", "raw")
    ]
    assert len(set(kinds)) == 3
    status, _, err = call("sample", runs / "map", "--ema", 7)
    assert (status, "no moving average number 7" in err) == (2, True)


def test_guidance_scale(call, runs, tmp_path) -> None:
    status, _, err = call("sample", runs / "map", "--scale", 2)
    assert status == 2
    assert "--guidance.max-scale" in err
    out = tmp_path / "guided"
    tiny = ("--net", "mlp-tiny", "--run.batch", 64, "--run.precision", "fp32")
    arguments = ["--guidance.max-scale", 4, "--run.steps", 12, "--run.lr", 0.01, "--out", out]
    assert call("train", "mean_flow", *tiny, *arguments)[0] == 0
    first = draw(call, tmp_path, tmp_path, "one.npy", "--scale", 1, run="guided").read_bytes()
    other = draw(call, tmp_path, tmp_path, "three.npy", "--scale", 3, run="guided").read_bytes()
    plain = draw(call, tmp_path, tmp_path, "none.npy", run="guided").read_bytes()
    assert first == plain
    assert first != other


def test_guidance_away_from_a_weaker_model(call, runs, tmp_path) -> None:
    walk = ("--solver", "euler", "--steps", 5, "-n", 3, "--json")
    guide = ("--scale", 2, "--autoguide", runs / "teacher")
    files, calls = {}, {}
    for name, more in {"off": (), "all": guide, "part": (*guide, "--interval", 0.3, 0.7)}.items():
        out = tmp_path / f"{name}.npy"
        status, said, err = call("sample", runs / "map", *walk, *more, "--out", out)
        assert (status, err) == (0, "")
        files[name], calls[name] = out.read_bytes(), json.loads(said)["nfe"]
    assert len(set(files.values())) == 3
    assert calls == {
        "off": 5,
        "all": 10,
        "part": 7,
    }  # of the times 1, .8, .6, .4, .2 two lie inside
    for words, sentence in (
        (("--scale", 2, "--autoguide", runs / "teacher"), "not jumps"),
        (("--autoguide", runs / "teacher"), "give --scale"),
        ((*walk, *guide, "--interval", 0.7, 0.3), "LOW < HIGH"),
    ):
        status, _, err = call("sample", runs / "map", *words)
        assert (status, sentence in err) == (2, True), err
