"""`flowmaps arena` from end to end, tiny: what it writes, and what it refuses."""

import importlib
import json
import shutil
import sys
from pathlib import Path

import pytest
import torch

from flowmaps.cli import arena
from flowmaps.cli.options import UsageError

TINY = ["--net", "mlp-tiny", "--budget", "0.005", "--batch", "32", "-n", "60", "--seeds", "1"]


@pytest.fixture(scope="module")
def plane(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from flowmaps.cli.main import main

    out = tmp_path_factory.mktemp("arena") / "plane"
    words = ["arena", "flow_matching", "emd", "lsd:diagonal=0.5", *TINY, "--data", "toy:moons"]
    assert main([*words, "--out", str(out)]) == 0
    return out


def test_it_writes_a_page_and_its_numbers(plane: Path) -> None:
    report = json.loads((plane / "arena.json").read_text())
    rows = {row["label"]: row for row in report["rows"]}
    assert set(rows) == {"flow_matching", "emd", "lsd:diagonal=0.5", "teacher"}
    assert rows["lsd:diagonal=0.5"]["set"] == {"diagonal": 0.5}
    assert rows["emd"]["taught"]
    assert report["score"] == "w2"
    # 60 points against 60 of the same law: measured 0.33 to 0.5
    assert 0.05 < report["real"]["w2"] < 1
    assert {"machine", "versions", "terms"} <= set(report)
    page = (plane / "arena.html").read_text()
    assert page.count("data:image/png;base64,") == 6
    assert "lsd:diagonal=0.5" in page


def test_the_same_command_again_trains_nothing(plane: Path, call) -> None:
    words = ["flow_matching", "emd", *TINY, "--data", "toy:moons", "--out", plane]
    before = {file: file.stat().st_mtime_ns for file in plane.rglob("result.json")}
    status, said, _ = call("arena", *words)
    assert status == 0
    assert said.splitlines()[-1] == str(plane / "arena.html")
    assert {file: file.stat().st_mtime_ns for file in plane.rglob("result.json")} == before
    status, _, err = call("arena", *words, "--lr", "0.1")
    assert status == 2
    assert "on other terms: lr 0.002 (now 0.1)" in err


def test_the_page_alone(plane: Path, call) -> None:
    (plane / "arena.html").unlink()
    status, said, _ = call("arena", "--out", plane, "--report", "--json")
    assert status == 0
    assert json.loads(said)["terms"]["data"] == "toy:moons"
    assert (plane / "arena.html").exists()


def test_the_page_which_recipe_when(plane: Path, tmp_path: Path, monkeypatch) -> None:
    """`tools/which_page.py` on this arena: every contestant in its kind, with its means and its paper."""
    tools = Path(__file__).parents[2] / "tools"
    monkeypatch.syspath_prepend(str(tools))
    which = importlib.import_module("which_page")
    assert "No arena is stored yet" in which.page(tmp_path)
    (tmp_path / "benchmarks").mkdir()
    shutil.copy(plane / "arena.json", tmp_path / "benchmarks" / "arena-plane.json")
    page = which.page(tmp_path)
    assert "## toy:moons, mlp-tiny, 0.005 million FPE x samples" in page
    assert "3 contestants" in page
    best = {line.split(" | ")[0]: line for line in page.splitlines() if line.startswith("| ")}
    assert "`emd`" in best["| with a teacher"]
    assert "`lsd:diagonal=0.5`" in best["| from data alone"]
    assert "| from data alone, without forward-mode derivatives" not in best
    assert "`flow_matching`" in best["| a local diffusion model"]
    assert "arXiv:2505.18825" in best["| `lsd:diagonal=0.5`"]
    w2 = json.loads((plane / "arena.json").read_text())["rows"]
    emd = next(row for row in w2 if row["label"] == "emd")["scores"][0]
    assert f" {emd['w2'][0]:.3g} " in best["| `emd`"]
    monkeypatch.delitem(sys.modules, "which_page")


def test_digits_are_scored_by_one_classifier_and_in_pixels(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from flowmaps.data import load
    from flowmaps.train.arena import Terms

    monkeypatch.setattr(arena, "CLASSIFIER_STEPS", 60)
    terms, data = Terms(budget=1.0, number=200), load("digits")  # pyright: ignore
    quality, real = arena.scores(tmp_path, terms, data, None)
    names = ["frechet", "accuracy", "frechet_pixels", "accuracy_pixels"]
    assert list(real) == names
    assert real["accuracy"] > 0.7
    x, labels = data.batch(torch.arange(200))
    assert list(quality(x)) == names
    assert quality(torch.randn(200, 1, 8, 8))["frechet"] > 3 * real["frechet"]
    # digits asked for in turn, and drawn so: 0, 1, 2, ... are the first ten of the data
    assert labels is not None
    order = torch.cat([(labels == k % 10).nonzero()[k // 10 % 2] for k in range(200)])
    assert quality(x[order])["accuracy_pixels"] > 0.9
    assert quality(x[order.flip(0)])["accuracy_pixels"] < 0.2
    stored = (tmp_path / "classifier.safetensors").read_bytes()
    arena.scores(tmp_path, terms, data, None)
    assert (tmp_path / "classifier.safetensors").read_bytes() == stored


def test_contestants_are_read() -> None:
    found = arena.entries(["lmd:through=target,skew=1.8", "lmd"])
    assert [entry.label for entry in found] == ["lmd:through=target,skew=1.8", "lmd"]
    assert found[0].set == {"through": "target", "skew": 1.8}
    assert len(arena.entries([])) >= 11


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["nonsense"], "no recipe is called 'nonsense'"),
        (["lmd:skew"], "RECIPE:key=value"),
        (["lmd:skwe=1"], "did you mean 'skew'"),
        (["lmd:skew=x"], "--set.skew"),
        (["lmd", "lmd"], "lmd is in the arena twice"),
        (["--net", "mlp-smal"], "did you mean 'mlp-small'"),
        (["--budget", "1", "--seconds", "2"], "not both"),
        (["--budget", "-1"], "--budget: input should be greater than 0"),
        (["--seeds", "0"], "--seeds is at least 1"),
        (["--report"], "no readable settings.json"),
    ],
)
def test_mistakes_are_one_line(call, tmp_path: Path, words: list[str], said: str) -> None:
    status, out, err = call("arena", *words, "--out", tmp_path / "none")
    assert (status, out) == (2, "")
    assert said in err
    assert not (tmp_path / "none" / "runs").exists()


def test_usage_errors_are_errors_of_usage() -> None:
    with pytest.raises(UsageError):
        arena.entries(["lmd:=1"])
