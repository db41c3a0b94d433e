"""Rules and metrics of groups of particles against brute force, equal laws and exact maps.

Statistical tests: 5 standard errors.
"""

import math
from dataclasses import replace

import pytest
import torch
from torch.testing import assert_close

from flowmaps.core.interpolant import linear, trig
from flowmaps.core.shape import like
from flowmaps.errors import RecipeError
from flowmaps.learn.guidance import Guidance
from flowmaps.learn.jumps import Inductive
from flowmaps.learn.objective import Objective, Recipe, Term
from flowmaps.learn.particles import (
    EnergyDistance,
    Grouped,
    InductiveWeight,
    KernelDistance,
    Moments,
    PushForward,
)
from flowmaps.learn.points import shard
from flowmaps.learn.rules import Points
from flowmaps.learn.states import Prior
from flowmaps.learn.times import Fixed, SortedPair, Times, Uniform
from flowmaps.testing import worlds


def objective(world, rule, **kw) -> Objective:
    term = Term(rule=rule, times=SortedPair(Uniform()), **kw)
    return Objective(
        Recipe(name="x", cite=(), terms=(term,), interpolant=world.interpolant), world.flow_map
    )


def brute(x, y) -> float:
    """The U-statistic of one group, pair by pair."""
    m, total = len(x), 0.0
    for i in range(m):
        for j in range(m):
            if i != j:
                pairs = ((x[i], y[j], 1), (y[i], x[j], 1), (x[i], x[j], -1), (y[i], y[j], -1))
                total += sum(sign * (a - b).square().mean().sqrt() for a, b, sign in pairs)
    return float(total) / (m * (m - 1))


def test_energy_distance_is_its_definition(gen) -> None:
    x = torch.randn(10, 3, generator=gen, dtype=torch.float64)
    y = 0.4 + 1.3 * torch.randn(10, 3, generator=gen, dtype=torch.float64)
    rows = EnergyDistance(group=5, eps=0.0)(x, y)
    assert rows.shape == (10,)
    first, second = brute(x[0::2], y[0::2]), brute(x[1::2], y[1::2])
    assert_close(float(rows[0::2].mean()), first)
    assert_close(float(rows[1::2].mean()), second)
    pair = EnergyDistance(group=2, eps=0.0)(x[:2], y[:2])
    assert_close(float(pair.mean()), brute(x[:2], y[:2]))


def test_equal_laws_are_at_distance_zero_even_when_rows_are_coupled(gen) -> None:
    """5 standard errors over 400 groups; y is x itself plus independent noise of the same law in another coordinate."""
    x = torch.randn(400 * 16, 2, generator=gen, dtype=torch.float64)
    y = torch.stack([x[:, 1], x[:, 0]], 1)  # the same law, far from independent of x
    groups = EnergyDistance(group=16)(x, y).reshape(16, 400).mean(0)
    assert abs(groups.mean()) < 5 * groups.std() / 400**0.5
    shifted = EnergyDistance(group=16)(x, y + 0.3).reshape(16, 400).mean(0)
    assert shifted.mean() > 10 * shifted.std() / 400**0.5


def test_it_sees_lost_variance_where_least_squares_does_not(gen) -> None:
    """The gradient with respect to the scale of the samples points back to the scale of the data."""
    scale = torch.tensor(0.8, dtype=torch.float64, requires_grad=True)
    x, y = torch.randn(2, 4096, 4, generator=gen, dtype=torch.float64)
    loss = EnergyDistance(group=64)(scale * x, y).mean()
    assert torch.autograd.grad(loss, scale)[0] < -0.05


@pytest.mark.parametrize("make", [linear, trig])
def test_the_target_is_on_the_path_and_the_exact_map_has_its_law(make, gen) -> None:
    world = worlds.rotated(make())
    n, path = 64 * 200, world.interpolant
    x_0 = world.sample(n, gen)
    eps = torch.randn(x_0.shape, generator=gen, dtype=torch.float64)
    s, t = (torch.full((n,), v, dtype=torch.float64) for v in (0.9, 0.3))
    x, v = path.sample(x_0, eps, s)
    b = worlds_points(x, v, s, t)
    prediction, target = PushForward()(world.flow_map, b, None)
    assert_close(target, path.sample(x_0, eps, t)[0])
    groups = EnergyDistance(64)(prediction, target).reshape(64, 200).mean(0)
    assert abs(groups.mean()) < 5 * groups.std() / 200**0.5
    wrong = EnergyDistance(64)(0.8 * prediction, target).reshape(64, 200).mean(0)
    assert wrong.mean() > 8 * wrong.std() / 200**0.5


def worlds_points(x, v, s, t):
    return Points(x, v, Times(s, t, t), {}, torch.tensor(0.0))


def test_refusals(gen) -> None:
    with pytest.raises(RecipeError, match="group >= 2; got 1"):
        EnergyDistance(1)
    with pytest.raises(RecipeError, match="groups of 4 particles, but there are 6 rows"):
        EnergyDistance(4)(torch.zeros(6, 2), torch.zeros(6, 2))


def test_classes_are_told_apart_by_the_distance_that_is_said(gen) -> None:
    """The mean square over the coordinates of both is the one of the particles, plus told^2 where the classes differ."""
    world, told = worlds.gaussian(trig()), 1.7
    x_0 = world.sample(5, gen).double()
    s, t = torch.full((5,), 0.8).double(), torch.full((5,), 0.3).double()
    b = worlds_points(
        *world.interpolant.sample(x_0, torch.randn(5, 3, generator=gen).double(), s), s, t
    )
    plain, target = PushForward()(world.flow_map, b, None)
    for cond in ({}, {"other": torch.zeros(5)}):  # nothing to tell
        same = PushForward(told)(world.flow_map, replace(b, cond=cond), None)
        assert torch.equal(same[0], plain)
        assert torch.equal(same[1], target)
    labels = torch.tensor([3, 3, 4, 67, 0])  # 67 is 3: classes 64 apart are one
    marked = replace(b, cond={"label": labels})
    sides = PushForward(told)(world.flow_map, marked, None)
    for side, bare in zip(sides, (plain, target), strict=True):
        assert side.shape == (5, 67)
        squares = (side[:, None] - side).square().mean(-1)
        expected = (bare[:, None] - bare).square().mean(-1)
        apart = (labels % 64)[:, None] != labels % 64
        assert_close(squares, expected + told**2 * apart)


def test_guidance_and_points_without_data_are_refused() -> None:
    """The law of guided samples is not that of the data; labels may be dropped all the same (scale 1)."""
    law = Term(
        rule=PushForward(), times=Grouped(SortedPair(Uniform()), 8), metric=EnergyDistance(8)
    )
    recipe = Recipe(name="particles", cite=(), terms=(law,))
    with pytest.raises(RecipeError, match=r"'particles' learns the law of the data .*pushforward"):
        replace(recipe, guidance=Guidance({"label": 10}, Fixed(2.0)))
    assert replace(recipe, guidance=Guidance({"label": 10})).guidance is not None
    with pytest.raises(RecipeError, match="asks for the conditional velocity"):
        replace(law, state=Prior())


def test_shards_hold_whole_groups(gen) -> None:
    recipe = Recipe(
        name="x",
        cite=(),
        terms=(
            Term(
                rule=PushForward(),
                times=Grouped(SortedPair(Uniform()), 8),
                metric=EnergyDistance(8),
            ),
        ),
    )
    times = recipe.draw(torch.zeros(32, 2), gen)[0].times
    assert all(len(set(times.s[i::4].tolist())) == 1 for i in range(4))
    assert len(set(times.s.tolist())) == 4


# Moments --------------------------------------------------------------------------------------------------------------


def test_kernel_distance_by_hand(gen) -> None:
    x, y = torch.randn(2, 12, 5, generator=gen, dtype=torch.float64)
    rows = KernelDistance(3)(x, y)
    assert rows.shape == (12,)

    def k(a, b):
        return math.exp(-float((a - b).norm()) / 5)

    for g in range(4):
        mine = range(g, 12, 4)  # strided, so that shards hold whole groups
        total = sum(k(x[i], x[j]) + k(y[i], y[j]) - 2 * k(x[i], y[j]) for i in mine for j in mine)
        assert float(rows[list(mine)].mean()) == pytest.approx(total / 9, rel=1e-7)
    assert float(rows.reshape(3, 4).mean(0).min()) > 0
    assert_close(KernelDistance(3)(x, x), torch.zeros(12, dtype=torch.float64), atol=1e-6, rtol=0)
    assert KernelDistance(3)(x).shape == (12,)  # against 0
    with pytest.raises(RecipeError, match="groups of 5 particles, but there are 12 rows"):
        KernelDistance(5)(x, y)


def test_groups_stay_together_in_shards(gen) -> None:
    world = worlds.rotated(dtype=torch.float32)
    term = Term(rule=Moments(), times=Grouped(Inductive(linear()), 4), metric=KernelDistance(4))
    r = Recipe(name="x", cite=(), terms=(term,))
    (b,) = r.draw(world.sample(48, gen), gen)
    o = Objective(r, world.flow_map)
    parts = [o((shard(b, rank, 3),)).total for rank in range(3)]
    assert_close(torch.stack(parts).mean(), o((b,)).total)
    for rank in range(3):
        s = shard(b, rank, 3).times.s.reshape(4, 4)
        assert bool((s == s[0]).all())


def test_independent_particles_of_one_law_have_no_distance_but_their_own(gen) -> None:
    """E of the V-statistic of equal laws is (2/M)(1 - E k(x, x')): nothing but the terms i = j. 5 standard errors."""
    x, y = torch.randn(2, 40_000, 2, generator=gen, dtype=torch.float64)
    rows = KernelDistance(4)(x, y).reshape(4, -1).mean(0)
    kernel = torch.exp(-(x - y).norm(dim=1) / 2)
    expected = (1 - kernel.mean()) * 2 / 4
    error = math.sqrt(float(rows.var()) / len(rows) + float(kernel.var()) / 4 / len(kernel))
    assert abs(float(rows.mean() - expected)) < 5 * error
    # its gradient with respect to a shift of x vanishes, and that of unequal laws does not
    shift = torch.zeros(2, dtype=torch.float64, requires_grad=True)
    for other, still in ((y, True), (y + 0.5, False)):
        d = KernelDistance(4)(x + shift, other).reshape(4, -1).mean(0)
        chunks = torch.stack(
            [torch.autograd.grad(p.mean(), shift, retain_graph=True)[0] for p in d.chunk(20)]
        )
        z = chunks.mean(0) / (chunks.std(0) / math.sqrt(20))
        assert (z.abs().max() < 6) == still


def test_moments_compares_the_same_sample_at_w(gen) -> None:
    """At w = s both sides are equal; at w = t the target is the path's point; both divided by a_t s_s - a_s s_t."""
    for path in (linear(), trig()):
        world = worlds.rotated(path)
        x_0, eps = world.sample(5, gen), torch.randn(5, 2, generator=gen, dtype=torch.float64)
        s, t = (
            torch.full((5,), 0.7, dtype=torch.float64),
            torch.full((5,), 0.2, dtype=torch.float64),
        )
        x, v = path.sample(x_0, eps, s)
        o = objective(world, Moments(), metric=KernelDistance(1))
        same = Points(x, v, Times(s, s, t), {}, torch.tensor(0.0))
        assert_close(*Moments()(world.flow_map, same, o), atol=1e-9, rtol=0)
        last = Points(x, v, Times(s, t, t), {}, torch.tensor(0.0))
        unit = path.alpha(t) * path.sigma(s) - path.alpha(s) * path.sigma(t)
        assert_close(
            Moments()(world.flow_map, last, o)[1] * like(unit, x), path.sample(x_0, eps, t)[0]
        )
        w = torch.full((5,), 0.4, dtype=torch.float64)
        between = Points(x, v, Times(s, w, t), {}, torch.tensor(0.0))
        jumped = world.flow_map(path.sample(x_0, eps, w)[0], w, t)
        assert_close(Moments()(world.flow_map, between, o)[1] * like(unit, x), jumped)
        assert bool((Moments(floor=10.0)(world.flow_map, last, o)[1].abs() < 1).all())


def test_inductive_weight_is_the_papers_and_finite_at_the_ends() -> None:
    s = torch.tensor([0.2, 0.5, 0.9], dtype=torch.float64, requires_grad=True)
    for path in (linear(), trig()):
        for a, b in ((1, 5.0), (2, 4.0)):
            lam = 2 * path.log_snr(s)
            rate = torch.autograd.grad(lam.sum(), s)[0]
            alpha, sigma = path.alpha(s), path.sigma(s)
            paper = 0.5 * torch.sigmoid(b - lam) * -rate * alpha**a / (alpha**2 + sigma**2)
            assert_close(InductiveWeight(a, b)(path, s, 0 * s), paper)
            ends = InductiveWeight(a, b)(path, torch.tensor([0.0, 1.0]), torch.zeros(2))
            assert bool(ends.isfinite().all())
    with pytest.raises(RecipeError, match="a >= 1"):
        InductiveWeight(0)


def test_grouped_rows_share_their_times(gen) -> None:
    s, _, t = Grouped(SortedPair(Uniform()), 4)(12, gen)
    assert torch.equal(s.reshape(4, 3), s[:3].expand(4, 3))
    assert len(s.unique()) == len(t.unique()) == 3
    assert len(Grouped(SortedPair(Uniform()), 4)(10, gen).s) == 10
