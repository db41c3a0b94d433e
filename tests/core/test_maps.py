"""Exact maps satisfy every identity, on every path, read through every parametrization.

The network that reproduces an exact map under a parametrization is found by inverting the parametrization: the mean
velocity is affine in the output, element by element, so two evaluations (outputs 0 and 1) give it. All derivatives run
through that inversion and through the parametrization itself, so a wrong coefficient or a detached one shows.

Residuals are relative to the largest velocity, which is 80 on the VE path and of order one on the others.
"""

import itertools

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from flowmaps.core import interpolant
from flowmaps.core.autodiff import along_source, along_target
from flowmaps.core.flow_map import FlowMap, NetFlowMap, SolvedFlowMap, rematch
from flowmaps.core.parametrization import (
    Average,
    Boundary,
    Denoised,
    EDMTwoTime,
    Parametrization,
    describe,
    restore,
    trig_two_time,
)
from flowmaps.core.solver import RK4
from flowmaps.core.velocity import NetVelocity, RematchedVelocity
from flowmaps.errors import RecipeError
from flowmaps.testing import worlds

S = torch.tensor([0.93, 0.81, 0.64, 0.52, 0.37], dtype=torch.float64)
W = torch.tensor([0.62, 0.71, 0.33, 0.61, 0.46], dtype=torch.float64)
T = torch.tensor(
    [0.21, 0.08, 0.15, 0.77, 0.59], dtype=torch.float64
)  # the last two rows go towards noise

PARAMETRIZATIONS = {
    "average": lambda path: Average(),
    "x0": lambda path: Denoised(path, "x0"),
    "eps": lambda path: Denoised(path, "eps"),
    "velocity": lambda path: Denoised(path, "velocity"),
    "edm": lambda path: EDMTwoTime(path, 0.7),
    "boundary": lambda path: Boundary(path, 0.6, 0.01),
}
WORLDS = {"gaussian": worlds.gaussian, "product": worlds.product, "rotated": worlds.rotated}


def exact_net(world, parametrization: Parametrization):
    """The network whose reading through `parametrization` is the exact map of `world`."""

    def net(z: Tensor, s: Tensor, t: Tensor) -> Tensor:
        x = z / parametrization.network_input(torch.ones_like(z), s)  # the input scaling is linear
        zero = parametrization.mean_velocity(torch.zeros_like(x), x, s, t)
        one = parametrization.mean_velocity(torch.ones_like(x), x, s, t)
        return (world.flow_map.mean_velocity(x, s, t) - zero) / (one - zero)

    return net


def exact_map(world, name: str) -> FlowMap:
    parametrization = PARAMETRIZATIONS[name](world.interpolant)
    return NetFlowMap(exact_net(world, parametrization), world.interpolant, parametrization)


def points(world, gen: torch.Generator, s: Tensor = S) -> Tensor:
    x_0 = world.sample(len(s), gen)
    return world.interpolant.sample(x_0, torch.randn(x_0.shape, generator=gen).double(), s)[0]


def small(residual: Tensor, size: Tensor, tolerance: float = 1e-10) -> None:
    assert (residual.abs().max() / size.abs().max()).item() < tolerance


@pytest.mark.parametrize(
    ("world", "name"),
    [("gaussian", name) for name in PARAMETRIZATIONS]
    + [("rotated", name) for name in ("average", "edm")]
    + [("product", name) for name in ("x0",)],
)
def test_identities_hold_on_exact_maps(world, name, path, gen) -> None:
    world = WORLDS[world](path)
    f = exact_map(world, name)
    x = points(world, gen)
    b = world.velocity(x, S)
    end = f(x, S, T)
    small(f.velocity(x, S) - b, b)  # diagonal
    small(along_source(f, x, S, T, b)[1], b)  # Eulerian
    small(along_target(f, x, S, T)[1] - world.velocity(end, T), b)  # Lagrangian
    small(f(f(x, S, W), W, T) - end, end)  # compositional
    small(f(end, T, S) - x, x)  # the round trip
    small(f(x, S, S) - x, x, 1e-15)
    small(end - world.endpoint(x, S, T), end)


def test_solved_map_satisfies_the_identities(gen) -> None:
    """A mixture has no closed-form map: RK4 with 40 steps, whose error is below 1e-6."""
    world = worlds.mixture()
    f = SolvedFlowMap(world.velocity, world.interpolant, RK4, 40)
    x = points(world, gen)
    b = world.velocity(x, S)
    end = f(x, S, T)
    small(along_source(f, x, S, T, b)[1], b, 1e-5)
    small(along_target(f, x, S, T)[1] - world.velocity(end, T), b, 1e-5)
    small(f(f(x, S, W), W, T) - end, end, 1e-6)


@pytest.mark.parametrize("name", PARAMETRIZATIONS)
def test_endpoint_and_mean_velocity_are_one_map(name, path, gen) -> None:
    parametrization = PARAMETRIZATIONS[name](path)
    x, out = torch.randn(2, 5, 3, generator=gen, dtype=torch.float64)
    gap = (T - S)[:, None]
    end = parametrization.endpoint(out, x, S, T)
    small(end - x - gap * parametrization.mean_velocity(out, x, S, T), end, 1e-13)
    small(parametrization.endpoint(out, x, S, S) - x, x, 1e-13)
    assert parametrization.mean_velocity(out, x, S, S).isfinite().all()


@pytest.mark.parametrize("name", PARAMETRIZATIONS)
def test_mean_velocity_keeps_its_digits_near_the_diagonal(name, path, gen) -> None:
    """Float32 at |t - s| = 1e-4: a quotient of differences would keep three digits."""
    x, out = torch.randn(2, 5, 3, generator=gen)
    s = S.float()
    t = s - 1e-4
    u = PARAMETRIZATIONS[name](path).mean_velocity(out, x, s, t)
    wide = PARAMETRIZATIONS[name](path).mean_velocity(
        out.double(), x.double(), s.double(), t.double()
    )
    # s and t are given: what is left is a few roundings, times sigma/alpha < 100 where eps becomes x_0
    small(u.double() - wide, wide, 2e-5)


@pytest.mark.parametrize("name", ["average", "x0", "velocity", "edm", "boundary"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_one_step_from_pure_noise_is_finite(name, dtype, path, gen) -> None:
    x, out = torch.randn(2, 5, 3, generator=gen, dtype=dtype)
    one, zero = torch.ones(5, dtype=dtype), torch.zeros(5, dtype=dtype)
    parametrization = PARAMETRIZATIONS[name](path)
    assert parametrization.endpoint(out, x, one, zero).isfinite().all()
    assert parametrization.mean_velocity(out, x, one, zero).isfinite().all()
    assert parametrization.network_input(x, one).isfinite().all()


def test_denoised_is_the_ddim_step(path, gen) -> None:
    x, out = torch.randn(2, 5, 3, generator=gen, dtype=torch.float64)
    a, b = path.at(S, x), path.at(T, x)
    ratio = b.sigma / a.sigma
    small(
        Denoised(path).endpoint(out, x, S, T) - (ratio * x + (b.alpha - a.alpha * ratio) * out),
        x,
        1e-10,
    )


def test_edm_two_time_is_its_published_formula(path, gen) -> None:
    """IMM, arXiv:2503.07565, and TrigFlow's cos and sin."""
    x, out = torch.randn(2, 5, 3, generator=gen, dtype=torch.float64)
    a, b = path.at(S, x), path.at(T, x)
    n = a.alpha**2 + a.sigma**2
    skip = (a.alpha * b.alpha + a.sigma * b.sigma) / n
    push = -(b.alpha * a.sigma - a.alpha * b.sigma) * 0.7 / n.sqrt()
    end = EDMTwoTime(path, 0.7).endpoint(out, x, S, T)
    small(end - skip * x - push * out, end, 1e-13)
    scaled = x / (a.alpha**2 * 0.49 + a.sigma**2).sqrt()
    small(EDMTwoTime(path, 0.7).network_input(x, S) - scaled, scaled, 1e-14)
    angle = (torch.pi / 2 * (S - T))[:, None]
    trig = trig_two_time(0.7).endpoint(out, x, S, T)
    small(trig - angle.cos() * x + angle.sin() * 0.7 * out, x, 1e-13)


def test_boundary_is_its_published_formula(gen) -> None:
    """Consistency models: c_skip and c_out in sigma, on EDM's path; the identity at sigma_min."""
    path, x, out = interpolant.ve(), *torch.randn(2, 5, 3, generator=gen, dtype=torch.float64)
    sigma = (80 * S)[:, None]
    skip = 0.6**2 / ((sigma - 0.01) ** 2 + 0.6**2)
    push = (sigma - 0.01) * 0.6 / (sigma**2 + 0.6**2).sqrt()
    end = Boundary(path, 0.6, 0.01).endpoint(out, x, S, torch.full_like(S, 0.01 / 80))
    small(end - skip * x - push * out, end, 1e-12)
    for path in (interpolant.ve(), interpolant.linear(), interpolant.vp()):
        low = path.time_at(-torch.tensor(0.01).double().log()).repeat(5)
        near = 0.5 * low  # towards the data the line goes on, at the noise of the network
        end = Boundary(path, 0.6, 0.01).endpoint(out, x, low, near)
        eps = -(0.6 / (0.01**2 + 0.6**2) ** 0.5) * out
        data = x / path.alpha(low)[:, None] - 0.01 * eps
        line = path.at(near, x)
        small(end - line.alpha * data - line.sigma * eps, x, 1e-8)


def test_parametrizations_survive_a_checkpoint(path) -> None:
    for make in PARAMETRIZATIONS.values():
        parametrization = make(path)
        assert restore(describe(parametrization), path) == parametrization
    with pytest.raises(RecipeError, match="a checkpoint can name the parametrizations"):
        describe(object())  # type: ignore[arg-type]


def test_local_net_is_asked_on_the_diagonal(gen) -> None:
    asked = []
    f = NetFlowMap(lambda x, s, t: asked.append((s, t)) or x, local=True)
    f(torch.randn(5, 3, generator=gen).double(), S, T)
    assert torch.equal(asked[0][0], S)
    assert torch.equal(asked[0][1], S)


def test_output_is_read_in_the_precision_of_the_point(gen) -> None:
    f = NetFlowMap(lambda x, s, t: x.bfloat16())
    assert f(torch.randn(5, 3, generator=gen), 0.9, 0.2).dtype == torch.float32


@pytest.mark.parametrize("target", ["velocity", "x0", "eps", "score"])
def test_net_velocity_reads_every_prediction(target, path, gen) -> None:
    world = worlds.gaussian(path)
    x = points(world, gen)

    def net(z: Tensor, t: Tensor) -> Tensor:
        return path.convert(world.velocity(z, t), z, t, source="velocity", target=target)

    small(NetVelocity(net, path, target)(x, S) - world.velocity(x, S), world.velocity(x, S), 1e-12)


def test_denoise_is_the_posterior_mean(path, gen) -> None:
    world = worlds.gaussian(path)
    x = points(world, gen)
    c, (mean, std) = path.at(S, x), world.marginal(S, x)
    expected = world.mean + c.alpha * world.std**2 / std**2 * (x - mean)
    small(world.flow_map.denoise(x, S) - expected, expected, 1e-10)


def bounded_pairs() -> list[tuple[str, str]]:
    return list(itertools.permutations(interpolant.INTERPOLANTS, 2))


@pytest.mark.parametrize(("old", "new"), bounded_pairs())
@pytest.mark.parametrize("make", [worlds.gaussian, worlds.product])
def test_rematched_world_is_the_world_on_the_other_path(make, old, new, gen) -> None:
    """Also to 1e-12 for EDM (VE) to linear. The times keep VE's noise within VP's range."""
    old_path, new_path = interpolant.INTERPOLANTS[old](), interpolant.INTERPOLANTS[new]()
    there = make(new_path)
    s, t = (0.9 * S, 0.9 * T) if new != "ve" else (0.9 * S / 16, 0.9 * T / 16)
    x = points(there, gen, s)
    mapped = rematch(make(old_path).flow_map, new_path)
    b = there.velocity(x, s)
    small(mapped(x, s, t) - there.endpoint(x, s, t), x, 1e-12)
    small(mapped.mean_velocity(x, s, t) - there.flow_map.mean_velocity(x, s, t), b, 2e-11)
    small(mapped.velocity(x, s) - b, b, 1e-12)
    small(RematchedVelocity(make(old_path).velocity, old_path, new_path)(x, s) - b, b, 1e-12)


def test_rematched_gaussian_from_pure_noise(gen) -> None:
    """One step from t = 1 on the linear path, with an EDM model that stops at sigma = 80."""
    x = torch.randn(7, 3, generator=gen, dtype=torch.float64)
    there = worlds.gaussian(interpolant.linear())
    for old, tolerance in (
        (interpolant.ve(), 2e-2),
        (interpolant.vp(), 1e-2),
        (interpolant.trig(), 1e-12),
    ):
        end = rematch(worlds.gaussian(old).flow_map, interpolant.linear())(x, 1.0, 0.0)
        # the paths end at sigma / alpha = 80 and 151: what is cut off is of the order of its inverse
        small(end - there.flow_map(x, 1.0, 0.0), end, tolerance)


def test_rematch_of_the_same_path_is_nothing() -> None:
    f = worlds.gaussian().flow_map
    assert rematch(f, interpolant.linear()) is f


def test_times_may_be_scalars_or_rows(gen) -> None:
    f, x = worlds.rotated().flow_map, torch.randn(5, 2, generator=gen, dtype=torch.float64)
    s, t = torch.tensor([[0.8] * 5, [0.3] * 5], dtype=torch.float64)
    rows = f(x, s, t)
    assert_close(rows, worlds.rotated().endpoint(x, s, t), rtol=1e-13, atol=1e-13)
    assert_close(f(x, s[0], t[0]), rows, rtol=0, atol=0)
    assert_close(f(x, 0.8, 0.3), rows, rtol=0, atol=0)
    assert_close(f(x, 0.8, t), rows, rtol=0, atol=0)


def test_a_solved_map_at_equal_times_is_one_call_of_its_field() -> None:
    world = worlds.product()
    calls: list[Tensor] = []

    def field(x: Tensor, t: Tensor, **cond: Tensor) -> Tensor:
        calls.append(t)
        return world.velocity(x, t)

    x, t = torch.randn(3, 2).double(), torch.tensor([0.3, 0.7, 0.9]).double()
    u = SolvedFlowMap(field, world.interpolant, RK4, 40).velocity(x, t)
    assert len(calls) == 1
    torch.testing.assert_close(u, world.velocity(x, t), rtol=0, atol=0)


@pytest.mark.parametrize("name", ["linear", "trig", "ve"])
def test_a_prediction_of_data_has_the_velocity_of_clean_data(name, gen) -> None:
    """At t = 0 the noise is 0 / 0 in it, and its mean 0: walks end there (Heun), and gradients pass."""
    world = worlds.gaussian(getattr(interpolant, name)())
    x = torch.randn(5, 3, generator=gen, dtype=torch.float64)
    net = lambda x, s, t: world.flow_map.denoise(x, s)
    f = NetFlowMap(net, world.interpolant, Denoised(world.interpolant))
    x.requires_grad_(True)
    found = f.velocity(x, 0.0)
    assert_close(found, world.velocity(x, torch.zeros(5, dtype=torch.float64)))
    (slope,) = torch.autograd.grad(found.sum(), x)
    assert slope.isfinite().all()
    assert name != "linear" or slope.abs().max() > 0.1  # elsewhere alpha has no slope there
    mixed = torch.tensor([0.0, 0.3, 0.0, 0.7, 1.0], dtype=torch.float64)
    assert_close(f.velocity(x, mixed)[1::2], world.velocity(x, mixed)[1::2])
