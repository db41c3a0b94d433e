"""Laws of short first legs: what they promise on every row, and their distributions (5 standard errors, false alarm 6e-7)."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from flowmaps.core.interpolant import edm, trig
from flowmaps.errors import RecipeError
from flowmaps.learn.ramps import Count, Decay, Sigmoid
from flowmaps.learn.splits import FirstLeg, FixedLeg, GridTriple, Neighbours, Tuning
from flowmaps.learn.times import Downwards, NoiseLevel, SortedPair, Uniform

N = 20_000
LAWS = {
    "share": FirstLeg(SortedPair(Uniform()), Decay(0.1, 0.002)),
    "sigmoid": FirstLeg(SortedPair(Uniform()), Sigmoid()),
    "fixed": FixedLeg(Downwards(), 0.01),
    "grid": Neighbours(points=Count(2, 150, "sqrt")),
    "ict": Neighbours(NoiseLevel(-1.1, 2.0), Count(10, 1280)),
    "triple": GridTriple(18, 4),
    "ect": Tuning(NoiseLevel(-1.1, 2.0)),
    "tcm": Tuning(NoiseLevel(0.0, 0.2, low=1.0, freedom=0.01), limit=0.999),
}


@settings(max_examples=40, deadline=None)
@given(st.sampled_from(sorted(LAWS)), st.integers(0, 10_000), st.floats(0, 1), st.integers(1, 40))
def test_legs_lie_between_source_and_target(name, seed, progress, n) -> None:
    s, w, t = LAWS[name](n, torch.Generator().manual_seed(seed), progress)
    assert s.shape == w.shape == t.shape == (n,)
    assert s.dtype == w.dtype == t.dtype == torch.float32
    assert bool(((s >= w) & (w >= t) & (t >= 0) & (s <= 1)).all())
    s_, near, t_ = LAWS[name].finer(4)(n, torch.Generator().manual_seed(seed), progress)
    assert torch.equal(s_, s)
    assert torch.equal(t_, t)
    assert torch.allclose((s - near) * 4, (s - w).double(), atol=1e-12)


def test_ict_draws_its_steps_with_the_published_masses(gen) -> None:
    """p(sigma_i) is proportional to erf((log sigma_{i+1} - m) / (sqrt 2 std)) - erf((log sigma_i - m) / (sqrt 2 std))."""
    s, w, _ = Neighbours(NoiseLevel(-1.1, 2.0), 11)(N, gen)
    grid = edm().sigma(torch.linspace(0, 1, 11, dtype=torch.float64)).log()
    mass = torch.erf((grid + 1.1) / (2**0.5 * 2.0)).diff()
    mass = mass / mass.sum()
    cell = (w * 10).round().long()
    assert torch.equal((s * 10).round().long(), cell + 1)
    measured = torch.bincount(cell, minlength=10).double() / N
    assert bool(((measured - mass).abs() < 5 * (mass * (1 - mass) / N).sqrt() + 1e-9).all())


def test_first_legs_are_the_share_that_is_said() -> None:
    """w = s + gamma (t - s), gamma a number or what a ramp says of the progress."""
    draw = lambda law: law(7, torch.Generator().manual_seed(1), 0.4)
    pair = SortedPair(Uniform(), both=True)
    for share, gamma in ((0.3, 0.3), (Decay(0.5, 0.1), 0.5 * 0.2**0.4)):
        s, w, t = draw(FirstLeg(pair, share))
        assert torch.equal(s, draw(pair).s)
        assert_close(w, s + gamma * (t - s))


def test_ect_shrinks_its_gap(gen) -> None:
    for progress, stage in ((0.0, 0), (0.3, 2), (1.0, 7)):
        s, w, t = Tuning(NoiseLevel(-1.1, 2.0))(N, gen, progress)
        sigma, ahead = edm().sigma(s.double()), edm().sigma(w.double())
        ratio = 1 - 2.0 ** -(stage + 1) * (1 + 8 / (1 + sigma.exp()))
        expected = (sigma * ratio.clamp(min=0)).clamp(min=0.002)
        # w is a float32 time of a seventh power
        assert ((ahead - expected).abs() < 1e-5 * sigma).all()
        assert bool((t == 0).all())
    # stage 0 denoises where sigmoid(-sigma) > 1/8
    clean = (Tuning(Uniform())(N, gen, 0.0).w == 0).double().mean()
    expected = float(edm().time_at(-torch.tensor(7.0).log().log()))
    assert abs(clean - expected) < 5 * math.sqrt(expected * (1 - expected) / N)
    capped = Tuning(Uniform(0.5, 1.0), stages=20, limit=0.999)(N, gen, 1.0)
    gap = 1 - edm().sigma(capped.w.double()) / edm().sigma(capped.s.double())
    assert gap.min() > 0.99e-3


def test_ect_steps_between_noise_levels_of_any_path(gen) -> None:
    """On the trig path sigma / alpha = tan: w is 0 where the bracket is empty, and s keeps its law."""
    law = Tuning(Uniform(0.3, 0.9), stages=3, q=1.6, path=trig())
    s, w, _ = law(N, gen, 0.5)
    level = torch.tan(math.pi / 2 * s.double())
    ahead = level * (1 - 1.6**-2 * (1 + 8 / (1 + level.exp()))).clamp(min=0)
    assert_close(w.double(), torch.atan(ahead) / (math.pi / 2), rtol=0, atol=1e-6)
    share = float((w == 0).double().mean())
    assert 0.1 < share < 0.9


def test_fixed_legs_end_at_short_targets(gen) -> None:
    s, w, t = FixedLeg(Downwards(), 0.05)(N, gen)
    short = s - t < 0.05
    assert torch.equal(w[short], t[short])
    assert torch.allclose((s - w)[~short], torch.tensor(0.05), atol=1e-6)
    assert abs(float((t / s).mean()) - 0.5) < 5 * (1 / 12 / N) ** 0.5


def test_triples_have_the_law_that_is_said(gen) -> None:
    """s of 1..4 is uniform, t uniform below s, w between and at most 2 below s: the mass of every triple."""
    s, w, t = (torch.round(4 * time).long() for time in GridTriple(5, 2)(N, gen))
    found = torch.bincount(25 * s + 5 * w + t, minlength=125).double() / N
    mass = torch.zeros(125, dtype=torch.float64)
    for i in range(1, 5):
        for j in range(i):
            reach = min(i - j, 2)
            for k in range(i - reach, i):
                mass[25 * i + 5 * k + j] = 1 / (4 * i * reach)
    assert mass.sum() == pytest.approx(1)
    assert bool(((found - mass).abs() <= 5 * (mass * (1 - mass) / N).sqrt()).all())


def test_triples_reach_no_further_than_they_may(gen) -> None:
    """On 18 points with reach 4: legs of 1 to 4 cells, none beyond the target, each of the four as likely on long jumps."""
    s, w, t = (torch.round(17 * time) for time in GridTriple(18, 4)(N, gen))
    assert (s.min(), s.max(), t.min()) == (1, 17, 0)
    assert ((s - w).min(), (s - w).max()) == (1, 4)
    assert bool((w >= t).all())
    cells = torch.bincount((s - w)[s - t >= 4].long(), minlength=5)[1:].double()
    assert bool(((cells / cells.sum() - 0.25).abs() < 5 * (0.1875 / cells.sum()).sqrt()).all())
    assert int(GridTriple(18)(N, gen)[0].mul(17).round().max()) == 17
    with pytest.raises(RecipeError, match="1 <= reach < points"):
        GridTriple(18, 18)
