"""Rewards say what they mean, and a broken one is refused in one sentence."""

import pytest
import torch
from torch import nn

from flowmaps.control.rewards import (
    Brightness,
    ClassLogProb,
    Colour,
    Loudness,
    Pitch,
    Symmetry,
    linear,
    pull,
    scored,
    slope,
)
from flowmaps.errors import ControlError

X = torch.randn(5, 3, 4, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def test_shipped_rewards_are_their_formulas() -> None:
    torch.testing.assert_close(Brightness()(X), X.mean((1, 2, 3)))
    red = Colour((1.0, -0.5, 0.2))
    exact = -(X.mean((2, 3)) - torch.tensor([1.0, -0.5, 0.2]).double()).pow(2).sum(1)
    torch.testing.assert_close(red(X), exact, rtol=1e-6, atol=1e-6)
    even = X + X.flip(-1)
    assert float(Symmetry()(even).abs().max()) == 0
    assert bool((Symmetry()(X) < 0).all())
    assert bool((Symmetry()(X + X.flip(-2)) < 0).all())
    net = nn.Sequential(nn.Flatten(), nn.Linear(72, 4)).double()
    total = sum(ClassLogProb(net, k)(X).exp() for k in range(4))
    torch.testing.assert_close(total, torch.ones(5).double())
    with pytest.raises(ControlError, match="3 channels"):
        red(X[:, :1])


def test_quadratic_rewards() -> None:
    centre = X[0]
    torch.testing.assert_close(
        pull(centre, 0.7)(X), -0.35 * (X - centre).flatten(1).square().sum(1)
    )
    torch.testing.assert_close(linear(centre)(X), (X * centre).flatten(1).sum(1))


def test_slope_is_the_gradient_row_by_row() -> None:
    value, gradient = slope(pull(X[0], 0.7), X)
    torch.testing.assert_close(gradient, -0.7 * (X - X[0]))
    assert not value.requires_grad


@pytest.mark.parametrize(
    ("reward", "sentence"),
    [
        (lambda x: 1.0, "must return a tensor"),
        (lambda x: x.mean(), r"must return shape \(5,\)"),
        (lambda x: x.flatten(1).mean(1, keepdim=True), r"got \(5, 1\)"),
        (lambda x: x.flatten(1).argmax(1), "floating-point"),
        (lambda x: x.flatten(1).sum(1) * torch.tensor([1, 1, float("nan"), 1, 1]), "row 2 first"),
        (lambda x: x.flatten(1).sum(1).abs() * torch.inf, "NaN or \\+inf for 5 of 5"),
    ],
)
def test_a_broken_reward_is_refused(reward, sentence) -> None:
    with pytest.raises(ControlError, match=sentence):
        scored(reward, X)


def test_minus_infinity_forbids() -> None:
    assert bool((scored(lambda x: torch.full((len(x),), -torch.inf), X) == -torch.inf).all())


@pytest.mark.parametrize(
    ("reward", "sentence"),
    [
        (lambda x: x.detach().flatten(1).sum(1), "has none"),
        (lambda x: torch.zeros(len(x), requires_grad=True), "has none"),
        (lambda x: (0 * x).flatten(1).sum(1).sqrt(), "not finite for 5 of 5"),
    ],
)
def test_a_missing_gradient_is_refused(reward, sentence) -> None:
    with pytest.raises(ControlError, match=sentence):
        slope(reward, X)


def test_loudness_is_in_decibels() -> None:
    sound = torch.sin(torch.arange(8000, dtype=torch.float64) * 0.3).expand(2, 1, -1)
    full = float(Loudness()(sound)[0])
    assert full == pytest.approx(-3.01, abs=0.01)
    assert float(Loudness()(0.1 * sound)[1]) == pytest.approx(full - 20)
    assert float(Loudness()(0 * sound)[0]) == pytest.approx(-120)


def test_a_note_has_its_pitch_and_no_other() -> None:
    rate, n = 8000, 4000
    seconds = torch.arange(n, dtype=torch.float64) / rate

    def tone(*frequencies: float) -> torch.Tensor:
        return sum(torch.sin(2 * torch.pi * f * seconds + f) for f in frequencies)[None]

    reward = Pitch(440.0, rate)
    assert float(reward(tone(440.0))) == pytest.approx(0, abs=1e-3)
    assert float(reward(tone(440.0, 880.0, 1320.0))) == pytest.approx(0, abs=1e-3)
    assert float(reward(tone(600.0))) < -6
    assert float(reward(tone(440.0, 600.0))) == pytest.approx(-0.693, abs=0.01)  # half the power
    assert float(reward(3 * tone(440.0, 600.0))) == pytest.approx(-0.693, abs=0.01)
    assert float(slope(reward, tone(440.0, 600.0))[1].abs().max()) > 0
    with pytest.raises(ControlError, match="two periods"):
        Pitch(3.0, rate)(tone(440.0))
