"""The worlds against what follows from their densities: everything else leans on them.

Statistical tests use 5 standard errors: a false alarm of 6e-7 for each compared number, 5e-4 for the whole file.
"""

import math

import pytest
import torch
from torch.testing import assert_close

from flowmaps.core import interpolant
from flowmaps.core.flow_map import SolvedFlowMap
from flowmaps.core.oracle import Checkerboard, Mixture, Product
from flowmaps.core.solver import RK4
from flowmaps.testing import worlds

T = torch.tensor([0.13, 0.29, 0.47, 0.68, 0.91], dtype=torch.float64)
MAKERS = {
    "gaussian": worlds.gaussian,
    "mixture": worlds.mixture,
    "product": worlds.product,
    "rotated": worlds.rotated,
    "checkerboard": Checkerboard,
}


def at_times(world, gen: torch.Generator, t: torch.Tensor = T) -> torch.Tensor:
    """Points of the path, one per time."""
    x_0 = world.sample(len(t), gen).double()
    return world.interpolant.sample(x_0, torch.randn(x_0.shape, generator=gen).double(), t)[0]


def denoise(world, x, t):
    v = world.velocity(x, t)
    return world.interpolant.convert(v, x, t, source="velocity", target="x0")


@pytest.mark.parametrize("name", MAKERS)
def test_posterior_mean_is_the_velocity(name, path, gen) -> None:
    world = MAKERS[name](path)
    x = at_times(world, gen)
    x_0, eps = world.posterior(x, T, 20_000, gen)
    c = path.at(T, x)
    assert_close(c.alpha * x_0 + c.sigma * eps, x.expand_as(x_0), rtol=1e-9, atol=1e-9)
    v = c.dalpha * x_0 + c.dsigma * eps
    error = (v.mean(0) - world.velocity(x, T)).abs()
    assert bool((error < 5 * v.std(0) / v.shape[0] ** 0.5 + 1e-12).all())


@pytest.mark.parametrize("name", MAKERS)
def test_posterior_covariance_is_the_slope_of_the_denoiser(name, path, gen) -> None:
    """Cov[x_0 | x] = (sigma^2 / alpha) dD/dx (the second-order Tweedie formula)."""
    world = MAKERS[name](path)
    x = at_times(world, gen)
    x_0 = world.posterior(x, T, 20_000, gen).x_0
    centred = x_0 - x_0.mean(0)
    outer = centred[..., :, None] * centred[..., None, :]
    moving = x.clone().requires_grad_()
    columns = denoise(world, moving, T).sum(0)  # rows do not touch each other
    slope = torch.stack([torch.autograd.grad(c, moving, retain_graph=True)[0] for c in columns], 1)
    c = path.at(T, slope)
    expected = c.sigma**2 / c.alpha * slope
    bound = 5 * outer.std(0) / outer.shape[0] ** 0.5 + 1e-9
    assert bool(((outer.mean(0) - expected).abs() < bound).all())


@pytest.mark.parametrize("make", [worlds.gaussian, worlds.mixture])
def test_velocity_is_the_score_of_log_prob(make, path, gen) -> None:
    world = make(path)
    x = at_times(world, gen).requires_grad_()
    score = torch.autograd.grad(world.log_prob(x, T).sum(), x)[0]
    implied = path.convert(world.velocity(x, T), x, T, source="velocity", target="score")
    assert_close(implied, score, rtol=1e-9, atol=1e-10)


def test_product_velocity_is_a_mixture_of_all_combinations(path, gen) -> None:
    """The product's K^D components spelt out are a `Mixture`; densities agree as well."""
    world = worlds.product(path)
    x = at_times(world, gen)
    i, j = torch.cartesian_prod(torch.arange(3), torch.arange(3)).T
    w, m, s = world.weights, world.means, world.stds
    spelt = Mixture(
        w[i, 0] * w[j, 1],
        torch.stack([m[i, 0], m[j, 1]], 1),
        torch.stack([s[i, 0], s[j, 1]], 1),
        path,
    )
    assert_close(world.velocity(x, T), spelt.velocity(x, T), rtol=1e-10, atol=1e-10)
    assert_close(world.density(x, T).log().sum(1), spelt.log_prob(x, T), rtol=1e-10, atol=1e-10)


def test_mixture_density_integrates_to_one(path) -> None:
    world = worlds.mixture(path)
    t = torch.tensor(0.31, dtype=torch.float64)
    reach = 9 * math.hypot(float(path.alpha(t)) * 1.4, float(path.sigma(t)))
    line = torch.linspace(-reach, reach, 201, dtype=torch.float64)
    points = torch.cartesian_prod(line, line)
    mass = world.log_prob(points, t.repeat(len(points))).exp().sum() * (line[1] - line[0]) ** 2
    assert (
        abs(mass.item() - 1) < 1e-6
    )  # the trapezoid rule is spectral for smooth decaying densities


def test_gaussian_log_prob_is_the_normal_density(path, gen) -> None:
    world = worlds.gaussian(path)
    x = at_times(world, gen)
    var = path.alpha(T)[:, None] ** 2 * world.std**2 + path.sigma(T)[:, None] ** 2
    mean = path.alpha(T)[:, None] * world.mean
    law = torch.distributions.MultivariateNormal(mean, torch.diag_embed(var))
    assert_close(world.log_prob(x, T), law.log_prob(x), rtol=1e-12, atol=1e-12)


def test_gaussian_velocity_variance_is_that_of_posterior_draws(path, gen) -> None:
    world = worlds.gaussian(path)
    x = at_times(world, gen)
    x_0, eps = world.posterior(x, T, 20_000, gen)
    c = path.at(T, x)
    var = (c.dalpha * x_0 + c.dsigma * eps).var(0)
    # a normal variance has relative standard error sqrt(2/n)
    assert_close(var, world.velocity_variance(T, x), rtol=5 * (2 / 20_000) ** 0.5, atol=0)


def test_checkerboard_velocity_by_quadrature(path, gen) -> None:
    """Brute force: E[x_0 | x] as two integrals over every dark square, by Gauss-Legendre."""
    world = Checkerboard(path, cells=4, half=2.0)
    times = T[1:] if path.name != "ve" else T[:3] / 60
    x = at_times(world, gen, times)
    node, weight = map(torch.as_tensor, __import__("numpy").polynomial.legendre.leggauss(40))
    low, side = world.corners(x)
    points = (low[:, None] + side * (node[:, None] + 1) / 2).double()  # (K, nodes, 2), side by side
    c = path.at(times, x)
    num, den = torch.zeros_like(x), torch.zeros(len(x), 1, dtype=torch.float64)
    for corner in points:
        grid = torch.cartesian_prod(corner[:, 0], corner[:, 1])
        share = torch.cartesian_prod(weight, weight).prod(1)
        log = -((x[:, None] - c.alpha[:, None] * grid) ** 2).sum(-1) / (2 * c.sigma**2)
        mass = share * log.exp()
        num, den = num + mass @ grid, den + mass.sum(1, keepdim=True)
    expected = path.convert(num / den, x, times, source="x0", target="velocity")
    assert_close(world.velocity(x, times), expected, rtol=1e-8, atol=1e-8)


def test_dark_squares_are_those_of_an_even_sum() -> None:
    low, side = Checkerboard(interpolant.linear(), 3, 1.2).corners(
        torch.zeros((), dtype=torch.float64)
    )
    assert side == pytest.approx(0.8)
    expected = [[-1.2, -1.2], [-1.2, 0.4], [-0.4, -0.4], [0.4, -1.2], [0.4, 0.4]]
    assert_close(low, torch.tensor(expected, dtype=torch.float64))


def test_boxes_of_any_side_and_width_are_integrals() -> None:
    """E[x_0 | x] on both sides of the switch to the narrow-box series, off the centre: the series is right to 4e-10."""
    world = Checkerboard(interpolant.linear(), cells=40, half=8.0)
    times = torch.tensor([0.9981, 0.9993, 0.996, 0.71, 0.97, 1.0], dtype=torch.float64)
    x = torch.tensor([[6.3, -5.9], [-7, 2.3], [4, -5], [0.4, 1.9], [-3, 2], [5, 8]]).double()
    node, weight = map(torch.as_tensor, __import__("numpy").polynomial.legendre.leggauss(40))
    low, side = world.corners(x)
    assert side == pytest.approx(0.4)
    points = low[:, None] + side * (node[:, None] + 1) / 2  # (K, nodes, 2)
    c = world.interpolant.at(times, x[:, None, None])
    logs = -((x[:, None, None] - c.alpha * points) ** 2) / (2 * c.sigma**2) + weight.log()[:, None]
    inner = (logs.softmax(2) * points).sum(2)  # (B, K, 2): the mean within every square
    expected = (logs.logsumexp(2).sum(2).softmax(1)[..., None] * inner).sum(1)
    assert_close(denoise(world, x[:5], times[:5]), expected[:5], rtol=0, atol=4e-10)
    # at pure noise x_0 cannot be read off the velocity x - x_0, but the velocity is right
    assert_close(world.velocity(x, times)[5], (x - expected)[5], rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", ["linear", "trig", "vp"])
def test_checkerboard_is_finite_and_smooth_at_the_noise_end(name, gen) -> None:
    world = Checkerboard(interpolant.INTERPOLANTS[name](), steps=50)
    x = torch.randn(5, 2, generator=gen).double()
    # across the switch to the narrow-box series: a central second difference shows any jump above its h^2 slope
    near = [
        world.velocity(x, torch.full((5,), 1 - d, dtype=torch.float64))
        for d in (1.1e-3, 1e-3, 0.9e-3)
    ]
    assert (near[0] - 2 * near[1] + near[2]).abs().max() < 1e-6
    for dtype in (torch.float64, torch.float32):
        end = world.flow_map(x.to(dtype), 1.0, 0.0)
        assert end.isfinite().all()
    at_data = world.velocity(world.sample(5, gen).double(), torch.zeros(5).double())
    assert at_data.isfinite().all()


@pytest.mark.parametrize("name", ["linear", "trig", "vp"])
def test_product_map_agrees_with_integration(name, gen) -> None:
    world = worlds.product(interpolant.INTERPOLANTS[name]())
    x, s = torch.randn(5, 2, generator=gen).double(), torch.full((5,), 0.93).double()
    t = torch.tensor([0.05, 0.18, 0.37, 0.55, 0.97]).double()
    solved = SolvedFlowMap(world.velocity, world.interpolant, RK4, 300)
    assert_close(world.flow_map(x, s, t), solved(x, s, t), rtol=0, atol=1e-9)


@pytest.mark.parametrize("name", MAKERS)
def test_sample_has_the_law(name, gen) -> None:
    """First and second moments, from the closed-form law."""
    n = 40_000
    world = MAKERS[name](interpolant.linear())
    x = world.sample(n, gen).double()
    if name == "gaussian":
        mean, cov = world.mean, torch.diag(world.std**2)
    elif name == "checkerboard":
        mean, cov = torch.zeros(2).double(), torch.eye(2).double() * 4 / 3
        cells = torch.floor(x + 2).long()
        assert bool((cells.sum(1) % 2 == 0).all())
        # on the board E[x y] is not 0: dark squares lie along the diagonal
        low, side = world.corners(x)
        cov[0, 1] = cov[1, 0] = (low + side / 2).prod(1).mean()
    elif name == "mixture":
        w, m, s = world.weights[:, None], world.means, world.stds
        mean = (w * m).sum(0)
        cov = (w * m).T @ m + torch.diag((w * s**2).sum(0)) - mean[:, None] * mean
    else:
        base = world if name == "product" else world.world
        mean = (base.weights * base.means).sum(0)
        cov = torch.diag((base.weights * (base.means**2 + base.stds**2)).sum(0) - mean**2)
        if name == "rotated":
            mean, cov = world.rotation @ mean, world.rotation @ cov @ world.rotation.T
    centred = x - mean
    outer = centred[:, :, None] * centred[:, None, :]
    assert bool((centred.mean(0).abs() < 5 * x.std(0) / n**0.5).all())
    assert bool(((outer.mean(0) - cov).abs() < 5 * outer.std(0) / n**0.5).all())


def test_product_sample_passes_kolmogorov(gen) -> None:
    world = worlds.product()
    x = world.sample(10_000, gen)
    u = world.tail(x, torch.zeros(len(x)).double(), -torch.ones_like(x)).sort(0).values
    ideal = (torch.arange(len(x)) + 0.5)[:, None] / len(x)
    assert (u - ideal).abs().max() * len(
        x
    ) ** 0.5 < 2.7  # P = 2 exp(-2 * 2.7^2) = 9e-7 per coordinate


def test_gaussian_and_mixture_samples_pass_kolmogorov(gen) -> None:
    """Against the distribution function of every coordinate, in closed form; P = 9e-7 per coordinate, as above."""
    gaussian, mixture = worlds.gaussian(), worlds.mixture()
    ideal = (torch.arange(10_000, dtype=torch.float64)[:, None] + 0.5) / 10_000
    x = gaussian.sample(10_000, gen).double()
    u = torch.special.ndtr((x - gaussian.mean) / gaussian.std).sort(0).values
    assert (u - ideal).abs().max() * 100 < 2.7
    x = mixture.sample(10_000, gen).double()
    parts = torch.special.ndtr((x[:, None] - mixture.means) / mixture.stds)
    u = (mixture.weights[:, None] * parts).sum(1).sort(0).values
    assert (u - ideal).abs().max() * 100 < 2.7


@pytest.mark.parametrize("name", ["gaussian", "mixture", "product"])
def test_posterior_draws_pass_kolmogorov(name, gen) -> None:
    """Given x, a component of weight r has the mean m + k (x - a m) and variance (1 - k a) std^2, k = a std^2 / var(x)."""
    world, n = MAKERS[name](interpolant.trig()), 4000
    t = torch.tensor([0.29, 0.68], dtype=torch.float64)
    x = at_times(world, gen, t)
    draws = world.posterior(x, t, n, gen).x_0.sort(0).values  # (n, B, D)
    a, sigma = (c[:, None, None] for c in (world.interpolant.alpha(t), world.interpolant.sigma(t)))
    if name == "gaussian":
        share, m, std = torch.ones(1, 1).double(), world.mean[None], world.std[None]
    else:
        share, m, std = world.weights.reshape(len(world.weights), -1), world.means, world.stds
    var = (a * std) ** 2 + sigma**2  # (B, K, D)
    log = -0.5 * (x[:, None] - a * m) ** 2 / var - 0.5 * var.log()
    log = (
        log if name == "product" else log.sum(2, keepdim=True)
    )  # coordinates of a product are independent
    r = (share.log() + log).softmax(1)
    k = a * std**2 / var
    mean, width = m + k * (x[:, None] - a * m), ((1 - k * a) * std**2).sqrt()
    u = (r * torch.special.ndtr((draws[:, :, None] - mean) / width)).sum(2)
    ideal = (torch.arange(n, dtype=torch.float64)[:, None, None] + 0.5) / n
    assert (u - ideal).abs().max() * n**0.5 < 2.7  # P = 9e-7 per coordinate, as above


def test_exact_map_of_equal_times_is_the_velocity(gen) -> None:
    world = worlds.rotated()
    x = torch.randn(5, 2, generator=gen).double()
    t = torch.tensor([0.25, 0.4, 0.55, 0.7, 0.9]).double()
    assert_close(world.flow_map.velocity(x, t), world.velocity(x, t), rtol=0, atol=0)
    near = world.flow_map.mean_velocity(x, t, t - 1e-6)
    assert_close(near, world.velocity(x, t), rtol=0, atol=1e-4)  # O(t - s) and eps / (t - s)


def test_product_map_keeps_digits_in_the_tails() -> None:
    one = torch.ones(1, 1).double()
    world = Product(one, 0.3 * one, 0.5 * one, interpolant.linear())
    x = torch.tensor([[8.0], [-8.0]]).double()
    s, t = torch.full((2,), 0.9, dtype=torch.float64), torch.full((2,), 0.2, dtype=torch.float64)
    std = lambda time: ((1 - time) ** 2 * 0.25 + time**2) ** 0.5
    exact = 0.8 * 0.3 + std(0.2) / std(0.9) * (x - 0.1 * 0.3)
    assert_close(world.flow_map(x, s, t), exact, rtol=1e-10, atol=0)
