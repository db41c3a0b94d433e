r"""Is this map right? Residuals of the conditions that the exact flow map, and only it, satisfies.

    tangent        u(x, s, s) = v_s(x)                    the map's velocity is the given one
    lagrangian     d_t X(x, s, t) = v_t(X(x, s, t))       the endpoint moves with the flow
    eulerian       d_s X + (grad X) v_s = 0               the source may slide along its trajectory
    compositional  X(X(x, s, w), w, t) = X(x, s, t)       two jumps are one
    round_trip     X(X(x, s, t), t, s) = x                there and back

Each comes relative to what it is an error of, so that 0.1 reads "a tenth" everywhere: conditions on velocities are divided by
the root mean square of the velocity at that place, conditions on points by the length of the jump, $|t-s|$ times the root mean
square of the mean velocity. The squares are averaged over the batch and not per row, so that a row which happens to rest does
not divide by zero; rows of one call should therefore have comparable times.

Except for "tangent", the velocity in these conditions is the map's own: they measure whether the map is the flow map of the
model that it contains, and "tangent" whether that model is the given one.

Source:
    Boffi et al. 2025, arXiv:2505.18825, eq. 8-10. Checked: tests/metrics/test_identity.py.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, final

import torch
from torch import Tensor

from ..core.autodiff import (
    EXACT,
    Derivative,
    along_source,
    along_target,
    refuse_layer_norm,
)
from ..core.flow_map import FlowMap
from ..core.shape import Time, as_time, like
from ..core.velocity import Velocity
from ..errors import DerivativeError

CONDITIONS = ("tangent", "lagrangian", "eulerian", "compositional", "round_trip")
_WAY = 0.382  # of the jump, for w: networks trained on halves know the midpoint best


def residuals(
    flow_map: FlowMap,
    x: Tensor,
    s: Time,
    t: Time,
    *,
    w: Time | None = None,
    velocity: Velocity | None = None,
    derivative: Derivative = EXACT,
    **cond: Any,
) -> dict[str, Tensor]:
    """Relative residuals of the conditions, per row.

    Args:
        flow_map: Any flow map.
        x: Points (B, *D) at the source times.
        s: Source times in [0, 1].
        t: Target times in [0, 1].
        w: Intermediate times of "compositional"; by default 38 % of the way.
        velocity: Reference for "tangent", such as a teacher's; without one that condition is left out.
        derivative: Exact or finite difference.
        cond: Conditioning, tensors with a leading B.

    Returns:
        Residuals (B,), without unit, by the names of `CONDITIONS`.

    Raises:
        ShapeError: If a time is neither a scalar nor one value per row.
        DerivativeError: If the network has no forward-mode derivative.

    Example:
        >>> from flowmaps.core import interpolant, oracle
        >>> world = oracle.Gaussian(torch.zeros(2), torch.tensor([0.5, 2.0]), interpolant.linear())
        >>> found = residuals(world.flow_map, torch.ones(3, 2), 0.9, 0.2)
        >>> {name: bool((value < 1e-5).all()) for name, value in found.items()}
        {'lagrangian': True, 'eulerian': True, 'compositional': True, 'round_trip': True}
    """
    source, target = as_time(s, x), as_time(t, x)
    way = source + _WAY * (target - source) if w is None else as_time(w, x)
    with torch.no_grad():
        end = flow_map(x, source, target, **cond)
        own, there = flow_map.velocity(x, source, **cond), flow_map.velocity(end, target, **cond)

        def jump(x: Tensor, s: Tensor, t: Tensor) -> Tensor:
            return flow_map(x, s, t, **cond)

        slope = along_target(jump, x, source, target, derivative=derivative)[1]
        slide = along_source(jump, x, source, target, own, derivative=derivative)[1]
        length = _length(x, end, source, target)
        found: dict[str, Tensor] = {}
        if velocity is not None:
            given = velocity(x, source, **cond)
            found["tangent"] = _norm(own - given) / _size(given)
        found["lagrangian"] = _norm(slope - there) / _size(there)
        found["eulerian"] = _norm(slide) / _size(own)
        found["compositional"] = _norm(jump(jump(x, source, way), way, target) - end) / length
        found["round_trip"] = _norm(jump(end, target, source) - x) / length
    return found


@final
@dataclass(frozen=True)
class JvpCheck:
    """The exact derivatives of a network against central differences, relative to the derivative's size.

    Attributes:
        source: Difference along the source.
        target: Difference along the target.
        source_noise: How well the differences can be trusted there: their change when the step is doubled.
        target_noise: The same along the target.
        source_step: The step, in units of time, at which they agree best.
        target_step: The same along the target.
    """

    source: float
    target: float
    source_noise: float
    target_noise: float
    source_step: float
    target_step: float

    @property
    def agrees(self) -> bool:
        """Whether both differences are within 1 %, or within three times their own noise."""
        pairs = ((self.source, self.source_noise), (self.target, self.target_noise))
        return all(gap <= max(0.01, 3 * noise) for gap, noise in pairs)


def jvp_check(flow_map: FlowMap, x: Tensor, s: Time, t: Time, **cond: Any) -> JvpCheck:
    """Forward-mode derivatives of the mean velocity against central differences.

    A difference of step h is wrong by O(h^2) for the curvature and by O(eps / h) for the rounding, so no step serves all
    networks: a ladder of steps around the optimum eps^(1/3) is tried, and the best agreement counts. A wrong derivative agrees
    at none of them. Times are moved inwards by the longest step, as networks need not exist outside [0, 1].

    Args:
        flow_map: Any flow map.
        x: Points (B, *D).
        s: Source times in [0, 1].
        t: Target times in [0, 1].
        cond: Conditioning, tensors with a leading B.

    Raises:
        DerivativeError: If the network has no forward-mode derivative.
    """
    wide = x.dtype == torch.float64
    steps = [2.0**-k for k in (range(8, 20) if wide else range(4, 12))]
    source = as_time(s, x).clamp(steps[0], 1 - steps[0])
    target = as_time(t, x).clamp(steps[0], 1 - steps[0])

    def mean(x: Tensor, s: Tensor, t: Tensor) -> Tensor:
        return flow_map.mean_velocity(x, s, t, **cond)

    def slide(derivative: Derivative) -> Tensor:
        return along_source(mean, x, source, target, dx, derivative=derivative)[1]

    def slope(derivative: Derivative) -> Tensor:
        return along_target(mean, x, source, target, derivative=derivative)[1]

    with torch.no_grad():
        dx = flow_map.velocity(x, source, **cond)
        speed = float(_size(mean(x, source, target)))
        at_source = _ladder(slide, steps, speed)
        at_target = _ladder(slope, steps, speed)
    return JvpCheck(
        at_source[0], at_target[0], at_source[1], at_target[1], at_source[2], at_target[2]
    )


def layer_norm_trap(flow_map: FlowMap, x: Tensor, s: Time, t: Time, **cond: Any) -> bool:
    """Whether the network calls `F.layer_norm`, whose gradient through a JVP is silently wrong (pytorch issue 196700).

    Sampling is not affected, nor is training with rules that detach their derivative (through="target").
    """
    source, target = as_time(s, x), as_time(t, x)
    try:
        with torch.no_grad(), refuse_layer_norm():
            flow_map.mean_velocity(x, source, target, **cond)
    except DerivativeError:
        return True
    return False


def _ladder(
    take: Callable[[Derivative], Tensor],
    steps: list[float],
    speed: float,
) -> tuple[float, float, float]:
    """The best agreement of exact and finite differences over the steps: difference, noise, step."""
    exact = take(EXACT)
    finite = replace(EXACT, method="finite")
    values = [take(replace(finite, step=h)) for h in steps]
    scale = max(float(_size(exact)), 1e-3 * speed)  # a map that hardly bends has no derivative
    gaps = [float(_size(value - exact, 0.0)) / scale for value in values]
    best = min(range(len(steps)), key=gaps.__getitem__)
    other = values[best - 1] if best else values[1]
    return gaps[best], float(_size(values[best] - other, 0.0)) / scale, steps[best]


def _norm(x: Tensor) -> Tensor:
    """Root mean square of every row (B,)."""
    return x.flatten(1).square().mean(1).sqrt()


def _size(x: Tensor, least: float | None = None) -> Tensor:
    """Root mean square over the batch, `()`; never 0."""
    tiny = torch.finfo(x.dtype).tiny if least is None else least
    return x.square().mean().sqrt().clamp(min=tiny)


def _length(x: Tensor, end: Tensor, s: Tensor, t: Tensor) -> Tensor:
    """Typical length of a jump from s to t (B,), never below the rounding of its points."""
    gap = (t - s).abs()
    moved = gap > 0
    rates = (end - x)[moved] / like(gap[moved], x[moved]) if bool(moved.any()) else x
    return gap * _size(rates) + torch.finfo(x.dtype).eps * _size(x)
