"""Likelihood: ODE, jumps and head give the density that the worlds know, to 1e-8 in float64."""

import math

import pytest
import torch
from torch import nn

import flowmaps
from flowmaps.control.invert import FixedPoint
from flowmaps.control.likelihood import (
    ByHead,
    ByJumps,
    ByOde,
    bits_per_dim,
    dequantise,
    divergence,
    head_loss,
    log_prob,
    rademacher,
)
from flowmaps.core.interpolant import linear, trig
from flowmaps.core.oracle import Rotated
from flowmaps.core.solver import EULER, HEUN, RK4, DormandPrince
from flowmaps.errors import ControlError
from flowmaps.testing.worlds import gaussian, mixture, product, rotated

FINE = ByOde(solver=DormandPrince(1e-10, 1e-10), steps=1)


def density(world, x):
    """log p_0 (B,) in closed form."""
    if isinstance(world, Rotated):
        return density(world.world, x @ world.rotation)
    zero = torch.zeros(len(x), dtype=x.dtype)
    if hasattr(world, "log_prob"):
        return world.log_prob(x, zero)
    return world.density(x, zero).log().sum(1)


@pytest.mark.parametrize(("world", "on"), [(gaussian, linear), (mixture, trig), (rotated, linear)])
def test_by_ode_it_is_the_density_of_the_world(world, on, gen) -> None:
    exact = world(on())
    x = exact.sample(3, gen)
    # a solved map's velocity walks its steps, all at one place
    flow_map = flowmaps.SolvedFlowMap(exact.velocity, exact.interpolant, EULER, 1)
    found = log_prob(flow_map, x, FINE)
    torch.testing.assert_close(found.log_prob, density(exact, x), atol=1e-8, rtol=0)


@pytest.mark.parametrize("world", [gaussian, rotated])
@pytest.mark.parametrize(("steps", "through"), [(1, "up"), (4, "up"), (1, "down"), (3, "down")])
def test_by_jumps_it_is_the_density_of_the_world(world, steps, through, gen) -> None:
    exact = world()
    x = exact.sample(5, gen)
    sharp = FixedPoint(iterations=300, tolerance=1e-12, memory=4, rate=0.7)
    found = log_prob(exact.flow_map, x, ByJumps(steps, through, inverse=sharp))
    torch.testing.assert_close(found.log_prob, density(exact, x), atol=1e-8, rtol=0)
    assert float(found.round_trip.max()) < 1e-8


def test_the_error_of_the_ode_is_of_the_order_of_its_solver(gen) -> None:
    exact = mixture()
    flow_map = flowmaps.SolvedFlowMap(exact.velocity, exact.interpolant, EULER, 1)
    x = exact.sample(6, gen)

    def error(solver, steps: int) -> float:
        return float(
            (log_prob(flow_map, x, ByOde(steps, solver)).log_prob - density(exact, x)).norm()
        )

    errors = {solver.name: (error(solver, 16), error(solver, 32)) for solver in (HEUN, RK4)}
    orders = {name: math.log2(coarse / fine) for name, (coarse, fine) in errors.items()}
    assert orders["heun"] == pytest.approx(2, abs=0.4), orders
    assert orders["rk4"] == pytest.approx(4, abs=0.8), orders


def test_hutchinson_is_unbiased_with_the_known_variance(gen) -> None:
    a = torch.randn(5, 5, generator=gen).double()
    x = torch.zeros(1, 5).double()
    probes = rademacher(20_000, x, gen)
    each = torch.cat([divergence(lambda x: x @ a.T, x, probes[i : i + 1])[1] for i in range(400)])
    many = (probes[:, 0] @ a * probes[:, 0]).sum(1)
    torch.testing.assert_close(each, many[:400])
    twice = (a + a.T).square().triu(1).sum()
    torch.testing.assert_close(many.mean(), a.trace(), atol=0.15, rtol=0)
    torch.testing.assert_close(many.var(), twice, rtol=0.05, atol=0)
    exact = divergence(lambda x: x @ a.T, x)[1]
    torch.testing.assert_close(exact, a.trace()[None])


def test_hutchinson_on_a_trajectory(gen) -> None:
    """Exact where the Jacobian is diagonal, unbiased elsewhere, and it asks for a generator."""
    world, turned = gaussian(), rotated()
    x = world.sample(4, gen)
    some = log_prob(world.flow_map, x, ByOde(24, RK4, probes=1), generator=gen)
    torch.testing.assert_close(some.log_prob, density(world, x), atol=1e-4, rtol=0)
    y = turned.sample(1, gen).repeat(600, 1)
    ode = flowmaps.SolvedFlowMap(turned.velocity, turned.interpolant, EULER, 1)
    rough = torch.stack([log_prob(ode, y, ByOde(12, RK4, probes=1), generator=gen).log_prob.mean()])
    torch.testing.assert_close(rough, density(turned, y[:1]), atol=0.1, rtol=0)
    with pytest.raises(ControlError, match="give generator="):
        log_prob(world.flow_map, x, ByOde(2, probes=1))


class ExactHead:
    """The head of a Gaussian world in closed form."""

    def __init__(self, world) -> None:
        self.world = world

    def __call__(self, x, s, t):
        end = self.world.flow_map(x, s, t)
        same = s == t
        gap = torch.where(same, 1.0, t - s)
        chord = (self.world.log_prob(end, t) - self.world.log_prob(x, s)) / gap
        c, std = self.world.interpolant.at(s, x), self.world.marginal(s, x)[1]
        rate = (c.alpha * c.dalpha * self.world.std**2 + c.sigma * c.dsigma) / std**2
        return torch.where(same, -rate.expand_as(x).sum(1), chord)


@pytest.mark.parametrize("steps", [1, 3])
def test_by_head_it_is_the_density_of_the_world(steps, gen) -> None:
    world = gaussian()
    x = world.sample(5, gen)
    found = log_prob(world.flow_map, x, ByHead(ExactHead(world), steps))
    torch.testing.assert_close(found.log_prob, density(world, x), atol=1e-10, rtol=0)
    assert found.cost.forward == 5 * steps


def test_the_losses_of_a_head_vanish_at_the_truth_and_only_there(gen) -> None:
    world = gaussian()
    x = torch.randn(6, 3, generator=gen).double()
    s, t = torch.rand(2, 6, generator=gen).double().sort(0).values
    head = ExactHead(world)
    for loss in head_loss(head, world.flow_map, x, s, t, gen):
        torch.testing.assert_close(loss, torch.zeros(6).double(), atol=1e-16, rtol=0)
    wrong = lambda x, s, t: head(x, s, t) * (1 + t - s) + 0.1
    diagonal, bootstrap = head_loss(wrong, world.flow_map, x, s, t, gen)
    torch.testing.assert_close(diagonal, torch.full((6,), 0.01).double())
    assert float(bootstrap.min()) > 0


def test_the_bootstrap_follows_the_trajectory(gen) -> None:
    """Where the divergence depends on the place: the second half starts where the first half ends."""
    world = product()

    def log_density(x, t):
        return world.density(x, t).log().sum(1)

    def head(x, s, t):
        return (log_density(world.flow_map(x, s, t), t) - log_density(x, s)) / (t - s)

    x = torch.randn(5, 2, generator=gen).double()
    s, t = torch.full((5,), 0.2).double(), torch.full((5,), 0.8).double()
    middle = (s + t) / 2
    here = (head(x, s, middle) + head(x, middle, t)) / 2
    assert float((head(x, s, t) - here).abs().max()) > 0.05  # it matters

    def safe(x, s, t):
        return torch.where(s == t, 0.0, head(x, s, torch.where(s == t, s + 0.1, t)))

    bootstrap = head_loss(safe, world.flow_map, x, s, t, gen)[1]
    torch.testing.assert_close(bootstrap, torch.zeros(5).double(), atol=1e-16, rtol=0)


class Head(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(4, 64), nn.SiLU(), nn.Linear(64, 64), nn.SiLU(), nn.Linear(64, 1)
        )

    def forward(self, x, s, t):
        return self.layers(torch.cat([x, s[:, None], t[:, None]], 1))[:, 0]


def test_a_head_is_learned(gen) -> None:
    world = mixture(dtype=torch.float32)
    flow_map = flowmaps.SolvedFlowMap(world.velocity, world.interpolant, HEUN, 2)
    head, steps = Head(), 500
    optimizer = torch.optim.Adam(head.parameters(), lr=5e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(steps):
        s, t = torch.rand(2, 256, generator=gen).sort(0).values
        s, t = torch.where(torch.rand(256, generator=gen) < 0.2, 0.0, s), t
        x_0, eps = world.sample(256, gen), torch.randn(256, 2, generator=gen)
        x = world.interpolant.sample(x_0, eps, s)[0]
        loss = sum(
            part.mean() for part in head_loss(head, flow_map, x, s, t, gen, velocity=world.velocity)
        )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    x = world.sample(200, gen)
    exact = flowmaps.SolvedFlowMap(world.velocity, world.interpolant, HEUN, 16)
    found = log_prob(exact, x, ByHead(head, 4)).log_prob
    error = float((found - density(world, x)).square().mean().sqrt())
    print("head, rms error in nats:", error)
    assert error < 0.32


def test_bits_and_dequantisation(gen) -> None:
    levels = torch.randint(0, 256, (20_000, 3), generator=gen).double()
    x = dequantise((2 * levels - 255) / 255, 127.5, gen)
    assert float(((x * 127.5 + 127.5) - levels).abs().max()) <= 0.5
    uniform = torch.full((4,), -3 * math.log(256 / 127.5)).double()  # a density over all 256 values
    torch.testing.assert_close(bits_per_dim(uniform, 3, 127.5), torch.full((4,), 8.0).double())
    world = gaussian()
    found = log_prob(world.flow_map, world.sample(7, gen), ByJumps())
    torch.testing.assert_close(found.bits(4.0), bits_per_dim(found.log_prob, 3, 4.0))
    assert (found.dims, found.cost.forward, found.cost.jvp) == (3, 7, 21)


def test_refusals() -> None:
    for broken in (lambda: ByOde(0), lambda: ByOde(4, probes=0), lambda: ByJumps(0)):
        with pytest.raises(ControlError, match="at least"):
            broken()
