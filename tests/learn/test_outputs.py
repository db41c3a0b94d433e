"""Rules on the network's output: sCM's tangent against derivatives of the exact map, and images read off velocities."""

import math

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from flowmaps.core.flow_map import NetFlowMap
from flowmaps.core.interpolant import INTERPOLANTS, linear, trig
from flowmaps.core.parametrization import EDMTwoTime
from flowmaps.errors import RecipeError
from flowmaps.learn.outputs import Towards, Trig
from flowmaps.learn.ramps import Ramp
from flowmaps.learn.rules import Points
from flowmaps.learn.times import Times
from flowmaps.learn.weights import AtData
from flowmaps.testing import worlds

S = torch.tensor([0.93, 0.81, 0.64, 0.52, 0.37], dtype=torch.float64)
T = torch.tensor([0.21, 0.08, 0.15, 0.31, 0.0], dtype=torch.float64)
SIGMA, EPS = 0.7, 0.3
RATE = math.pi / 2
COS, SIN = (fn(RATE * (S - T))[:, None] for fn in (torch.cos, torch.sin))


class World:
    """Answers with the world's velocity, or with the points' own."""

    def __init__(self, world) -> None:
        self.world = world

    def velocity(self, source, x, t, b):
        return b.v if source == "conditional" else self.world.velocity(x, t)


def phi(z: Tensor, s: Tensor, t: Tensor) -> Tensor:
    """A smooth perturbation, of all three arguments."""
    return torch.sin(z.roll(1, 1) + 0.5) * (1 + s + 2 * t * s)[:, None]


def student(world, eps: float = EPS) -> NetFlowMap:
    """The exact map as a trig network, X = cos x - sin sigma_d F, with eps phi added to F."""
    reading = EDMTwoTime(trig(), SIGMA)

    def net(z, s, t):
        x = z / reading.network_input(torch.ones_like(z), s)
        gap = RATE * (s - t)[:, None]
        end = world.flow_map(x, s, t)
        return (gap.cos() * x - end) / (gap.sin() * SIGMA) + eps * phi(x, s, t)

    return NetFlowMap(net, trig(), reading)


def batch(world, gen, v: Tensor | None = None, progress: float = 0.4) -> Points:
    x_0 = world.sample(5, gen)
    x, own = world.interpolant.sample(x_0, torch.randn(x_0.shape, generator=gen).double(), S)
    return Points(x, own if v is None else v, Times(S, (S + T) / 2, T), {}, torch.tensor(progress))


def along(world, f: NetFlowMap, b: Points, v: Tensor, h: float = 1e-5) -> Tensor:
    """dX/d theta by a central difference along a curve with velocity v at x: no automatic derivative."""
    ahead, behind = (f(b.x + k * v, S + k, T) for k in (h, -h))
    return (ahead - behind) / (2 * h * RATE)


@pytest.mark.parametrize("make", [worlds.gaussian, worlds.rotated])
def test_the_exact_map_has_no_tangent(make, gen) -> None:
    world = make(trig())
    b, f = batch(world, gen), student(world, 0.0)
    prediction, target = Trig("teacher")(f, b, World(world))
    assert prediction.abs().max() > 0.3
    assert_close(prediction, target, rtol=0, atol=1e-9)


@pytest.mark.parametrize("source", ["teacher", "conditional"])
def test_tangent_is_cos_times_the_derivative_of_the_map(source, gen) -> None:
    """methods.md C5, r = 1: g = cos dX/d theta, of a wrong map at generic points, any target."""
    world = worlds.rotated(trig())
    b, f = batch(world, gen), student(world)
    v = b.v if source == "conditional" else world.velocity(b.x, S)
    prediction, target = Trig(source)(f, b, World(world))
    expected = COS * along(world, f, b, v)
    assert expected.abs().max() > 0.1
    assert_close(target - prediction, expected, rtol=1e-6, atol=1e-8)
    assert_close(Trig(source, steep=True)(f, b, World(world))[1], target, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("steep", [False, True])
def test_warm_up_parts(steep, gen) -> None:
    """r multiplies x + dF/d theta and nothing else; F is the trig network's output times sigma_d."""
    world, r = worlds.gaussian(trig()), 0.3
    b, f = batch(world, gen), student(world)
    v = world.velocity(b.x, S) / RATE
    out = SIGMA * f.output(b.x, S, T)
    slope = along(world, NetFlowMap(f.net, trig(), f.parametrization), b, v * RATE)
    bent = -(slope + SIN * b.x + COS * (out - v)) / SIN  # dF/d theta, solved from dX/d theta
    near = COS * torch.sqrt(1 - (r * SIN) ** 2) if steep else COS**2
    expected = -near * (out - v) - r * COS * SIN * (b.x + bent)
    prediction, target = Trig("teacher", warmup=Ramp(0.1, 0.6), steep=steep)(f, b, World(world))
    assert_close(target - prediction, expected, rtol=1e-5, atol=1e-7)
    assert_close(prediction, out)
    cold = Trig("teacher", warmup=Ramp(0.0, 1.0, begin=0.5))(f, b, World(world))
    assert_close(cold[1] - cold[0], -(COS**2) * (out - v))


def test_gradient_goes_through_the_output_alone(gen) -> None:
    world = worlds.gaussian(trig())
    scale = torch.ones((), dtype=torch.float64, requires_grad=True)
    inner = student(world)
    f = NetFlowMap(lambda z, s, t: scale * inner.net(z, s, t), trig(), inner.parametrization)
    prediction, target = Trig("teacher")(f, batch(world, gen), World(world))
    assert prediction.requires_grad
    assert not target.requires_grad


def test_other_readings_are_refused(gen) -> None:
    world = worlds.gaussian()
    b = batch(world, gen)
    for f in (world.flow_map, NetFlowMap(phi), NetFlowMap(phi, linear(), EDMTwoTime(linear()))):
        with pytest.raises(
            RecipeError, match=r"read through EDMTwoTime\(trig\(\)\); give the recipe"
        ):
            Trig()(f, b, World(world))


@pytest.mark.parametrize("name", ["linear", "trig", "vp", "ve"])
def test_towards_at_data_is_the_image_and_its_data(name, gen) -> None:
    path = INTERPOLANTS[name]()
    world = worlds.gaussian(path)
    x_0 = world.sample(5, gen)
    x, v = path.sample(x_0, torch.randn(x_0.shape, generator=gen).double(), S)
    b = Points(x, v, Times(S, S, T), {}, torch.tensor(0.0))
    prediction, target = Towards()(world.flow_map, b, World(world))
    space = AtData(path)
    # the conditional velocity belongs to the diagonal, where its image is the data itself
    assert_close(space(target, x, S, S), x_0, rtol=1e-8, atol=1e-8)
    ddim = space(prediction, x, S, T)
    alpha, sigma = path.alpha(T)[:, None], path.sigma(T)[:, None]
    eps = (x - path.alpha(S)[:, None] * ddim) / path.sigma(S)[:, None]
    assert_close(alpha * ddim + sigma * eps, world.endpoint(x, S, T), rtol=1e-8, atol=1e-8)
    if name == "linear":
        assert_close(space(target, x, S, T), x_0, rtol=1e-8, atol=1e-8)
        assert_close(ddim, x - S[:, None] * prediction)
