"""Every recipe that is found takes the exam; and the exam fails what it should.

`thresholds.json` holds, for every recipe, the steps of its training, the error measured when it was written and the
threshold, 25% above. False alarms: the stationarity check 1e-5 per recipe (see `contract.STANDARD_ERRORS`).
"""

import json
import re
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from flowmaps import recipes
from flowmaps.core.autodiff import along_source
from flowmaps.core.interpolant import linear, trig
from flowmaps.core.parametrization import Denoised, EDMTwoTime
from flowmaps.core.shape import like
from flowmaps.errors import RecipeError
from flowmaps.learn.guidance import Guidance
from flowmaps.learn.objective import Recipe, Term
from flowmaps.learn.rules import DiagonalRule, Eulerian
from flowmaps.learn.times import Diagonal, LogUniform, SortedPair, Uniform
from flowmaps.learn.weights import ClippedTime
from flowmaps.testing import worlds
from flowmaps.testing.contract import Report, exam, learn, stationarity

HERE = Path(__file__).parent
THRESHOLDS = json.loads((HERE / "thresholds.json").read_text())
KEYS = set(
    re.findall(
        r"@\w+\{([^,\s]+),", (Path(recipes.__file__).parents[1] / "references.bib").read_text()
    )
)
KNOWN = recipes.all_recipes()


def test_every_recipe_has_a_threshold() -> None:
    assert set(THRESHOLDS) == set(KNOWN)


@pytest.fixture(scope="session")
def reports() -> dict[str, Report]:
    return {}


@pytest.mark.parametrize("name", KNOWN)
def test_recipe_passes_the_exam(name, reports) -> None:
    stored = THRESHOLDS[name]
    report = exam(KNOWN[name], steps=stored["steps"])
    reports[name] = report
    assert not report.problems
    assert report.name == name
    assert report.error < stored["threshold"], report
    assert set(KNOWN[name]().cite) <= KEYS


def test_the_baseline_fails_every_one_step_threshold(reports) -> None:
    """One step of flow matching is no flow map: a threshold that it passed would ask for nothing."""
    report = reports.get("flow_matching") or exam(KNOWN["flow_matching"], steps=400)
    asked = [t["threshold"] for name, t in THRESHOLDS.items() if not KNOWN[name]().local]
    assert report.one_step > 1.4 * max(asked)


# Variants: arguments, paths, parametrizations and guidance leave the exact map stationary ------------------------------

VARIANTS = {
    "emd-target": lambda: recipes.get("emd", through="target", starts=0.2),
    "lmd-jvp": lambda: recipes.get("lmd", through="jvp"),
    "lmd-target": lambda: recipes.get("lmd", through="target"),
    "lmd-compose": lambda: recipes.get("lmd", compose=0.25, ends=0.2),
    "lmd-skew": lambda: recipes.get("lmd", through="target", skew=1.8, starts=0.2, ends=0.2),
    "emd-skew": lambda: recipes.get("emd", through="target", skew=1.8, starts=0.2, ends=0.2),
    "lsd-target": lambda: recipes.get("lsd", through="target", diagonal=0.5, compose=0.2),
    "psd-teacher": lambda: recipes.get("psd", anchor="teacher", channels=0, starts=0.3, ends=0.3),
    "psd-both-ways": lambda: recipes.get("psd", channels=0, both=True, back=0.2, ends=0.2),
    "psd-x0": lambda: recipes.get("psd", predict="x0", anchor="teacher", channels=0, starts=0.3),
    "push_forward-x0": lambda: recipes.get("push_forward", laws=0, predict="x0", leg=0.02),
    "psd-midpoint": lambda: recipes.get("psd", split="midpoint"),
    "mean_flow-trig": lambda: replace(
        recipes.get("mean_flow"), interpolant=trig(), parametrization=EDMTwoTime(trig(), 0.6)
    ),
    "lsd-x0": lambda: replace(
        recipes.get("lsd"), interpolant=trig(), parametrization=Denoised(trig())
    ),
}


@pytest.mark.parametrize("name", VARIANTS)
def test_variants_are_stationary_at_the_exact_map(name) -> None:
    assert stationarity(VARIANTS[name](), torch.Generator().manual_seed(1)) < 5


def test_shares_and_skew_move_the_times_where_they_say(gen) -> None:
    """5 standard errors, false alarms once in 10^6: shares of s = 1 and t = 0, and sources and targets apart."""
    n = 20_000
    s, _, t = recipes.get("lmd", starts=0.3, ends=0.2).terms[0].times(n, gen)
    assert abs((s == 1).float().mean() - 0.3) < 5 * (0.21 / n) ** 0.5
    assert abs((t == 0).float().mean() - 0.2) < 5 * (0.16 / n) ** 0.5
    law = recipes.get("lmd", skew=1.8).terms[0].times
    assert (law.law.mean, law.target.mean, law.law.std, law.target.std) == (0.9, -1.8, 1.6, 1.6)
    s, _, t = law(n, gen)
    assert s.mean() > 0.66  # 0.673; uniform pairs have 0.667 and 0.333
    assert t.mean() < 0.25
    # one law for the four that share it
    for name in ("emd", "lsd", "psd"):
        assert recipes.get(name, skew=1.8, starts=0.3, ends=0.2).terms[-1].times == replace(
            law, starts=0.3, ends=0.2
        )
    shares = [term.share for term in recipes.get("lsd", diagonal=0.5, compose=0.2).terms]
    assert shares == pytest.approx([0.5, 0.3, 0.2])
    assert recipes.get("psd", anchor="teacher", channels=0).needs_teacher


def test_psd_goes_both_ways_and_back(gen) -> None:
    """Half of the jumps go up, some of them from clean data; a share of the rows returns."""
    both = recipes.get("psd", diagonal=0.5, both=True, back=0.2, starts=0.3, ends=0.2)
    assert [term.share for term in both.terms] == pytest.approx([0.5, 0.3, 0.2])
    assert [term.label for term in both.terms] == ["diagonal", "compositional", "return"]
    for term, up in zip(both.terms[1:], (0.5, 1.0), strict=True):
        s, w, t = term.times(20_000, gen)
        assert abs((t > s).float().mean() - up) <= 5 * (up * (1 - up) / 20_000) ** 0.5
        assert abs((s == 0).float().mean() - 0.2 * up) < 5 * (0.16 / 20_000) ** 0.5
        assert ((w - s) * (t - w) >= 0).all()
    assert "starodubcev2024icd" in both.cite
    few = recipes.get("psd", diagonal=0.5, both=True, back=0.2, jumps=[1, 4]).terms[2]
    few = few.times(1000, gen)
    assert set((few.t - few.s).tolist()) == {1.0, 0.25}
    assert set(few.s.tolist()) == {0.0, 0.25, 0.5, 0.75}
    assert abs((few.t - few.s == 1).float().mean() - 0.5) < 5 * 0.5 / 1000**0.5
    down = recipes.get("psd").terms[1].times(1000, gen)
    assert (down.t <= down.s).all()
    with pytest.raises(RecipeError, match=r"back=0\.2 goes up and down: it needs both=True"):
        recipes.get("psd", back=0.2)
    with pytest.raises(RecipeError, match=r"jumps=\(1, 8\) is of the rows that go up and back"):
        recipes.get("psd", both=True, jumps=(1, 8))
    with pytest.raises(RecipeError, match=">= 1; got \\(0,\\)"):
        recipes.get("psd", both=True, back=0.2, jumps=(0,))
    with pytest.raises(RecipeError, match="says nothing"):
        recipes.get("psd", both=True, predict="x0")


@pytest.mark.parametrize("name", ["psd", "push_forward"])
def test_distillation_may_go_on_from_default(name) -> None:
    """The same reading of the network on the same path, so that `--init` takes the weights; and its loss stays finite at 0."""
    on, default = recipes.get(name, predict="x0"), recipes.get("default")
    assert on.parametrization == default.parametrization == Denoised(linear(), "x0")
    assert default.terms[0].space == ClippedTime(0.05)
    for term, plain in zip(on.terms, recipes.get(name).terms, strict=True):
        assert plain.space is None
        compared = term.name == "law"  # of endpoints, which no time divides
        assert term.space == (None if compared else default.terms[0].space)


def test_guided_recipe_learns(gen) -> None:
    """Labels and scale reach the network; with a world that ignores them the loss stays finite and the map moves."""
    one = replace(recipes.get("mean_flow"), guidance=Guidance({"label": 2}, LogUniform(1.0, 3.0)))
    world = worlds.rotated(dtype=torch.float32)
    f = learn(one, world, 20, 64, 0)
    x = torch.randn(5, 2, generator=gen)
    plain = f(x, 1.0, 0.0, label=torch.zeros(5, dtype=torch.long))
    strong = f(x, 1.0, 0.0, label=torch.zeros(5, dtype=torch.long), scale=torch.full((5,), 3.0))
    assert plain.isfinite().all()
    assert not torch.equal(plain, strong)
    assert torch.equal(f(x, 1.0, 0.0), f(x, 1.0, 0.0, label=torch.full((5,), 2)))


# What must fail -------------------------------------------------------------------------------------------------------


class WrongSign:
    """MeanFlow with u = v - (t - s) JE: the commonest sign error."""

    def __call__(self, f, b, models):
        s, _, t = b.times
        u, slope = along_source(f.mean_velocity, b.x, s, t, b.v)
        return u, (b.v - like(t - s, b.x) * slope).detach()


class Swapped:
    """MeanFlow that takes the velocity of the target time's point."""

    def __call__(self, f, b, models):
        return Eulerian()(
            f, replace(b, times=type(b.times)(b.times.t, b.times.w, b.times.s)), models
        )


class Instantaneous:
    """A mean velocity regressed on the velocity: flow matching off the diagonal."""

    def __call__(self, f, b, models):
        return f.mean_velocity(b.x, b.times.s, b.times.t), b.v


class Undetached:
    """MeanFlow without the stop-gradient: a biased square."""

    def __call__(self, f, b, models):
        s, _, t = b.times
        u, slope = along_source(f.mean_velocity, b.x, s, t, b.v, through=True)
        return u, b.v + like(t - s, b.x) * slope


@pytest.mark.parametrize("rule", [WrongSign(), Swapped(), Instantaneous(), Undetached()])
def test_wrong_rules_are_found(rule) -> None:
    def wrong() -> Recipe:
        """A wrong one."""
        return Recipe(
            name="wrong", cite=("x",), terms=(Term(rule=rule, times=SortedPair(Uniform())),)
        )

    report = exam(wrong, steps=0)
    assert any("no stationary point" in problem for problem in report.problems)
    assert report.drift > 8


def test_malformed_recipes_are_found() -> None:
    def named_otherwise(needed, times=Uniform()):
        return Recipe(
            name="other",
            cite=(),
            terms=(Term(rule=DiagonalRule(), times=Diagonal(times)),),
            status="proven",
        )

    report = exam(lambda: named_otherwise(3), steps=0)
    text = " ".join(report.problems)
    assert "the recipe is called 'other', its function '<lambda>'" in text
    assert "cites nothing" in text
    assert "unknown status 'proven'" in text
    assert "no docstring" in text

    def lambda_law() -> Recipe:
        """Prints an address."""
        term = Term(rule=DiagonalRule(), times=Diagonal(lambda n, g: torch.rand(n, generator=g)))
        return Recipe(name="lambda_law", cite=("x",), terms=(term,))

    text = " ".join(exam(lambda_law, steps=0).problems)
    assert "prints an address" in text
    assert "two calls of the factory give different recipes" in text


# Discovery ------------------------------------------------------------------------------------------------------------

FILE = '''"""A method of somebody else's."""
from flowmaps.learn.objective import Recipe, Term
from flowmaps.learn.rules import DiagonalRule
from flowmaps.learn.times import Diagonal, Uniform


def {name}() -> Recipe:
    """Theirs."""
    return Recipe(name="{name}", cite=("x",), terms=(Term(rule=DiagonalRule(), times=Diagonal(Uniform())),))
'''


def test_a_file_in_the_folder_is_a_recipe(tmp_path, monkeypatch) -> None:
    (tmp_path / "dropped_in.py").write_text(FILE.format(name="dropped_in"))
    monkeypatch.setattr(recipes, "__path__", [*recipes.__path__, str(tmp_path)])
    assert recipes.get("dropped_in").name == "dropped_in"
    assert {"dropped_in", "mean_flow"} <= set(recipes.all_recipes())
    sys.modules.pop("flowmaps.recipes.dropped_in")


@pytest.mark.parametrize("target", ["their_pkg", "their_pkg:theirs"])
def test_an_entry_point_is_a_recipe(target, tmp_path, monkeypatch) -> None:
    (tmp_path / "their_pkg.py").write_text(FILE.format(name="theirs"))
    info = tmp_path / "their_pkg-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: their-pkg\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[flowmaps.recipes]\ntheirs = {target}\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert recipes.get("theirs").name == "theirs"
    sys.modules.pop("their_pkg")


def test_errors_name_the_nearest() -> None:
    with pytest.raises(
        RecipeError,
        match=r"no recipe is called 'meanflow' \(did you mean 'mean_flow'\?\); there are alpha_flow",
    ):
        recipes.get("meanflow")
    with pytest.raises(
        RecipeError,
        match=r"has no argument 'diagnal' \(did you mean 'diagonal'\?\); it has mean, std",
    ):
        recipes.get("mean_flow", diagnal=0.5)
    with pytest.raises(RecipeError, match="no recipe is called 'zzzz'; there are"):
        recipes.get("zzzz")


# The papers' numbers --------------------------------------------------------------------------------------------------


def test_defaults_are_the_papers() -> None:
    mean_flow = recipes.get("mean_flow")
    diagonal, eulerian = mean_flow.terms
    assert (diagonal.share, eulerian.share) == (0.75, 0.25)
    assert (diagonal.rule, eulerian.rule) == (DiagonalRule(), Eulerian())
    assert (eulerian.times.law.mean, eulerian.times.law.std) == (-0.4, 1.0)
    assert (eulerian.metric.p, eulerian.metric.c) == (1.0, 1e-3)
    assert recipes.get("improved_mean_flow").terms[1].rule.tangent == "self"
    shortcut = recipes.get("shortcut")
    assert [t.share for t in shortcut.terms] == [0.875, 0.125]
    assert (shortcut.terms[1].times.levels, shortcut.terms[1].rule.clip, shortcut.ema_target) == (
        7,
        4.0,
        0.999,
    )
    assert [t.share for t in recipes.get("lsd").terms] == [0.75, 0.25]
    assert recipes.get("lsd").terms[1].rule.through == "jvp"
    assert recipes.get("esd").terms[1].rule.through == "partial"
    assert (
        recipes.get("lmd").terms[0].rule.through
        == recipes.get("emd").terms[0].rule.through
        == "all"
    )
    assert recipes.get("progressive_distillation", stages=4).refresh == (0.25, 0.5, 0.75)
    assert recipes.get("psd", split="midpoint").terms[1].times.split.value == 0.5
    assert {n for n in KNOWN if recipes.get(n).needs_teacher} >= {
        "emd",
        "lmd",
        "progressive_distillation",
    }
    assert {n for n in KNOWN if recipes.get(n).local} >= {"ddpm", "flow_matching"}
