"""Posterior maps: the GLASS field is Bayes', velocity for velocity; draws, transitions, and one that is learned."""

import itertools

import pytest
import torch
from torch import nn

import flowmaps
from flowmaps.control.posterior import (
    Glass,
    View,
    contexts,
    fuse,
    posterior_draws,
    posterior_map,
    transition,
)
from flowmaps.core.oracle import Gaussian, Mixture
from flowmaps.errors import ShapeError
from flowmaps.recipes import get
from flowmaps.testing.worlds import gaussian, mixture

TIMES = torch.tensor([0.0, 0.05, 0.3, 0.62, 0.9, 1.0]).double()


def bayes(world: Gaussian, x_c, c) -> Gaussian:
    """The law of x_0 given x_c at time c, for one row."""
    k = world.interpolant.at(c, x_c)
    mean_c, std_c = world.marginal(c, x_c)
    mean = world.mean + k.alpha * (world.std / std_c) ** 2 * (x_c - mean_c)
    return Gaussian(mean[0], (world.std * k.sigma / std_c)[0].expand(3), world.interpolant)


@pytest.mark.parametrize("c", [0.02, 0.35, 0.8, 1.0])
def test_glass_is_the_velocity_of_the_gaussian_posterior(path, gen, c) -> None:
    world = gaussian(path)
    x = torch.randn(6, 3, generator=gen).double()
    x_c, c = torch.randn(1, 3, generator=gen).double(), torch.tensor([c]).double()
    # the fused view lies a little below, and VP and EDM paths keep some noise at their end
    s = TIMES.clamp(min={"vp": 1e-3, "edm": 0.05}.get(path.name, 0.0))
    field = Glass(world.velocity, path)
    found = field(x, s, context=x_c.expand(6, 3), context_time=c.expand(6))
    torch.testing.assert_close(found, bayes(world, x_c, c).velocity(x, s), rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("c", [0.03, 0.55, 0.93])
def test_glass_is_the_velocity_of_the_mixture_posterior(unit_path, gen, c) -> None:
    world, path = mixture(unit_path), unit_path
    x_c, c = torch.tensor([[0.4, 0.3]]).double(), torch.tensor([c]).double()
    k = path.at(c, x_c)
    share, means, stds = world.components(c, x_c)
    centres = world.means + k.alpha * (world.stds / stds[0]) ** 2 * (x_c - means[0])
    posterior = Mixture(share[0, :, 0], centres, world.stds * k.sigma / stds[0], path)
    x, s = torch.randn(6, 2, generator=gen).double(), TIMES.clamp(min=1e-3 if path.t_min else 0.0)
    found = Glass(world.velocity, path)(x, s, context=x_c.expand(6, 2), context_time=c.expand(6))
    torch.testing.assert_close(found, posterior.velocity(x, s), rtol=1e-7, atol=1e-7)


def test_fused_views_add_their_precision(path, gen) -> None:
    x = torch.randn(2, 4, 3, generator=gen).double()
    s, c = torch.tensor([0.3, 0.5, 0.9, 1.0]).double(), torch.tensor([0.6, 0.2, 1.0, 0.4]).double()
    view = fuse(path, View(x[0], s), View(x[1], c))
    snr = lambda t: (path.alpha(t) / path.sigma(t)).square()
    torch.testing.assert_close(snr(view.t), snr(s) + snr(c), rtol=1e-9, atol=1e-12)
    again = fuse(path, View(x[1], c), View(x[0], s))
    torch.testing.assert_close(view.x, again.x)
    clean = fuse(path, View(x[0], s), View(x[1], torch.zeros(4).double()))
    if path.sigma(torch.zeros(())) == 0:
        torch.testing.assert_close(clean.x, x[1])


def test_without_context_it_is_the_map_itself(gen) -> None:
    world = mixture()
    x, one = torch.randn(5, 2, generator=gen).double(), torch.ones(5).double()
    field = Glass(world.velocity, world.interpolant)
    for t in (1.0, 0.6, 0.1):
        found = field(x, t, context=torch.randn_like(x), context_time=one)
        torch.testing.assert_close(found, world.velocity(x, t * one))
    with pytest.raises(ShapeError, match="shape of its point"):
        field(x, 0.5, context=x[:1], context_time=one)


def moments(world: Mixture, x, c):
    """Mean, deviation and P(first coordinate < 0) of p(x_0 | x at c), each (B, ...)."""
    share, means, stds = world.components(c, x)
    k = world.interpolant.at(c, x[:, None])
    centres = world.means + k.alpha * (world.stds / stds) ** 2 * (x[:, None] - means)
    spread = world.stds * k.sigma / stds
    mean = (share * centres).sum(1)
    std = ((share * (spread.square() + centres.square())).sum(1) - mean.square()).sqrt()
    left = torch.special.ndtr(-centres / spread)
    return mean, std, (share * left).sum(1)[:, 0]


def test_draws_are_those_of_bayes(gen) -> None:
    world = mixture()
    x, c = torch.tensor([[0.05, 0.4], [-1.0, 0.2]]).double(), torch.tensor([0.55, 0.7]).double()
    posterior = flowmaps.SolvedFlowMap(
        Glass(world.velocity, world.interpolant), world.interpolant, steps=24
    )
    draws = posterior_draws(posterior, x, c, 4000, generator=gen)
    mean, std, left = moments(world, x, c)
    assert draws.shape == (4000, 2, 2)
    torch.testing.assert_close(draws.mean(0), mean, atol=0.04, rtol=0)
    torch.testing.assert_close(draws.std(0), std, atol=0.03, rtol=0)
    below = (draws[..., 0] < 0).double().mean(0)
    torch.testing.assert_close(below, left, atol=0.025, rtol=0)


@pytest.mark.parametrize("rho", [0.0, 0.4, None])
def test_transitions_keep_the_marginals(gen, rho) -> None:
    world, n, s, t = gaussian(), 20_000, 0.7, 0.3
    x_0, eps = world.sample(n, gen), torch.randn(n, 3, generator=gen).double()
    x_s = world.interpolant.sample(x_0, eps, torch.tensor(s).double())[0]
    x_t = transition(posterior_map(world.flow_map), x_s, s, t, rho=rho, generator=gen)
    mean, std = world.marginal(torch.tensor(t).double(), x_t)
    torch.testing.assert_close(x_t.mean(0), mean, atol=0.03, rtol=0)
    torch.testing.assert_close(x_t.std(0), std, atol=0, rtol=0.02)
    if rho is None:  # a Markov chain upwards: x_s = k x_t + noise
        k = (1 - s) / (1 - t)
        both = ((x_t - mean) * (x_s - x_s.mean(0))).mean(0)
        torch.testing.assert_close(both, k * std.square(), atol=0.02, rtol=0.03)


class Net(nn.Module):
    def __init__(self, width: int = 96) -> None:
        super().__init__()
        sizes = (1 + 1 + 3, width, width, width, 1)
        layers = [
            layer for a, b in itertools.pairwise(sizes) for layer in (nn.Linear(a, b), nn.SiLU())
        ]
        self.layers = nn.Sequential(*layers[:-1])

    def forward(self, x, s, t, *, context, context_time):
        times = torch.stack([s, t, context_time], 1)
        return self.layers(torch.cat([x, context, times], 1))


def learn(recipe, student, world, gen, steps) -> None:
    objective = flowmaps.Objective(recipe, student)
    optimizer = torch.optim.Adam(student.parameters(), lr=4e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(steps):
        x_0 = world.sample(256, gen)
        drawn = recipe.draw(x_0, gen, contexts(world.interpolant, x_0, gen))
        optimizer.zero_grad()
        objective(drawn).total.backward()
        optimizer.step()
        schedule.step()


def test_the_posterior_field_is_learned_from_pairs(gen) -> None:
    """Flow matching on pairs (x_0, x_c) finds the GLASS field.

    Its one-jump map takes longer: after 2,500 steps of lmd with that field as teacher (14 s) the means of its draws at three
    contexts are 1.30, -1.39, 0.44, those of Bayes 1.36, -1.59, 0.47.
    """
    parts = ([0.3, 0.7], [[-2.0], [1.5]], [[0.5], [0.8]])
    world = Mixture(*(torch.tensor(part) for part in parts), flowmaps.linear())
    field, student = Glass(world.velocity, world.interpolant), flowmaps.NetFlowMap(Net())
    learn(get("flow_matching"), student, world, gen, 700)
    x_0 = world.sample(2000, gen)
    cond, s = contexts(world.interpolant, x_0, gen), torch.rand(2000, generator=gen)
    x = world.interpolant.sample(x_0, torch.randn(2000, 1, generator=gen), s)[0]
    blind = world.velocity(x, s) - field(x, s, **cond)
    with torch.no_grad():
        error = student.velocity(x, s, **cond) - field(x, s, **cond)
    assert float(error.std()) < 0.5 * float(blind.std())
