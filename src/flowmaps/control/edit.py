r"""Editing with jumps: change the condition between the way up and the way down, or interpolate where the law is round.

Three dials, all in one or two network calls: `edit` inverts to an intermediate time and comes back under another condition
(deterministic, keeps the layout); `sdedit` re-noises instead of inverting (Meng et al. 2022, arXiv:2108.01073); `interpolate`
walks the great circle between two noises. Later times change more.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Generator, Tensor

from ..core.flow_map import FlowMap
from ..errors import ControlError
from ..sample import sample
from ..sample.sample import renoise
from .budget import Budget, Result
from .invert import BDIA, Inverter, Jump, round_trip


@final
@dataclass(frozen=True, eq=False, kw_only=True)
class Edited(Result):
    """What an edit made: in `x` the edited data (B, *D), or the frames (K, B, *D) of an interpolation.

    Attributes:
        middle: The points (B, *D) at the time where the condition changed, or the noises of the frames (K, B, *D).
    """

    middle: Tensor


def edit(
    flow_map: FlowMap,
    x_0: Tensor,
    source: Mapping[str, Any],
    target: Mapping[str, Any],
    *,
    time: float = 0.65,
    residual: bool = True,
    method: Inverter | None = None,
    jumps: int | None = None,
    onto: FlowMap | None = None,
) -> Edited:
    r"""Up under one condition, down under another: $z = X(x,0,t;\,source)$, $x' = X(z,t,0;\,target)$.

    Args:
        flow_map: A conditional flow map.
        x_0: Data (B, *D).
        source: Conditions that describe the data, tensors with a leading B.
        target: Conditions to edit to.
        time: Where the condition changes; later times change more, and at 0 nothing changes.
        residual: Add only the difference of the two ways down, $x' = x + X(z,t,0;target) - X(z,t,0;source)$, so that what the
            inversion loses is not lost in the edit (one more call per jump).
        method: How to go up; `Jump()` by default. `BDIA` comes down by its own steps, and exactly where nothing is edited.
        jumps: Jumps of every way down; 1 by default.
        onto: Map for the way down to the target; by default `flow_map`. A guided one belongs here: with guidance on the way up
            an inversion drifts away from noise.
    """
    _check_time(time)
    method = method or Jump()
    own = method.steps if isinstance(method, BDIA) else 1
    count = own if jumps is None else jumps
    up = torch.linspace(0, time, method.steps + 1, dtype=torch.float64)
    with torch.no_grad(), Budget() as budget:
        watched, last = budget.watch(flow_map), budget.watch(onto or flow_map)
        trip = round_trip(method, watched, x_0, up, count, last, source, target)
        x = trip.back
        if residual and trip.before is None:  # two points lose nothing
            down = torch.linspace(time, 0, count + 1, dtype=torch.float64)
            x = x_0 + x - sample(watched, trip.x, down, **source)
    return Edited(x=x, cost=budget.cost, middle=trip.x)


def sdedit(
    flow_map: FlowMap,
    x_0: Tensor,
    *,
    time: float = 0.4,
    jumps: int = 1,
    generator: Generator,
    **target: Any,
) -> Edited:
    r"""Noise the data to a time and jump back: $x' = X(\alpha_t x_0+\sigma_t n,\,t,\,0;\,target)$ (arXiv:2108.01073).

    On the linear path and Gaussian data of deviation s the correlation with the original is $(1-t)s/\sqrt{(1-t)^2s^2+t^2}$.
    """
    _check_time(time)
    clean, wide = torch.zeros((), dtype=x_0.dtype), torch.tensor(time, dtype=x_0.dtype)
    z = renoise(flow_map.interpolant, x_0, clean.to(x_0), wide.to(x_0), generator)
    down = torch.linspace(time, 0, jumps + 1, dtype=torch.float64)
    with torch.no_grad(), Budget() as budget:
        x = sample(budget.watch(flow_map), z, down, **target)
    return Edited(x=x, cost=budget.cost, middle=z)


def interpolate(
    flow_map: FlowMap,
    first: Tensor,
    second: Tensor,
    frames: int = 9,
    *,
    method: Inverter | None = None,
    jumps: int = 1,
    source: Mapping[str, Any] | None = None,
    target: Mapping[str, Any] | None = None,
    **cond: Any,
) -> Edited:
    """Frames between two data points, along the great circle of their noises.

    Args:
        flow_map: Any flow map.
        first: Data (B, *D) where the path starts.
        second: Data (B, *D) where it ends.
        frames: How many, both ends counted.
        method: How to invert; `Jump()` by default. Of `BDIA` the last point alone is used.
        jumps: Jumps per frame.
        source: Conditions of `first`, if they differ from `cond`.
        target: Conditions of `second`. Tensors of floats that differ are mixed linearly; others change at the middle frame.
        cond: Conditions of both.

    Returns:
        Frames (K, B, *D) in `x`, their noises in `middle`.
    """
    if frames < 2:
        raise ControlError(f"an interpolation has at least its two ends; got frames={frames}")
    method = method or Jump()
    a, b = {**cond, **(source or {})}, {**cond, **(target or {})}
    up = torch.linspace(0, 1, method.steps + 1, dtype=torch.float64)
    down = torch.linspace(1, 0, jumps + 1, dtype=torch.float64)
    shares = torch.linspace(0, 1, frames, dtype=torch.float64).tolist()
    with torch.no_grad(), Budget() as budget:
        watched = budget.watch(flow_map)
        begin, end = method(watched, first, up, **a), method(watched, second, up, **b)
        noises = [slerp(begin, end, share) for share in shares]
        shown = [
            sample(watched, z, down, **_between(a, b, share))
            for z, share in zip(noises, shares, strict=True)
        ]
    return Edited(x=torch.stack(shown), cost=budget.cost, middle=torch.stack(noises))


def slerp(a: Tensor, b: Tensor, share: float | Tensor) -> Tensor:
    r"""Spherical interpolation, row by row: $\frac{\sin((1-\tau)\omega)}{\sin\omega}a + \frac{\sin(\tau\omega)}{\sin\omega}b$.

    The angle is that between the two rows, so their length, which is what distinguishes noise, is kept (Shoemake 1985); between
    parallel rows it is the straight line.

    Args:
        a: Points (B, *D).
        b: Points (B, *D).
        share: 0 is `a`, 1 is `b`.

    Example:
        >>> slerp(torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]]), 0.5)
        tensor([[0.7071, 0.7071]])
    """
    flat_a, flat_b = a.flatten(1), b.flatten(1)
    units = (flat / flat.norm(dim=1, keepdim=True).clamp(min=1e-12) for flat in (flat_a, flat_b))
    one, other = units
    # atan2 keeps its digits for nearly parallel rows, where acos does not
    angle = 2 * torch.atan2((one - other).norm(dim=1), (one + other).norm(dim=1))
    straight = (angle < 1e-4) | (torch.pi - angle < 1e-4)
    safe = torch.where(straight, 1.0, angle)
    left = torch.where(straight, 1 - share, torch.sin((1 - share) * safe) / torch.sin(safe))
    right = torch.where(straight, share, torch.sin(share * safe) / torch.sin(safe))
    return (left[:, None] * flat_a + right[:, None] * flat_b).reshape(a.shape)


def _between(a: Mapping[str, Any], b: Mapping[str, Any], share: float) -> dict[str, Any]:
    return {
        key: torch.lerp(one, b[key], share)
        if isinstance(one, Tensor) and one.is_floating_point()
        else (one if share < 0.5 else b[key])
        for key, one in a.items()
    }


def _check_time(time: float) -> None:
    if not 0 < time <= 1:
        raise ControlError(f"an edit goes up to a time in (0, 1]; got {time:g}")
