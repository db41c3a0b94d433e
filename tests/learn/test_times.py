"""Laws of times: what they promise on every row, and their distributions (5 standard errors, false alarm 6e-7 a number)."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from flowmaps.errors import RecipeError
from flowmaps.learn.times import (
    Diagonal,
    Dyadic,
    Fixed,
    GapThenTarget,
    HalvingGrid,
    LogitNormal,
    LogTangent,
    LogUniform,
    SortedPair,
    ToData,
    Uniform,
)

N = 20_000
LAWS = {
    "uniform": SortedPair(Uniform()),
    "logit": SortedPair(LogitNormal(-0.4, 1.0)),
    "two": SortedPair(Uniform(), target=LogitNormal(0.3, 0.8), split=Fixed(0.5)),
    "ends": SortedPair(Uniform(), starts=0.2, ends=0.3),
    "data": ToData(LogitNormal()),
    "dyadic": Dyadic(5),
    "halving": HalvingGrid(4),
    "diagonal": Diagonal(SortedPair(Uniform())),
}


def share(mask: torch.Tensor, expected: float) -> None:
    assert abs(mask.double().mean().item() - expected) < 5 * math.sqrt(
        expected * (1 - expected) / len(mask)
    )


@settings(max_examples=40, deadline=None)
@given(st.sampled_from(sorted(LAWS)), st.integers(0, 10_000), st.floats(0, 1), st.integers(1, 40))
def test_sources_lie_above_middles_above_targets(name, seed, progress, n) -> None:
    s, w, t = LAWS[name](n, torch.Generator().manual_seed(seed), progress)
    assert s.shape == w.shape == t.shape == (n,)
    assert s.dtype == torch.float32
    assert bool(((s >= w - 1e-7) & (w >= t - 1e-7) & (t >= 0) & (s <= 1)).all())


def test_both_directions(gen) -> None:
    s, w, t = SortedPair(Uniform(), both=True)(N, gen)
    share(s < t, 0.5)
    between = (w - s) * (w - t)
    assert bool((between <= 1e-7).all())


def test_sorted_pair_distributions(gen) -> None:
    s, w, t = SortedPair(Uniform())(N, gen)
    for time, mean in ((s, 2 / 3), (t, 1 / 3)):  # order statistics of two uniforms, variance 1/18
        assert abs(time.mean().item() - mean) < 5 / math.sqrt(18 * N)
    gamma = (s - w) / (s - t)
    assert abs(gamma[s > t].mean().item() - 0.5) < 5 / math.sqrt(12 * N)
    share(gamma < 0.25, 0.25)
    s, w, t = SortedPair(Uniform(), starts=0.4, ends=0.3)(N, gen)
    share(s == 1, 0.4)
    share(t == 0, 0.3)
    share((s == 1) & (t == 0), 0.12)
    s, w, t = SortedPair(Fixed(0.9), target=Fixed(0.2), split=Fixed(0.25))(5, gen)
    assert torch.allclose(w, torch.full((5,), 0.9 - 0.25 * 0.7))


def test_laws_of_one_time(gen) -> None:
    u = Uniform(0.2, 0.7)(N, gen)
    share(u < 0.3, 0.2)
    assert u.min() >= 0.2
    assert u.max() <= 0.7
    z = torch.logit(LogitNormal(-0.4, 1.3)(N, gen).double())
    assert abs(z.mean().item() + 0.4) < 5 * 1.3 / math.sqrt(N)
    assert abs(z.std().item() - 1.3) < 5 * 1.3 / math.sqrt(2 * N)
    scale = LogUniform(1.5, 6.0)(N, gen)
    share(scale < 3.0, 0.5)
    assert torch.equal(Fixed(2.5)(3, gen), torch.full((3,), 2.5))


def test_to_data_ends_at_zero(gen) -> None:
    s, w, t = ToData(Uniform(0.1, 0.9), split=Fixed(0.25))(100, gen)
    assert bool((t == 0).all())
    assert torch.allclose(w, 0.75 * s)


def test_diagonal_takes_the_sources_of_a_pair(gen) -> None:
    s, w, t = Diagonal(SortedPair(Uniform()))(N, gen)
    assert torch.equal(s, t)
    assert torch.equal(s, w)
    assert abs(s.mean().item() - 2 / 3) < 5 / math.sqrt(18 * N)


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
            assert law.stage(progress) == stage
            s, w, t = law(400, gen, progress)
            assert torch.equal(s - t, torch.full((400,), 1 / steps))
            assert torch.equal(w, (s + t) / 2)
            assert set((s * steps).tolist()) == set(range(1, steps + 1))
    assert law.stage(1.0) == 3


@pytest.mark.parametrize("stages", range(1, 80))
def test_stages_change_exactly_when_the_teacher_does(stages) -> None:
    """`Recipe.refresh` is i / stages: also where i / stages * stages falls short of i."""
    assert [HalvingGrid(stages).stage(i / stages) for i in range(stages)] == list(range(stages))


def test_bad_laws_are_refused() -> None:
    for make, text in (
        (lambda: Uniform(0.7, 0.2), "Uniform needs low <= high"),
        (lambda: LogUniform(0.0, 2.0), "LogUniform needs 0 < low <= high"),
        (lambda: Dyadic(0), "Dyadic needs levels >= 1"),
        (lambda: HalvingGrid(0), "HalvingGrid needs stages >= 1"),
    ):
        with pytest.raises(RecipeError, match=text):
            make()


def test_laws_are_functions_of_their_generator() -> None:
    for law in LAWS.values():
        one, two, three = (law(9, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2))
        assert all(torch.equal(a, b) for a, b in zip(one, two, strict=True))
        assert not all(torch.equal(a, b) for a, b in zip(one, three, strict=True))


def test_log_tangent_is_log_normal_noise(gen) -> None:
    z = torch.log(torch.tan(math.pi / 2 * LogTangent(-0.3, 1.4)(N, gen).double()))
    assert abs(z.mean() + 0.3) < 5 * 1.4 / math.sqrt(N)
    assert abs(z.std() - 1.4) < 5 * 1.4 / math.sqrt(2 * N)
    share(z < -0.3 + 1.4, 0.841345)


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
