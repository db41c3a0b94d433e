"""A model that reads prompts, trained for three steps: `sample --prompt`, `evaluate`, `compare`, and what is refused."""

import json

import numpy as np
import pytest
from PIL import Image
from safetensors.torch import load_file

NET = ["--net", "dit-tiny", "--patch", "16", "--run.batch", "16", "--run.precision", "fp32"]


@pytest.fixture(scope="module")
def prompted(tmp_path_factory):
    from flowmaps.cli.main import main

    out = tmp_path_factory.mktemp("prompted")
    for name, options in (("map", ["--run.lr", "0.05"]), ("guided", ["--guidance.max-scale", "3"])):
        guidance = [*options, "--guidance.dropout", "0.2"]
        run = ["--run.steps", "3", "--run.warmup", "0", "--run.preview-every", "3"]
        recipe = ["train", "default", "--data", "shapes", *NET, *run, *guidance]
        assert main([*recipe, "--out", str(out / name)]) == 0
    return out


def drawn(call, run, out, *options):
    status, _, err = call("sample", run, "--out", out, "--batch", 8, *options)
    assert status == 0, err
    return (np.load(out) if out.suffix == ".npy" else out), err


def test_a_checkpoint_remembers_how_to_read_and_some_captions(prompted) -> None:
    about = json.loads(next((prompted / "map").glob("checkpoints/*/about.json")).read_text())[
        "data"
    ]
    assert about["text"] == {"kind": "words", "length": 28, "letters": 12}
    assert about["conditions"] == ["text"]
    assert len(about["examples"]) == 12
    assert list((prompted / "map" / "previews").iterdir())


def test_prompts_matter_and_noises_are_shared(call, prompted, tmp_path) -> None:
    run = prompted / "map"
    red, _ = drawn(call, run, tmp_path / "a.npy", "--prompt", "a red circle", "-n", 3)
    blue, _ = drawn(call, run, tmp_path / "b.npy", "--prompt", "a blue square on the left", "-n", 3)
    assert red.shape == (3, 3, 32, 32)
    assert np.abs(red - blue).max() > 1e-3
    lines = tmp_path / "lines.txt"
    lines.write_text("a blue square on the left\n\n  a red circle \n红色圆圈 😀\n")
    every, _ = drawn(call, run, tmp_path / "c.npy", "--prompts", lines, "-n", 3)
    assert every.shape == (9, 3, 32, 32)
    np.testing.assert_allclose(every[:3], blue, atol=1e-5)
    np.testing.assert_allclose(every[3:6], red, atol=1e-5)
    unasked, _ = drawn(call, run, tmp_path / "d.npy", "-n", 3)
    assert np.abs(unasked[0] - unasked[1]).max() > 1e-3
    grid, _ = drawn(call, run, tmp_path / "e.png", "--prompts", lines)
    with Image.open(grid) as picture:
        assert picture.size == (340 + 8 * 98 - 2, 3 * 98 - 2)
    status, said, _ = call(
        "sample", run, "--prompt", "x", "-n", 2, "--out", tmp_path / "f.safetensors", "--json"
    )
    assert (status, json.loads(said)["prompts"]) == (0, ["x"])
    assert list(load_file(tmp_path / "f.safetensors")) == ["samples"]


def test_odd_prompts(call, prompted, tmp_path) -> None:
    run, out = prompted / "map", tmp_path / "x.npy"
    long, said = drawn(call, run, out, "--prompt", "red circle " * 910, "-n", 1)
    assert "a prompt has 1,820 words or signs; the first 28 are read" in said
    short, said = drawn(call, run, out, "--prompt", "red circle " * 14, "-n", 1)
    assert said == ""
    np.testing.assert_array_equal(long, short)
    empty, said = drawn(call, run, out, "--prompt", "", "-n", 1)
    assert said == ""
    assert np.abs(empty - short).max() > 1e-3


def test_negative_prompts_belong_to_walks(call, prompted, tmp_path) -> None:
    walk = ("--solver", "euler", "--steps", 3, "-n", 2, "--prompt", "a red box", "--scale", 2)
    run, out = prompted / "map", tmp_path / "x.npy"
    plain, _ = drawn(call, run, out, *walk)
    empty, _ = drawn(call, run, out, *walk, "--negative", "")
    away, _ = drawn(call, run, out, *walk, "--negative", "a blue circle")
    np.testing.assert_array_equal(plain, empty)
    assert np.abs(plain - away).max() > 1e-4
    itself, _ = drawn(call, run, out, *walk, "--negative", "a red box")
    unguided, _ = drawn(call, run, out, *walk[:-2])
    np.testing.assert_allclose(itself, unguided, atol=1e-5)
    guided, _ = drawn(call, prompted / "guided", out, *walk, "--negative", "a blue circle")
    assert guided.shape == (2, 3, 32, 32)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--prompt", "x", "--class", 3), "not both"),
        (("--class", 3), "leave out --class"),
        (("--prompt", "x", "--prompts", "y"), "not both"),
        (("--prompts", "nothing.txt"), "--prompts is a text file"),
        (("--negative", "x"), "give --scale too"),
        (("--negative", "x", "--scale", 2), "walk a model that was trained with dropped captions"),
    ],
)
def test_what_is_refused(call, prompted, options, said) -> None:
    for run in ("map", "guided") if "--scale" in options else ("map",):
        status, _, err = call("sample", prompted / run, *options)
        assert (status, err.count("\n")) == (2, 1)
        assert said in err


def test_empty_files_and_models_without_captions(call, prompted, runs, tmp_path) -> None:
    (tmp_path / "none.txt").write_text("\n \n")
    assert "has none" in call("sample", prompted / "map", "--prompts", tmp_path / "none.txt")[2]
    (tmp_path / "none.txt").write_bytes(b"\xff\xfe\x00")
    assert "in UTF-8" in call("sample", prompted / "map", "--prompts", tmp_path / "none.txt")[2]
    assert "trained without captions" in call("sample", runs / "map", "--prompt", "3")[2]
    status, _, err = call(
        "train", "default", "--data", "shapes", "--net", "mlp-tiny", "--out", tmp_path / "m"
    )
    assert (status, "reads no text" in err) == (2, True)
    status, _, err = call("train", "default", "--text", "some/model", "--out", tmp_path / "n")
    assert (status, "expected captions" in err) == (2, True)


def test_adherence_is_a_score(call, prompted, tmp_path) -> None:
    status, said, err = call(
        "evaluate", prompted / "map", "-n", 20, "--data", "shapes:held-out", "--json"
    )
    assert status == 0, err
    scores = json.loads(said)["scores"]
    assert {"adherence", "shape", "colour", "size", "place", "number", "all"} == set(scores)
    assert all(0 <= value <= 1 for value in scores.values())
    status, said, err = call(
        *("compare", prompted / "map", "-n", 10, "--steps", "1,2", "--json", "--out", tmp_path)
    )
    assert status == 0, err
    assert {"adherence", "seconds"} < set(json.loads(said)[0])
