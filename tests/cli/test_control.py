"""`flowmaps invert`, `edit`, `restore`, `likelihood`: a picture that is not empty, and the numbers beside it."""

import json

import pytest
from PIL import Image

COMMANDS = {
    "invert": ("-n", 4, "--steps", 2),
    "invert-ode": ("-n", 4, "--method", "ode", "--steps", 3, "--back", 1),
    "invert-corrected": ("-n", 4, "--method", "corrected"),
    "invert-bdia": ("-n", 4, "--method", "bdia", "--steps", 3),
    "invert-fixed": ("-n", 3, "--method", "fixed", "--class", 2),
    "edit": ("-n", 3, "--to", 3, "--times", "0.3,1"),
    "edit-noised": ("-n", 3, "--to", 3, "--times", "0.5", "--noised", "--class", 5),
    "edit-between": ("-n", 2, "--between", "--frames", 4),
    "restore": ("-n", 3, "--draws", 2, "--steps", 2),
    "restore-shrink": (
        "-n",
        2,
        "--damage",
        "shrink",
        "--method",
        "plug",
        "--draws",
        3,
        "--steps",
        3,
    ),
    "restore-blur": ("-n", 2, "--damage", "blur", "--by", 0.8, "--method", "map", "--steps", 2),
    "restore-chain": ("-n", 2, "--damage", "box", "--method", "chain", "--draws", 2, "--steps", 5),
    "restore-noise": ("-n", 2, "--damage", "noise", "--method", "denoise", "--steps", 2),
    "likelihood": ("-n", 4, "--steps", 2, "--probes", 1),
    "likelihood-jumps": ("-n", 4, "--method", "jumps"),
}


@pytest.mark.parametrize("name", COMMANDS)
def test_a_picture_and_its_numbers(call, runs, tmp_path, name) -> None:
    out = tmp_path / "shown.png"
    command = name.partition("-")[0]
    status, said, err = call(command, runs / "map", "--out", out, *COMMANDS[name], "--json")
    assert status == 0, err
    report = json.loads(said)
    assert report == json.loads(out.with_suffix(".json").read_text())
    assert report["n"] == COMMANDS[name][1]
    with Image.open(out) as picture:
        assert min(picture.size) > 100
        assert len(picture.convert("L").getcolors()) > 20
    if command == "restore":
        assert set(report["coverage"]) == {"68", "95"}
    if command == "likelihood":
        assert report["levels_per_unit"] == 8
        assert set(report["bits_per_dim"]) == {"real data", "samples", "noise"}


@pytest.mark.parametrize("method", ["vfm", "cosign"])
def test_a_restorer_is_learned_once_and_opened_again(call, runs, tmp_path, method) -> None:
    out, prior = tmp_path / "shown.png", tmp_path / "prior"
    wanted = ("restore", runs / "map", "--method", method, "--prior", prior, "--out", out, "--json")
    wanted = (*wanted, "-n", 2, "--draws", 2)
    learn = ("--learn", "--net", "mlp-tiny", "--run.batch", 16, "--run.steps", 3)
    status, first, err = call(*wanted, *learn)
    assert status == 0, err
    assert json.loads(first)["cost"]["forward"] == 2 * 2 * 2
    status, again, err = call(*wanted)
    assert status == 0, err
    numbers = [json.loads(said) | {"cost": None} for said in (first, again)]
    assert numbers[0] == numbers[1]
    status, _, err = call(*wanted, "--sigma", 0.2)
    assert status == 2
    assert "learned" in err
    assert "0.05" in err
    status, _, err = call(*wanted[:4])
    assert status == 2
    assert "--prior" in err


def test_the_same_seed_gives_the_same_picture(call, runs, tmp_path) -> None:
    found = []
    for i in range(2):
        out = tmp_path / f"{i}.png"
        assert (
            call("restore", runs / "map", "--out", out, "-n", 2, "--draws", 2, "--steps", 2)[0] == 0
        )
        found.append(out.read_bytes())
    assert found[0] == found[1]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("invert", "map", "-n", 1), "-n is at least 2"),
        (("invert", "map", "--out", "x.npy"), "ends in .png"),
        (("invert", "map", "-n", 4000), "fewer than -n"),
        (("edit", "map"), "--to CLASS"),
        (("edit", "map", "--to", 3, "--times", "0.2,2"), "numbers in (0, 1]"),
        (("restore", "map", "--sigma", 0), "--sigma above 0"),
        (("restore", "map", "--damage", "shrink", "--by", 3), "squares of side 3"),
        (("restore", "map", "--method", "denoise"), "identity"),
        (("likelihood", "map", "--method", "jumps", "--probes", 2), "belongs to --method ode"),
    ],
)
def test_mistakes_are_one_line(call, runs, tmp_path, arguments, said) -> None:
    command, run, *more = arguments
    out = () if "--out" in more else ("--out", tmp_path / "x.png")
    status, _, err = call(command, runs / run, *more, *out)
    assert (status, said in err, err.count("\n")) == (2, True, 1), err
