r"""Flow maps $X(x, s, t)$: the solution at time t of $dx/dt = b_t(x)$ started from x at time s.

There is one noun. A network, its moving average, a numerically integrated diffusion model and a closed-form oracle
are all `FlowMap`s, and whatever takes one takes all. The primitive is the **mean velocity**
$u(x,s,t) = (X(x,s,t)-x)/(t-s)$, continued by the velocity at $s=t$; so the identity $X(x,s,s) = x$ holds by
construction, and the map contains the diffusion model that it integrates: $b_t(x) = u(x,t,t)$.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, final

import torch
from torch import Tensor, nn

from .interpolant import Interpolant, linear, matched
from .parametrization import Average, Parametrization
from .shape import Time, as_time, like
from .solver import HEUN, Solver
from .velocity import RematchedVelocity, Velocity


class FlowMap(nn.Module, ABC):
    """Abstract two-time map on a path. A subclass writes `mean_velocity`; everything else follows from it.

    Attributes:
        interpolant: The path on which the map lives.
        to_data: Only jumps to clean data were learned, as in consistency models: to take several steps, noise again
            (`flowmaps.sample.generate`).
    """

    interpolant: Interpolant
    to_data: bool = False

    @abstractmethod
    def mean_velocity(self, x: Tensor, s: Tensor, t: Tensor, **cond: Any) -> Tensor:
        """u(x, s, t) = (X(x, s, t) - x) / (t - s), and the velocity at s = t.

        Args:
            x: Points (B, *D) at the source times.
            s: Source times (B,) in [0, 1].
            t: Target times (B,) in [0, 1]; below s towards data, above s towards noise.
            cond: Conditioning, tensors with a leading B.

        Returns:
            Mean velocity (B, *D), data units per unit of time.
        """

    @final
    def forward(self, x: Tensor, s: Time, t: Time, **cond: Any) -> Tensor:
        """The point X(x, s, t) (B, *D). Times are floats, `()` or (B,).

        Raises:
            ShapeError: If a time is neither a scalar nor one value per row.
        """
        source, target = as_time(s, x), as_time(t, x)
        return x + like(target - source, x) * self.mean_velocity(x, source, target, **cond)

    @final
    def velocity(self, x: Tensor, t: Time, **cond: Any) -> Tensor:
        """The velocity $b_t(x) = u(x, t, t)$ (B, *D): every flow map is also a diffusion model."""
        time = as_time(t, x)
        return self.mean_velocity(x, time, time, **cond)

    @final
    def denoise(self, x: Tensor, t: Time, **cond: Any) -> Tensor:
        """The denoised mean $E[x_0 | x_t = x]$ (B, *D) that the velocity implies."""
        time = as_time(t, x)
        v = self.velocity(x, time, **cond)
        return self.interpolant.convert(v, x, time, source="velocity", target="x0")


@final
class NetFlowMap(FlowMap):
    """Any network `net(x, s, t, **cond)`, read through a parametrization.

    Args:
        net: Network from points (B, *D) and times (B,) to an output (B, *D).
        interpolant: The path; linear by default.
        parametrization: How the output is read; by default it is the mean velocity itself.
        local: The network is an ordinary diffusion model: it is asked at (x, s, s) only, and a jump is one step of its
            parametrization (Euler for the average velocity, DDIM for the others).
        to_data: See `FlowMap`.

    Example:
        >>> flow_map = NetFlowMap(lambda x, s, t: -x)
        >>> flow_map(torch.ones(3, 2), 1.0, 0.0)[0]
        tensor([2., 2.])
    """

    def __init__(
        self,
        net: Callable[..., Tensor],
        interpolant: Interpolant | None = None,
        parametrization: Parametrization | None = None,
        *,
        local: bool = False,
        to_data: bool = False,
    ) -> None:
        super().__init__()
        self.net = net
        self.interpolant = interpolant or linear()
        self.parametrization: Parametrization = parametrization or Average()
        self.local, self.to_data = local, to_data

    def output(self, x: Tensor, s: Tensor, t: Tensor, **cond: Any) -> Tensor:
        """What the network says at (x, s, t), (B, *D), before it is read."""
        z = self.parametrization.network_input(x, s).to(_precision(self.net, x.dtype))
        out = self.net(z, s, s if self.local else t, **cond)
        # networks may run in bfloat16; times never do, and maps are read in the precision of their points
        return out.to(x.dtype)

    def mean_velocity(self, x: Tensor, s: Tensor, t: Tensor, **cond: Any) -> Tensor:
        out = self.output(x, s, t, **cond)
        return self.parametrization.mean_velocity(out, x, s, t)


def _precision(net: Callable[..., Tensor], points: torch.dtype) -> torch.dtype:
    """What a network is fed: half precision if its weights are (a teacher cast to save memory), else the points' own."""
    weights = next(net.parameters(), None) if isinstance(net, nn.Module) else None
    half = weights is not None and weights.dtype in (torch.bfloat16, torch.float16)
    return weights.dtype if half and weights is not None else points


@final
class SolvedFlowMap(FlowMap):
    """The flow map of a velocity field by numerical integration: any diffusion model is already a (slow) flow map.

    Args:
        velocity: The field; a `FlowMap`'s own `velocity` method will do.
        interpolant: The path that the field belongs to.
        solver: Method of integration.
        steps: Steps of every jump, equal in time.
    """

    def __init__(
        self, velocity: Velocity, interpolant: Interpolant, solver: Solver = HEUN, steps: int = 64
    ) -> None:
        super().__init__()
        self.field = velocity
        self.interpolant = interpolant
        self.solver = solver
        self.steps = steps

    def mean_velocity(self, x: Tensor, s: Tensor, t: Tensor, **cond: Any) -> Tensor:
        if bool((s == t).all()):  # one call of the field, not a walk that stands still
            return self.field(x, s.clamp(min=self.interpolant.t_min), **cond)
        shares = torch.linspace(0, 1, self.steps + 1, dtype=s.dtype, device=s.device)
        times = s + (t - s) * shares[:, None]
        *_, end = self.solver.integrate(self.field, x, times, self.interpolant, **cond)
        bounded = s.clamp(min=self.interpolant.t_min)
        return secant(end, x, s, t, lambda: self.field(x, bounded, **cond))


@final
class RematchedFlowMap(FlowMap):
    r"""A flow map of one path, on another: $X'(x',s',t') = k_t X(x'/k_s, s, t)$ at matched SNR.

    Args:
        flow_map: Map on its own path.
        interpolant: The new path.
    """

    def __init__(self, flow_map: FlowMap, interpolant: Interpolant) -> None:
        super().__init__()
        self.base = flow_map
        self.interpolant = interpolant
        self.field = RematchedVelocity(flow_map.velocity, flow_map.interpolant, interpolant)

    def mean_velocity(self, x: Tensor, s: Tensor, t: Tensor, **cond: Any) -> Tensor:
        if bool((s == t).all()):  # a teacher's velocity: one call of its network, not two
            return self.field(x, s, **cond)
        s_old, k_s = matched(s, x, self.base.interpolant, self.interpolant)
        t_old, k_t = matched(t, x, self.base.interpolant, self.interpolant)
        end = k_t * self.base(x / k_s, s_old, t_old, **cond)
        return secant(end, x, s, t, lambda: self.field(x, s, **cond))


def rematch(flow_map: FlowMap, interpolant: Interpolant) -> FlowMap:
    """`flow_map` seen on another path through matched SNR; itself when the path is already its own."""
    return (
        flow_map if flow_map.interpolant == interpolant else RematchedFlowMap(flow_map, interpolant)
    )


def secant(end: Tensor, x: Tensor, s: Tensor, t: Tensor, velocity: Callable[[], Tensor]) -> Tensor:
    """(X - x) / (t - s) where the times differ, and the velocity, evaluated only if needed, where they do not."""
    same = s == t
    u = (end - x) / like(torch.where(same, 1.0, t - s), x)
    if not bool(same.any()):
        return u
    return torch.where(like(same, x), velocity(), u)
