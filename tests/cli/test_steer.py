"""`flowmaps steer`: before and after in a picture, the cost and the verdict beside it; mistakes are one line."""

import json

import pytest
from PIL import Image

METHODS = ("tempered", "chain", "smc", "fmtt", "lean", "guide", "noise", "best", "search")
FEW = ("-n", 4, "--particles", 12, "--steps", 3, "--of", 4)


@pytest.mark.parametrize("method", METHODS)
def test_every_method_leaves_a_picture_and_its_numbers(call, runs, tmp_path, method) -> None:
    out = tmp_path / "steer.png"
    more = ("--method", method, "--out", out, *FEW, "--json")
    status, said, err = call("steer", runs / "map", "--reward", "symmetry", *more)
    assert status == 0, err
    report = json.loads(said)
    assert report == json.loads(out.with_suffix(".json").read_text())
    assert report["after"] > report["before"]
    assert report["cost"]["forward"] >= 4
    assert (report["cost"]["backward"] > 0) == (method in ("fmtt", "lean", "guide", "noise"))
    assert ("log_z" in report) == (method in ("tempered", "smc", "fmtt"))
    with Image.open(out) as picture:
        assert min(picture.size) > 100
        assert len(picture.convert("L").getcolors()) > 20


def test_a_reward_of_ones_own(call, runs, tmp_path) -> None:
    mine = tmp_path / "mine.py"
    mine.write_text(
        "def left(x):\n    return x[..., :4].mean((1, 2, 3))\n\ndef bad(x):\n    return x.mean()\n"
    )
    out = ("--out", tmp_path / "a.png", *FEW)
    status, said, err = call("steer", runs / "map", "--reward", f"{mine}:left", *out)
    assert (status, "left by tempered" in said) == (0, True), err
    status, _, err = call("steer", runs / "map", "--reward", f"{mine}:bad", *out)
    assert (status, "reduce every axis but the first" in err) == (2, True)
    status, _, err = call("steer", runs / "map", "--reward", f"{mine}:gone", *out)
    assert (status, "no function 'gone'" in err) == (2, True)


def test_a_class_by_a_classifier(call, runs, tmp_path) -> None:
    from flowmaps.metrics import Classifier, save_classifier

    save_classifier(tmp_path / "c.safetensors", Classifier(1, 10))
    more = ("--classifier", tmp_path / "c.safetensors", "--out", tmp_path / "a.png", *FEW)
    assert call("steer", runs / "map", "--reward", "class", "--to", 3, *more)[0] == 0
    status, _, err = call("steer", runs / "map", "--reward", "class", "--to", "x", *more)
    assert (status, "no class is called 'x'" in err) == (2, True)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--reward", "beauty"), "FILE.py:NAME"),
        (("--reward", "class"), "--classifier"),
        (("--reward", "nowhere.py:f"), "no file nowhere.py"),
        (("--strength", 0), "--strength above 0"),
        (("--out", "x.npy"), "ends in .png"),
    ],
)
def test_mistakes_are_one_line(call, runs, tmp_path, arguments, said) -> None:
    out = () if "--out" in arguments else ("--out", tmp_path / "x.png")
    status, _, err = call("steer", runs / "map", *FEW, *arguments, *out)
    assert (status, said in err, err.count("\n")) == (2, True, 1), err
