r"""Inversion: the noise $z$ that a flow map turns into given data, and how well it comes back.

The exact inverse of X(., 1, 0) is X(., 0, 1): one jump, if the network was trained for t > s. Otherwise the map's velocity is
integrated upwards, the jump is inverted as it stands by a fixed point, or two points are kept, from which the way back is
exact. The inverse of a *guided* map needs the same guidance
on the way back; to edit, invert without (steering.md C.1).
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, final

import torch
from torch import Tensor

from ..core.flow_map import FlowMap
from ..core.solver import HEUN, Solver
from ..errors import ControlError
from ..sample import sample, solve
from .budget import Budget, Result


class Inverter(Protocol):
    """A way to go from data up to noise.

    Attributes:
        steps: Jumps or solver steps; the round trip comes back in as many jumps.
    """

    @property
    def steps(self) -> int: ...

    def __call__(self, flow_map: FlowMap, x: Tensor, times: Tensor, **cond: Any) -> Tensor:
        """Carry `x` (B, *D) along `times` (K+1,), which increase, to (B, *D)."""
        ...


@final
@dataclass(frozen=True)
class Jump:
    """Jumps of the map itself, from data to noise: right where the network was trained for targets above its sources.

    Raises:
        ControlError: When called, if the map has none: its network predicts the image.
    """

    steps: int = 1

    def __post_init__(self) -> None:
        _check_steps(self.steps)

    def __call__(self, flow_map: FlowMap, x: Tensor, times: Tensor, **cond: Any) -> Tensor:
        return finite(sample(flow_map, x, times, **cond))


@final
@dataclass(frozen=True)
class Ode:
    """The map's velocity, integrated upwards: needs nothing above the diagonal, costs a network call per stage."""

    steps: int = 32
    solver: Solver = HEUN

    def __post_init__(self) -> None:
        _check_steps(self.steps)

    def __call__(self, flow_map: FlowMap, x: Tensor, times: Tensor, **cond: Any) -> Tensor:
        path = flow_map.interpolant
        return solve(flow_map.velocity, x, times, path, self.solver, **cond)


@final
@dataclass(frozen=True)
class FixedPoint:
    r"""The true inverse of the downward jumps, one after the other: solves $X(z, t, s) = x$ for z.

    The iteration $z \leftarrow z + \eta\,(x - X(z,t,s))$ contracts where $\|I-\eta\,\partial_z X\| < 1$: always for short
    jumps. Anderson's mixing of the last `memory` residuals makes it a quasi-Newton method, which solves a linear map in
    at most its dimension of iterations and long jumps in tens. Rows stop moving once they fit to `tolerance`.

    Attributes:
        steps: Jumps of the map that are inverted.
        iterations: Network calls per jump, at most.
        rate: $\eta$.
        memory: Residuals mixed; 0 is the plain iteration.
        tolerance: Relative misfit of a row at which it is left alone.
        jump: Begin at the map's own jump up, a call more: of a map that was trained both ways few iterations are left to do.
    """

    steps: int = 1
    iterations: int = 50
    rate: float = 1.0
    memory: int = 8
    tolerance: float = 1e-6
    jump: bool = False

    def __post_init__(self) -> None:
        _check_steps(self.steps)
        if min(self.iterations, self.rate) <= 0 or self.memory < 0:
            raise ControlError(
                f"FixedPoint needs iterations and rate above 0 and memory of at least 0; got {self}"
            )

    def __call__(self, flow_map: FlowMap, x: Tensor, times: Tensor, **cond: Any) -> Tensor:
        for low, high in zip(times[:-1].tolist(), times[1:].tolist(), strict=True):
            x = self._inverse(flow_map, x, low, high, **cond)
        return x

    def _inverse(
        self, flow_map: FlowMap, x: Tensor, low: float, high: float, **cond: Any
    ) -> Tensor:
        size = x.flatten(1).norm(dim=1).clamp(min=1e-12)
        z = best = finite(flow_map(x, low, high, **cond)) if self.jump else x
        least = torch.full_like(size, torch.inf)
        points: list[Tensor] = []
        misfits: list[Tensor] = []
        for _ in range(self.iterations):
            misfit = x - flow_map(z, high, low, **cond)
            error = misfit.flatten(1).norm(dim=1) / size
            better = error < least
            best, least = _where(better, z, best), torch.where(better, error, least)
            if bool((least <= self.tolerance).all()):
                break
            points, misfits = (
                [*points, z][-1 - self.memory :],
                [*misfits, misfit][-1 - self.memory :],
            )
            z = _where(least <= self.tolerance, z, _mixed(points, misfits, self.rate))
        return best


@final
@dataclass(frozen=True)
class BDIA:
    r"""Exact inversion of any map by bi-directional jumps: what comes back is the data, to rounding, and a pair is what is kept.

    A step goes on from $x_k$ by the map's jump and adds what the jump back from $x_k$ misses of $x_{k-1}$:

    $$x_{k+1} = X(x_k, t_k, t_{k+1}) + \gamma\,(x_{k-1} - X(x_k, t_k, t_{k-1})), \qquad x_1 = X(x_0, t_0, t_1).$$

    It is solved for $x_{k-1}$ without iteration, so $(x_{K-1}, x_K)$ leads back to $x_0$ whatever the network says; and where the
    jumps are right nothing is missed and $x_K$ is the true noise, in any number of steps. 2 K - 1 calls up, 2 K - 2 down. The
    scheme of Zhang et al. 2023 (arXiv:2307.10829) with its two integrals replaced by the jumps that they approximate.

    Attributes:
        steps: Steps, at least 2: with one the pair holds the data.
        gamma: How much of what is missed is carried on, in (0, 1]. Under the same condition every value is exact, but each
            step back divides by it: at less than 1 an edit swells by $\gamma^{1-K}$.

    Raises:
        ControlError: If there is less than two steps, or gamma is outside (0, 1].
    """

    steps: int = 4
    gamma: float = 1.0

    def __post_init__(self) -> None:
        if self.steps < 2:
            raise ControlError(
                f"bdia takes at least two steps, with one the pair that it keeps holds the data; got {self.steps} "
                "(on the command line: --steps 4)"
            )
        if not 0 < self.gamma <= 1:
            raise ControlError(f"gamma is in (0, 1]; got {self.gamma:g}")

    def __call__(self, flow_map: FlowMap, x: Tensor, times: Tensor, **cond: Any) -> Tensor:
        return self.pair(flow_map, x, times, **cond)[1]

    def pair(
        self, flow_map: FlowMap, x: Tensor, times: Tensor, **cond: Any
    ) -> tuple[Tensor, Tensor]:
        """The last two points (B, *D) on the way up along `times` (K+1,), which increase."""
        t = times.tolist()
        z = finite(flow_map(x, t[0], t[1], **cond))
        for below, here, above in zip(t, t[1:], t[2:], strict=False):
            missed = x - flow_map(z, here, below, **cond)
            x, z = z, flow_map(z, here, above, **cond) + self.gamma * missed
        return x, z

    def back(
        self, flow_map: FlowMap, pair: tuple[Tensor, Tensor], times: Tensor, **cond: Any
    ) -> Tensor:
        """The data (B, *D) from the pair that `pair` found, along the same `times`, under the same condition or another."""
        x, z = pair
        t = times.tolist()[::-1]
        for above, here, below in zip(t, t[1:], t[2:], strict=False):
            missed = (z - flow_map(x, here, above, **cond)) / self.gamma
            x, z = flow_map(x, here, below, **cond) + missed, x
        return x


def _mixed(points: list[Tensor], misfits: list[Tensor], rate: float) -> Tensor:
    """Anderson's next point: the combination of the last ones whose misfit is least, and a step from there. Row by row."""
    z, f = points[-1], misfits[-1]
    if len(points) == 1:
        return z + rate * f
    moves = torch.stack([(z - p).flatten(1) for p in points[:-1]], -1)
    changes = torch.stack([(f - m).flatten(1) for m in misfits[:-1]], -1)
    gram = changes.mT @ changes
    # a ridge relative to the trace: late differences are nearly parallel
    ridge = 1e-10 if z.dtype == torch.float64 else 1e-6
    size = gram.diagonal(dim1=1, dim2=2).sum(1)[:, None, None].clamp(min=torch.finfo(z.dtype).tiny)
    eye = torch.eye(gram.shape[-1], dtype=z.dtype, device=z.device)
    weights = torch.linalg.solve(gram + ridge * size * eye, changes.mT @ f.flatten(1)[..., None])
    step = rate * f.flatten(1)[..., None] - (moves + rate * changes) @ weights
    return z + step[..., 0].reshape(z.shape)


def _where(rows: Tensor, yes: Tensor, no: Tensor) -> Tensor:
    return torch.where(rows.reshape(-1, *[1] * (yes.ndim - 1)), yes, no)


WAYS: dict[str, Callable[[int], Inverter]] = {
    "jump": Jump,
    "corrected": lambda steps: FixedPoint(steps, iterations=4, jump=True),
    "ode": Ode,
    "fixed": FixedPoint,
    "bdia": BDIA,
}
"""Ways up by name, of a number of steps: jumps, jumps with three corrections each, the velocity, the inverse of jumps down, and
jumps both ways from every point."""


@final
@dataclass(frozen=True, eq=False, kw_only=True)
class Inversion(Result):
    r"""What `invert` found: in `x` the points (B, *D) at the upper time, noise if that is 1. The cost is of both ways.

    Attributes:
        back: Where the map's jumps lead from there, (B, *D): the reconstruction.
        error: Relative round-trip error $|back - x_0|/|x_0|$ per row (B,).
        before: Of `BDIA` the point (B, *D) before, which the way back needs; else None.
    """

    back: Tensor
    error: Tensor
    before: Tensor | None = None


def invert(
    flow_map: FlowMap,
    x_0: Tensor,
    method: Inverter | None = None,
    *,
    start: float = 0.0,
    stop: float = 1.0,
    back: int | None = None,
    **cond: Any,
) -> Inversion:
    """Carry data up to noise, and back down by the map's jumps to see what was lost.

    Args:
        flow_map: Any flow map.
        x_0: Points (B, *D) at time `start`.
        method: `Jump()` by default; `Ode()` or `FixedPoint()` for maps that were trained downwards only.
        start: Time of the points. Data that fill no volume (flat backgrounds) have no inverse at 0: re-noise them to a small
            time with `flowmaps.sample.renoise` first.
        stop: Time to go to.
        back: Jumps of the way back; by default as many as the method has steps. `BDIA` comes back by its own.
        cond: Conditioning, tensors with a leading B, for both ways.

    Raises:
        ControlError: If the times do not increase within [0, 1], or `back` is asked of `BDIA`.
    """
    method = method or Jump()
    if not 0 <= start < stop <= 1:
        raise ControlError(
            f"inversion goes up, 0 <= start < stop <= 1; got start={start:g}, stop={stop:g}"
        )
    times = torch.linspace(start, stop, method.steps + 1, dtype=torch.float64)
    with torch.no_grad(), Budget() as budget:
        watched = budget.watch(flow_map)
        trip = round_trip(method, watched, x_0, times, back or method.steps, watched, cond, cond)
    error = relative_error(trip.back, x_0)
    return Inversion(x=trip.x, cost=budget.cost, back=trip.back, error=error, before=trip.before)


class Trip(NamedTuple):
    """A way up and down: the upper point, where it ends, each (B, *D), and of `BDIA` the point before the upper one."""

    x: Tensor
    back: Tensor
    before: Tensor | None


def round_trip(
    method: Inverter,
    flow_map: FlowMap,
    x: Tensor,
    times: Tensor,
    jumps: int,
    onto: FlowMap,
    source: Mapping[str, Any],
    target: Mapping[str, Any],
) -> Trip:
    """Up along `times` (K+1,) under one condition, down another map by `jumps` equal jumps under another.

    Raises:
        ControlError: If `BDIA`, which comes down by its own steps, is asked for other jumps.
    """
    if isinstance(method, BDIA):
        if jumps != method.steps:
            raise ControlError(f"bdia comes back by its own {method.steps} steps; got {jumps}")
        pair = method.pair(flow_map, x, times, **source)
        return Trip(pair[1], method.back(onto, pair, times, **target), pair[0])
    z = method(flow_map, x, times, **source)
    down = torch.linspace(float(times[-1]), float(times[0]), jumps + 1, dtype=torch.float64)
    return Trip(z, sample(onto, z, down, **target), None)


def relative_error(found: Tensor, wanted: Tensor) -> Tensor:
    """|found - wanted| / |wanted| of every row (B,)."""
    size = wanted.flatten(1).norm(dim=1).clamp(min=torch.finfo(wanted.dtype).tiny)
    return (found - wanted).flatten(1).norm(dim=1) / size


def noise_statistics(eps: Tensor) -> dict[str, float]:
    """How far inverted data are from white noise: all but `size` are 0 for independent standard normal numbers, and `size` is 1.

    Args:
        eps: Noise (B, *D), divided by the prior's deviation.

    Returns:
        mean, variance - 1 and excess kurtosis of all coordinates; size, the mean of |eps|^2 / d; and neighbours, the
        correlation of adjacent coordinates along the last axis.
    """
    flat = eps.double().flatten()
    centred = flat - flat.mean()
    variance = centred.square().mean()
    pairs = eps.double() - flat.mean()
    neighbours = (
        (pairs[..., 1:] * pairs[..., :-1]).mean() / variance
        if eps.ndim > 1 and eps.shape[-1] > 1
        else torch.zeros(())
    )
    return {
        "mean": float(flat.mean()),
        "variance": float(variance - 1),
        "kurtosis": float((centred**4).mean() / variance.square() - 3),
        "size": float(eps.double().flatten(1).square().mean()),
        "neighbours": float(neighbours),
    }


def finite(z: Tensor) -> Tensor:
    """The noise of jumps up, if there is one.

    Raises:
        ControlError: If it is not finite.
    """
    if not bool(z.isfinite().all()):
        raise ControlError(
            "the map's jumps up from data are not finite: where there is no noise, a network that predicts the image says nothing "
            "of it; integrate its velocity (--method ode), invert its jumps down (fixed), or start above time 0"
        )
    return z


def _check_steps(steps: int) -> None:
    if steps < 1:
        raise ControlError(f"an inversion takes at least one step; got {steps}")
