"""Metrics and weights against closed forms, and against the papers' losses computed the long way."""

import math

import pytest
import torch
from torch.testing import assert_close

from flowmaps.core import interpolant
from flowmaps.core.parametrization import Denoised
from flowmaps.errors import RecipeError
from flowmaps.learn.weights import L2, Adaptive, Huber, InSpace, LogVar, MaxSNR, Ramp, TangentNorm

S = torch.tensor([0.93, 0.71, 0.52, 0.38, 0.17], dtype=torch.float64)
T = torch.tensor([0.61, 0.22, 0.47, 0.09, 0.05], dtype=torch.float64)


def errors(gen: torch.Generator) -> torch.Tensor:
    return torch.randn(5, 3, 7, generator=gen, dtype=torch.float64).requires_grad_()


def test_l2_is_the_mean_square(gen) -> None:
    e = errors(gen)
    assert_close(L2()(e), (e**2).sum((1, 2)) / 21, rtol=1e-14, atol=0)


@pytest.mark.parametrize("p", [0.0, 0.5, 1.0])
def test_adaptive_gradient(p, gen) -> None:
    """The weight is detached: the gradient is 2 e / (|e|^2 + c)^p, and no more."""
    e = errors(gen)
    loss = Adaptive(p, 0.02)(e)
    total = (e**2).sum((1, 2))
    assert_close(loss, total / (total + 0.02) ** p, rtol=1e-13, atol=0)
    slope = torch.autograd.grad(loss.sum(), e)[0]
    assert_close(slope, 2 * e / ((total + 0.02) ** p)[:, None, None], rtol=1e-12, atol=0)


def test_huber_limits(gen) -> None:
    e = errors(gen).detach()
    norm = (e**2).sum((1, 2)).sqrt()
    c = Huber(1e-6)
    assert_close(c(e), norm, rtol=1e-5, atol=0)  # large errors: the norm
    big = Huber(1e4)
    assert_close(
        big(e), norm**2 / (2 * 1e4 * math.sqrt(21)), rtol=1e-6, atol=0
    )  # small: half a square
    c2 = 0.3**2 * 21
    assert_close(Huber(0.3)(e), (norm**2 + c2).sqrt() - c2**0.5, rtol=1e-12, atol=0)


@pytest.mark.parametrize("space", ["x0", "eps"])
def test_in_space_is_the_direct_loss(space, path, gen) -> None:
    """The weighted velocity loss is the unweighted loss on x_0 or noise of the network that a conversion gives."""
    x_0, eps, guess = torch.randn(3, 5, 7, generator=gen, dtype=torch.float64)
    x, v = path.sample(x_0, eps, S)
    u = path.convert(guess, x, S, source=space, target="velocity")
    weighted = InSpace(space)(path, S, S) * L2()(u - v)
    direct = ((guess - (x_0 if space == "x0" else eps)) ** 2).mean(1)
    assert_close(weighted, direct, rtol=1e-9, atol=0)


def test_max_snr_is_the_truncated_loss_of_progressive_distillation(unit_path, gen) -> None:
    """Salimans & Ho, Algorithm 2 the long way: two DDIM steps of a teacher, x~ by their formula, max(SNR, 1)|x~ - x^|^2."""
    x, teach, guess = torch.randn(3, 5, 7, generator=gen, dtype=torch.float64)
    w = (S + T) / 2
    at = lambda t: [c[:, None] for c in (unit_path.alpha(t), unit_path.sigma(t))]
    (a_s, s_s), (a_w, s_w), (a_t, s_t) = at(S), at(w), at(T)
    middle = a_w * teach + s_w / s_s * (x - a_s * teach)
    end = a_t * teach.flip(0) + s_t / s_w * (
        middle - a_w * teach.flip(0)
    )  # another x_0 at the second step
    tilde = (end - s_t / s_s * x) / (a_t - s_t / s_s * a_s)
    long_way = torch.clamp((a_s / s_s) ** 2, 1, 100)[:, 0] * ((tilde - guess) ** 2).mean(1)
    gap = (T - S)[:, None]
    u_teacher = (end - x) / gap
    u_student = Denoised(unit_path).mean_velocity(guess, x, S, T)
    ours = MaxSNR()(unit_path, S, T) * L2()(u_student - u_teacher)
    assert_close(ours, long_way, rtol=1e-9, atol=0)


def test_max_snr_caps(gen) -> None:
    path = interpolant.linear()
    s, t = torch.tensor([0.05]).double(), torch.tensor([0.01]).double()
    assert_close(MaxSNR(50.0)(path, s, t) / MaxSNR(100.0)(path, s, t), torch.tensor([0.5]).double())
    assert MaxSNR()(path, torch.zeros(1), torch.zeros(1)).isfinite().all()


def test_tangent_norm(gen) -> None:
    g = errors(gen).detach()
    rms = (g**2).mean((1, 2)).sqrt()
    assert_close(TangentNorm(0.2)(g), g / (rms + 0.2)[:, None, None], rtol=1e-13, atol=0)


def test_ramp() -> None:
    ramp = Ramp(0.2, 1.4, begin=0.25, end=0.75)
    for progress, value in (
        (0.0, 0.2),
        (0.25, 0.2),
        (0.35, 0.44),
        (0.6, 1.04),
        (0.75, 1.4),
        (1.0, 1.4),
    ):
        assert_close(ramp(torch.tensor(progress)), torch.tensor(value), rtol=1e-6, atol=0)
    for begin, end in ((0.5, 0.5), (-0.1, 1.0), (0.0, 1.1)):
        with pytest.raises(RecipeError, match="Ramp needs 0 <= begin < end <= 1"):
            Ramp(0.0, 1.0, begin, end)


def test_log_variance_starts_at_zero_and_depends_on_both_times() -> None:
    net = LogVar(16)
    assert torch.equal(net(S, T), torch.zeros(5))
    with torch.no_grad():
        net.last.weight.normal_(generator=torch.Generator().manual_seed(0))
    assert (net(S, T) - net(T, S)).abs().max() > 1e-3
    assert (net(S, T) - net(S, T.roll(1))).abs().max() > 1e-3
