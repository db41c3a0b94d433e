"""Laws of jumps of single methods: their distributions (5 standard errors, false alarm 6e-7 a number)."""

import math

import pytest
import torch
from torch.testing import assert_close

from flowmaps.core.interpolant import linear
from flowmaps.errors import RecipeError
from flowmaps.learn.jumps import (
    Dyadic,
    GapThenTarget,
    HalvingGrid,
    Inductive,
    SourceThenGap,
    Until,
    Within,
)
from flowmaps.learn.times import Fixed, LogitNormal, SortedPair, Uniform

N = 20_000


def share(mask: torch.Tensor, expected: float) -> None:
    assert abs(mask.double().mean().item() - expected) < 5 * math.sqrt(
        expected * (1 - expected) / len(mask)
    )


def test_dyadic_grid(gen) -> None:
    s, w, t = Dyadic(5)(N, gen)
    length = s - t
    k = -torch.log2(length)
    assert torch.equal(k, k.round())
    for level in range(5):
        share(k == level, 0.2)
    cell = s / length  # the matching grid: whole numbers of jumps
    assert torch.equal(cell, cell.round())
    assert torch.equal(w, (s + t) / 2)
    share((t == 0)[k == 2], 0.25)


def test_halving_grid_stages(gen) -> None:
    law = HalvingGrid(4)
    for stage, steps in enumerate((8, 4, 2, 1)):
        for progress in (stage / 4, stage / 4 + 0.24):
            s, w, t = law(400, gen, progress)
            assert torch.equal(s - t, torch.full((400,), 1 / steps))
            assert torch.equal(w, (s + t) / 2)
            assert set((s * steps).tolist()) == set(range(1, steps + 1))


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


def test_source_then_gap(gen) -> None:
    s, w, t = SourceThenGap()(N, gen)
    assert bool(((t <= w) & (w <= s) & (t >= 0)).all())
    assert not bool(((s > 0.8) & (t < 0.4) & (t > 0)).any())
    late = (s > 0.4) & (s < 0.8)
    assert bool((t[late] > 0).any())
    assert bool(((t > 0) & (t < 0.4))[late].any())
    s, w, t = SourceThenGap(split=Fixed(0.3))(N, gen)
    assert torch.allclose(w, s + 0.3 * (t - s))


def test_gaps_are_drawn_first_and_targets_are_truncated_to_them(gen) -> None:
    """TVM: the gap has its own law, the target given the gap has the truncated logit-normal's distribution function."""
    law = GapThenTarget(LogitNormal(-0.8, 1.0), -0.4, 1.3)
    s, w, t = (time.double() for time in law(N, gen))
    gap = s - t
    assert bool((gap > 0).all() and (s <= 1).all() and (t >= 0).all())
    z = torch.logit(gap.clamp(1e-9, 1 - 1e-9))
    assert abs(z.mean() + 0.8) < 5 / math.sqrt(N)
    share(z < 0.2, 0.841345)
    assert torch.equal(w.float(), ((s + t) / 2).float())

    def below(value: torch.Tensor) -> torch.Tensor:
        return torch.special.ndtr((torch.logit(value.clamp(1e-9, 1 - 1e-9)) + 0.4) / 1.3)

    uniform = torch.sort(below(t) / below(1 - gap)).values
    steps = torch.arange(1, N + 1, dtype=torch.float64) / N
    assert (uniform - steps).abs().max() < 2.74 / math.sqrt(N)  # Kolmogorov: 6e-7
    # given the gap, not only on average: the same among the longest gaps
    long = gap > 0.6
    share((below(t) / below(1 - gap))[long] < 0.3, 0.3)
    share(
        t[long] < 0.1,
        float((below(torch.tensor(0.1).double()) / below(1 - gap[long])).clamp(max=1).mean()),
    )


def test_inductive_pairs_are_a_fixed_distance_apart_in_noise_level(gen) -> None:
    s, w, t = Inductive(linear(), 0.9, 4.0)(N, gen)
    assert bool(((t <= w) & (w <= s) & (s <= 0.9)).all())
    eta_s, eta_w, eta_t = (v / (1 - v) for v in (s, w, t))
    free = w > t + 1e-5
    assert_close((eta_s - eta_w)[free], torch.full_like(s[free], 9 / 16), atol=2e-4, rtol=0)
    assert bool((eta_s - eta_t <= 9 / 16 + 2e-4)[~free].all())
    assert 0.2 < free.float().mean() < 0.8


def test_until_shrinks_the_jumps_that_begin_too_late() -> None:
    law = SortedPair(Uniform())
    free = law(5000, torch.Generator().manual_seed(0))
    kept = Until(law, 0.7)(5000, torch.Generator().manual_seed(0))
    late = free.s > 0.7
    assert 0.3 < late.double().mean() < 0.7
    for a, b in zip(kept, free, strict=True):
        assert torch.equal(a[~late], b[~late])
        assert_close((a / kept.s)[late], (b / free.s)[late])
    assert_close(kept.s[late], torch.full_like(kept.s[late], 0.7))
