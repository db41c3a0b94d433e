"""Chains in noise space sample the tilt, each with its own acceptance; and say when they have not converged."""

import pytest
import torch
from worlds import G_MEAN, G_VAR, GAUSS, MEAN, PULL, RIGHT, STD, TILT, M, modes, moments, noise

from flowmaps.control.mcmc import MALA, PCN, Slice, effective, noise_mcmc, r_hat
from flowmaps.errors import ControlError


@pytest.mark.parametrize("move", [PCN(0.7), Slice(), MALA(0.7)])
def test_chains_on_two_modes(gen, move) -> None:
    out = noise_mcmc(M, TILT, noise(1000), move=move, n=60, keep=6, generator=gen)
    right, mean, std = modes(out.draws.flatten(0, 1))
    assert abs(right - RIGHT) < 0.03
    assert abs(mean / MEAN - 1) < 0.02
    assert abs(std / STD - 1) < 0.02
    torch.testing.assert_close(out.x, M(out.noise, 1.0, 0.0))
    torch.testing.assert_close(out.reward, 0.6 * out.x[:, 0])
    assert 0.3 < out.acceptance < 0.95
    assert 60_000 < out.cost.forward + 1 < 61_002 or isinstance(move, Slice)
    assert (out.cost.backward == out.cost.forward) == isinstance(move, MALA)


def test_pcn_accepts_as_steering_says(gen) -> None:
    """A.8: step .7 on M1 takes .755 of its proposals."""
    out = noise_mcmc(M, TILT, noise(1000), move=PCN(0.7), n=100, generator=gen)
    assert abs(out.acceptance - 0.755) < 0.015


@pytest.mark.parametrize("move", [PCN(0.5), Slice(), MALA(0.6)])
def test_chains_on_a_gaussian_with_a_quadratic_reward(gen, move) -> None:
    """PULL, four times as strong by beta: var 1.7^2 / (1 + 4 a)."""
    out = noise_mcmc(GAUSS.flow_map, PULL, noise(3000), move=move, n=60, keep=5, generator=gen)
    mean, var = moments(out.draws.flatten(0, 1))
    assert abs(mean - G_MEAN) < 0.03
    assert abs(var / G_VAR - 1) < 0.04
    sharp = noise_mcmc(
        GAUSS.flow_map, PULL, noise(3000), move=move, n=60, keep=5, beta=4.0, generator=gen
    )
    mean, var = moments(sharp.draws.flatten(0, 1))
    assert abs(mean - (0.4 + 1.6 * 5.78 / 6.78)) < 0.03
    assert abs(var / (2.89 / 6.78) - 1) < 0.04


@pytest.mark.parametrize("move", [PCN(0.1), Slice(), MALA(0.1)])
def test_a_strong_tilt_keeps_its_law(gen, move) -> None:
    """From exact draws of a tilt seventeen times narrower than the prior. The slice shrinks its bracket about six times then,
    always towards the state: on the other side chains leave the slice. False alarms: five standard errors of 4000 draws."""
    a = 200 * 0.5 * 1.7**2
    center, var = 0.4 + 1.6 * a / (1 + a), 1.7**2 / (1 + a)
    start = (center + var**0.5 * noise(4000) - 0.4) / 1.7
    out = noise_mcmc(GAUSS.flow_map, PULL, start, move=move, n=8, beta=200.0, generator=gen)
    mean, spread = moments(out.x)
    assert abs(mean - center) < 5 * (var / 4000) ** 0.5
    assert abs(spread / var - 1) < 5 * (2 / 4000) ** 0.5
    assert float((out.noise - start).abs().mean()) > 0.02  # they did move


def test_a_slice_never_enters_what_is_forbidden(gen) -> None:
    def window(x):
        return torch.where((x[:, 0] - 1).abs() < 0.05, 0.0, -torch.inf)

    start = (1 - 0.4 + 0.04 * noise(500).clamp(-1, 1)) / 1.7
    out = noise_mcmc(GAUSS.flow_map, window, start, move=Slice(), n=5, generator=gen)
    assert bool((out.reward == 0).all())


def test_chains_that_cannot_cross_say_so(gen) -> None:
    """Four chains with small steps stay in their modes: R-hat sees it, acceptance does not."""
    start = torch.tensor([[-2.0], [-1.0], [1.0], [2.0]], dtype=torch.float64)
    out = noise_mcmc(M, TILT, start, move=PCN(0.02), n=40, generator=gen)
    assert out.acceptance > 0.9
    assert "disagree" in out.degenerate
    stuck = noise_mcmc(M, TILT, start, move=PCN(1.0), n=40, beta=2000.0, generator=gen)
    assert "were taken" in stuck.degenerate or "disagree" in stuck.degenerate


def test_diagnostics_on_known_chains(gen) -> None:
    free = torch.randn(400, 8, generator=gen)
    assert abs(r_hat(free) - 1) < 0.02
    assert effective(free) > 0.75 * 3200
    assert r_hat(free + 3 * torch.arange(8)) > 3
    slow = torch.zeros(2000, 8)
    for i in range(1, 2000):
        slow[i] = 0.9 * slow[i - 1] + free[i % 400].roll(i)
    # an autoregression with .9 has (1 - .9) / (1 + .9) of the independent values
    assert 0.4 < effective(slow) / (16000 * 0.1 / 1.9) < 2.0
    assert effective(torch.ones(50, 4)) == 4


def test_moves_are_refused_without_meaning(gen) -> None:
    with pytest.raises(ControlError, match=r"\(0, 1\]"):
        PCN(1.5)
    with pytest.raises(ControlError, match="n >= 4"):
        noise_mcmc(M, TILT, noise(3), n=2, generator=gen)
    with pytest.raises(ControlError, match="best_of_n, search_noise, tempered_smc"):
        noise_mcmc(M, lambda x: x.detach()[:, 0], noise(3), move=MALA(), generator=gen)
