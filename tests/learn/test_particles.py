"""Push-forward and energy distance against brute force, equal laws and exact maps."""

import pytest
import torch
from torch.testing import assert_close

from flowmaps.core.interpolant import linear, trig
from flowmaps.errors import RecipeError
from flowmaps.learn.jumps import Grouped
from flowmaps.learn.objective import Recipe, Term
from flowmaps.learn.particles import EnergyDistance, PushForward
from flowmaps.learn.times import SortedPair, Uniform
from flowmaps.testing import worlds


def brute(x, y) -> float:
    """The U-statistic of one group, pair by pair."""
    m, total = len(x), 0.0
    for i in range(m):
        for j in range(m):
            if i != j:
                pairs = ((x[i], y[j], 1), (y[i], x[j], 1), (x[i], x[j], -1), (y[i], y[j], -1))
                total += sum(sign * (a - b).square().mean().sqrt() for a, b, sign in pairs)
    return float(total) / (m * (m - 1))


def test_energy_distance_is_its_definition(gen) -> None:
    x = torch.randn(10, 3, generator=gen, dtype=torch.float64)
    y = 0.4 + 1.3 * torch.randn(10, 3, generator=gen, dtype=torch.float64)
    rows = EnergyDistance(group=5, eps=0.0)(x, y)
    assert rows.shape == (10,)
    first, second = brute(x[0::2], y[0::2]), brute(x[1::2], y[1::2])
    assert_close(float(rows[0::2].mean()), first)
    assert_close(float(rows[1::2].mean()), second)


def test_equal_laws_are_at_distance_zero_even_when_rows_are_coupled(gen) -> None:
    """5 standard errors over 400 groups; y is x itself plus independent noise of the same law in another coordinate."""
    x = torch.randn(400 * 16, 2, generator=gen, dtype=torch.float64)
    y = torch.stack([x[:, 1], x[:, 0]], 1)  # the same law, far from independent of x
    groups = EnergyDistance(group=16)(x, y).reshape(16, 400).mean(0)
    assert abs(groups.mean()) < 5 * groups.std() / 400**0.5
    shifted = EnergyDistance(group=16)(x, y + 0.3).reshape(16, 400).mean(0)
    assert shifted.mean() > 10 * shifted.std() / 400**0.5


def test_it_sees_lost_variance_where_least_squares_does_not(gen) -> None:
    """The gradient with respect to the scale of the samples points back to the scale of the data."""
    scale = torch.tensor(0.8, dtype=torch.float64, requires_grad=True)
    x, y = torch.randn(2, 4096, 4, generator=gen, dtype=torch.float64)
    loss = EnergyDistance(group=64)(scale * x, y).mean()
    assert torch.autograd.grad(loss, scale)[0] < -0.05


@pytest.mark.parametrize("make", [linear, trig])
def test_the_target_is_on_the_path_and_the_exact_map_has_its_law(make, gen) -> None:
    world = worlds.rotated(make())
    n, path = 64 * 200, world.interpolant
    x_0 = world.sample(n, gen)
    eps = torch.randn(x_0.shape, generator=gen, dtype=torch.float64)
    s, t = (torch.full((n,), v, dtype=torch.float64) for v in (0.9, 0.3))
    x, v = path.sample(x_0, eps, s)
    b = worlds_points(x, v, s, t)
    prediction, target = PushForward()(world.flow_map, b, None)
    assert_close(target, path.sample(x_0, eps, t)[0])
    groups = EnergyDistance(64)(prediction, target).reshape(64, 200).mean(0)
    assert abs(groups.mean()) < 5 * groups.std() / 200**0.5
    wrong = EnergyDistance(64)(0.8 * prediction, target).reshape(64, 200).mean(0)
    assert wrong.mean() > 8 * wrong.std() / 200**0.5


def worlds_points(x, v, s, t):
    from flowmaps.learn.rules import Points
    from flowmaps.learn.times import Times

    return Points(x, v, Times(s, t, t), {}, torch.tensor(0.0))


def test_refusals(gen) -> None:
    with pytest.raises(RecipeError, match="group >= 2; got 1"):
        EnergyDistance(1)
    with pytest.raises(RecipeError, match="groups of 4 particles, but has 6 rows"):
        EnergyDistance(4)(torch.zeros(6, 2), torch.zeros(6, 2))


def test_shards_hold_whole_groups(gen) -> None:
    recipe = Recipe(
        name="x",
        cite=(),
        terms=(
            Term(
                rule=PushForward(),
                times=Grouped(SortedPair(Uniform()), 8),
                metric=EnergyDistance(8),
            ),
        ),
    )
    times = recipe.draw(torch.zeros(32, 2), gen)[0].times
    assert all(len(set(times.s[i::4].tolist())) == 1 for i in range(4))
    assert len(set(times.s.tolist())) == 4
