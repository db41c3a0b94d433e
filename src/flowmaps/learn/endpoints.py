r"""Rules that compare endpoints: of a known trajectory, or of a way there and back.

Endpoint   u(x_s, s, t) = (x_t - x_s) / (t - s) on a trajectory of the teacher     (CMT, distilled reflow)
Inverse    X(X(x, t, s), s, t) = x, and its speed is the velocity at x             (flow map matching)
Return     X(X(x, s, t), t, s) = x                                                (a map that inverts itself)
"""

from dataclasses import dataclass
from typing import ClassVar, final

import torch
from torch import Tensor

from ..core.autodiff import EXACT, Derivative, along_target
from ..core.flow_map import FlowMap
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
class Return:
    r"""There and back without a derivative: $X(X(x,s,t),t,s) = x$, in mean velocities $u(X(x,s,t),t,s) = u(x,s,t)$.

    The compositional rule with its end at its source, so that a jump up inverts a jump down. Nothing is detached, and any
    invertible map obeys it: it goes beside terms that say which map. Give it `Upwards` jumps: asked to bring noise back from
    data, which hold little of it, a network hides it there, and its samples are speckled.

    Source:
        Starodubcev et al. 2024 (iCD, arXiv:2406.14539), the preservation losses, between any two times.
    """

    def __call__(self, f: FlowMap, b: Points, models: Models) -> tuple[Tensor, Tensor]:
        s, _, t = b.times
        away = f.mean_velocity(b.x, s, t, **b.cond)
        there = b.x + like(t - s, b.x) * away
        return f.mean_velocity(there, t, s, **b.cond), away
