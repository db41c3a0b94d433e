"""Samplers on worlds whose every marginal is known, and grids against the papers' formulas.

Statistical tests: 5 standard errors, a false alarm of 6e-7 per compared number (about 60 numbers, 4e-5 in all).
"""

import math

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from flowmaps.core import interpolant
from flowmaps.core.flow_map import FlowMap, NetFlowMap
from flowmaps.core.oracle import Gaussian
from flowmaps.core.solver import SOLVERS
from flowmaps.errors import ShapeError
from flowmaps.sample import (
    CFG,
    GRIDS,
    Autoguidance,
    from_times,
    generate,
    grid,
    karras,
    log_snr,
    sample,
    sample_churn,
    sample_eta,
    sample_gamma,
    shifted,
    solve,
    trajectory,
    uniform,
)
from flowmaps.testing import worlds

GRID = torch.tensor([0.97, 0.74, 0.41, 0.33, 0.06], dtype=torch.float64)


def start(world, n: int, s: float, gen: torch.Generator) -> Tensor:
    x_0 = world.sample(n, gen)
    noise = torch.randn(x_0.shape, generator=gen, dtype=torch.float64)
    return world.interpolant.sample(x_0, noise, torch.tensor(s, dtype=torch.float64))[0]


def has_marginal(world, x: Tensor, t: float) -> None:
    mean, std = world.marginal(torch.tensor(t, dtype=torch.float64), x)
    n = len(x)
    assert bool(((x.mean(0) - mean).abs() < 5 * std / n**0.5).all()), (x.mean(0), mean)
    # the standard error of a normal standard deviation is std / sqrt(2n)
    assert bool(((x.std(0) - std).abs() < 5 * std / (2 * n) ** 0.5).all()), (x.std(0), std)


def test_composition_of_the_exact_map_is_exact_on_any_grid(path, gen) -> None:
    world = worlds.rotated(path)
    x = start(world, 5, 0.97, gen)
    end = sample(world.flow_map, x, GRID)
    exact = world.flow_map(x, 0.97, 0.06)
    assert (end - exact).abs().max() < 1e-10 * exact.abs().max()
    back = sample(world.flow_map, end, GRID.flip(0))
    assert (back - x).abs().max() < 1e-9 * x.abs().max()


def test_trajectory_names_its_times(gen) -> None:
    world = worlds.product()
    x = start(world, 5, 0.97, gen)
    steps = list(trajectory(world.flow_map, x, GRID))
    for step, s, t in zip(steps, GRID[:-1], GRID[1:], strict=True):
        assert bool((step.s == s).all())
        assert bool((step.t == t).all())
        assert_close(step.x, world.flow_map(x, 0.97, float(t)), rtol=1e-10, atol=1e-10)
    assert torch.equal(sample(world.flow_map, x, GRID), steps[-1].x)


def test_sample_is_differentiable(gen) -> None:
    world = worlds.gaussian()
    x = start(world, 5, 0.97, gen).requires_grad_()
    (slope,) = torch.autograd.grad(sample(world.flow_map, x, GRID).sum(), x)
    std = [world.marginal(torch.tensor(t).double(), x)[1] for t in (0.06, 0.97)]
    assert_close(slope, (std[0] / std[1]).expand(5, 3), rtol=1e-6, atol=0)


def test_cond_reaches_every_jump(gen) -> None:
    seen = []

    class Spy(FlowMap):
        interpolant = interpolant.linear()

        def mean_velocity(self, x, s, t, **cond):
            seen.append(cond["label"])
            return x

    label = torch.tensor([3, 1, 4, 1, 5])
    x = torch.randn(5, 3, generator=gen)
    sample(Spy(), x, GRID, label=label)
    solve(Spy().velocity, x, GRID, interpolant.linear(), label=label)
    sample_eta(Spy(), x, GRID, eta=1.0, generator=gen, label=label)
    sample_gamma(Spy(), x, GRID, gamma=1.0, generator=gen, label=label)
    sample_churn(Spy(), x, GRID, generator=gen, label=label)
    assert len(seen) == 4 + 8 + 4 + 4 + 8
    assert all(torch.equal(one, label) for one in seen)


@pytest.mark.parametrize("eta", [0.6, 1.0])
def test_ancestral_sampling_preserves_marginals(eta, unit_path, gen) -> None:
    """With many steps: the step's own error, O(1/steps), lies below the standard error of 10,000 samples."""
    world = worlds.gaussian(unit_path)
    x = start(world, 10_000, 0.97, gen)
    lam = unit_path.log_snr(torch.tensor([0.97, 0.06], dtype=torch.float64))
    times = unit_path.time_at(
        torch.linspace(float(lam[0]), float(lam[1]), 201, dtype=torch.float64)
    )
    has_marginal(
        world, sample_eta(world.flow_map, x, times, eta=eta, generator=gen), float(times[-1])
    )


def test_eta_zero_is_ddim(path, gen) -> None:
    world = worlds.rotated(path)
    x = start(world, 5, 0.97, gen)
    ddim = solve(world.velocity, x, GRID, path, SOLVERS["ddim"])
    eta = sample_eta(world.flow_map, x, GRID, eta=0.0, generator=gen)
    assert (eta - ddim).abs().max() < 1e-11 * ddim.abs().max()


def test_eta_one_is_the_ddpm_posterior(gen) -> None:
    """One step, by hand: mean and variance of q(x_t | x_s, x_0) (Ho et al. 2020, eq. 6-7), x_0 the denoised point."""
    path = interpolant.vp()
    world = worlds.gaussian(path)
    s, t = torch.tensor([0.61, 0.43], dtype=torch.float64)
    x = start(world, 1, 0.61, gen).expand(40_000, 3)
    x_0 = world.flow_map.denoise(x[:1], s)
    bar_s, bar_t = path.alpha(s) ** 2, path.alpha(t) ** 2
    beta = 1 - bar_s / bar_t
    mean = (
        bar_t.sqrt() * beta / (1 - bar_s) * x_0
        + (bar_s / bar_t).sqrt() * (1 - bar_t) / (1 - bar_s) * x[:1]
    )
    std = ((1 - bar_t) / (1 - bar_s) * beta).sqrt()
    y = sample_eta(world.flow_map, x, torch.stack([s, t]), eta=1.0, generator=gen)
    assert bool(((y.mean(0) - mean[0]).abs() < 5 * std / 200).all())
    assert bool(((y.std(0) - std).abs() < 5 * std / (80_000**0.5)).all())


@pytest.mark.parametrize("gamma", [0.5, 1.0])
def test_renoising_preserves_marginals(gamma, path, gen) -> None:
    """Exact at every number of steps: the jump is exact and the added noise is the path's own."""
    world = worlds.gaussian(path)
    x = start(world, 20_000, 0.97, gen)
    end = sample_gamma(world.flow_map, x, GRID, gamma=gamma, generator=gen)
    has_marginal(world, end, 0.06)
    jump = sample(world.flow_map, x, GRID)
    assert (end - jump).abs().mean() > 1e-3  # it did add noise
    clean = sample_gamma(
        world.flow_map, x, torch.tensor([0.97, 0.4, 0.0]).double(), gamma=gamma, generator=gen
    )
    has_marginal(world, clean, 0.0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_gamma_zero_is_the_deterministic_sampler(dtype, path, gen) -> None:
    world = worlds.gaussian(path, dtype)
    x = start(worlds.gaussian(path), 5, 0.97, gen).to(dtype)
    end, exact = (
        sample_gamma(world.flow_map, x, GRID, gamma=0.0, generator=gen),
        sample(world.flow_map, x, GRID),
    )
    # the time goes through its log-SNR and back: a few roundings
    assert (end - exact).abs().max() < (2e-5 if dtype == torch.float32 else 1e-12) * x.abs().max()


def test_churn_preserves_marginals(path, gen) -> None:
    world = worlds.gaussian(path)
    x = start(world, 20_000, 0.9, gen)
    times = path.time_at(
        -torch.linspace(*(-path.log_snr(torch.tensor([0.9, 0.06]).double())).tolist(), 61).double()
    )
    end = sample_churn(world.flow_map, x, times, churn=12.0, noise=1.0, generator=gen)
    has_marginal(world, end, float(times[-1]))
    still = solve(world.velocity, x, times, path)
    assert (end - still).abs().mean() > 1e-2
    quiet = sample_churn(world.flow_map, x[:5], times, churn=0.0, noise=1.0, generator=gen)
    # a renoising of nothing adds the root of a rounding
    assert (quiet - still[:5]).abs().max() < 1e-5 * x.abs().max()


def test_churn_noise_is_inflated(gen) -> None:
    """EDM's S_noise multiplies the added noise: one churned step to the same place, two noise levels, one generator."""
    path = interpolant.ve()
    world, x = worlds.gaussian(path), torch.randn(5, 3, generator=gen).double()
    times = torch.tensor([0.5, 0.45], dtype=torch.float64)
    ends = [
        sample_churn(
            world.flow_map, x, times, churn=0.3, noise=k, generator=torch.Generator().manual_seed(1)
        )
        for k in (0.0, 1.0, 2.0)
    ]
    assert_close(
        ends[2] - ends[1], ends[1] - ends[0], rtol=1e-6, atol=1e-9
    )  # a Gaussian field is affine
    assert (ends[2] - ends[1]).abs().min() > 1e-3
    up = 40 * 1.3
    added = (up**2 - 40**2) ** 0.5 * torch.randn(
        5, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64
    )
    grown = solve(world.velocity, x + added, torch.tensor([up / 80, 0.45]).double(), path)
    assert_close(ends[1], grown, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_stochastic_samplers_survive_the_ends(dtype, unit_path, gen) -> None:
    world = worlds.gaussian(unit_path, dtype)
    x = torch.randn(5, 3, generator=gen).to(dtype)
    for name in ("uniform", "karras"):
        times = grid(name, 7, unit_path)
        assert sample_eta(world.flow_map, x, times, eta=1.0, generator=gen).isfinite().all()
        assert sample_gamma(world.flow_map, x, times, gamma=1.0, generator=gen).isfinite().all()
        assert sample_gamma(world.flow_map, x, times, gamma=0.3, generator=gen).isfinite().all()
        assert sample_churn(world.flow_map, x, times, generator=gen).isfinite().all()


def test_samplers_are_functions_of_their_generator(gen) -> None:
    world, x = worlds.gaussian(), torch.randn(5, 3, generator=gen).double()
    for run in (
        lambda g: sample_eta(world.flow_map, x, GRID, eta=1.0, generator=g),
        lambda g: sample_gamma(world.flow_map, x, GRID, gamma=1.0, generator=g),
        lambda g: sample_churn(world.flow_map, x, GRID, generator=g),
    ):
        one, two, other = (run(torch.Generator().manual_seed(seed)) for seed in (1, 1, 2))
        assert torch.equal(one, two)
        assert not torch.equal(one, other)


@pytest.mark.parametrize("name", GRIDS)
@pytest.mark.parametrize("steps", [1, 2, 7, 40])
def test_grids_fall_from_one_to_zero(name, steps, path) -> None:
    times = grid(name, steps, path)
    assert times.shape == (steps + 1,)
    assert times.dtype == torch.float64
    assert times[0] == 1
    assert times[-1] == 0
    assert bool((times.diff() < 0).all())


def test_karras_is_edms_formula() -> None:
    """sigma_i = (max^(1/rho) + i/(N-1) (min^(1/rho) - max^(1/rho)))^rho (Karras et al. 2022, eq. 5), and a last 0."""
    sigma = [(80 ** (1 / 7) + i / 8 * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7 for i in range(9)]
    expected = torch.tensor([*sigma, 0.0], dtype=torch.float64)
    assert_close(80 * karras(9, interpolant.ve()), expected, rtol=1e-12, atol=0)
    inner = karras(9, interpolant.linear())[1:-1]
    assert_close(inner / (1 - inner), expected[1:-1], rtol=1e-12, atol=0)
    assert_close(
        80 * karras(5, interpolant.ve(), rho=3.0, low=0.1)[-2],
        torch.tensor(0.1).double(),
        rtol=1e-7,
        atol=0,
    )


def test_shifted_and_log_snr_are_their_formulas(unit_path) -> None:
    t = torch.tensor([1.0, 0.75, 0.5, 0.25, 0.0], dtype=torch.float64)
    assert_close(uniform(4), t)
    assert_close(shifted(4, shift=2.5), 2.5 * t / (1 + 1.5 * t), rtol=1e-14, atol=0)
    lam = unit_path.log_snr(log_snr(6, unit_path, low=-4.0, high=3.5))[1:-1]
    assert_close(lam, torch.linspace(-4.0, 3.5, 6, dtype=torch.float64)[1:], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    "bad", [[1.0], [1.0, 0.5, 0.5], [0.3, 0.7], [1.2, 0.1], [0.9, -0.1], [[1.0, 0.0]]]
)
def test_bad_grids_are_refused(bad) -> None:
    with pytest.raises(
        ShapeError, match="times must decrease strictly from at most 1 to at least 0; got"
    ):
        from_times(bad)


def test_grid_errors() -> None:
    assert torch.equal(
        from_times([0.9, 0.3, 0.1]), torch.tensor([0.9, 0.3, 0.1], dtype=torch.float64)
    )
    with pytest.raises(
        ShapeError, match="grid must be one of uniform, shifted, karras, log_snr; got 'cosine'"
    ):
        grid("cosine", 3, interpolant.linear())
    for make in GRIDS.values():
        with pytest.raises(ShapeError, match="a grid needs at least one step; got 0"):
            make(0, interpolant.linear())


class TwoClasses(FlowMap):
    """Class k is N(k - 0.3, 0.5^2) per coordinate; the null class 2 is N(0.4, 0.9^2): exact maps."""

    interpolant = interpolant.linear()

    def mean_velocity(self, x, s, t, *, label):
        means = torch.tensor([-0.3, 0.7, 0.4], dtype=x.dtype)[label][:, None]
        stds = torch.tensor([0.5, 0.5, 0.9], dtype=x.dtype)[label][:, None]
        c, d = self.interpolant.at(s, x), self.interpolant.at(t, x)
        std_s, std_t = ((k.alpha**2 * stds**2 + k.sigma**2).sqrt() for k in (c, d))
        end = d.alpha * means + std_t / std_s * (x - c.alpha * means)
        return (end - x) / (t - s)[:, None]


def test_cfg_is_the_extrapolation(gen) -> None:
    f, x = TwoClasses(), torch.randn(5, 3, generator=gen).double()
    s = torch.tensor([0.95, 0.8, 0.55, 0.5, 0.2], dtype=torch.float64)
    t, label = s / 3, torch.tensor([0, 1, 1, 0, 1])
    u = f.mean_velocity(x, s, t, label=label)
    none = f.mean_velocity(x, s, t, label=torch.full((5,), 2))
    guided = CFG(f, 2.5, {"label": 2})
    assert_close(
        guided.mean_velocity(x, s, t, label=label), -1.5 * none + 2.5 * u, rtol=1e-12, atol=1e-12
    )
    assert torch.equal(CFG(f, 1.0, {"label": 2}).mean_velocity(x, s, t, label=label), u)
    by_tensor = CFG(f, 2.5, {"label": torch.tensor(2)})
    assert torch.equal(
        by_tensor.mean_velocity(x, s, t, label=label), guided.mean_velocity(x, s, t, label=label)
    )
    inside = (s >= 0.5) & (s <= 0.8)
    part = CFG(f, 2.5, {"label": 2}, low=0.5, high=0.8).mean_velocity(x, s, t, label=label)
    expected = torch.where(inside[:, None], -1.5 * none + 2.5 * u, u)
    assert_close(part, expected, rtol=1e-12, atol=1e-12)
    assert math.isclose(float(inside.sum()), 3)


STRONG, WEAK = (1.3, 0.6), (0.2, 1.4)
"""Mean and deviation of a guided law, and of what it is guided away from."""


def walked(law, path=None) -> NetFlowMap:
    world = Gaussian(
        *(torch.tensor([v], dtype=torch.float64) for v in law), path or interpolant.linear()
    )
    return NetFlowMap(lambda x, s, t, **cond: world.velocity(x, s), world.interpolant, local=True)


class Labelled(FlowMap):
    """Class 1 is the strong law, class 0 the weak one."""

    interpolant = interpolant.linear()

    def mean_velocity(self, x, s, t, *, label):
        both = [walked(law).mean_velocity(x, s, t) for law in (WEAK, STRONG)]
        return torch.where(label[:, None] == 1, both[1], both[0])


@pytest.mark.parametrize("kind", ["autoguidance", "another path", "cfg"])
@pytest.mark.parametrize("scale", [0.6, 2.5])
def test_guidance_between_gaussians_in_closed_form(kind, scale) -> None:
    """steering.md A.11: deviation s^w s'^(1-w), and a mean that is an integral. Not the power tilt."""
    (m, s_c), (zero, s_n) = STRONG, WEAK
    guided, cond = Autoguidance(walked(STRONG), walked(WEAK), scale), {}
    if kind == "another path":
        guided = Autoguidance(walked(STRONG), walked(WEAK, interpolant.trig()), scale)
    if kind == "cfg":
        guided, cond = CFG(Labelled(), scale, {"label": 0}), {"label": torch.ones(2)}
    noise = torch.tensor([[0.0], [1.0]], dtype=torch.float64)
    low, high = solve(
        guided.velocity, noise, uniform(40), guided.interpolant, SOLVERS["rk4"], **cond
    )[:, 0].tolist()
    assert math.isclose(high - low, s_c**scale * s_n ** (1 - scale), rel_tol=1e-6)
    t = torch.linspace(0, 1, 4001, dtype=torch.float64)
    c, n = ((1 - t) ** 2 * s_c**2 + t**2, (1 - t) ** 2 * s_n**2 + t**2)
    rate = t / c * (s_c**2 / c) ** (scale / 2) * (s_n**2 / n) ** ((1 - scale) / 2)
    assert math.isclose(
        low, zero + scale * (m - zero) * float(torch.trapezoid(rate, t)), rel_tol=1e-5
    )


def test_guidance_on_a_jump_is_another_law() -> None:
    """Trap 6: one guided jump of the exact maps ends at deviation w s + (1 - w) s', and for w = 2.5 mirrors the law."""
    maps = [
        Gaussian(
            *(torch.tensor([v], dtype=torch.float64) for v in law), interpolant.linear()
        ).flow_map
        for law in (STRONG, WEAK)
    ]
    noise = torch.tensor([[0.0], [1.0]], dtype=torch.float64)
    low, high = Autoguidance(*maps, 2.5)(noise, 1.0, 0.0)[:, 0].tolist()
    assert math.isclose(high - low, 2.5 * 0.6 - 1.5 * 1.4)
    assert high < low


def test_autoguidance_is_off_at_one_and_outside_its_interval() -> None:
    strong, weak = walked(STRONG), walked(WEAK)
    x = torch.tensor([[-1.0], [0.3], [0.8], [2.0]], dtype=torch.float64)
    s = torch.tensor([0.95, 0.7, 0.3, 0.1], dtype=torch.float64)
    u, away = strong.velocity(x, s), weak.velocity(x, s)
    assert torch.equal(Autoguidance(strong, weak, 1.0).velocity(x, s), u)
    inside = torch.tensor([[False], [True], [True], [False]])
    found = Autoguidance(strong, weak, 3.0, low=0.3, high=0.7).velocity(x, s)
    assert_close(found, torch.where(inside, -2 * away + 3 * u, u))


class _DataOnly(FlowMap):
    """A map that always jumps to clean data, whatever target it is asked for: what a consistency model has learned."""

    to_data = True

    def __init__(self, world) -> None:
        super().__init__()
        self.world, self.interpolant = world, world.interpolant

    def mean_velocity(self, x, s, t, **cond):
        end = self.world.flow_map(x, s, torch.zeros_like(s))
        return (end - x) / (t - s)[:, None]


def test_a_map_to_clean_data_is_noised_again_between_its_jumps(gen) -> None:
    world = worlds.gaussian()
    flow_map = _DataOnly(world)
    noise = world.interpolant.prior((20_000, 3), gen).double()
    kept = generate(flow_map, noise, uniform(4))
    torch.testing.assert_close(kept.mean(0), world.mean, rtol=0, atol=0.03)
    torch.testing.assert_close(kept.std(0), world.std, rtol=0.03, atol=0)
    plain = sample(flow_map, noise, uniform(4))  # takes data for points at times 0.75, 0.5, 0.25
    assert (plain.std(0) / world.std - 1).abs().max() > 0.1
    assert torch.equal(generate(flow_map, noise[:3], uniform(4)), kept[:3])  # of its own row alone
    assert torch.equal(generate(flow_map, noise[:3], uniform(1)), world.flow_map(noise[:3], 1, 0))


def test_other_maps_jump(gen) -> None:
    world = worlds.gaussian()
    noise = world.interpolant.prior((5, 3), gen).double()
    jumped = sample(world.flow_map, noise, uniform(3))
    assert torch.equal(generate(world.flow_map, noise, uniform(3)), jumped)
