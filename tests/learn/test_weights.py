"""Metrics and weights against closed forms, and against the papers' losses computed the long way."""

import math

import pytest
import torch
from torch.testing import assert_close

from flowmaps.core import interpolant
from flowmaps.core.parametrization import Denoised
from flowmaps.errors import RecipeError
from flowmaps.learn.objective import Term
from flowmaps.learn.rules import DiagonalRule, Points
from flowmaps.learn.times import Diagonal, Times, Uniform
from flowmaps.learn.weights import (
    L2,
    Adaptive,
    Before,
    Clip,
    ClippedTime,
    Cosine,
    Huber,
    InSpace,
    LearnedLogVar,
    LogVar,
    MaxSNR,
    Perceptual,
    Relax,
    Rise,
    Sum,
    TangentGap,
    TangentNorm,
)

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
    assert_close(TangentNorm(0.2)(g, S, T), g / (rms + 0.2)[:, None, None], rtol=1e-13, atol=0)


def test_clip_and_relax(gen) -> None:
    """FACM: alpha = 1 - (1 - s)^p multiplies the clipped tangent; all of it in noise, none at the data."""
    g = 2 * errors(gen).detach()
    clipped = g.clamp(-0.7, 0.7)
    assert (g.abs() > 0.7).any()
    assert_close(Clip(0.7)(g, S, T), clipped)
    alpha = torch.stack([1 - torch.sqrt(1 - s) for s in S])[:, None, None]
    assert_close(Relax(of=Clip(0.7))(g, S, T), alpha * clipped)
    ends = torch.tensor([1.0, 0.0], dtype=torch.float64)
    assert_close(Relax(2.0)(g[:2], ends, 0 * ends), torch.stack([g[0], 0 * g[1]]))
    assert_close(Relax(2.0)(g, S, T), (2 * S - S**2)[:, None, None] * g)


def test_space_then_tangent_then_metric(gen) -> None:
    """Gradient of |u - sg u + sg g|^2 in the space: 2 g du'/du / D, where g is the transformed error in that space."""
    u, target = torch.randn(2, 5, 7, generator=gen, dtype=torch.float64)
    u.requires_grad_()
    x = torch.randn(5, 7, generator=gen, dtype=torch.float64)
    b = Points(x, x, Times(S, S, T), {}, torch.tensor(0.0))
    rate = (S / 0.4).clamp(max=1)[:, None]
    term = Term(
        rule=DiagonalRule(),
        times=Diagonal(Uniform()),
        space=ClippedTime(0.4),
        tangent=Relax(of=Clip(0.5)),
    )
    row = term.per_row(u, target, b)
    alpha = 1 - torch.sqrt(1 - S)[:, None]
    g = alpha * (rate * (u - target)).detach().clamp(-0.5, 0.5)
    assert_close(row, (g**2).mean(1), rtol=1e-12, atol=0)
    slope = torch.autograd.grad(row.sum(), u)[0]
    assert_close(slope, 2 * g * rate / 7, rtol=1e-12, atol=1e-14)
    for bad in (0.0, 1.5):
        with pytest.raises(RecipeError, match="ClippedTime needs a time"):
            ClippedTime(bad)


def test_cosine(gen) -> None:
    """Scale-free, orthogonal gradient with the closed form -(t/|t| - cos p/|p|)/|p|, along axis 1 and mean over the rest."""
    p, t = torch.randn(2, 5, 3, 7, generator=gen, dtype=torch.float64)
    p.requires_grad_()
    norm_p, norm_t = (v.square().sum(1).sqrt() for v in (p, t))
    cos = (p * t).sum(1) / (norm_p * norm_t)
    loss = Cosine()(p, t)
    assert_close(loss, 1 - cos.mean(1), rtol=1e-12, atol=0)
    assert_close(Cosine()(3 * p, 0.2 * t), loss, rtol=1e-12, atol=0)
    slope = torch.autograd.grad(loss.sum(), p)[0]
    unit_p, unit_t = p / norm_p[:, None], t / norm_t[:, None]
    expected = -(unit_t - cos[:, None] * unit_p) / norm_p[:, None] / 7
    assert_close(slope, expected, rtol=1e-10, atol=1e-14)
    assert (slope * p).sum(1).abs().max() < 1e-14


def test_cosine_is_biased_where_targets_are_right_on_average() -> None:
    """Two targets of unlike length: their mean is stationary for L2 and not for the cosine, whose minimum is the mean direction."""
    targets = torch.tensor([[3.0, 0.5], [-0.2, 1.1]], dtype=torch.float64)
    directions = targets / targets.norm(dim=1, keepdim=True)
    for metric, best in ((L2(), targets.mean(0)), (Cosine(), directions.mean(0))):
        for point, still in ((targets.mean(0), metric == L2()), (best, True)):
            p = point.clone().requires_grad_()
            slope = torch.autograd.grad(metric(p.expand(2, 2), targets).mean(), p)[0]
            assert (slope.norm() < 1e-12) == still


def test_metrics_of_metrics(gen) -> None:
    p, t = torch.randn(2, 5, 3, 7, generator=gen, dtype=torch.float64)
    both = Sum((L2(), Cosine()))(p, t)
    assert_close(both, L2()(p, t) + Cosine()(p, t))
    assert_close(Adaptive(0.5, 1e-3, of=L2())(p, t), L2()(p, t) / (L2()(p, t) + 1e-3) ** 0.5)
    assert_close(Adaptive(0.5, 1e-3)(p, t), Adaptive(0.5, 1e-3)(p - t))


def test_perceptual(gen) -> None:
    """With the identity it is L2; features of both sides; several layers add up; no gradient to the target."""
    p, t = torch.randn(2, 5, 3, 8, 8, generator=gen, dtype=torch.float64)
    assert_close(Perceptual(lambda x: x)(p, t), L2()(p, t))
    pooled = Perceptual(lambda x: (x.mean((2, 3)), x**2))(p, t)
    expected = L2()(p.mean((2, 3)), t.mean((2, 3))) + L2()(p**2, t**2)
    assert_close(pooled, expected)
    p.requires_grad_()
    t.requires_grad_()
    slope = torch.autograd.grad(Perceptual(torch.sin)(p, t).sum(), (p, t), allow_unused=True)
    assert slope[1] is None
    assert_close(slope[0], 2 * p.cos() * (p.sin() - t.sin()) / 192)


def test_a_floor_bounds_what_a_small_error_counts(gen) -> None:
    """The best omega is log(L + floor), where an error's gradient counts 1 / (L + floor): 10 at most with floor 0.1."""
    row = torch.tensor([1e-9, 0.4], dtype=torch.float64)
    omega = (row + 0.1).log().requires_grad_()
    assert_close(
        torch.autograd.grad(LearnedLogVar(floor=0.1).loss(row, omega).sum(), omega)[0],
        torch.zeros(2, dtype=torch.float64),
    )
    weighed = row.requires_grad_()
    slope = torch.autograd.grad(LearnedLogVar(floor=0.1).loss(weighed, omega).sum(), weighed)[0]
    assert_close(slope, torch.tensor([10.0, 2.0], dtype=torch.float64))


def test_log_cauchy(gen) -> None:
    """log(L + c e^omega): its slope is 1 / (L + c e^omega) in L, and positive in omega for every error (no finite optimum)."""
    row, omega = torch.rand(2, 9, generator=gen, dtype=torch.float64) + 0.1
    row.requires_grad_()
    omega.requires_grad_()
    loss = LearnedLogVar(cauchy=0.02).loss(row, omega)
    assert_close(loss, torch.log(row + 0.02 * omega.exp()), rtol=1e-12, atol=0)
    by_row, by_omega = torch.autograd.grad(loss.sum(), (row, omega))
    floor = 0.02 * omega.exp()
    assert_close(by_row, 1 / (row + floor), rtol=1e-12, atol=0)
    assert_close(by_omega, floor / (row + floor), rtol=1e-10, atol=0)
    assert bool((by_omega > 0).all())
    assert_close(LearnedLogVar().loss(row, omega), row / omega.exp() + omega)


def test_weights_of_time() -> None:
    path = interpolant.linear()
    assert_close(Rise()(path, S, T), torch.cos(math.pi / 2 * (1 - S)))
    gap = torch.tan(S) - torch.tan(T)
    assert_close(TangentGap(0.5)(path, S, T), (gap + 0.5) ** -0.5)
    assert_close(TangentGap()(path, S, S), torch.ones_like(S))
    assert Before(0.6)(path, S, T).tolist() == [0, 0, 1, 1, 1]


def test_log_variance_starts_at_zero_and_depends_on_both_times() -> None:
    net = LogVar(16)
    assert torch.equal(net(S, T), torch.zeros(5))
    with torch.no_grad():
        net.last.weight.normal_(generator=torch.Generator().manual_seed(0))
    assert (net(S, T) - net(T, S)).abs().max() > 1e-3
    assert (net(S, T) - net(S, T.roll(1))).abs().max() > 1e-3
