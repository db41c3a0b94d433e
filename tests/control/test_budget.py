"""The ledger counts what happened: rows, wherever networks are called, under autograd and torch.func alike."""

import pytest
import torch

from flowmaps.control.budget import Budget, Cost
from flowmaps.control.rewards import Decoded, slope
from flowmaps.core.flow_map import NetFlowMap, SolvedFlowMap, rematch
from flowmaps.core.interpolant import linear, trig
from flowmaps.core.solver import HEUN, SOLVERS
from flowmaps.errors import ControlError
from flowmaps.sample import CFG, Autoguidance

SMOOTH = NetFlowMap(lambda x, s, t, **cond: torch.sin(x) * (1 + s - t)[:, None])


def counts(budget: Budget) -> dict[str, float]:
    kinds = ("forward", "backward", "jvp", "reward", "reward_backward", "decode")
    return {k: v for k, v in budget.cost.as_dict().items() if k in kinds and v}


def test_rows_are_counted_forwards_and_backwards() -> None:
    x = torch.randn(7, 3)
    with Budget() as budget:
        flow_map, reward = budget.watch(SMOOTH), budget.score(lambda x: x.sum(1))
        flow_map(x, 1.0, 0.0)
        slope(lambda y: reward(flow_map(flow_map(y, 1.0, 0.5), 0.5, 0.0)), x)
    assert counts(budget) == {"forward": 21, "backward": 14, "reward": 7, "reward_backward": 7}
    assert budget.cost.equivalents == 21 + 28
    assert budget.cost.seconds > 0


def test_a_gradient_that_stops_before_the_network_costs_no_backward() -> None:
    x = torch.randn(4, 3)
    with Budget() as budget:
        end = budget.watch(SMOOTH)(x, 1.0, 0.0)
        slope(budget.score(lambda y: y.square().sum(1)), end)
    assert counts(budget) == {"forward": 4, "reward": 4, "reward_backward": 4}


def test_torch_func_is_counted() -> None:
    x, one = torch.randn(5, 3), torch.ones(5)
    with Budget() as budget:
        u = budget.watch(SMOOTH).mean_velocity
        torch.func.jvp(lambda y: u(y, one, 0 * one), (x,), (torch.ones_like(x),))
    assert counts(budget) == {"forward": 5, "jvp": 5}
    with Budget() as budget:
        u = budget.watch(SMOOTH).mean_velocity
        basis = torch.eye(3)[:, None].expand(3, 5, 3)
        torch.func.vmap(lambda d: torch.func.jvp(lambda y: u(y, one, 0 * one), (x,), (d,))[1])(
            basis
        )
    assert counts(budget) == {"forward": 5, "jvp": 15}
    with Budget() as budget:
        u = budget.watch(SMOOTH).mean_velocity
        torch.func.vmap(torch.func.jacrev(lambda y: u(y[None], one[:1], 0 * one[:1])[0]))(x)
    assert counts(budget) == {"forward": 5, "backward": 15}


@pytest.mark.parametrize("solver", [HEUN, SOLVERS["dopri5"]])
def test_an_integrated_map_is_counted_at_its_velocity(solver) -> None:
    calls = []

    def field(x, t, **cond):
        calls.append(len(x))
        return torch.sin(x)

    with Budget() as budget:
        budget.watch(SolvedFlowMap(field, linear(), solver, 3))(torch.randn(6, 2), 1.0, 0.0)
    assert counts(budget) == {"forward": sum(calls)}
    assert len(calls) >= 6


def test_guided_and_rematched_maps_are_counted_at_their_network() -> None:
    x = torch.randn(6, 2)
    with Budget() as budget:
        budget.watch(CFG(SMOOTH, 2.0, {"label": 3}))(x, 1.0, 0.0)
    assert counts(budget) == {"forward": 12}
    with Budget() as budget:
        weak = rematch(SMOOTH, trig())
        budget.watch(Autoguidance(SMOOTH, weak, 2.0, high=0.5))(x, 0.4, 0.0)
        assert counts(budget) == {"forward": 12}
        budget.watch(Autoguidance(SMOOTH, weak, 2.0, high=0.5))(x, 0.6, 0.0)  # nothing to guide
    assert counts(budget) == {"forward": 18}
    with Budget() as budget:
        budget.watch(rematch(SMOOTH, trig()))(x, 0.9, 0.2)
    assert counts(budget) == {"forward": 6}


def test_decodes_limits_sums_and_nesting() -> None:
    x = torch.randn(6, 2)
    with Budget(limit=20) as outer:
        flow_map = outer.watch(SMOOTH)
        with Budget() as inner:
            reward = Decoded(lambda y: y.sum(1), lambda y: y.repeat(1, 2))
            inner.score(reward)(inner.watch(flow_map)(x, 1.0, 0.0))
            hold = torch.ones(30_000_000)  # 120 MB
            del hold
        assert counts(inner) == {"forward": 6, "reward": 6, "decode": 6}
        assert counts(outer) == {"forward": 6}
        assert outer.left == 14
        assert outer.affords(14)
        assert not outer.affords(15)
    for budget in (inner, outer):
        assert budget.cost.peak_bytes is None or 1.1e8 < budget.cost.peak_bytes < 2e8
    total = inner.cost + outer.cost
    assert (total.forward, total.decode) == (12, 6)
    assert Cost(peak_bytes=3) + Cost(peak_bytes=5) == Cost(peak_bytes=5)
    with pytest.raises(ControlError, match="positive"):
        Budget(limit=0)
