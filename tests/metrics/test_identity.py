from typing import Any

import pytest
import torch
from torch import Generator, Tensor, nn

from flowmaps.core import oracle
from flowmaps.core.flow_map import FlowMap, NetFlowMap
from flowmaps.core.interpolant import Interpolant, linear, trig, vp
from flowmaps.errors import DerivativeError, ShapeError
from flowmaps.metrics.identity import CONDITIONS, jvp_check, layer_norm_trap, residuals

F64 = torch.float64


def draw(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=Generator().manual_seed(seed), dtype=F64)


def gaussian(path: Interpolant) -> oracle.Gaussian:
    return oracle.Gaussian(
        torch.tensor([0.7, -1.0, 0.2], dtype=F64), torch.tensor([0.5, 1.3, 0.8], dtype=F64), path
    )


def mixture(path: Interpolant) -> oracle.Product:
    return oracle.Product(
        torch.tensor([[0.3, 0.5], [0.7, 0.5]], dtype=F64),
        torch.tensor([[-1.0, -1.2], [0.8, 1.1]], dtype=F64),
        torch.tensor([[0.3, 0.4], [0.2, 0.3]], dtype=F64),
        path,
    )


class Tangent(FlowMap):
    """The map that follows its velocity in a straight line: right only where trajectories are straight."""

    def __init__(self, world: Any) -> None:
        super().__init__()
        self.world, self.interpolant = world, world.interpolant

    def mean_velocity(self, x: Tensor, s: Tensor, t: Tensor, **cond: Any) -> Tensor:
        return self.world.velocity(x, s)


TIMES = (
    torch.tensor([0.93, 0.71, 0.55, 0.83, 0.37], dtype=F64),
    torch.tensor([0.11, 0.36, 0.52, 0.06, 0.29], dtype=F64),
)


@pytest.mark.parametrize("path", [linear(), trig(), vp()], ids=repr)
@pytest.mark.parametrize("world", [gaussian, mixture])
def test_exact_worlds_have_none(world: Any, path: Interpolant):
    exact = world(path)
    x = draw(5, len(exact.means[0]) if hasattr(exact, "means") else 3, seed=1)
    found = residuals(exact.flow_map, x, *TIMES, velocity=exact.velocity)
    assert tuple(found) == CONDITIONS
    for name, values in found.items():
        assert values.shape == (5,)
        assert values.max() <= 1e-10, name


def test_wrong_map_has_the_residuals_of_its_closed_form():
    # one dimension, mean 0: v_t(x) = r_t x with r_t = (t - (1 - t) c^2) / ((1 - t)^2 c^2 + t^2), linear path
    c, s, t, w = 0.6, 0.9, 0.2, 0.5
    world = oracle.Gaussian(torch.zeros(1, dtype=F64), torch.tensor([c], dtype=F64), linear())

    def r(t: float) -> float:
        return (t - (1 - t) * c**2) / ((1 - t) ** 2 * c**2 + t**2)

    h = 1e-5
    slope = (r(s + h) - r(s - h)) / (2 * h)
    hop = lambda s, t: 1 + (t - s) * r(s)
    expected = {
        "tangent": 0.0,
        "lagrangian": abs(r(s) - r(t) * hop(s, t)) / abs(r(t) * hop(s, t)),
        "eulerian": abs(-r(s) + (t - s) * slope + hop(s, t) * r(s)) / abs(r(s)),
        "compositional": abs(hop(s, w) * hop(w, t) - hop(s, t)) / abs((t - s) * r(s)),
        "round_trip": abs(hop(s, t) * hop(t, s) - 1) / abs((t - s) * r(s)),
    }
    x = torch.full((4, 1), 1.7, dtype=F64)  # equal rows: the batch's mean square is each row's
    found = residuals(Tangent(world), x, s, t, w=w, velocity=world.velocity)
    for name, value in expected.items():
        # the reference slope is a central difference with error about 1e-9
        torch.testing.assert_close(
            found[name], torch.full((4,), value, dtype=F64), rtol=1e-7, atol=1e-12
        )
    assert min(found[name].min() for name in CONDITIONS[1:]) > 0.01


def test_rows_at_rest_and_jumps_of_no_length_divide_by_nothing():
    world = gaussian(linear())
    still = Tangent(world)
    still.world = type("Still", (), {"velocity": staticmethod(lambda x, t: torch.zeros_like(x))})
    x = draw(5, 3, seed=2)
    for flow_map in (still, world.flow_map):
        same = residuals(flow_map, x, 0.4, 0.4)
        assert all(bool(v.isfinite().all()) for v in same.values())
        assert same["compositional"].max() == 0
    assert residuals(still, x, 0.9, 0.1)["lagrangian"].max() == 0
    assert "tangent" not in residuals(still, x, 0.9, 0.1)
    with pytest.raises(ShapeError, match=r"time must have shape \(\) or \(5,\)"):
        residuals(still, x, torch.zeros(4), 0.1)


class Net(nn.Module):
    def __init__(self, norm: nn.Module | None = None) -> None:
        super().__init__()
        generator = Generator().manual_seed(7)
        self.w = nn.Parameter(0.4 * torch.randn(5, 6, generator=generator))
        self.v = nn.Parameter(0.4 * torch.randn(6, 3, generator=generator))
        self.norm = norm or nn.Identity()

    def forward(self, x: Tensor, s: Tensor, t: Tensor) -> Tensor:
        wide = torch.cat([x, torch.stack([s, s - t], 1).to(x.dtype)], 1)
        return self.norm(torch.tanh(wide @ self.w)) @ self.v


class Lying(torch.autograd.Function):
    """The sine, with a derivative that is 20 % too large."""

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return x.sin()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
        ctx.save_for_forward(*inputs)

    @staticmethod
    def jvp(ctx: Any, dx: Tensor) -> Tensor:
        return 1.2 * ctx.saved_tensors[0].cos() * dx


@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_right_derivatives_agree_with_differences(dtype: torch.dtype):
    check = jvp_check(NetFlowMap(Net().to(dtype)), draw(5, 3, seed=3).to(dtype), 1.0, 0.0)
    assert check.agrees
    bar = 1e-3 if dtype == torch.float32 else 1e-7
    assert max(check.source, check.target) < bar
    assert 0 < check.source_step < 0.1


def test_wrong_derivatives_do_not():
    class Wrong(nn.Module):
        def forward(self, x: Tensor, s: Tensor, t: Tensor) -> Tensor:
            return Lying.apply(x + (s - t)[:, None])

    check = jvp_check(NetFlowMap(Wrong()), draw(5, 3, seed=4), 0.9, 0.2)
    assert not check.agrees
    assert check.target == pytest.approx(1 - 1 / 1.2, rel=1e-4)


def test_a_network_without_forward_mode_is_refused_by_name():
    centres = draw(3, 3, seed=8)
    flow_map = NetFlowMap(lambda x, s, t: torch.cdist(x, centres, p=3.0))  # torch 2.13 lacks it
    with pytest.raises(DerivativeError, match="without forward-mode AD"):
        jvp_check(flow_map, draw(5, 3, seed=5), 0.9, 0.2)


def test_layer_norm_is_found():
    x = draw(5, 3, seed=6).float()
    assert layer_norm_trap(NetFlowMap(Net(nn.LayerNorm(6))), x, 0.9, 0.2)
    assert not layer_norm_trap(NetFlowMap(Net(nn.RMSNorm(6))), x, 0.9, 0.2)
