r"""Likelihood: what a flow map says about the density of data, because it is an invertible change of variables to noise.

$\log p_0(x) = \log p_1(X(x,0,1)) + \log|\det\partial X(x,0,1)|$, and along a trajectory the determinant is the integral of a
divergence, $\log|\det\partial X(x,s,t)| = \int_s^t\nabla\cdot b_\tau(x_\tau)\,d\tau$ (Chen et al. 2018; Grathwohl et al. 2019).
Three ways to it: the ODE (`ByOde`), the Jacobians of K jumps (`ByJumps`), and a network that learned the integral's mean
(`ByHead`; F2D2, arXiv:2512.02636). The density of p_1 is the prior's, $N(0,\sigma_1^2 I)$.

A latent model's number is a likelihood of latents. Data in few values are dequantised first (`dequantise`).
"""

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, Protocol, final

import torch
from torch import Generator, Tensor

from ..core.autodiff import forward_mode_attention
from ..core.flow_map import FlowMap
from ..core.interpolant import Interpolant
from ..core.shape import like
from ..core.solver import HEUN, Solver
from ..core.velocity import Velocity
from ..errors import ControlError
from ..sample import sample
from .budget import Budget, Result
from .invert import FixedPoint, finite, relative_error


class DensityHead(Protocol):
    r"""A scalar $d(x,s,t)$ (B,) with $\log p_t(X(x,s,t)) = \log p_s(x) + (t-s)\,d(x,s,t)$: the mean of $-\nabla\cdot b$ on the way.

    So $d(x,s,s) = -\nabla\cdot b_s(x)$. It stands to the divergence as the mean velocity to the velocity.
    """

    def __call__(self, x: Tensor, s: Tensor, t: Tensor, **cond: Any) -> Tensor: ...


class Way(Protocol):
    """A way from data to noise that keeps account of volume."""

    def __call__(
        self, flow_map: FlowMap, x: Tensor, generator: Generator | None, **cond: Any
    ) -> tuple[Tensor, Tensor]:
        r"""The noise (B, *D) of data `x` (B, *D), and $\log|\det|$ of the way there (B,)."""
        ...


@final
@dataclass(frozen=True)
class ByOde:
    r"""Integrates velocity and divergence together, from data up to noise.

    Attributes:
        steps: Steps of the solver.
        solver: Method; `DormandPrince(1e-9, 1e-9)` goes to a tolerance instead.
        probes: Rademacher probes of Hutchinson's trace, unbiased with variance $\sum_{i<j}(A_{ij}+A_{ji})^2$ each, and one draw for
            the whole trajectory so that the field stays smooth; None is the exact trace by d directional derivatives.
    """

    steps: int = 64
    solver: Solver = HEUN
    probes: int | None = None

    def __post_init__(self) -> None:
        if self.steps < 1 or (self.probes is not None and self.probes < 1):
            raise ControlError(f"ByOde needs steps and probes of at least 1; got {self}")

    def __call__(
        self, flow_map: FlowMap, x: Tensor, generator: Generator | None, **cond: Any
    ) -> tuple[Tensor, Tensor]:
        probes = None if self.probes is None else rademacher(self.probes, x, generator)
        shape, dims = x.shape, x[0].numel()

        def joint(x: Tensor, t: Tensor, **cond: Any) -> Tensor:
            point = x[:, :dims].reshape(shape)

            def field(x: Tensor) -> Tensor:
                return flow_map.velocity(x, t, **cond)

            v, div = divergence(field, point, probes)
            return torch.cat([v.flatten(1), div[:, None]], 1)

        start = torch.cat([x.flatten(1), x.new_zeros(len(x), 1)], 1)
        times = torch.linspace(0, 1, self.steps + 1).to(x)
        *_, end = self.solver.integrate(joint, start, times, flow_map.interpolant, **cond)
        return end[:, :dims].reshape(shape), end[:, dims]


@final
@dataclass(frozen=True)
class ByJumps:
    r"""The Jacobians of K jumps: $\sum_k\log|\det\partial X(\cdot,t_k,t_{k+1})|$, d directional derivatives of the network each.

    Attributes:
        steps: K.
        through: "up" goes with the map's jumps to noise: the density is the map's own if it inverts itself (see the round
            trip). "down" inverts the jumps that sample, by fixed point, and is the density of what K jumps *draw*.
    """

    steps: int = 1
    through: Literal["up", "down"] = "up"
    inverse: FixedPoint = FixedPoint(iterations=200)

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ControlError(f"ByJumps needs at least one jump; got {self.steps}")

    def __call__(
        self, flow_map: FlowMap, x: Tensor, generator: Generator | None, **cond: Any
    ) -> tuple[Tensor, Tensor]:
        times = torch.linspace(0, 1, self.steps + 1, dtype=torch.float64)
        total = x.new_zeros(len(x))
        for i in range(self.steps):
            low, high = float(times[i]), float(times[i + 1])
            if self.through == "up":
                x, volume = _jump(flow_map, x, low, high, **cond)
            else:
                x = self.inverse(flow_map, x, times[i : i + 2], **cond)
                volume = -_jump(flow_map, x, high, low, **cond)[1]
            total = total + volume
        return x, total


@final
@dataclass(frozen=True)
class ByHead:
    """A learned head beside the map's jumps: K calls of each, no derivative (F2D2). Learn it with `head_loss`.

    Attributes:
        head: The head.
        steps: K.
    """

    head: DensityHead
    steps: int = 1

    def __call__(
        self, flow_map: FlowMap, x: Tensor, generator: Generator | None, **cond: Any
    ) -> tuple[Tensor, Tensor]:
        times = torch.linspace(0, 1, self.steps + 1).to(x)
        total = x.new_zeros(len(x))
        for s, t in itertools.pairwise(times):
            rows = s.repeat(len(x)), t.repeat(len(x))
            total = total - (t - s) * self.head(x, *rows, **cond)
            x = flow_map(x, *rows, **cond)
        return x, total


@final
@dataclass(frozen=True, eq=False, kw_only=True)
class LogProb(Result):
    """What `log_prob` found: in `x` the noises (B, *D) of the data.

    Attributes:
        log_prob: Natural logarithm of the density (B,), in units of the data.
        dims: Coordinates per datum.
        round_trip: Relative error (B,) of the map's jumps back to the data: a density of a map that does not invert itself
            counts for little.
    """

    log_prob: Tensor
    dims: int
    round_trip: Tensor

    def bits(self, scale: float = 1.0) -> Tensor:
        """Bits per dimension (B,) of data whose values are 1 / `scale` apart; `bits_per_dim`."""
        return bits_per_dim(self.log_prob, self.dims, scale)


def log_prob(
    flow_map: FlowMap,
    x_0: Tensor,
    method: Way | None = None,
    *,
    generator: Generator | None = None,
    **cond: Any,
) -> LogProb:
    """The log-density of data (B, *D) under a flow map.

    Args:
        flow_map: Any flow map.
        x_0: Data; discrete values dequantised.
        method: `ByOde()` by default, `ByJumps()` or `ByHead(head)`.
        generator: For Hutchinson's probes; CPU.
        cond: Conditioning, tensors with a leading B.

    Raises:
        ControlError: If the way up is one of jumps, and the map has none: its network predicts the image.

    Example:
        >>> from flowmaps.core import interpolant, oracle
        >>> world = oracle.Gaussian(torch.zeros(1).double(), torch.ones(1).double(), interpolant.linear())
        >>> log_prob(world.flow_map, torch.zeros(1, 1).double(), ByJumps()).log_prob
        tensor([-0.9189], dtype=torch.float64)
    """
    method = method or ByOde()
    with torch.no_grad(), Budget() as budget:
        watched = budget.watch(flow_map)
        z, volume = method(watched, x_0, generator, **cond)
        finite(z)
        found = prior_log_prob(flow_map.interpolant, z) + volume
    jumps = method.steps if isinstance(method, ByJumps | ByHead) else 1
    down = torch.linspace(1, 0, jumps + 1, dtype=torch.float64)
    with torch.no_grad():
        error = relative_error(sample(flow_map, z, down, **cond), x_0)
    dims = x_0[0].numel()
    return LogProb(x=z, cost=budget.cost, log_prob=found, dims=dims, round_trip=error)


def prior_log_prob(path: Interpolant, z: Tensor) -> Tensor:
    r"""$\log N(z; 0, \sigma_1^2 I)$ (B,)."""
    scale = path.sigma(torch.ones((), dtype=z.dtype, device=z.device))
    each = -0.5 * (z / scale).square() - scale.log() - 0.5 * math.log(2 * math.pi)
    return each.flatten(1).sum(1)


def bits_per_dim(log_prob: Tensor, dims: int, scale: float = 1.0) -> Tensor:
    r"""$-\log p/(d\ln 2) + \log_2(scale)$ (B,): bits to store a coordinate to its last value.

    `scale` is how many values a unit of the data holds: 127.5 for bytes mapped to [-1, 1], 8 for scikit-learn's digits.

    Example:
        >>> bits_per_dim(torch.tensor([-math.log(2.0) * 3]), 3, scale=127.5)
        tensor([7.9944])
    """
    return -log_prob / (dims * math.log(2)) + math.log2(scale)


def dequantise(x: Tensor, scale: float, generator: Generator) -> Tensor:
    """Uniform noise of the width 1 / `scale` of a value: the continuous density then bounds the discrete probability."""
    noise = torch.rand(x.shape, generator=generator, dtype=x.dtype).to(x.device)
    return x + (noise - 0.5) / scale


def rademacher(n: int, x: Tensor, generator: Generator | None) -> Tensor:
    """Random signs (n, B, *D)."""
    if generator is None:
        raise ControlError("Hutchinson's probes are random: give generator=")
    signs = torch.randint(0, 2, (n, *x.shape), generator=generator)
    return (2 * signs - 1).to(x)


def divergence(
    field: Callable[[Tensor], Tensor], x: Tensor, probes: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    r"""A field (B, *D) at `x` and its divergence (B,): the exact trace, or Hutchinson's $\frac1n\sum\eta^\top(\partial v)\eta$.

    Args:
        field: Function of (B, *D), row by row.
        x: Points (B, *D).
        probes: Signs (n, B, *D), or None for the exact trace by d directional derivatives.
    """
    if probes is None:
        value, columns = _columns(field, x)
        return value, columns.diagonal(dim1=1, dim2=2).sum(1)
    slopes: list[Tensor] = []
    value = x
    with forward_mode_attention():
        for probe in probes:
            value, slope = torch.func.jvp(field, (x,), (probe,))[:2]
            slopes.append((probe * slope).flatten(1).sum(1))
    return value, torch.stack(slopes).mean(0)


def _columns(field: Callable[[Tensor], Tensor], x: Tensor) -> tuple[Tensor, Tensor]:
    """The value (B, *D) and the Jacobian (B, d, d) of a function that works row by row, as many columns at a time as fit."""
    dims = x[0].numel()

    def column(unit: Tensor) -> tuple[Tensor, Tensor]:
        along = unit.reshape(1, *x.shape[1:]).expand_as(x)
        value, slope = torch.func.jvp(field, (x,), (along,))[:2]
        return value, slope.flatten(1)

    units = torch.eye(dims, dtype=x.dtype, device=x.device)
    together = max(1, _ROWS // len(x))
    with forward_mode_attention():
        values, slopes = torch.func.vmap(column, chunk_size=together)(units)
    return values[0], slopes.movedim(0, -1)


_ROWS = 4096
"""Rows that one pass of a network is given."""


def _jump(flow_map: FlowMap, x: Tensor, s: float, t: float, **cond: Any) -> tuple[Tensor, Tensor]:
    """Where a jump leads and the logarithm of its volume."""

    def field(x: Tensor) -> Tensor:
        return flow_map(x, s, t, **cond)

    end, jacobian = _columns(field, x)
    return end, torch.linalg.slogdet(jacobian)[1]


def head_loss(
    head: DensityHead,
    flow_map: FlowMap,
    x: Tensor,
    s: Tensor,
    t: Tensor,
    generator: Generator,
    *,
    velocity: Velocity | None = None,
    **cond: Any,
) -> tuple[Tensor, Tensor]:
    r"""The two losses (B,) that a divergence head has (F2D2, arXiv:2512.02636): the diagonal, and the halving bootstrap.

    $d(x,s,s) \leftarrow -\eta^\top(\partial b_s)\eta$, whose mean is minus the divergence, and
    $d(x,s,t) \leftarrow \tfrac12(d(x,s,w) + d(X(x,s,w),w,t))$ with $w = (s+t)/2$; targets carry no gradient. Learn on pairs
    s < t, which `log_prob` asks. Both are in nats per unit of time, which grow with d: scale the head's output.

    Args:
        head: Network that learns.
        flow_map: The map, frozen here; trained beside it, if you like.
        x: Points of the path (B, *D) at times `s`.
        s: Sources (B,).
        t: Targets (B,).
        generator: For the probes; CPU.
        velocity: Field whose divergence is meant; by default the map's own.
        cond: Conditioning.

    Returns:
        Diagonal loss (B,) at (x, s, s) and bootstrap loss (B,) at (x, s, t).
    """
    field = velocity or flow_map.velocity
    middle = (s + t) / 2
    with torch.no_grad():
        minus = -divergence(lambda x: field(x, s, **cond), x, rademacher(1, x, generator))[1]
        ahead = x + like(middle - s, x) * flow_map.mean_velocity(x, s, middle, **cond)
        halves = (head(x, s, middle, **cond) + head(ahead, middle, t, **cond)) / 2
    diagonal = (head(x, s, s, **cond) - minus).square()
    return diagonal, (head(x, s, t, **cond) - halves).square()
