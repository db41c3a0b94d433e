"""Coefficients against automatic differentiation, conversions against the definition of each prediction."""

import itertools
import math

import pytest
import torch
from torch.testing import assert_close

from flowmaps.core import interpolant

KINDS = ("x0", "eps", "velocity", "score")
T = torch.tensor([0.07, 0.231, 0.483, 0.719, 0.961], dtype=torch.float64)
# float64: a derivative costs a few roundings of its largest coefficient (80 on the VE path)
EXACT = {"rtol": 1e-12, "atol": 1e-12}


def derivative(f, t: torch.Tensor) -> torch.Tensor:
    t = t.clone().requires_grad_()
    value = f(t).sum()
    return (
        torch.autograd.grad(value, t, allow_unused=True)[0]
        if value.requires_grad
        else torch.zeros_like(t)
    )


def test_derivatives_are_those_of_the_coefficients(path) -> None:
    for value, slope in ((path.alpha, path.dalpha), (path.sigma, path.dsigma)):
        exact = derivative(value, T)
        exact = torch.zeros_like(T) if exact is None else exact
        assert_close(slope(T), exact, **EXACT)


def test_coefficients_are_the_published_ones() -> None:
    t = T
    assert_close(interpolant.trig().alpha(t), torch.cos(torch.pi * t / 2), **EXACT)
    area = 0.1 * t + 0.5 * 19.9 * t**2
    assert_close(interpolant.vp().alpha(t), torch.exp(-area / 2), **EXACT)
    assert_close(
        interpolant.vp().alpha(t) ** 2 + interpolant.vp().sigma(t) ** 2, torch.ones_like(t)
    )
    assert_close(
        interpolant.vp(0.3, 7.0).alpha(t), torch.exp(-(0.3 * t + 3.35 * t**2) / 2), **EXACT
    )
    assert_close(interpolant.ve().sigma(t), 80 * t, **EXACT)
    assert_close(interpolant.linear().sigma(t), t, **EXACT)


def test_secant_is_the_divided_difference(path) -> None:
    s, t = T, T.roll(2)
    dalpha, dsigma = path.secant(s, t)
    assert_close(dalpha, (path.alpha(t) - path.alpha(s)) / (t - s), **EXACT)
    assert_close(dsigma, (path.sigma(t) - path.sigma(s)) / (t - s), **EXACT)


def test_secant_becomes_the_derivative_without_cancellation(path) -> None:
    for gap in (0.0, 1e-14, 1e-9, 3e-7):
        dalpha, dsigma = path.secant(T, T + gap)
        # the secant is the derivative at the middle, to second order in the gap
        assert_close(dalpha, path.dalpha(T + gap / 2), **EXACT)
        assert_close(dsigma, path.dsigma(T + gap / 2), **EXACT)
    one = [c.to(torch.float64) for c in path.secant(T.float(), T.float() + 1e-4)]
    two = path.secant(T.float().double(), (T.float() + 1e-4).double())
    assert_close(one[0], two[0], rtol=3e-6, atol=3e-6)  # float32, where the quotient keeps 3 digits
    assert_close(one[1], two[1], rtol=3e-6, atol=3e-6)


def test_time_at_inverts_log_snr(path) -> None:
    assert_close(path.time_at(path.log_snr(T)), T, rtol=1e-12, atol=0)
    lam = torch.tensor([-3.3, -0.7, 0.4, 2.9], dtype=torch.float64)
    assert_close(path.log_snr(path.time_at(lam)), lam, rtol=1e-11, atol=1e-11)
    assert bool((path.log_snr(T).diff() < 0).all())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_log_snr_at_the_ends_is_no_nan(path, dtype) -> None:
    ends = torch.tensor([0.0, 1.0], dtype=dtype)
    lam = path.log_snr(ends)
    assert not lam.isnan().any()
    back = path.time_at(lam).clamp(max=1.0)
    assert_close(back, ends, rtol=0, atol=1e-6 if dtype == torch.float32 else 1e-12)
    infinite = path.time_at(torch.tensor([torch.inf, -torch.inf], dtype=dtype)).clamp(max=1.0)
    assert_close(infinite, ends, rtol=0, atol=1e-6)


def test_sample_is_the_path_and_its_velocity(path, gen) -> None:
    x_0, eps = torch.randn(2, 5, 7, generator=gen, dtype=torch.float64)
    x_t, v = path.sample(x_0, eps, T)
    h = 1e-6
    ahead, behind = path.sample(x_0, eps, T + h)[0], path.sample(x_0, eps, T - h)[0]
    assert_close(x_t, path.alpha(T)[:, None] * x_0 + path.sigma(T)[:, None] * eps)
    assert_close(v, (ahead - behind) / (2 * h), rtol=1e-7, atol=1e-7)  # h^2 and eps/h


@pytest.mark.parametrize(("source", "target"), [*itertools.product(KINDS, KINDS)])
def test_conversions(path, source, target, gen) -> None:
    x_0, eps = torch.randn(2, 5, 7, generator=gen, dtype=torch.float64)
    x_t, v = path.sample(x_0, eps, T)
    truth = {"x0": x_0, "eps": eps, "velocity": v, "score": -eps / path.sigma(T)[:, None]}
    got = path.convert(truth[source], x_t, T, source=source, target=target)
    # x_0 out of noise multiplies roundings by sigma / alpha, 16 to 150 at the last time
    assert_close(got, truth[target], rtol=1e-10, atol=1e-10)
    back = path.convert(got, x_t, T, source=target, target=source)
    assert_close(back, truth[source], rtol=1e-10, atol=1e-10)


def test_velocity_conversion_is_finite_at_both_ends(gen) -> None:
    for path in (interpolant.linear(), interpolant.trig(), interpolant.ve()):
        x, v = torch.randn(2, 2, 7, generator=gen)
        x_0, eps = path.endpoints(v, x, torch.tensor([0.0, 1.0]), "velocity")
        assert x_0.isfinite().all()
        assert eps.isfinite().all()


@pytest.mark.parametrize("end", [0.0, 1.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_matched_times_have_slopes_at_both_ends(end, dtype) -> None:
    """They are those of points just inside, 2 / pi between the straight and the trig path; a still time stays still."""
    x, at = torch.zeros(2, 3, dtype=dtype), torch.tensor([end, 0.3], dtype=dtype)

    def times(t):
        return interpolant.matched(t, x, interpolant.trig(), interpolant.linear())[0]

    for pace in (1.0, 0.0):
        value, slope = torch.func.jvp(times, (at,), (torch.full_like(at, pace),))
        truth = 2 / math.pi / (0.3**2 + 0.7**2)
        assert_close(
            slope, pace * torch.tensor([2 / math.pi, truth], dtype=dtype), rtol=1e-5, atol=0
        )
        assert float(value[0]) == end
    (pulled,) = torch.autograd.grad(times(at.requires_grad_()).sum(), at)
    assert_close(pulled, slope.new_tensor([2 / math.pi, truth]), rtol=1e-5, atol=0)


def test_matched_times_have_one_snr(gen) -> None:
    x = torch.zeros(5, 3, dtype=torch.float64)
    for old, new in itertools.permutations([f() for f in interpolant.INTERPOLANTS.values()], 2):
        t = 0.8 * T
        t_old, k = interpolant.matched(t, x, old, new)
        assert_close(old.log_snr(t_old), new.log_snr(t), **EXACT)
        assert_close(k[:, 0] * old.alpha(t_old), new.alpha(t), **EXACT)
        assert_close(k[:, 0] * old.sigma(t_old), new.sigma(t), **EXACT)
        for dtype in (torch.float32, torch.float64):
            end, scale = interpolant.matched(1.0, x.to(dtype), old, new)
            assert scale.isfinite().all()
            assert bool((end > 0.7).all())
            assert bool((end <= 1).all())


def test_paths_are_values(path) -> None:
    assert path == interpolant.INTERPOLANTS[path.name](**path.settings)
    assert hash(path) == hash(interpolant.INTERPOLANTS[path.name](**path.settings))
    assert interpolant.vp() != interpolant.vp(0.1, 12.0)
    assert repr(interpolant.vp()) == "vp(beta_min=0.1, beta_max=20)"


def test_prior_has_the_scale_of_the_end(path, gen) -> None:
    noise = path.prior((20_000, 3), gen)
    expected = float(path.sigma(torch.ones(())))
    # standard error of a standard deviation is 1/sqrt(2n): five of them, false alarm 6e-7
    assert abs(noise.std().item() / expected - 1) < 5 / (2 * noise.numel()) ** 0.5
