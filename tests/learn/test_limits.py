"""The least and the most that a part takes: allowed at the limit, refused beyond it, and what it does there."""

import math

import pytest
import torch

from flowmaps.core.interpolant import linear, trig
from flowmaps.errors import RecipeError
from flowmaps.learn.endpoints import Inverse
from flowmaps.learn.guidance import Guidance
from flowmaps.learn.jumps import Dyadic, HalvingGrid, Within
from flowmaps.learn.legs import LastLeg, ShortLeg
from flowmaps.learn.objective import Recipe, Term
from flowmaps.learn.particles import EnergyDistance, InductiveWeight
from flowmaps.learn.ramps import Count, Decay, Ramp
from flowmaps.learn.rules import DiagonalRule
from flowmaps.learn.splits import GridTriple, LastGap, Neighbours
from flowmaps.learn.states import Coupled, OnPolicy, Trajectories, Trajectory
from flowmaps.learn.times import Diagonal, Either, Fixed, LogUniform, NoiseLevel, ToData, Uniform
from flowmaps.learn.weights import AtData, ClippedTime, Huber, Relax, TangentNorm

UNIT = Diagonal(Uniform())
LABEL = {"label": 3}


def term(share: float) -> Term:
    return Term(rule=DiagonalRule(), times=UNIT, share=share)


# at the limit, and beyond it
LIMITS = {
    "Inverse": (lambda: Inverse(place=1e-3), lambda: Inverse(place=0.0)),
    "Guidance of scale": (lambda: Guidance(LABEL, Fixed(1e-3)), lambda: Guidance(LABEL, Fixed(0.0))),
    "Guidance of no dropout": (lambda: Guidance(LABEL, dropout=0), lambda: Guidance(LABEL, dropout=-1e-3)),
    "Guidance of dropout": (lambda: Guidance(LABEL, dropout=0.999), lambda: Guidance(LABEL, dropout=1)),
    "Dyadic": (lambda: Dyadic(1), lambda: Dyadic(0)),
    "HalvingGrid": (lambda: HalvingGrid(1), lambda: HalvingGrid(0)),
    "Within a band": (lambda: Within(1.0), lambda: Within(1.001)),
    "Within no band": (lambda: Within(1e-3), lambda: Within(0.0)),
    "Within stages": (lambda: Within(0.5, 1), lambda: Within(0.5, 0)),
    "ShortLeg's steps": (lambda: ShortLeg(steps=1), lambda: ShortLeg(steps=0)),
    "ShortLeg's legs": (lambda: ShortLeg(legs=1), lambda: ShortLeg(legs=0)),
    "EnergyDistance": (lambda: EnergyDistance(2), lambda: EnergyDistance(1)),
    "InductiveWeight": (lambda: InductiveWeight(1), lambda: InductiveWeight(0)),
    "Ramp": (lambda: Ramp(0, 1, 0, 1), lambda: Ramp(0, 1, 0, 1.001)),
    "Ramp's begin": (lambda: Ramp(0, 1, 0), lambda: Ramp(0, 1, -1e-3)),
    "Ramp's length": (lambda: Ramp(0, 1, 0.5, 0.501), lambda: Ramp(0, 1, 0.5, 0.5)),
    "Decay": (lambda: Decay(0.3, 0.3), lambda: Decay(0.3, 0.301)),
    "Decay to 0": (lambda: Decay(0.3, 1e-3), lambda: Decay(0.3, 0.0)),
    "Count": (lambda: Count(1, 1), lambda: Count(0, 1)),
    "Count backwards": (lambda: Count(3, 3), lambda: Count(3, 2)),
    "GridTriple": (lambda: GridTriple(2, 1), lambda: GridTriple(2, 0)),
    "GridTriple's reach": (lambda: GridTriple(3, 2), lambda: GridTriple(3, 3)),
    "Trajectory's before": (lambda: Trajectory(before=0), lambda: Trajectory(before=-1)),
    "Trajectory's after": (lambda: Trajectory(after=1), lambda: Trajectory(after=0)),
    "Coupled": (lambda: Coupled(steps=1), lambda: Coupled(steps=0)),
    "OnPolicy": (lambda: OnPolicy(1), lambda: OnPolicy(0)),
    "Term": (lambda: term(1.0), lambda: term(1.001)),
    "Term of nothing": (lambda: term(1e-3), lambda: term(0.0)),
    "Uniform": (lambda: Uniform(0.5, 0.5), lambda: Uniform(0.5, 0.499)),
    "LogUniform": (lambda: LogUniform(1e-3, 1e-3), lambda: LogUniform(0.0, 1.0)),
    "LogUniform backwards": (lambda: LogUniform(2.0, 2.0), lambda: LogUniform(2.0, 1.999)),
    "Either never": (lambda: Either(0.1, 0.2, 0), lambda: Either(0.1, 0.2, -1e-3)),
    "Either always": (lambda: Either(0.1, 0.2, 1), lambda: Either(0.1, 0.2, 1.001)),
    "NoiseLevel": (lambda: NoiseLevel(0, 1e-3, 0.0, 1e-3), lambda: NoiseLevel(0, 0.0, 0.0, 1.0)),
    "NoiseLevel's low": (lambda: NoiseLevel(0, 1, 0.5, 0.5), lambda: NoiseLevel(0, 1, -1e-3, 0.5)),
    "NoiseLevel's high": (lambda: NoiseLevel(0, 1, 0.0, 0.5), lambda: NoiseLevel(0, 1, 0.0, 0.0)),
    "NoiseLevel backwards": (lambda: NoiseLevel(0, 1, 0.5, 0.6), lambda: NoiseLevel(0, 1, 0.5, 0.4)),
    "NoiseLevel with tails": (
        lambda: NoiseLevel(0, 1, 1e-3, 0.5, freedom=1),
        lambda: NoiseLevel(0, 1, 0.0, 0.5, freedom=1),
    ),
    "NoiseLevel with an uncut tail": (
        lambda: NoiseLevel(0, 1, 0.1, math.inf),
        lambda: NoiseLevel(0, 1, 0.1, math.inf, freedom=1),
    ),
    "ClippedTime": (lambda: ClippedTime(1.0), lambda: ClippedTime(1.001)),
    "ClippedTime's floor": (lambda: ClippedTime(1e-3), lambda: ClippedTime(0.0)),
    "Trajectories": (
        lambda: Trajectories(torch.zeros(3, 2, 1), torch.tensor([1.0, 0.0])),
        lambda: Trajectories(torch.zeros(3, 1, 1), torch.tensor([1.0])),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", LIMITS)
def test_limits_are_allowed_and_what_lies_beyond_is_refused(name) -> None:
    allowed, refused = LIMITS[name]
    allowed()
    with pytest.raises(RecipeError):
        refused()


def test_legs_of_data_and_boundaries_are_refused_by_each_of_their_reasons() -> None:
    good = {"velocity": "teacher", "jump": "ema", "form": "data"}
    ShortLeg(**good)
    ShortLeg(below="teacher", boundary=0.1)
    for bad in (
        good | {"jump": "self"},
        good | {"jump": "nobody"},
        {"leg": "path", "velocity": "teacher"},
        {"below": "teacher"},
        {"boundary": 0.1},
    ):
        with pytest.raises(RecipeError):
            ShortLeg(**bad)
    with pytest.raises(RecipeError):
        LastLeg(velocity="conditional")


def test_the_orders_of_legs() -> None:
    """The bias of a target falls with the order; compared as slopes so does the gradient, as points one faster."""
    assert [ShortLeg("teacher", leg=leg).order for leg in ("euler", "heun")] == [1, 2]
    for leg, order in (("euler", 1), ("heun", 2)):
        assert ShortLeg("teacher", leg=leg).fall == order
        assert ShortLeg("teacher", leg=leg, form="velocity").fall == order + 1
    assert ShortLeg("teacher", "ema", form="data").fall == 2
    assert [LastLeg(leg=leg).fall for leg in ("euler", "heun")] == [2, 3]


def test_every_term_has_a_row(gen) -> None:
    two = (term(0.01), Term(rule=DiagonalRule(), times=UNIT, share=0.99, name="rest"))
    drawn = Recipe(name="two", cite=(), terms=two).draw(torch.arange(7.0)[:, None], gen)
    assert [len(b.x) for b in drawn] == [1, 7]


def test_bands_double_up_to_all_jumps(gen) -> None:
    """The gap of two uniform times has mean 1/3 and variance 1/18; within a band all gaps are shorter."""
    n = 20_000
    s, _, t = Within(0.75, 2)(n, gen, 1.0)
    assert abs((s - t).mean() - 1 / 3) < 5 / (18 * n) ** 0.5
    s, _, t = Within(0.3, 2)(n, gen, 0.0)
    assert 0.29 < (s - t).max() <= 0.3
    s, _, t = Within(0.3, 2)(n, gen, 0.9)
    assert 0.59 < (s - t).max() <= 0.6


def test_one_row_is_enough(gen) -> None:
    g = torch.randn(1, 5, generator=gen, dtype=torch.float64)
    s = torch.tensor([0.3], dtype=torch.float64)
    norm = g.square().mean().sqrt()
    torch.testing.assert_close(TangentNorm(0.2)(g, s, s), g / (norm + 0.2))
    huber = (g.square().sum() + 5 * 0.3**2).sqrt() - 0.3 * 5**0.5
    torch.testing.assert_close(Huber(0.3)(g), huber[None])


def test_a_transform_of_a_transform_sees_the_same_times(gen) -> None:
    g = torch.randn(5, 2, generator=gen, dtype=torch.float64)
    s, t = torch.rand(2, 5, generator=gen, dtype=torch.float64)
    first = lambda g, s, t: g * (s - 2 * t)[:, None]
    expected = (1 - (1 - s) ** 0.3)[:, None] * first(g, s, t)
    torch.testing.assert_close(Relax(0.3, first)(g, s, t), expected)


def test_finer_laws_are_nearer_by_the_factor(gen) -> None:
    draw = lambda law: law(5, torch.Generator().manual_seed(1), 0.4)
    for law in (LastGap(ToData(Uniform(0.5, 0.9)), 0.3), Neighbours(points=7)):
        (s, w, t), (s_, w_, t_) = draw(law), draw(law.finer(3))
        assert torch.equal(s, s_)
        assert torch.equal(t, t_)
        near, far = (w_ - t_, w - t) if isinstance(law, LastGap) else (s_ - w_, s - w)
        torch.testing.assert_close(3 * near.double(), far.double(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("make", [linear, trig])
def test_the_denoised_image_of_equal_times_is_the_denoised_mean(make, gen) -> None:
    x_0, eps = torch.randn(2, 5, 3, generator=gen, dtype=torch.float64)
    s = torch.tensor([0.2, 0.4, 0.55, 0.7, 0.9], dtype=torch.float64)
    x, v = make().sample(x_0, eps, s)
    torch.testing.assert_close(AtData(make())(v, x, s, s), x_0)
