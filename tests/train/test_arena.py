"""Equal terms: budgets, teachers, what is kept and what is trained anew."""

import dataclasses
import json
import math
from pathlib import Path

import pytest
import torch
from torch import Tensor

from flowmaps import recipes
from flowmaps.errors import CheckpointError, RecipeError
from flowmaps.learn.cost import fpe
from flowmaps.train import arena as arena_module
from flowmaps.train.arena import (
    STEPS,
    TEACHER,
    Arena,
    Entry,
    Terms,
    claim,
    refuse_twins,
    results,
)
from flowmaps.train.curves import spikes, thinned

TERMS = Terms(data="toy:mixture", net="mlp-tiny", budget=0.005, batch=32, number=60)  # pyright: ignore


def mean_square(x: Tensor) -> dict[str, float]:
    return {"square": float(x.square().mean())}


def an_arena(out: Path, **change: object) -> Arena:
    return Arena(out, TERMS.model_copy(update=change), mean_square)


@pytest.mark.parametrize(
    "name", ["flow_matching", "mean_flow", "lsd", "emd", "progressive_distillation"]
)
@pytest.mark.parametrize("start", ["scratch", "teacher"])
def test_every_recipe_spends_the_same_compute(tmp_path: Path, name: str, start: str) -> None:
    """Steps x batch x cost, with the teacher's part for those that have one, is the budget to half a step."""
    arena = an_arena(tmp_path, budget=3.0, teacher_share=0.3, start=start)
    teacher, entry = Entry("flow_matching", {}, TEACHER), Entry(name)

    def spent(one: Entry) -> float:
        return arena.config(one, 1).run.steps * 32 * fpe(one.value) / 1e6

    taught = start == "teacher" or entry.value.needs_teacher
    config = arena.config(entry, 1)
    assert (config.init is not None) == (taught and not entry.value.needs_teacher)
    assert (config.teacher is not None) == entry.value.needs_teacher
    assert arena.config(teacher, 1).init is None
    assert spent(teacher) == pytest.approx(0.9, abs=32 * 3 / 2e6)
    total = spent(entry) + spent(teacher) * taught
    assert total == pytest.approx(3.0, abs=32 * (fpe(entry.value) + 3) / 2e6)


def test_seconds_are_shared_in_the_same_way(tmp_path: Path) -> None:
    arena = an_arena(tmp_path, budget=None, seconds=10.0, teacher_share=0.3)
    seconds = [arena.config(one, 0).run.seconds for one in (Entry("emd"), Entry("mean_flow"))]
    assert seconds == [7.0, 10.0]
    assert arena.config(Entry("flow_matching", {}, TEACHER), 0).run.seconds == 3.0


def test_finished_runs_stay_and_the_rest_is_trained(tmp_path: Path) -> None:
    entries = [Entry("flow_matching"), Entry("emd"), Entry("mean_flow", {"diagonal": 0.75})]
    first = list(an_arena(tmp_path).run(entries[:2], 1))
    assert [run["label"] for run in first] == [TEACHER, "flow_matching", "emd"]
    assert all(run["status"] == "done" for run in first)
    before = {file: file.stat().st_mtime_ns for file in tmp_path.rglob("result.json")}
    again = list(an_arena(tmp_path).run(entries, 2))
    assert [run["changed"] for run in again[:3]] == [False] * 3
    assert [run["seed"] for run in again] == [0] * 4 + [1] * 4
    assert again[3]["label"] == "mean_flow:diagonal=0.75"
    assert {file: file.stat().st_mtime_ns for file in before} == before
    assert len(results(tmp_path)) == 8
    # only teachers keep their weights
    assert len(list(tmp_path.rglob("state.safetensors"))) == 2


def test_what_a_run_says(tmp_path: Path) -> None:
    (found,) = an_arena(tmp_path).run([Entry("flow_matching")], 1)
    assert found["done"] == round(0.005e6 / 3 / 32)
    ways = [(row["sampler"], row["steps"], row["nfe"]) for row in found["rows"]]
    assert ways == [("jump", k, k) for k in STEPS] + [("heun", 64, 128)]
    assert all(row["scores"]["square"] > 0 for row in found["rows"])
    assert found["curve"]["loss"]["step"][-1] == found["done"]
    stored = json.loads((tmp_path / "runs" / "flow_matching-0" / "result.json").read_text())
    assert stored == found


def test_a_repeated_run_is_the_same_run(tmp_path: Path) -> None:
    (one,), (two,) = (an_arena(tmp_path / n).run([Entry("mean_flow")], 1) for n in "ab")
    assert one["rows"] == two["rows"]
    assert one["curve"] == two["curve"]


def test_every_recipe_gets_the_same_noise(tmp_path: Path) -> None:
    """An untrained map that does not move keeps the noise; two paths of one scale start from the same."""
    kept: list[Tensor] = []

    def quality(x: Tensor) -> dict[str, float]:
        kept.append(x)
        return {"square": 1.0}

    terms = TERMS.model_copy(update={"budget": 1e-6, "lr": 1e-30})
    list(Arena(tmp_path, terms, quality).run([Entry("mean_flow"), Entry("lsd")], 1))
    torch.testing.assert_close(kept[0], kept[len(STEPS)])  # both networks start at zero velocity
    assert float(kept[0].std()) == pytest.approx(1, abs=0.15)


def test_a_failure_is_a_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = recipes.all_recipes()["mean_flow"]()

    @dataclasses.dataclass(frozen=True)
    class Broken:
        def __call__(self, error: Tensor, *_: object) -> Tensor:
            return error.flatten(1).sum(1) * math.nan

    broken = dataclasses.replace(real, terms=(dataclasses.replace(real.terms[0], metric=Broken()),))
    known = recipes.all_recipes() | {"mean_flow": lambda: broken}
    monkeypatch.setattr(recipes, "all_recipes", lambda: known)
    bad, good = an_arena(tmp_path).run([Entry("mean_flow"), Entry("flow_matching")], 1)
    assert (bad["status"], good["status"]) == ("failed", "done")
    assert "the loss is not finite at step 0" in bad["error"]
    assert bad["rows"] == []
    # the failure is remembered; when the recipe is mended it is trained anew if one asks for it
    monkeypatch.undo()
    kept, _ = an_arena(tmp_path).run([Entry("mean_flow"), Entry("flow_matching")], 1)
    assert (kept["status"], kept["changed"]) == ("failed", True)
    anew = Arena(tmp_path, TERMS, mean_square, again=True)
    mended, _ = anew.run([Entry("mean_flow"), Entry("flow_matching")], 1)
    assert mended["status"] == "done"


def test_infinite_samples_are_a_failure_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(arena_module, "generate", lambda flow_map, x, times, **c: x / 0)
    (found,) = an_arena(tmp_path).run([Entry("mean_flow")], 1)
    assert found["status"] == "failed"
    assert found["error"] == "samples are not finite with 1 network calls"


def test_a_full_disk_is_no_fault_of_a_recipe(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(arena_module, "train", full)
    with pytest.raises(OSError, match="No space left"):
        list(an_arena(tmp_path).run([Entry("mean_flow")], 1))
    assert results(tmp_path) == []


def test_other_terms_are_refused(tmp_path: Path) -> None:
    claim(tmp_path / "a", TERMS)
    claim(tmp_path / "a", TERMS)
    other = TERMS.model_copy(update={"lr": 0.5, "batch": 64})
    with pytest.raises(
        CheckpointError, match=r"batch 32 \(now 64\), lr 0.002 \(now 0.5\); give those"
    ):
        claim(tmp_path / "a", other)
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "thesis.tex").write_text("years of work")
    with pytest.raises(CheckpointError, match="not the folder of an arena"):
        claim(tmp_path / "b", TERMS)


def test_two_of_one_name_are_refused() -> None:
    refuse_twins([Entry("lmd"), Entry("lmd", {"skew": 1.8})])
    with pytest.raises(RecipeError, match="lmd is in the arena twice"):
        refuse_twins([Entry("lmd"), Entry("lmd")])


def test_spikes_are_counted_against_the_window_before() -> None:
    calm = [1.0 + 0.01 * (i % 7) for i in range(1000)]
    assert spikes(calm) == 0
    for at in (200, 512, 999):
        assert spikes([*calm[:at], 11.0, *calm[at + 1 :]]) == 1
    assert spikes([*calm[:100], 50.0, *calm[101:]]) == 0  # the first window is not judged
    assert spikes([-value for value in calm] + [11.0]) == 1  # losses below zero have a size too
    assert spikes([math.exp(-0.001 * i) for i in range(9000)]) == 0
    assert spikes(calm + [11.0] * 150) == 101  # a new level, until it is half of the window
    assert spikes([1.0] * 200) == 0


def test_thinned_curves_keep_their_maximum_and_their_end() -> None:
    values = [float(i % 50) for i in range(1003)]
    curve = thinned(values, 100)
    assert len(curve["step"]) == len(curve["median"]) == len(curve["max"]) == 100
    assert curve["step"][-1] == 1003
    assert max(curve["max"]) == 49
    assert thinned([3.0], 100) == {"step": [1], "median": [3.0], "max": [3.0]}


def test_stored_trajectories_are_paid_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arena_module, "PAIRS", 40)
    entry = Entry("cmt", {"stored": True})
    arena = an_arena(tmp_path, budget=0.02)
    spent = arena.config(entry, 0).run.steps * 32 * fpe(entry.value)
    assert spent == pytest.approx(0.01e6 - 40 * 64, abs=16 * fpe(entry.value))
    _, found = arena.run([entry], 1)
    assert found["status"] == "done", found.get("error")
    assert (found["taught"], found["copied"]) == (True, True)
    assert (tmp_path / "pairs" / "0" / "pairs.safetensors").exists()
    monkeypatch.setattr(arena_module, "PAIRS", 5000)
    with pytest.raises(RecipeError, match=r"5,000 stored trajectories cost 0\.32 million"):
        arena.config(entry, 0)


def test_weights_are_copied_where_they_mean_the_same(tmp_path: Path) -> None:
    names = ["emd", "consistency_distillation", "consistency_training", "mean_flow"]
    entries = [Entry(name) for name in names]
    arena = an_arena(tmp_path, start="teacher")
    taught = [arena.taught(entry) for entry in entries]
    assert taught == [True, True, False, True]
    found = list(arena.run(entries, 1))[1:]
    assert [run.get("error") for run in found] == [None] * 4
    assert [run["copied"] for run in found] == [True, False, False, True]
