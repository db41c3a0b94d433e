"""Every solver is as accurate as it claims, costs what it claims, and survives both ends of a path."""

import itertools
import math

import pytest
import torch

from flowmaps.core import interpolant
from flowmaps.core.flow_map import SolvedFlowMap
from flowmaps.core.solver import (
    EULER,
    HEUN,
    MIDPOINT,
    RK4,
    SOLVERS,
    DormandPrince,
    UniPC,
    _corrector_weights,
)
from flowmaps.sample import solve, uniform
from flowmaps.testing import worlds

FIXED = [name for name, solver in SOLVERS.items() if solver.evaluations(1) is not None]
LOG_SNR = ["ddim", "dpm++2m", "unipc"]


def noise(gen: torch.Generator, n: int = 5) -> torch.Tensor:
    return torch.randn(n, 2, generator=gen, dtype=torch.float64)


@pytest.mark.parametrize("name", FIXED)
def test_order_is_the_claimed_one(name, unit_path, gen) -> None:
    """Two halvings of the step, against the exact map: a slope below the claim by 0.25 fails; more is allowed."""
    world, solver = worlds.product(unit_path), SOLVERS[name]
    x = noise(gen, 7)
    s, t = 0.9, 0.15
    exact = world.flow_map(x, s, t)
    errors = []
    for steps in (40, 80, 160):
        times = torch.linspace(s, t, steps + 1, dtype=torch.float64)
        errors.append(
            (solve(world.velocity, x, times, unit_path, solver) - exact).abs().max().item()
        )
    orders = [math.log2(a / b) for a, b in itertools.pairwise(errors)]
    assert min(orders) > solver.order - 0.25, (errors, orders)
    assert errors[-1] < 0.05


@pytest.mark.parametrize("method", [EULER, MIDPOINT, HEUN, RK4], ids=lambda method: method.name)
def test_tableaux_satisfy_the_conditions_of_their_order(method) -> None:
    """Butcher's conditions up to order 4; the next one fails, and nodes are the sums of their rows."""
    n = len(method.b)
    a = torch.zeros(n, n, dtype=torch.float64)
    for i, row in enumerate(method.a):
        a[i, : len(row)] = torch.tensor(row, dtype=torch.float64)
    b, c = (torch.tensor(v, dtype=torch.float64) for v in (method.b, method.c))
    torch.testing.assert_close(a.sum(1), c)
    assert torch.equal(a, a.tril(-1))
    conditions = (
        ((b.sum(), 1),),
        ((b @ c, 1 / 2),),
        ((b @ c**2, 1 / 3), (b @ a @ c, 1 / 6)),
        (
            (b @ c**3, 1 / 4),
            (b * c @ a @ c, 1 / 8),
            (b @ a @ c**2, 1 / 12),
            (b @ a @ a @ c, 1 / 24),
        ),
        ((b @ c**4, 1 / 5), (b @ a @ a @ a @ c, 1 / 120)),
    )
    met = [all(abs(value - right) < 1e-12 for value, right in row) for row in conditions]
    assert met.index(False) == method.order


@pytest.mark.parametrize("name", LOG_SNR)
@pytest.mark.parametrize("make", [interpolant.linear, interpolant.trig])
def test_out_of_clean_data_goes_the_noise_that_is_found_there(make, name, gen) -> None:
    """At t = 0 the velocity is alpha' x + sigma' eps, and the first step is alpha x + sigma eps."""
    path, x, eps = make(), noise(gen), noise(gen)
    ends = torch.tensor([0.0, 0.37], dtype=torch.float64)
    start = path.at(ends[0], x)
    v = start.dalpha * x + start.dsigma * eps
    found = solve(lambda x, t, **cond: v, x, ends, path, SOLVERS[name])
    assert (found - path.sample(x, eps, ends[1])[0]).abs().max() < 1e-12


def test_adaptive_solver_meets_its_tolerance(unit_path, gen) -> None:
    world, x = worlds.product(unit_path), noise(gen)
    exact = world.flow_map(x, 0.95, 0.05)
    grid = torch.tensor([0.95, 0.31, 0.05], dtype=torch.float64)
    errors = []
    for tolerance in (1e-4, 1e-7, 1e-10):
        solver = DormandPrince(rtol=tolerance, atol=tolerance)
        errors.append(
            (solve(world.velocity, x, grid, unit_path, solver) - exact).abs().max().item()
        )
        assert errors[-1] < 50 * tolerance  # local errors add up over tens of steps
    assert errors[0] > 10 * errors[1] > 100 * errors[2]  # the tolerance is really used


@pytest.mark.parametrize("name", SOLVERS)
def test_evaluations_are_counted(name, gen) -> None:
    world, calls = worlds.gaussian(), []

    def counted(x, t, **cond):
        calls.append(t)
        return world.velocity(x, t)

    x = torch.randn(5, 3, generator=gen, dtype=torch.float64)
    for _ in SOLVERS[name].integrate(counted, x, uniform(7)[:-1], world.interpolant):
        pass
    expected = SOLVERS[name].evaluations(6)
    assert len(calls) == expected if expected is not None else len(calls) > 6


@pytest.mark.parametrize("name", LOG_SNR)
def test_constant_denoiser_is_solved_exactly(name, path, gen) -> None:
    """All data at one point: D is constant, and one step of a log-SNR method is the whole map."""
    point = torch.tensor([0.7, -1.2, 0.4], dtype=torch.float64)

    def velocity(x, t):
        return path.convert(point.expand_as(x), x, t, source="x0", target="velocity")

    eps = torch.randn(5, 3, generator=gen, dtype=torch.float64)
    s, t = torch.full((5,), 0.86, dtype=torch.float64), torch.full((5,), 0.23, dtype=torch.float64)
    start, end = (
        path.sample(point.expand(5, 3), eps, s)[0],
        path.sample(point.expand(5, 3), eps, t)[0],
    )
    for steps in (1, 3):
        times = torch.linspace(0.86, 0.23, steps + 1, dtype=torch.float64)
        got = solve(velocity, start, times, path, SOLVERS[name])
        assert (got - end).abs().max() < 1e-11 * start.abs().max()


@pytest.mark.parametrize("name", SOLVERS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_whole_path_is_finite_and_right(name, dtype, unit_path, gen) -> None:
    """From t = 1, where log-SNR is -inf on the linear and trig paths, to t = 0, where it is +inf."""
    world = worlds.gaussian(unit_path, dtype)
    x = torch.randn(5, 3, generator=gen).to(dtype)
    solver = DormandPrince(1e-3, 1e-4) if name == "dopri5" else SOLVERS[name]
    end = solve(world.velocity, x, uniform(24), unit_path, solver)
    exact = world.endpoint(x, torch.ones(5, dtype=dtype), torch.zeros(5, dtype=dtype))
    # 24 steps of the crudest method: 1/20; on VP Euler meets a velocity of t^(-1/2) at its end
    assert (end - exact).abs().max() / exact.abs().max() < (0.1 if unit_path.name == "vp" else 0.05)


@pytest.mark.parametrize("name", SOLVERS)
@pytest.mark.parametrize("path_name", ["linear", "trig"])
def test_data_can_be_carried_to_noise(name, path_name, gen) -> None:
    path = interpolant.INTERPOLANTS[path_name]()
    world = worlds.gaussian(path)
    x = world.sample(5, gen)
    solver = DormandPrince(1e-3, 1e-4) if name == "dopri5" else SOLVERS[name]
    times = uniform(24).flip(0)[:-1]  # to 1 - 1/24: DPM's last step would end at log-SNR -inf
    end = solve(world.velocity, x, times, path, solver)
    exact = world.flow_map(x, 0.0, float(times[-1]))
    assert (end - exact).abs().max() / exact.abs().max() < 0.06


@pytest.mark.parametrize("name", ["dpm++2m", "unipc"])
def test_leaving_clean_data_costs_no_order(name, gen) -> None:
    """From log-SNR +inf the first step is DDIM's, of local error h^2: second order remains, but for a logarithm."""
    world = worlds.gaussian()
    x = world.sample(5, gen)
    exact = world.flow_map(x, 0.0, 0.9)
    errors = []
    for steps in (40, 80, 160):
        times = torch.linspace(0.0, 0.9, steps + 1, dtype=torch.float64)
        end = solve(world.velocity, x, times, world.interpolant, SOLVERS[name])
        errors.append((end - exact).abs().max().item())
    orders = [math.log2(a / b) for a, b in itertools.pairwise(errors)]
    assert min(orders) > 1.6, (errors, orders)


@pytest.mark.parametrize("name", SOLVERS)
def test_solved_map_has_the_velocity_on_its_diagonal(name, path, gen) -> None:
    """Rows with s = t among rows with a jump, also at t = 0 (VP's velocity is infinite there: its t_min instead)."""
    world = worlds.gaussian(path)
    s = torch.tensor([0.93, 0.41, 0.27, 0.66, 0.0], dtype=torch.float64)
    t = torch.tensor([0.22, 0.41, 0.71, 0.66, 0.0], dtype=torch.float64)
    s, t = s.clamp(min=path.t_min), t.clamp(min=path.t_min)
    x_0 = world.sample(5, gen)
    x = path.sample(x_0, torch.randn(5, 3, generator=gen).double(), s)[0]
    f = SolvedFlowMap(world.velocity, path, SOLVERS[name], 12)
    u = f.mean_velocity(x, s, t)
    assert u.isfinite().all()
    same = s == t
    assert torch.equal(u[same], world.velocity(x, s)[same])
    exact = world.flow_map.mean_velocity(x, s, t)
    assert (u - exact).abs().max() < 0.2 * exact.abs().max()


@pytest.mark.parametrize("name", FIXED)
def test_rows_have_grids_of_their_own(name, gen) -> None:
    """A (K+1, B) grid gives each row what it gets alone."""
    world = worlds.product()
    x, s = noise(gen), torch.tensor([0.9, 0.8, 0.7, 0.6, 0.5], dtype=torch.float64)
    f = SolvedFlowMap(world.velocity, world.interpolant, SOLVERS[name], 6)
    together = f(x, s, s / 3)
    for i in range(5):
        alone = solve(
            world.velocity,
            x[i : i + 1],
            torch.linspace(float(s[i]), float(s[i]) / 3, 7, dtype=torch.float64),
            world.interpolant,
            SOLVERS[name],
        )
        assert (alone - together[i]).abs().max() < 1e-12


def test_corrector_weights_integrate_the_parabola() -> None:
    """The weights are exact moments of e^lambda: against Gauss-Legendre, on both sides of the series' switch."""
    node, weight = map(torch.as_tensor, __import__("numpy").polynomial.legendre.leggauss(30))
    tau, weight = (node + 1) / 2, weight / 2
    for h in (-2.3, -0.3, 1e-5, 0.0499, 0.0501, 0.7, 4.1):
        for reach in (0.4, 1.7):
            density = torch.exp(h * tau) * weight
            density = density / density.sum()
            back = -1 / reach
            past = (density * tau * (tau - 1)).sum() / (back * (back - 1))
            coming = (density * tau * (tau - back)).sum() / (1 - back)
            got = _corrector_weights(*torch.tensor([[h], [reach]], dtype=torch.float64))
            assert abs(got[0].item() - past.item()) < 1e-9
            assert abs(got[1].item() - coming.item()) < 1e-9
    # without a past value: the trapezoid; out of clean data all weight is on the first value
    h, reach = torch.tensor([[0.3, -torch.inf, -torch.inf], [0.0, 0.0, 1.0]], dtype=torch.float64)
    assert [w.tolist() for w in _corrector_weights(h, reach)] == [[0, 0, 0], [0.5, 0, 0]]


def test_unipc_in_float32_does_not_lose_its_weights() -> None:
    h, reach = torch.tensor([1e-3]), torch.tensor([1.1])
    narrow = _corrector_weights(h, reach)
    wide = _corrector_weights(h.double(), reach.double())
    assert torch.allclose(torch.stack(narrow).double(), torch.stack(wide), atol=1e-6)
    assert UniPC().order == 3
