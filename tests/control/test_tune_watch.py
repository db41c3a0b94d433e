"""What is looked at while tuning: divergences against closed forms, health of an exact map, and conditions."""

import math

import pytest
import torch
from worlds import G_MEAN, G_VAR, D, column, noise

from flowmaps.control.rewards import linear
from flowmaps.control.tune_watch import Examiner, gaussian_kl, girsanov
from flowmaps.core.flow_map import FlowMap
from flowmaps.core.interpolant import linear as line
from flowmaps.core.interpolant import trig, vp
from flowmaps.core.oracle import Gaussian
from flowmaps.errors import ControlError

KL = 0.3062
"""Of the Gaussian tilted by -.25 (x - 2)^2 from the Gaussian (steering.md, B.0)."""


def normal_map(mean: float, var: float, path=None) -> FlowMap:
    return Gaussian(column(mean)[0], column(var)[0].sqrt(), path or line()).flow_map


X = linear(torch.ones(1, dtype=D))


@pytest.mark.parametrize("make", [line, trig])
def test_the_divergence_of_paths_is_exact_at_a_tilt(make) -> None:
    """KL(p* | p) = .3062, to 3 % of midpoints and draws, on any path."""
    base, tilt = normal_map(0.4, 2.89, make()), normal_map(G_MEAN, G_VAR, make())
    examiner = Examiner(base, {"x": X}, noise(3000), cells=48, batch=1000)
    standing = examiner(tilt)
    assert standing.kl_path == pytest.approx(KL, rel=0.03)
    assert standing.kl_reward == pytest.approx(KL, rel=0.06)  # x tells all: from below it is tight
    assert examiner(base).kl_path == 0


def test_from_above_and_from_below() -> None:
    """A map that is not the base's tilt: the path's divergence is larger than that of the laws, the reward's smaller."""
    base = Gaussian(torch.tensor([0.0, 0.5], dtype=D), torch.tensor([1.0, 0.7], dtype=D), line())
    moved = Gaussian(torch.tensor([0.8, 0.1], dtype=D), torch.tensor([0.6, 0.9], dtype=D), line())
    exact = sum(
        gaussian_kl(float(a - b), float(s), float(r))
        for a, b, s, r in zip(moved.mean, base.mean, moved.std, base.std, strict=True)
    )
    reward = linear(torch.tensor([1.0, 0.3], dtype=D))
    standing = Examiner(base.flow_map, {"r": reward}, noise(2000, d=2), cells=32)(moved.flow_map)
    assert standing.kl_reward < exact < standing.kl_path


@pytest.mark.parametrize("make", [line, trig, vp])
def test_velocities_count_as_the_noise_of_their_path_says(make) -> None:
    r"""girsanov |dv|^2 = |dx_0|^2 / 2 * |d snr / dt|, with a numerical derivative of the snr."""
    path, h = make(), 1e-6
    t = torch.tensor([0.17, 0.43, 0.88], dtype=D)

    def snr(t):
        return (path.alpha(t) / path.sigma(t)) ** 2

    v = torch.randn(3, 4, dtype=D, generator=torch.Generator().manual_seed(0))
    x_0 = path.endpoints(v, torch.zeros_like(v), t, "velocity")[0]
    rate = (snr(t - h) - snr(t + h)) / (2 * h) / 2
    exact = rate[:, None] * x_0.square()
    torch.testing.assert_close(girsanov(path, t)[:, None] * v.square(), exact, rtol=1e-6, atol=0)
    if path == line():
        torch.testing.assert_close(girsanov(path, t), (1 - t) / t)


def test_gaussian_kl() -> None:
    a, b = torch.distributions.Normal(0.7, 0.6), torch.distributions.Normal(0.2, 1.3)
    exact = float(torch.distributions.kl_divergence(a, b))
    assert gaussian_kl(0.5, 0.6, 1.3) == pytest.approx(exact, rel=1e-6)
    assert gaussian_kl(1.0, 1.0, 0.0) == 0.0


def test_an_exact_map_is_healthy_and_its_way_is_measured() -> None:
    base, tilt = normal_map(0.4, 2.89), normal_map(G_MEAN, G_VAR)
    standing = Examiner(base, {"x": X, "minus": lambda x: -x[:, 0]}, noise(4000))(tilt)
    assert max(standing.disagree) < 1e-6
    assert standing.spread == pytest.approx((G_VAR / 2.89) ** 0.5, rel=1e-6)
    way = math.hypot(G_MEAN - 0.4, G_VAR**0.5 - 1.7) / 1.7
    assert standing.moved == pytest.approx(way, rel=0.05)
    assert list(standing.rewards) == ["x", "minus"]
    assert standing.rewards["x"] == pytest.approx([G_MEAN] * 3, abs=0.06)
    assert standing.rewards["minus"] == pytest.approx([-r for r in standing.rewards["x"]])
    assert standing.deviations["x"] == pytest.approx(G_VAR**0.5, rel=0.03)


class Broken(FlowMap):
    """One jump lands elsewhere than two: what tuning the jump alone does."""

    def __init__(self, base: FlowMap) -> None:
        super().__init__()
        self.base, self.interpolant = base, base.interpolant

    def mean_velocity(self, x, s, t, **cond):
        whole = ((s == 1) & (t == 0)).to(x)[:, None]
        return self.base.mean_velocity(x, s, t) - 1.7 * whole


def test_jumps_that_disagree_are_seen_where_paths_are_blind() -> None:
    base = normal_map(0.4, 2.89)
    standing = Examiner(base, {"x": X}, noise(500))(Broken(base))
    assert standing.kl_path < 1e-9
    assert standing.disagree[0] == pytest.approx(1.0, rel=0.1)
    assert standing.disagree[1] < 1e-6
    assert standing.kl_reward == pytest.approx(0.5, rel=0.15)


class Told(FlowMap):
    """A law per class."""

    def __init__(self) -> None:
        super().__init__()
        self.interpolant = line()

    def mean_velocity(self, x, s, t, *, label):
        return normal_map(0.0, 1.0).mean_velocity(x, s, t) - 5.0 * label.to(x)[:, None]


def test_deviations_are_those_given_the_condition() -> None:
    label = torch.arange(600) % 3
    examiner = Examiner(Told(), {"x": X}, noise(600), batch=70, label=label)
    assert examiner.deviation == pytest.approx(1.0, rel=0.1)
    assert float(examiner.before.std()) > 3
    torch.testing.assert_close(
        examiner.drawn[:, 0].round(decimals=0).div(5).round().long().clamp(0, 2),
        label,
        rtol=0,
        atol=1,
    )


def test_nothing_to_examine() -> None:
    with pytest.raises(ControlError, match="a reward and two noises"):
        Examiner(normal_map(0.0, 1.0), {}, noise(5))
