"""Endpoint rules against exact maps, the kernel distance against its meaning, and laws of jumps."""

import math

import pytest
import torch
from torch.testing import assert_close

from flowmaps.core.interpolant import linear, trig
from flowmaps.core.shape import like
from flowmaps.errors import RecipeError
from flowmaps.learn.endpoints import Endpoint, InductiveWeight, Inverse, KernelDistance, Moments
from flowmaps.learn.jumps import Grouped, Inductive, SourceThenGap, UShaped, Within
from flowmaps.learn.objective import Objective, Recipe, Term, shard
from flowmaps.learn.rules import Points
from flowmaps.learn.states import Stored
from flowmaps.learn.times import SortedPair, Times, Uniform
from flowmaps.testing import worlds

N = 20_000


def points(world, gen, n=6) -> Points:
    """Generic points of both directions, with the exact velocity as the conditional one."""
    s = torch.rand(n, generator=gen, dtype=torch.float64) * 0.8 + 0.1
    t = torch.rand(n, generator=gen, dtype=torch.float64) * 0.8 + 0.1
    x = world.sample(n, gen) + 0.3
    return Points(x, world.velocity(x, s), Times(s, (s + t) / 2, t), {}, torch.tensor(0.3))


def objective(world, rule, **kw) -> Objective:
    term = Term(rule=rule, times=SortedPair(Uniform()), **kw)
    return Objective(
        Recipe(name="x", cite=(), terms=(term,), interpolant=world.interpolant), world.flow_map
    )


@pytest.mark.parametrize("make", [linear, trig])
def test_residuals_vanish_at_the_exact_map(make, gen) -> None:
    world = worlds.rotated(make())
    b = points(world, gen)
    ahead = world.flow_map(b.x, b.times.s, b.times.t)
    ended = Points(*(getattr(b, k) for k in ("x", "v", "times", "cond", "progress")), end=ahead)
    assert_close(*Endpoint()(world.flow_map, ended, objective(world, Endpoint(), state=Stored())))
    prediction, target = Inverse(place=2.5)(world.flow_map, b, objective(world, Inverse()))
    assert prediction.shape == (6, 2, 2)
    assert_close(prediction, target, atol=1e-7, rtol=0)
    assert_close(target[:, 0], b.v)
    assert_close(target[:, 1], math.sqrt(2.5) * b.x)


def test_endpoint_skips_jumps_of_length_zero(gen) -> None:
    world = worlds.rotated()
    b = points(world, gen)
    still = Points(b.x, b.v, Times(b.times.s, b.times.s, b.times.s), {}, b.progress, end=b.x + 7)
    u, target = Endpoint()(world.flow_map, still, objective(world, Endpoint(), state=Stored()))
    assert_close(u, target, atol=0, rtol=0)


def test_the_inverse_rule_needs_its_place() -> None:
    with pytest.raises(RecipeError, match="expected place > 0, got 0"):
        Inverse(place=0)


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
    with pytest.raises(RecipeError, match="groups of 5 particles, but has 12 rows"):
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


# Laws -----------------------------------------------------------------------------------------------------------------


def test_inductive_pairs_are_a_fixed_distance_apart_in_noise_level(gen) -> None:
    s, w, t = Inductive(linear(), 0.9, 4.0)(N, gen)
    assert bool(((t <= w) & (w <= s) & (s <= 0.9)).all())
    eta_s, eta_w, eta_t = (v / (1 - v) for v in (s, w, t))
    free = w > t + 1e-5
    assert_close((eta_s - eta_w)[free], torch.full_like(s[free], 9 / 16), atol=2e-4, rtol=0)
    assert bool((eta_s - eta_t <= 9 / 16 + 2e-4)[~free].all())
    assert 0.2 < free.float().mean() < 0.8


def test_grouped_rows_share_their_times(gen) -> None:
    s, _, t = Grouped(SortedPair(Uniform()), 4)(12, gen)
    assert torch.equal(s.reshape(4, 3), s[:3].expand(4, 3))
    assert len(s.unique()) == len(t.unique()) == 3
    assert len(Grouped(SortedPair(Uniform()), 4)(10, gen).s) == 10


def test_within_a_band(gen) -> None:
    """Uniform on the pairs of the band: the gap's mean is (r^2/2 - r^3/3) / (r - r^2/2). 5 standard errors."""
    law = Within(0.25, stages=3)
    for progress, reach in ((0.0, 0.25), (0.34, 0.5), (0.67, 1.0), (1.0, 1.0)):
        s, w, t = law(N, gen, progress)
        gap = s - t
        assert bool(((gap >= 0) & (gap <= reach + 1e-6) & (t >= 0) & (s <= 1 + 1e-6)).all())
        mean = (reach**2 / 2 - reach**3 / 3) / (reach - reach**2 / 2)
        assert abs(gap.mean() - mean) < 5 * gap.std() / math.sqrt(N)
        room = t / (1 - gap)
        assert abs(room.mean() - 0.5) < 5 * room.std() / math.sqrt(N)
        assert_close(w, (s + t) / 2)
    s, _, t = Within(0.3, both=True)(N, gen)
    assert abs((s < t).float().mean() - 0.5) < 5 * 0.5 / math.sqrt(N)
    with pytest.raises(RecipeError, match="0 < band <= 1"):
        Within(1.5)


def test_u_shaped(gen) -> None:
    """Mass of [0, 1/4]: half of what e^{at} and e^{a(1-t)} have there."""
    t = UShaped(4.0)(N, gen)
    mass = 0.5 * ((math.e - 1) + (math.exp(4) - math.exp(3))) / (math.exp(4) - 1)
    for part in (t < 0.25, t > 0.75):
        assert abs(part.float().mean() - mass) < 5 * math.sqrt(mass * (1 - mass) / N)


def test_source_then_gap(gen) -> None:
    s, w, t = SourceThenGap()(N, gen)
    assert bool(((t <= w) & (w <= s) & (t >= 0)).all())
    assert not bool(((s > 0.8) & (t < 0.4) & (t > 0)).any())
    late = (s > 0.4) & (s < 0.8)
    assert bool((t[late] > 0).any())
    assert bool(((t > 0) & (t < 0.4))[late].any())
