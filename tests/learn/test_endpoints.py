"""Endpoint rules against exact maps, the kernel distance against its meaning, and laws of jumps."""

import math

import pytest
import torch
from torch.testing import assert_close

from flowmaps.core.flow_map import NetFlowMap
from flowmaps.core.interpolant import linear, trig
from flowmaps.errors import RecipeError
from flowmaps.learn.endpoints import Endpoint, Inverse, Return
from flowmaps.learn.objective import Objective, Recipe, Term
from flowmaps.learn.rules import Points
from flowmaps.learn.states import Stored
from flowmaps.learn.times import SortedPair, Times, Uniform
from flowmaps.testing import worlds

N = 20_000


def points(world, gen, n=6) -> Points:
    """Generic points of both directions, with the exact velocity as the conditional one."""
    s = torch.rand(n, generator=gen, dtype=torch.float64) * 0.8 + 0.1
    t = torch.rand(n, generator=gen, dtype=torch.float64) * 0.8 + 0.1
    x = world.sample(n, gen) + 0.3
    return Points(x, world.velocity(x, s), Times(s, (s + t) / 2, t), {}, torch.tensor(0.3))


def objective(world, rule, **kw) -> Objective:
    term = Term(rule=rule, times=SortedPair(Uniform()), **kw)
    return Objective(
        Recipe(name="x", cite=(), terms=(term,), interpolant=world.interpolant), world.flow_map
    )


@pytest.mark.parametrize("make", [linear, trig])
def test_residuals_vanish_at_the_exact_map(make, gen) -> None:
    world = worlds.rotated(make())
    b = points(world, gen)
    ahead = world.flow_map(b.x, b.times.s, b.times.t)
    ended = Points(*(getattr(b, k) for k in ("x", "v", "times", "cond", "progress")), end=ahead)
    assert_close(*Endpoint()(world.flow_map, ended, objective(world, Endpoint(), state=Stored())))
    prediction, target = Inverse(place=2.5)(world.flow_map, b, objective(world, Inverse()))
    assert prediction.shape == (6, 2, 2)
    assert_close(prediction, target, atol=1e-7, rtol=0)
    assert_close(target[:, 0], b.v)
    assert_close(target[:, 1], math.sqrt(2.5) * b.x)
    assert_close(*Return()(world.flow_map, b, objective(world, Return())))


def test_endpoint_skips_jumps_of_length_zero(gen) -> None:
    world = worlds.rotated()
    b = points(world, gen)
    still = Points(b.x, b.v, Times(b.times.s, b.times.s, b.times.s), {}, b.progress, end=b.x + 7)
    u, target = Endpoint()(world.flow_map, still, objective(world, Endpoint(), state=Stored()))
    assert_close(u, target, atol=0, rtol=0)


def test_the_inverse_rule_needs_its_place() -> None:
    with pytest.raises(RecipeError, match="expected place > 0, got 0"):
        Inverse(place=0)


def test_there_and_back_is_what_is_lost_on_the_way(gen) -> None:
    """(u' - u)(s - t) is where the map returns to, less where it began; and both jumps learn from it."""
    world = worlds.rotated()
    b = points(world, gen)
    s, _, t = b.times
    up, down = torch.nn.Parameter(torch.tensor(0.7)), torch.nn.Parameter(torch.tensor(-0.4))

    def net(x, s, t):
        return torch.sin(3 * x) * torch.where(t > s, up, down)[:, None] + x.flip(1)

    f = NetFlowMap(net, world.interpolant)
    prediction, target = Return()(f, b, objective(world, Return()))
    lost = f(f(b.x, s, t), t, s) - b.x
    assert_close((prediction - target) * (s - t)[:, None], lost)
    assert lost.abs().max() > 0.05
    learned = (lost / (s - t)[:, None]).square().sum()
    wanted = torch.autograd.grad(learned, [up, down], retain_graph=True)
    found = torch.autograd.grad((prediction - target).square().sum(), [up, down])
    assert_close(found, wanted)
    assert min(g.abs() for g in found) > 0.01
