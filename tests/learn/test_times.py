"""Laws of times: what they promise on every row, and their distributions (5 standard errors, false alarm 6e-7 a number)."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from flowmaps.core.interpolant import edm, trig
from flowmaps.errors import RecipeError
from flowmaps.learn.jumps import Dyadic, HalvingGrid
from flowmaps.learn.times import (
    Diagonal,
    Either,
    Fixed,
    LogitNormal,
    LogUniform,
    NoiseLevel,
    SortedPair,
    ToData,
    Uniform,
    Upwards,
    UShaped,
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
    either = Either(0.9, 0.4, odds=0.3)(N, gen)
    share(either == 0.4, 0.3)
    share(either == 0.9, 0.7)


def test_upwards_are_the_same_jumps_from_their_other_end() -> None:
    law = SortedPair(Uniform(), starts=0.2, ends=0.3)
    down = law(N, torch.Generator().manual_seed(0))
    up = Upwards(law)(N, torch.Generator().manual_seed(0))
    assert torch.equal(up.s, down.t)
    assert torch.equal(up.w, down.w)
    assert torch.equal(up.t, down.s)
    assert (up.s < up.t).all()


def test_to_data_ends_at_zero(gen) -> None:
    s, w, t = ToData(Uniform(0.1, 0.9), split=Fixed(0.25))(100, gen)
    assert bool((t == 0).all())
    assert torch.allclose(w, 0.75 * s)


def test_diagonal_takes_the_sources_of_a_pair(gen) -> None:
    s, w, t = Diagonal(SortedPair(Uniform()))(N, gen)
    assert torch.equal(s, t)
    assert torch.equal(s, w)
    assert abs(s.mean().item() - 2 / 3) < 5 / math.sqrt(18 * N)


def test_bad_laws_are_refused() -> None:
    for make, text in (
        (lambda: Uniform(0.7, 0.2), "Uniform needs low <= high"),
        (lambda: LogUniform(0.0, 2.0), "LogUniform needs 0 < low <= high"),
        (lambda: Either(1.0, 0.5, 1.1), r"Either has odds in \[0, 1\]; got 1.1"),
        (lambda: Dyadic(0), "Dyadic needs levels >= 1"),
        (lambda: HalvingGrid(0), "HalvingGrid needs stages >= 1"),
        (lambda: NoiseLevel(0.0, 1.0, low=2.0, high=1.0), "NoiseLevel needs 0 <= low <= high"),
        (lambda: NoiseLevel(0.0, 1.0, low=0.0, freedom=1.0), "cut it at levels 0 < low"),
    ):
        with pytest.raises(RecipeError, match=text):
            make()


def test_laws_are_functions_of_their_generator() -> None:
    for law in LAWS.values():
        one, two, three = (law(9, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2))
        assert all(torch.equal(a, b) for a, b in zip(one, two, strict=True))
        assert not all(torch.equal(a, b) for a, b in zip(one, three, strict=True))


def test_uncut_noise_levels_are_log_normal(gen) -> None:
    law = NoiseLevel(-0.3, 1.4, 0.0, math.inf, path=trig())
    z = torch.log(torch.tan(math.pi / 2 * law(N, gen).double()))
    assert abs(z.mean() + 0.3) < 5 * 1.4 / math.sqrt(N)
    assert abs(z.std() - 1.4) < 5 * 1.4 / math.sqrt(2 * N)
    share(z < -0.3 + 1.4, 0.841345)


def test_noise_levels_are_truncated_lognormal(gen) -> None:
    sigma = edm().sigma(NoiseLevel(-1.1, 2.0)(N, gen).double())
    normal = torch.distributions.Normal(-1.1, 2.0)
    ends = normal.cdf(torch.tensor([0.002, 80.0]).log())
    for level in (0.05, 0.3, 1.0, 6.0):
        cdf = normal.cdf(torch.tensor(level).log())
        expected = float((cdf - ends[0]) / (ends[1] - ends[0]))
        measured = (sigma < level).double().mean().item()
        assert abs(measured - expected) < 5 * math.sqrt(expected * (1 - expected) / N)
    assert sigma.min() >= 0.00199
    assert NoiseLevel(0.0, 0.2, low=1.0, high=1.0)(3, gen).unique().numel() == 1
    # Student's t with one degree of freedom is Cauchy: a quarter of the half above the mean lies beyond ... its quartile
    cauchy = edm().sigma(NoiseLevel(0.0, 0.2, low=1.0, high=80.0, freedom=1.0)(N, gen).double())
    total = math.atan(math.log(80) / 0.2)
    expected = math.atan(1.0) / total
    measured = (cauchy < math.exp(0.2)).double().mean().item()
    assert abs(measured - expected) < 5 * math.sqrt(expected * (1 - expected) / N)


@pytest.mark.parametrize(
    ("low", "high", "make", "std"),
    [
        (2e-3, 80.0, edm, 0.7),
        (0.9, 7.0, edm, 0.7),
        (0.0, math.inf, trig, 0.7),
        (0.0, math.inf, trig, 3.0),
    ],
)
@pytest.mark.parametrize("freedom", [None, 1.0, 2.0])
def test_noise_levels_are_the_quantiles_of_their_draws(low, high, make, std, freedom) -> None:
    """Every draw is the quantile of its uniform number: of 8193 points the error is the square of a cell, 1e-6 and less."""
    mean = 0.4
    if freedom is not None and low == 0:
        low, high = 0.01, 30.0
    ends = (torch.tensor([low, high], dtype=torch.float64).log() - mean) / std
    at = torch.rand(N, generator=torch.Generator().manual_seed(3)).double()
    if freedom is None:
        cdf = torch.special.ndtr(ends)
        z = torch.special.ndtri(torch.lerp(cdf[0], cdf[1], at))
    elif freedom == 1:  # Cauchy
        z = torch.tan(torch.lerp(*ends.atan(), at))
    else:  # two degrees: F = (1 + z / sqrt(2 + z^2)) / 2
        odd = torch.lerp(*(ends / (2 + ends.square()).sqrt()), at)
        z = odd * (2 / (1 - odd.square())).sqrt()
    law = NoiseLevel(mean, std, low, high, freedom=freedom, path=make())
    drawn = law(N, torch.Generator().manual_seed(3))
    assert drawn.dtype == torch.float32
    expected = make().time_at(-(mean + std * z)).clamp(0, 1)
    usual = (at > 1e-3) & (at < 1 - 1e-3)  # an uncut tail is long: one cell is more of it
    assert (drawn.double() - expected)[usual].abs().max() < 3e-6
    if low > 0:
        assert (drawn.double() - expected).abs().max() < 3e-5


def test_u_shaped(gen) -> None:
    """Mass of [0, 1/4]: half of what e^{at} and e^{a(1-t)} have there."""
    t = UShaped(4.0)(N, gen)
    mass = 0.5 * ((math.e - 1) + (math.exp(4) - math.exp(3))) / (math.exp(4) - 1)
    for part in (t < 0.25, t > 0.75):
        assert abs(part.float().mean() - mass) < 5 * math.sqrt(mass * (1 - mass) / N)
