"""Means over seeds, the order of the ranking, and a page from results that are partly missing."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from flowmaps.errors import CheckpointError
from flowmaps.report.arena import (
    HEAD,
    Mean,
    arena_table,
    cells,
    contestants,
    curves_figure,
    leading,
    ranking_figure,
    standing,
    standings,
    steps_figure,
)
from flowmaps.report.arena_page import lead, samples, write
from flowmaps.report.style import png_bytes
from flowmaps.train.arena import TEACHER, Terms

CURVE = {"step": [5, 10], "median": [1.0, 0.5], "max": [2.0, 0.9]}


def a_run(
    label: str, seed: int, *values: float, name: str = "frechet", **change: Any
) -> dict[str, Any]:
    """A result whose scores at 1, 2, ... calls are `values`."""
    rows = [
        {"sampler": "jump", "steps": k, "nfe": k, "scores": {name: value, "other": 7.0}}
        for k, value in zip((1, 2, 4, 8), values, strict=False)
    ]
    run = {
        **{"label": label, "recipe": label, "set": {}, "seed": seed, "value": "Recipe()"},
        **{"taught": False, "local": False, "cost": 4.0, "status": "done", "rows": rows},
        **{"done": 10, "seconds": 2.0, "step_seconds": 0.2},
        "stability": {"loss_spikes": seed, "norm_spikes": 0, "norm_median": 2.0, "norm_max": 8.0},
        "curve": {"loss": CURVE, "norm": CURVE},
    }
    return run | change


def a_failure(label: str, seed: int) -> dict[str, Any]:
    nothing = {"rows": [], "stability": None, "curve": None, "step_seconds": None, "done": 1}
    return a_run(label, seed) | nothing | {"status": "failed", "error": "TrainingError: not finite"}


def test_means_and_standard_errors() -> None:
    one = standing([a_run("lsd", seed, value, 2.0) for seed, value in enumerate((1.0, 2.0, 6.0))])
    mean = one.score("frechet", 1)
    assert mean is not None
    # 1, 2, 6: variance ((-2)^2 + 1 + 3^2) / 2 = 7
    assert mean == pytest.approx((3.0, math.sqrt(7 / 3)))
    assert one.score("frechet", 2) == Mean(2.0, 0.0)
    assert one.score("frechet", 8) is None
    assert one.loss_spikes == 1.0
    assert one.peak == 4.0
    assert str(Mean(0.12345, 0.0176)) == "0.123 ± 0.02"
    assert str(Mean(0.12345, math.nan)) == "0.123"


def test_failed_seeds_are_left_out_of_means_and_said() -> None:
    one = standing([a_run("tvm", 0, 3.0), a_failure("tvm", 1), a_run("tvm", 2, 5.0)])
    assert one.score("frechet", 1) == Mean(4.0, 1.0)
    assert one.errors == ("seed 1: TrainingError: not finite",)
    assert cells(one, "frechet")[-1] == "3, 1 failed"
    assert one.to_json()["failed"] == list(one.errors)


def test_samples_that_are_not_finite_have_no_mean() -> None:
    nothing = [{"sampler": "jump", "steps": 1, "nfe": 1, "scores": None}]
    bad = a_run("tvm", 1) | {"rows": nothing, "status": "failed", "error": "not finite"}
    assert standing([a_run("tvm", 0, 3.0), bad]).score("frechet", 1) == pytest.approx(
        (3.0, math.nan), nan_ok=True
    )
    assert standing([bad]).scores == {}


def test_the_ranking_puts_the_best_first_and_failures_last() -> None:
    runs = [a_failure("bad", 0), a_run("b", 0, 2.0), a_run("a", 0, 1.0), a_run(TEACHER, 0, 9.0)]
    assert [one.label for one in standings(runs)] == ["a", "b", TEACHER, "bad"]
    assert [one.label for one in contestants(standings(runs))] == ["a", "b", "bad"]
    more = [a_run("a", 0, 0.1, name="accuracy"), a_run("b", 0, 0.9, name="accuracy")]
    assert [one.label for one in standings(more)] == ["b", "a"]
    assert leading(standings(more)) == "accuracy"


def test_the_table_has_a_cell_under_every_head() -> None:
    found = standings([a_run("a", 0, 1.0, 2.0, 3.0, 4.0), a_failure("bad", 0)])
    assert all(len(cells(one, "frechet")) == len(HEAD) for one in found)
    table = arena_table(found)
    assert table.row_count == 2
    assert cells(found[0], "frechet")[2:7] == ["1", "2", "3", "4", ""]


def test_pictures_of_one_recipe_and_of_many() -> None:
    for count in (1, 8):
        runs = [a_run(f"r{i}", seed, i + 1.0, 0.5) for i in range(count) for seed in range(2)]
        found = standings(runs)
        for figure in (ranking_figure(found), steps_figure(found)):
            assert png_bytes(figure).startswith(b"\x89PNG")
        drawn = curves_figure(runs, "loss", [one.label for one in found])
        assert sum(bool(axes.lines) for axes in drawn.axes) == count


def test_losses_below_zero_get_a_linear_scale() -> None:
    below = {"step": [1, 2], "median": [0.5, -0.3], "max": [1e6, -0.1]}
    run = a_run("lsd", 0, 1.0, curve={"loss": below, "norm": CURVE})
    (axes,) = curves_figure([run], "loss", ["lsd"]).axes
    assert axes.get_yscale() == "linear"
    (axes,) = curves_figure([run], "norm", ["lsd"]).axes
    assert axes.get_yscale() == "log"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """An arena of pictures with a recipe that failed in one seed and another that failed in all."""
    terms = Terms(budget=1.0, number=10)  # pyright: ignore
    (tmp_path / "settings.json").write_text(terms.model_dump_json())
    runs = [a_run("lsd", s, 1.0 + s, 0.8, 0.5, 0.4) for s in (0, 1)]
    runs += [a_run("emd", s, 3.0, 2.0, 0.1, 0.1, taught=True) for s in (0, 1)]
    runs += [a_run(TEACHER, 0, 9.0, 8.0, 7.0, 6.0), a_failure("emd", 2), a_failure("bad", 0)]
    for run in runs:
        place = tmp_path / "runs" / f"{run['label']}-{run['seed']}"
        place.mkdir(parents=True)
        (place / "result.json").write_text(json.dumps(run))
        if run["status"] == "done":
            x = torch.full((10, 1, 8, 8), 0.1 * run["seed"])
            save_file({"jump.1": x, "jump.4": x + 0.1}, place / "samples.safetensors")
    (tmp_path / "runs" / "half-0").mkdir()  # interrupted
    return tmp_path


def test_the_page_says_what_was_found(folder: Path) -> None:
    facts = {"machine": {"cores": 2}, "versions": {"torch": "2"}, "real": {"frechet": 0.01}}
    page, report, _ = write(folder, facts, torch.zeros(20, 1, 8, 8))
    text = page.read_text()
    for name in ("ranking", "steps", "samples_1", "samples_4", "loss", "norm"):
        assert (folder / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    assert text.count("data:image/png;base64,") == 6
    assert "bad, seed 0: TrainingError: not finite" in text
    assert "emd, seed 2" in text
    assert (
        "With one network call, lsd has the best frechet: 1.5 ± 0.5. With four it is emd: 0.1"
        in text
    )
    assert [row["label"] for row in report["rows"]] == ["lsd", "emd", TEACHER, "bad"]
    assert json.loads((folder / "arena.json").read_text()) == report
    one = report["rows"][0]["scores"][0]
    assert one == {"sampler": "jump", "steps": 1, "frechet": [1.5, 0.5], "other": [7.0, 0.0]}


def test_samples_are_of_the_first_seed_that_has_some(folder: Path) -> None:
    from flowmaps.train.arena import results

    found = samples(results(folder), ["lsd", "bad", "emd"], "jump.1")
    assert list(found) == ["lsd", "emd"]
    assert float(found["lsd"].max()) == 0


def test_an_arena_without_results_is_refused(tmp_path: Path) -> None:
    (tmp_path / "settings.json").write_text(Terms(budget=1.0).model_dump_json())  # pyright: ignore
    with pytest.raises(CheckpointError, match="no run of the arena"):
        write(tmp_path, {}, torch.zeros(4, 2))


def test_when_everything_failed_the_page_still_says_so() -> None:
    found = standings([a_failure("bad", 0)])
    assert lead(Terms(budget=1.0), found).endswith("None of them finished.")  # pyright: ignore
