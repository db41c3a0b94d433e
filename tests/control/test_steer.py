"""Every value estimator has the limit that its closed form gives, right or wrong: the tests name both."""

import math

import pytest
import torch
from worlds import G_MEAN, G_VAR, GAUSS, M1, PULL, RIGHT, TILT, D, column, modes, moments, noise

from flowmaps.control.rewards import Scaled, linear, pull
from flowmaps.control.steer import (
    Damped,
    Diamond,
    Exact,
    LookAhead,
    Posterior,
    Steered,
    Tweedie,
    fmrg,
    kick,
    sample_sde,
    steer,
    tilted_denoiser,
)
from flowmaps.core.flow_map import NetFlowMap
from flowmaps.core.interpolant import linear as linear_path
from flowmaps.core.interpolant import trig
from flowmaps.core.oracle import Gaussian, Mixture, Product
from flowmaps.core.solver import HEUN
from flowmaps.errors import ControlError
from flowmaps.sample import solve, uniform


def walked(world) -> NetFlowMap:
    """The world as a velocity alone: closed-form and solved maps compute a jump before they say their velocity."""
    return NetFlowMap(lambda x, s, t: world.velocity(x, s), world.interpolant, local=True)


QUANTILES = torch.special.ndtri((torch.arange(300, dtype=D) + 0.5) / 300)[:, None]
G = math.pi * 1.7 / 2
KAPPA = (G - math.log(1.7)) / (1 + 1.7**2)
A = 0.5 * 1.7**2


def dawson(x: float) -> float:
    grid = torch.linspace(0, x, 20001, dtype=D)
    return math.exp(-(x**2)) * float(torch.trapezoid(grid.square().exp(), grid))


CLOSED = {
    "exact": (Exact(), G_MEAN, G_VAR),
    "damped": (Damped(0.5, 1.7), G_MEAN, G_VAR),
    "tweedie": (
        Tweedie(),
        0.4 + 1.6 * math.sqrt(2 * A) * dawson(math.sqrt(A / 2)),
        2.89 * math.exp(-A),
    ),
    "look-ahead": (
        LookAhead(),
        2 - 1.6 * math.exp(-A * KAPPA),
        2.89 * math.exp(-2 * A * KAPPA),
    ),
}


@pytest.mark.parametrize("name", CLOSED)
def test_the_ode_limit_of_every_value_on_a_gaussian(name) -> None:
    """steering.md 2.3: c = 2, curvature .5 on N(.4, 1.7^2)."""
    value, mean, var = CLOSED[name]
    steered = Steered(GAUSS.flow_map, PULL, value=value)
    ends = torch.tensor([[0.0], [1.0]], dtype=D)
    times = torch.linspace(1, 0, 101, dtype=D)
    low, high = solve(steered.velocity, ends, times, linear_path(), HEUN)[:, 0].tolist()
    assert abs(low - mean) < 3e-3
    assert abs((high - low) ** 2 / var - 1) < 6e-3


@pytest.mark.parametrize("path", [linear_path(), trig()], ids=["linear", "trig"])
def test_exact_is_the_tilt_of_any_law_on_any_path(path) -> None:
    """steering.md A.2 against the velocity of the tilted mixture itself; also with negative curvature."""
    world = Mixture(
        torch.tensor([0.3, 0.5, 0.2]).double(), column(-2, 0.5, 3), column(0.4, 0.7, 0.3), path
    )
    x = torch.linspace(-3, 4, 8, dtype=D)[:, None]
    for a, curvature in ((0.8, 0.0), (0.8, 0.5), (-1.0, 2.0), (0.3, -0.3)):
        reward = Scaled(pull(torch.tensor([a], dtype=D), curvature), 1.0)
        if curvature == 0:
            reward = Scaled(linear(torch.tensor([2 * a], dtype=D)), 0.5)
        slope = a if curvature == 0 else curvature * a
        q = 1 + curvature * world.stds**2
        means, stds = (world.means + slope * world.stds**2) / q, world.stds / q.sqrt()
        log_w = world.weights.log()[:, None] - 0.5 * q.log()
        log_w = log_w + 0.5 * ((means / stds) ** 2 - (world.means / world.stds) ** 2)
        tilted = Mixture(torch.softmax(log_w[:, 0], 0), means, stds, path)
        for time in (0.55, 0.2):
            t = torch.full((8,), time, dtype=D)
            flow_map = walked(world)
            got = tilted_denoiser(flow_map, reward, x, t)
            torch.testing.assert_close(got, walked(tilted).denoise(x, t), rtol=1e-10, atol=1e-10)
            lean = Steered(flow_map, reward, value=Exact()).velocity(x, t)
            torch.testing.assert_close(lean, tilted.velocity(x, t), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    ("value", "mass", "tolerance"),
    [(Exact(), RIGHT, 0.02), (Tweedie(), 0.9015, 0.02), (LookAhead(), 0.631, 0.02)],
)
def test_mode_masses_of_the_plug_ins(value, mass, tolerance) -> None:
    """M1: what the right value finds and the look-ahead, as a drift without weights, does not."""
    out = steer(M1.flow_map, TILT, QUANTILES, uniform(40), value=value)
    assert abs(modes(out.x)[0] - mass) < tolerance
    torch.testing.assert_close(out.reward, 0.6 * out.x[:, 0])


def test_look_ahead_without_its_ramp_diverges() -> None:
    """Trap 1: the gradient of r(X(x, t, 0)) does not vanish towards noise, and the kick does not stay finite."""
    base = GAUSS.flow_map(noise(5), 1.0, 0.0)
    reward = linear(torch.ones(1, dtype=D))
    out = steer(GAUSS.flow_map, reward, noise(5), uniform(25), value=LookAhead(ramp=False))
    assert float((out.x - base).min()) > 10 * 1.7**2
    ramped = steer(GAUSS.flow_map, reward, noise(5), uniform(100), value=LookAhead())
    torch.testing.assert_close(
        ramped.x - base, torch.full((5, 1), KAPPA * 1.7**2).double(), atol=0.05, rtol=0
    )


@pytest.mark.parametrize("through", [False, True])
def test_posterior_draws_converge_to_the_value(gen, through) -> None:
    """At a point of a mixture: averages of exponentials, not of rewards (trap 3), with either gradient."""
    world = Mixture(
        torch.tensor([0.3, 0.7]).double(), column(-2, 1.5), column(0.5, 0.8), linear_path()
    )
    reward = linear(torch.tensor([1.2], dtype=D))
    x, t = torch.full((1, 1), 0.05, dtype=D), torch.tensor([0.55], dtype=D)
    value = Posterior(draws=4000, steps=12, through=through)
    assert abs(float(value(walked(world), reward, x, t)) - 1.440) < 0.05
    exact = Exact().gradient(walked(world), reward, x, t)
    got = value.gradient(walked(world), reward, x, t)
    assert abs(float(got / exact) - 1) < 0.05
    few = Posterior(draws=4, steps=12)
    many = few(walked(world), reward, x.repeat(2000, 1), t.repeat(2000))
    assert abs(float(many.mean()) - 1.29) < 0.03


@pytest.mark.parametrize("path", [linear_path(), trig()], ids=["linear", "trig"])
def test_diamonds_are_weighted_posterior_draws(path) -> None:
    """The same point and mixture, from plain jumps (A.6b): without the weights the value would be that of another time."""
    world = Product(column(0.3, 0.7), column(-2, 1.5), column(0.5, 0.8), path)
    reward = linear(torch.tensor([1.2], dtype=D))
    x, t = torch.full((1, 1), 0.05, dtype=D), torch.tensor([0.55], dtype=D)
    exact = Exact().gradient(world.flow_map, reward, x, t)
    many = Diamond(draws=8000)
    if path == linear_path():
        assert abs(float(many(world.flow_map, reward, x, t)) - 1.440) < 0.05
    got = many.gradient(world.flow_map, reward, x, t)
    assert abs(float(got / exact) - 1) < 0.05
    with pytest.raises(ControlError, match="ratio above 1"):
        Diamond(ratio=1.0)


def test_steering_by_diamonds_finds_the_modes() -> None:
    black_box = Scaled(lambda x: TILT(x).detach(), 1.0)
    value = Diamond(draws=32)
    out = steer(M1.flow_map, black_box, QUANTILES, uniform(25), value=value)
    assert abs(modes(out.x)[0] - RIGHT) < 0.05
    assert out.cost.backward == 0


def test_steering_by_posterior_draws_needs_no_gradient(gen) -> None:
    out = steer(
        GAUSS.flow_map,
        lambda x: PULL(x).detach(),
        noise(300),
        uniform(16),
        value=Posterior(draws=32, steps=4),
    )
    mean, var = moments(out.x)
    assert abs(mean - G_MEAN) < 0.15
    assert abs(var / G_VAR - 1) < 0.25
    assert out.cost.backward == 0
    # a step asks the map, and 32 draws of 4 Heun steps
    assert out.cost.forward == 300 * 16 * (1 + 32 * 8)


def test_an_interval_acts_inside_only() -> None:
    x, t = noise(5), torch.tensor([0.1, 0.3, 0.5, 0.7, 0.9], dtype=D)
    base = GAUSS.flow_map
    steered = Steered(base, PULL, value=Tweedie(), interval=(0.3, 0.7))
    moved = (steered.velocity(x, t) - base.velocity(x, t))[:, 0] != 0
    assert moved.tolist() == [False, True, True, True, False]
    inside = steer(base, PULL, x, uniform(10), value=Tweedie(), interval=(0.35, 0.55))
    assert inside.cost.backward == 10
    with pytest.raises(ControlError, match="interval"):
        Steered(base, PULL, interval=(0.5, 0.5))


def test_a_steered_map_is_a_flow_map_with_that_velocity() -> None:
    steered = Steered(GAUSS.flow_map, PULL, value=Exact(), beta=2.0)
    x, t = noise(4), torch.full((4,), 0.4, dtype=D)
    lean = kick(linear_path(), t, x) * Exact().gradient(GAUSS.flow_map, Scaled(PULL, 2.0), x, t)
    torch.testing.assert_close(steered.velocity(x, t), GAUSS.flow_map.velocity(x, t) - lean)
    assert abs(float(kick(linear_path(), t, x)[0]) - 0.4 / 0.6) < 1e-12
    # finite at both ends
    for end in (0.0, 1.0):
        assert bool(steered.velocity(x, end).isfinite().all())


@pytest.mark.parametrize("churn", [0.5, 1.0])
def test_the_stochastic_sampler_keeps_marginals(gen, churn) -> None:
    plain = sample_sde(walked(M1), noise(4000), uniform(80), churn=churn, generator=gen)
    mass, mean, std = modes(plain)
    assert abs(mass - 0.5) < 0.03
    assert abs(mean / 2 - 1) < 0.02
    assert abs(std / 0.4 - 1) < 0.08
    out = steer(
        walked(M1), TILT, noise(4000), uniform(80), value=Exact(), churn=churn, generator=gen
    )
    assert abs(modes(out.x)[0] - RIGHT) < 0.03
    with pytest.raises(ControlError, match="generator"):
        steer(walked(M1), TILT, noise(4), uniform(4), churn=1.0)


def test_reward_guidance_has_its_own_law() -> None:
    """FMRG on a Gaussian (steering.md 2.2, 2.3): it contracts, and so is named an optimiser. M1: .650, not .917."""
    ends = torch.tensor([[0.0], [1.0]], dtype=D)
    out = fmrg(GAUSS.flow_map, PULL, ends, uniform(200))
    low, high = out.x[:, 0].tolist()
    assert abs(low - (2 - 1.6 * math.exp(-0.5 * G))) < 0.02
    assert abs((high - low) ** 2 / (2.89 * math.exp(-G)) - 1) < 0.06
    shift = fmrg(GAUSS.flow_map, linear(torch.ones(1, dtype=D)), ends, uniform(200), beta=0.3)
    torch.testing.assert_close(
        shift.x - GAUSS.flow_map(ends, 1.0, 0.0),
        torch.full((2, 1), 0.3 * G).double(),
        atol=1e-2,
        rtol=0,
    )
    modal = fmrg(M1.flow_map, TILT, QUANTILES, uniform(25))
    assert abs(modes(modal.x)[0] - 0.64) < 0.03


def test_reward_guidance_at_the_endpoint_climbs_without_a_network_backward() -> None:
    out = fmrg(GAUSS.flow_map, PULL, noise(50), uniform(6), through="endpoint", rate=0.2)
    plain = PULL(GAUSS.flow_map(noise(50), 1.0, 0.0))
    assert out.cost.backward == 0
    assert out.cost.forward == 50 * 12
    assert out.cost.reward_backward == 50 * 6 * 5
    assert float((out.reward - plain).mean()) > 0.3 * float(-plain.mean())
    sized = fmrg(GAUSS.flow_map, PULL, noise(50), uniform(6), normalise=True, beta=0.5)
    assert float((sized.reward - plain).mean()) > 0


def test_reward_guidance_at_the_endpoint_in_closed_form() -> None:
    """A linear reward on a Gaussian: every step adds s (1 - t) times the climb, and the map carries it on by 1.7 / std_t."""
    reward = linear(torch.tensor([0.8], dtype=D))
    times = torch.tensor([1.0, 0.7, 0.45, 0.0], dtype=D)
    out = fmrg(
        GAUSS.flow_map, reward, noise(4), times, through="endpoint", beta=0.5, inner=3, rate=0.2
    )
    climb = 3 * 0.2 * 0.5 * 0.8
    pairs = ((1.0, 0.7), (0.7, 0.45), (0.45, 0.0))
    shift = sum(s * (1 - t) * climb * 1.7 / math.hypot((1 - t) * 1.7, t) for s, t in pairs)
    base = GAUSS.flow_map(noise(4), 1.0, 0.0)
    torch.testing.assert_close(out.x - base, torch.full((4, 1), shift).double())


def test_exact_names_the_rewards_that_it_solves() -> None:
    with pytest.raises(ControlError, match="linear\\(a\\) or pull"):
        steer(GAUSS.flow_map, lambda x: x[:, 0], noise(3), uniform(2), value=Exact())
    outward = pull(torch.zeros(1, dtype=D), -9.0)
    with pytest.raises(ControlError, match="outweighs"):
        steer(GAUSS.flow_map, outward, noise(3), uniform(2), value=Exact())
    with pytest.raises(ControlError, match="not the value"):
        Exact()(GAUSS.flow_map, PULL, noise(3), torch.ones(3).double())


def test_more_dimensions_and_any_shape() -> None:
    """Linear reward, Tweedie: exact for Gaussians, whatever the shape of a sample."""
    world = Gaussian(torch.zeros(6).double(), torch.linspace(0.5, 1.5, 6).double(), linear_path())
    a = torch.linspace(-1, 1, 6).double()
    out = steer(world.flow_map, linear(a), noise(3, d=6), uniform(200), value=Tweedie(), beta=0.5)
    base = world.flow_map(noise(3, d=6), 1.0, 0.0)
    torch.testing.assert_close(
        out.x - base, (0.5 * a * world.std**2).expand(3, 6), atol=0.03, rtol=0.03
    )
