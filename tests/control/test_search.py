"""Search has known laws (best of N) and keeps to its budget."""

import math

import pytest
import torch
from worlds import G_MEAN, GAUSS, M1, PULL, TILT, M, modes, noise

from flowmaps.control.noise import optimize_noise
from flowmaps.control.rewards import linear
from flowmaps.control.search import Paths, ZeroOrder, best_of_n, best_of_n_kl, search_noise
from flowmaps.core.interpolant import linear as path
from flowmaps.core.oracle import Gaussian
from flowmaps.errors import ControlError
from flowmaps.sample import uniform


@pytest.mark.parametrize("n", [2, 4, 8])
def test_the_law_of_best_of_n(n) -> None:
    out = best_of_n(M, TILT, noise(2000 * n), n)
    assert abs(modes(out.x)[0] - (1 - 2.0**-n)) < 0.03
    assert out.cost.forward == 2000 * n
    normal = best_of_n(GAUSS.flow_map, linear(torch.ones(1).double()), noise(4000 * n), n)
    gain = {2: 0.5642, 4: 1.0294, 8: 1.4236}[n]
    assert abs(float(normal.reward.mean()) - (0.4 + 1.7 * gain)) < 0.07
    assert normal.kl == best_of_n_kl(n)
    # the law of the rank is Beta(n, 1): its KL is the mean of log(n u^(n-1))
    u = torch.special.ndtr((normal.reward - 0.4) / 1.7)
    assert abs(float((math.log(n) + (n - 1) * u.log()).mean()) - normal.kl) < 0.05


def test_previews_choose_and_winners_are_drawn_again() -> None:
    z = noise(60)
    calls = []
    reward = linear(torch.ones(1).double())
    out = best_of_n(
        M1.flow_map,
        lambda x: calls.append(len(x)) or reward(x),
        z,
        12,
        times=uniform(3),
        preview=uniform(1),
        keep=2,
    )
    assert out.x.shape == (10, 1)
    assert out.cost.forward == 60 + 30
    assert calls == [60, 10]
    torch.testing.assert_close(out.x, M1.flow_map(out.noise, 1.0, 0.0), atol=1e-8, rtol=0)
    top = M(z, 1.0, 0.0).reshape(5, 12).topk(2, 1).values
    torch.testing.assert_close(out.x.reshape(5, 2), top, atol=1e-5, rtol=0)
    assert out.kl is None
    with pytest.raises(ControlError, match="whole groups"):
        best_of_n(M, TILT, z, 7)


@pytest.mark.parametrize("how", [ZeroOrder(0.3, 4), Paths(2, 3)])
@pytest.mark.parametrize("budget", [20, 65])
def test_search_climbs_within_its_budget(gen, how, budget) -> None:
    z = noise(40, d=4)
    world = Gaussian(torch.zeros(4).double(), torch.ones(4).double(), path())
    reward = linear(torch.tensor([1.0, 0, 0, 0]).double())
    out = search_noise(world.flow_map, reward, z, how=how, budget=budget, generator=gen)
    assert out.x.shape == z.shape
    assert budget * 40 * 0.6 < out.cost.forward <= budget * 40 or isinstance(how, Paths)
    assert out.cost.forward <= budget * 40
    assert float((out.reward - z[:, 0]).mean()) > 0.5
    torch.testing.assert_close(out.reward, out.x[:, 0])


def test_zero_order_search_stays_on_its_sphere(gen) -> None:
    z = noise(10, d=5)
    world = Gaussian(torch.zeros(5).double(), torch.ones(5).double(), path())
    out = search_noise(world.flow_map, linear(torch.ones(5).double()), z, budget=200, generator=gen)
    torch.testing.assert_close(out.noise.norm(dim=1), z.norm(dim=1))
    # the best on the sphere is its radius times sqrt(5)
    assert bool((out.reward > 0.9 * 5**0.5 * z.norm(dim=1)).all())


def test_noise_optimisation_finds_the_mode_of_the_tilt() -> None:
    """Under the Gaussian prior: for Gaussian data and a quadratic reward the noise MAP is the posterior mean."""
    out = optimize_noise(
        GAUSS.flow_map, PULL, noise(6), steps=200, rate=0.05, clip=None, radius=1.0, gaussian=True
    )
    torch.testing.assert_close(out.x, torch.full((6, 1), G_MEAN).double(), atol=1e-3, rtol=0)
    assert out.cost.forward == out.cost.backward == 6 * 201


def test_noise_optimisation_climbs_and_stays_on_the_shell() -> None:
    world = Gaussian(torch.zeros(64).double(), torch.ones(64).double(), path())
    reward = linear(torch.ones(64).double() / 8)
    out = optimize_noise(world.flow_map, reward, noise(4, d=64), steps=40, rate=5.0, radius=0.01)
    assert bool((out.trace.diff(dim=0)[:3] > 0).all())
    assert float(out.reward.min()) > 4
    held = optimize_noise(world.flow_map, reward, noise(4, d=64), steps=200, rate=0.5, radius=1.0)
    assert float((held.noise.norm(dim=1) / 64**0.5 - 1).abs().max()) < 0.2
    over = optimize_noise(GAUSS.flow_map, PULL, noise(5), steps=6, rate=3.0, clip=None, radius=0.0)
    torch.testing.assert_close(over.reward, over.trace.max(0).values)  # each step overshoots
    assert bool((over.trace[-1] < over.reward).all())
    torch.testing.assert_close(GAUSS.flow_map(over.noise, 1.0, 0.0), over.x)
    with pytest.raises(ControlError, match="rate > 0"):
        optimize_noise(world.flow_map, reward, noise(4, d=64), rate=0)
