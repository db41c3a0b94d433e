"""A ring and a thin curve on it (steering.md part 2, after arXiv:2511.22688): two numbers tell who drew the tilt, one does not.

The truth comes from rejection. Distances are sliced Wasserstein in units of that between two draws of the truth (1 on average,
.8 to 1.4 in eight pairs), rewards are -.483 on average.
"""

import pytest
import torch
from worlds import Ring, curve, noise

from flowmaps.control.mcmc import Slice, noise_mcmc
from flowmaps.control.noise import optimize_noise
from flowmaps.control.smc import smc, tempered_smc
from flowmaps.control.tilt import fmtt
from flowmaps.core.solver import SOLVERS
from flowmaps.metrics import sliced_wasserstein
from flowmaps.sample import solve, uniform

RING, N, UNIT = Ring(), 2000, 0.06


def draws(seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    x = RING.sample(14 * N, generator)
    return x[torch.rand(len(x), generator=generator).log() < curve(x)][:N]


TRUTH = draws(0)
REWARD = float(curve(TRUTH).mean())


def distance(x: torch.Tensor) -> float:
    return sliced_wasserstein(x, TRUTH, torch.Generator().manual_seed(1), directions=64) / UNIT


def test_the_ring_is_exact() -> None:
    assert 0.7 < distance(draws(2)) < 1.5
    x = 2 * noise(6, d=2)
    times = torch.linspace(1, 0, 65).double()
    walk = solve(RING.velocity, x, times, RING.interpolant, SOLVERS["rk4"])
    torch.testing.assert_close(RING(x, 1.0, 0.0), walk, atol=1e-4, rtol=0)
    torch.testing.assert_close(RING(RING(x, 1.0, 0.4), 0.4, 0.0), walk, atol=1e-4, rtol=0)


@pytest.mark.parametrize("name", ["tempered", "chain", "fmtt"])
def test_exact_methods_find_the_whole_curve(name, gen) -> None:
    z = noise(N, d=2)
    runs = {
        "tempered": lambda: tempered_smc(RING, curve, z, generator=gen).resample(N, gen),
        "chain": lambda: noise_mcmc(RING, curve, z, n=16, move=Slice(), generator=gen).x,
        "fmtt": lambda: fmtt(RING, curve, z, uniform(8), generator=gen).resample(N, gen),
    }
    x = runs[name]()
    assert distance(x) < 2.2
    assert abs(float(curve(x).mean()) - REWARD) < 0.08


def test_the_mean_reward_does_not_show_a_collapse(gen) -> None:
    """Full look-ahead at times of pure noise keeps a few families: the reward is the tilt's, the curve is not; it is seen."""
    out = smc(RING, curve, noise(N, d=2), uniform(12), generator=gen)
    x = out.resample(N, gen)
    assert abs(float(curve(x).mean()) - REWARD) < 0.15
    assert distance(x) > 4
    assert out.families < 20
    assert "collapsed" in out.degenerate


def test_the_distance_does_not_show_a_climb(gen) -> None:
    """Climbing spreads over the whole curve and stands on its ridge: not the tilt, whose reward is half a nat below."""
    x = optimize_noise(RING, curve, noise(N, d=2), steps=20, rate=0.2).x
    assert distance(x) < 2.2
    assert float(curve(x).mean()) > REWARD + 0.4
