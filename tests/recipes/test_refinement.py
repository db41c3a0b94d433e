"""The exam takes finer steps of what steps, and that excuses nobody. Recipes of coupled pairs are after straight lines."""

import itertools
from dataclasses import dataclass, replace
from typing import ClassVar, final

import pytest
import torch
from torch.testing import assert_close

from flowmaps import recipes
from flowmaps.core.autodiff import Derivative, along_source
from flowmaps.core.oracle import Rotated
from flowmaps.core.shape import like
from flowmaps.core.solver import EULER, HEUN
from flowmaps.learn.endpoints import Endpoint
from flowmaps.learn.objective import Recipe, Term
from flowmaps.learn.rules import DiagonalRule, Eulerian, Lagrangian
from flowmaps.learn.states import Coupled, Trajectory
from flowmaps.learn.times import Diagonal, SortedPair, Uniform
from flowmaps.learn.weights import TangentNorm
from flowmaps.testing import contract, worlds
from flowmaps.testing.contract import Straight, finer, refined_stationarity


@final
@dataclass(frozen=True)
class Tilted:
    """A trajectory whose end is off by a part that no finer step mends."""

    inner: Trajectory = Trajectory(HEUN, 2, 2)
    off: float = 0.05
    source: ClassVar = "teacher"
    conditional: ClassVar[bool] = False
    knows_end: ClassVar[bool] = True
    at_noise: ClassVar[bool] = False

    def __call__(self, f, b, models):
        b = self.inner(f, b, models)
        gap = (b.times.t - b.times.s)[:, None]
        return replace(b, end=b.end + self.off * gap)


class WrongSign:
    """MeanFlow with u = v - (t - s) JE."""

    def __call__(self, f, b, models):
        s, _, t = b.times
        u, slope = along_source(f.mean_velocity, b.x, s, t, b.v)
        return u, (b.v - like(t - s, b.x) * slope).detach()


def stepping(*states, rule=None) -> Recipe:
    terms = [Term(rule=Endpoint(), times=SortedPair(Uniform()), state=state) for state in states]
    if rule is not None:
        terms.append(Term(rule=rule, times=SortedPair(Uniform())))
    return Recipe(name="stepping", cite=("x",), terms=tuple(terms))


@pytest.mark.parametrize(("method", "low", "high"), [(EULER, 1.7, 2.7), (HEUN, 3.0, 5.5)])
def test_the_error_of_a_solver_falls_with_its_order(method, low, high) -> None:
    drift, bias = refined_stationarity(stepping(Trajectory(method, 6, 6)))
    assert drift == 0
    assert len(bias) == 3
    assert all(low < a / b < high for a, b in itertools.pairwise(bias))


def test_steps_do_not_excuse_a_wrong_rule() -> None:
    assert refined_stationarity(stepping(Tilted()))[0] > 5
    assert refined_stationarity(stepping(Trajectory(HEUN, 2, 2), rule=WrongSign()))[0] > 5


@final
@dataclass(frozen=True)
class Stuck:
    """A warm-up that stops short of 1 and has nothing finer to offer."""

    stop: float = 0.99

    def __call__(self, progress):
        return self.stop * (10 * progress).clamp(max=1)


def test_a_warm_up_does_not_hide_what_is_wrong_at_the_end() -> None:
    """Over the whole run the warm-up's own bias makes the standard error; at the end nothing does."""
    term = Term(
        rule=Eulerian("teacher", warmup=Stuck()),
        times=SortedPair(Uniform()),
        tangent=TangentNorm(),
    )
    recipe = Recipe(name="stuck", cite=("x",), terms=(term,))
    assert contract._refined(recipe, 0, None)[0] < contract.STANDARD_ERRORS
    assert refined_stationarity(recipe)[0] > 4 * contract.STANDARD_ERRORS
    whole = replace(recipe, terms=(replace(term, rule=Eulerian("teacher", warmup=Stuck(1.0))),))
    assert refined_stationarity(whole)[0] < contract.STANDARD_ERRORS
    assert not contract._changes(recipes.get("mean_flow"))


def test_finer_reaches_every_part_that_steps() -> None:
    rule = Lagrangian("teacher", through="target", derivative=Derivative("finite", 0.04))
    term = Term(rule=rule, times=Diagonal(Uniform()), state=Trajectory(HEUN, 3, 5))
    fine = finer(Recipe(name="x", cite=("a",), terms=(term,)), 4)
    assert fine.terms[0].rule.derivative == Derivative("finite", 0.01)
    assert fine.terms[0].state == Trajectory(HEUN, 12, 20)
    assert finer(recipes.get("reflow", steps=3), 2).terms[0].state.steps == 6
    assert finer(recipes.get("mean_flow"), 2) == recipes.get("mean_flow")


def test_reflow_is_after_straight_lines_and_not_after_the_teachers_map(gen) -> None:
    """At the teacher's own map its gradient does not vanish; both maps agree from noise to data."""
    world = Rotated(worlds.plane(), worlds.rotation(0.6))
    lines, noise = Straight(world), torch.randn(6, 2, generator=gen, dtype=torch.float64)
    one = torch.ones(6, dtype=torch.float64)
    assert_close(lines(noise, 1.0, 0.0), world.flow_map(noise, 1.0, 0.0))
    middle = lines(noise, 1.0, 0.5)
    assert float((middle - world.flow_map(noise, 1.0, 0.5)).abs().max()) > 0.02
    assert_close(lines(middle, 0.5 * one, 0 * one), lines(noise, 1.0, 0.0))
    assert_close(lines.velocity(middle, 0.5), lines.mean_velocity(noise, one, 0 * one))
    drift, _ = refined_stationarity(recipes.get("reflow", steps=8))
    assert drift < 5
    # the same pairs, but the truth taken for the teacher's map: what the exam would say without `Straight`
    term = Term(rule=DiagonalRule(), times=Diagonal(Uniform()), state=_Hidden(Coupled(HEUN, 8)))
    assert refined_stationarity(Recipe(name="x", cite=(), terms=(term,), local=True))[0] > 5


@final
@dataclass(frozen=True)
class _Hidden:
    """`Coupled` under another name."""

    inner: Coupled
    source: ClassVar = "teacher"
    conditional: ClassVar[bool] = True
    knows_end: ClassVar[bool] = False
    at_noise: ClassVar[bool] = False

    def __call__(self, f, b, models):
        return self.inner(f, b, models)
