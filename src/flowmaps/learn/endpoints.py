r"""Rules that compare endpoints: of a known trajectory, of a way there and back, or of whole laws.

Endpoint   u(x_s, s, t) = (x_t - x_s) / (t - s) on a trajectory of the teacher     (CMT, distilled reflow)
Inverse    X(X(x, t, s), s, t) = x, and its speed is the velocity at x             (flow map matching)
Moments    X(x_s, s, t) and X(x_w, w, t) have one law                              (inductive moment matching)
"""

from dataclasses import dataclass
from typing import ClassVar, final

import torch
from torch import Tensor

from ..core.autodiff import EXACT, Derivative, along_target
from ..core.flow_map import FlowMap
from ..core.interpolant import Interpolant
from ..core.shape import like
from ..errors import RecipeError
from .rules import Models, Points, VelocitySource


@final
@dataclass(frozen=True)
class Endpoint:
    """Regression on a known endpoint: $u(x_s, s, t)$ against $(x_t - x_s)/(t - s)$, points from `Trajectory` or `Stored`.

    No derivative, no bootstrapping, no stop-gradient: the target is a number. Rows with s = t say nothing and are skipped.

    Source:
        Hu et al. 2025 (CMT, arXiv:2509.24526); from s = 1 to t = 0 it is the distillation of rectified flow
        (Liu et al. 2022, arXiv:2209.03003).
    """

    needs_end: ClassVar[bool] = True

    def __call__(self, f: FlowMap, b: Points, models: Models) -> tuple[Tensor, Tensor]:
        s, _, t = b.times
        assert b.end is not None  # Term refuses a state without it
        u = f.mean_velocity(b.x, s, t, **b.cond)
        same = s == t
        slope = (b.end - b.x) / like(torch.where(same, 1.0, t - s), b.x)
        return u, torch.where(like(same, u), u.detach(), slope)


@final
@dataclass(frozen=True)
class Inverse:
    r"""There and back, from data: $y = X(x_s, s, t)$, then $X(y, t, s) = x_s$ and $\partial_s X(y, t, s) = b_s(x_s)$.

    The velocity is asked for at $x_s$ itself, so the conditional one is legal, though nothing is detached. Needs a map of
    both directions: give it a law of times with `both=True`. Prediction and target are (B, 2, *D): speed, then place.

    Attributes:
        velocity: "conditional", or a "teacher" with whom the loss has no floor.
        place: Weight of the second equation in the square.
        derivative: Exact or finite difference.

    Source:
        Boffi et al. 2024 (arXiv:2406.07507), flow map matching.
    """

    velocity: VelocitySource = "conditional"
    place: float = 1.0
    derivative: Derivative = EXACT

    def __post_init__(self) -> None:
        if self.place <= 0:
            raise RecipeError(
                f"the inverse rule without the equation of places has the velocity at other points in it; "
                f"expected place > 0, got {self.place}"
            )

    def __call__(self, f: FlowMap, b: Points, models: Models) -> tuple[Tensor, Tensor]:
        s, _, t = b.times
        v = models.velocity(self.velocity, b.x, s, b)
        away = f(b.x, s, t, **b.cond)
        back, speed = along_target(
            lambda x, a, c: f(x, a, c, **b.cond),
            away,
            t,
            s,
            derivative=self.derivative,
            through=True,
        )
        root = self.place**0.5
        return torch.stack([speed, root * back], 1), torch.stack([v, root * b.x], 1)


@final
@dataclass(frozen=True)
class Moments:
    r"""Particles that jump from s and from w to t have one law; measured by `KernelDistance` between groups of them.

    $x_w$ is the point of the same data and noise at w, so the law of $X(x_w, w, t)$ is that of $X(x_s, s, t)$ when the map is
    exact, though single particles differ. The target side is detached. Both sides are endpoints divided by
    $c = |\alpha_t\sigma_s-\alpha_s\sigma_t|$, the factor of the network's output in the endpoint ($s - t$ on the linear path).

    Attributes:
        floor: Smallest c: jumps shorter than this are compared as if they were this long.

    Source:
        Zhou et al. 2025 (IMM, arXiv:2503.07565).
    """

    floor: float = 1e-2
    velocity: ClassVar[VelocitySource] = "conditional"

    def __call__(self, f: FlowMap, b: Points, models: Models) -> tuple[Tensor, Tensor]:
        s, w, t = b.times
        path = f.interpolant
        x_0, eps = path.endpoints(b.v, b.x, s, "velocity")
        x_w = path.sample(x_0, eps, w)[0]
        reach = (path.alpha(t) * path.sigma(s) - path.alpha(s) * path.sigma(t)).abs()
        unit = like(reach.clamp(min=self.floor), b.x)
        other = x_w + like(t - w, x_w) * models.jump("self", x_w, w, t, b)
        return f(b.x, s, t, **b.cond) / unit, other / unit


@final
@dataclass(frozen=True)
class KernelDistance:
    r"""The distance of two laws by a Laplace kernel, from groups of M particles $x_i$, $y_i$ of each: a metric of groups of rows.

    $$\frac1{M^2}\sum_{ij} k(x_i, x_j) + k(y_i, y_j) - 2 k(x_i, y_j), \qquad k(x, y) = e^{-\max(\|x-y\|, \epsilon)/D}.$$

    Row i carries the sum over j, symmetrised, so the mean over rows is the mean over groups. A V-statistic: a squared norm,
    never negative in the mean, 0 for equal particles; its part i = j couples the particles of a row, as in the paper.

    Attributes:
        group: M; the rows i, i + B/M, i + 2B/M, ... are a group (`Grouped`), so that shards of a batch hold whole groups.
        eps: Bound on the distance inside the kernel, whose slope is not finite at 0.

    Raises:
        RecipeError: If the rows are not a multiple of `group`.

    Source:
        Zhou et al. 2025 (IMM, arXiv:2503.07565).
    """

    group: int = 4
    eps: float = 1e-8

    def __call__(self, prediction: Tensor, target: Tensor | float = 0.0) -> Tensor:
        if len(prediction) % self.group:
            raise RecipeError(
                f"the kernel distance compares groups of {self.group} particles, but has {len(prediction)} rows; choose a "
                "batch for which share x batch is a multiple of the group on every process"
            )
        other = torch.as_tensor(target, dtype=prediction.dtype, device=prediction.device)
        x, y = (
            side.reshape(self.group, len(prediction) // self.group, -1)
            for side in (prediction, other.expand_as(prediction))
        )
        across = _kernel(x, y, self.eps)
        within = _kernel(x, x, self.eps) + _kernel(y, y, self.eps)
        return (within - across - across.transpose(0, 1)).mean(1).flatten()


def _kernel(x: Tensor, y: Tensor, eps: float) -> Tensor:
    """(M, M, G): exp(-distance / D)."""
    square = (x[:, None] - y[None]).square().sum(-1)
    return torch.exp(-square.clamp(min=eps**2).sqrt() / x.shape[-1])


@final
@dataclass(frozen=True)
class InductiveWeight:
    r"""IMM's $\frac12\,\mathrm{sigmoid}(b-\lambda_s)(-\dot\lambda_s)\,\alpha_s^a/(\alpha_s^2+\sigma_s^2)$.

    $\lambda = \log\alpha^2/\sigma^2$; Zhou et al. 2025 (arXiv:2503.07565), with a in {1, 2} and b between 4 and 5.
    Written without the quotients that are infinite at the ends: $-\dot\lambda/2 = W/(\alpha\sigma)$ with the Wronskian
    $W = \alpha\dot\sigma-\dot\alpha\sigma$, and $\mathrm{sigmoid}(b-\lambda) = e^b\sigma^2/(e^b\sigma^2+\alpha^2)$.
    """

    a: int = 1
    b: float = 5.0

    def __post_init__(self) -> None:
        if self.a < 1:
            raise RecipeError(f"the weight is infinite at pure noise unless a >= 1; got {self.a}")

    def __call__(self, path: Interpolant, s: Tensor, t: Tensor) -> Tensor:
        alpha, sigma = path.alpha(s), path.sigma(s)
        wronskian = alpha * path.dsigma(s) - path.dalpha(s) * sigma
        lift = torch.exp(torch.as_tensor(self.b, dtype=s.dtype))
        top = lift * sigma * wronskian * alpha ** (self.a - 1)
        return top / ((lift * sigma.square() + alpha.square()) * (alpha.square() + sigma.square()))
