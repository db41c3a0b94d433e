r"""The rules that characterise a flow map. Every method in the literature mixes these four.

    diagonal       u(x, s, s) = b_s(x)                          the tangent condition
    Eulerian       d/ds X(x_s, s, t) = 0 along the trajectory   move the source
    Lagrangian     d/dt X(x, s, t) = b_t(X(x, s, t))            move the target
    compositional  X(X(x, s, w), w, t) = X(x, s, t)             split the jump

A rule is a frozen value with a call: from a student and a batch of points it makes `(prediction, target)`, both
(B, *D) and equal on the exact map. Three questions distinguish methods that share a rule, and each is an argument:

* where the velocity comes from (`velocity`): the data ("conditional", $\dot\alpha x_0+\dot\sigma\varepsilon$, or "pooled", its
  mean over the data of a step), the student itself ("self", detached), its moving average ("ema") or a frozen "teacher";
* what carries gradient (`through`): "target" regresses on a detached right-hand side; "jvp" also differentiates the
  derivative of the student; "partial" differentiates $\partial_s X$ and detaches $\nabla X\,b$; "all" detaches nothing;
* how a derivative is taken (`derivative`): exactly or by a finite difference.

The velocities of data are legal only where they are evaluated at the student's own noisy input and enter linearly
(methods.md 2.2): for the diagonal and Eulerian rules. The others refuse them when they are built.
"""

from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, final

import torch
from torch import Tensor

from ..core.autodiff import EXACT, Derivative, TwoTime, advection, along_source, along_target
from ..core.flow_map import FlowMap
from ..core.shape import like
from ..errors import RecipeError
from .pooled import Pool
from .ramps import Ramp
from .times import Times

VelocitySource = Literal["conditional", "pooled", "self", "ema", "teacher"]
OF_DATA: frozenset[VelocitySource | None] = frozenset({"conditional", "pooled"})
"""Sources that are known at the row's own point alone, and right on average only."""
MapSource = Literal["self", "ema", "teacher"]
Through = Literal["target", "jvp", "partial", "all"]


@final
@dataclass(frozen=True)
class Points:
    """What a term is evaluated on.

    Attributes:
        x: Points of the path at the source times (B, *D).
        v: Their conditional velocity (B, *D), guided if the recipe is.
        times: Source, intermediate and target times (B,).
        cond: Conditioning, tensors with a leading B.
        progress: Share of the run that is done, `()` in [0, 1].
        scale: Guidance scale per row (B,), or None; in `cond` as well when it is an input of the network.
        seed: Of the dropout masks that all evaluations of the student share, int64 `()`, on the CPU.
        end: The trajectory's point at the target times (B, *D), if the term's state knows it.
        pool: Data that the velocity is averaged over, if the term's is "pooled".
    """

    x: Tensor
    v: Tensor
    times: Times
    cond: dict[str, Any]
    progress: Tensor
    scale: Tensor | None = None
    seed: Tensor = field(default_factory=lambda: torch.tensor(0))
    end: Tensor | None = None
    pool: Pool | None = None


class Models(Protocol):
    """Who answers for a velocity or a jump: the student's companions (`Objective` is one)."""

    def velocity(self, source: VelocitySource, x: Tensor, t: Tensor, b: Points) -> Tensor:
        """The velocity (B, *D) at points `x` and times `t`, without a graph to the student's parameters."""
        ...

    def jump(
        self,
        source: MapSource,
        x: Tensor,
        s: Tensor,
        t: Tensor,
        b: Points,
        *,
        through: bool = False,
    ) -> Tensor:
        """The mean velocity (B, *D) of a jump, detached; `through` lets gradients pass to `x` (not for "self")."""
        ...


class Rule(Protocol):
    """A characterisation of the exact map."""

    def __call__(self, f: FlowMap, b: Points, models: Models) -> tuple[Tensor, Tensor]: ...


@final
@dataclass(frozen=True)
class DiagonalRule:
    r"""The tangent condition: $u(x,s,s) = b_s(x)$. With the conditional velocity it is flow matching."""

    velocity: VelocitySource = "conditional"

    def __call__(self, f: FlowMap, b: Points, models: Models) -> tuple[Tensor, Tensor]:
        target = models.velocity(self.velocity, b.x, b.times.s, b)
        return f.velocity(b.x, b.times.s, **b.cond), target


@final
@dataclass(frozen=True)
class Eulerian:
    r"""The endpoint does not move when the source moves along the trajectory: $\partial_s X + \nabla_x X\,b_s = 0$.

    In mean-velocity form $u = b_s(x) + (t-s)\,(\partial_s u + \nabla_x u\, b_s)$.

    Attributes:
        velocity: The $b_s$ outside the derivative: what is regressed on.
        tangent: The $b_s$ inside the derivative; by default the same. Improved MeanFlow takes "self".
        through: "target": MeanFlow and its kin. "partial": ESD, $\partial_s X$ against detached
            $-\nabla_x X\,b$. "all": EMD, the whole residual $\partial_s X+\nabla_x X\,b$ against 0.
        derivative: Exact or finite difference.
        warmup: Multiplies the derivative (sCM's and AYF's tangent warm-up).

    Raises:
        RecipeError: For a velocity of data with through != "target": squaring it is biased by its variance.

    Source:
        Boffi et al. 2025 (arXiv:2505.18825), eq. 9 and sec. 4; Geng et al. 2025 (arXiv:2505.13447), eq. 6-10.
    """

    velocity: VelocitySource = "conditional"
    tangent: VelocitySource | None = None
    through: Through = "target"
    derivative: Derivative = EXACT
    warmup: Ramp | None = None

    def __post_init__(self) -> None:
        if self.through == "jvp":
            raise RecipeError(
                "the Eulerian rule detaches its derivative ('target'), its advection ('partial') or nothing ('all'); got 'jvp'"
            )
        if self.through != "target" and OF_DATA & {self.velocity, self.tangent}:
            raise RecipeError(
                f"the Eulerian rule with through={self.through!r} is quadratic in the velocity, so the conditional velocity "
                "biases it; use velocity='self' or 'teacher', or through='target'"
            )
        if self.through != "target" and (self.warmup or self.tangent):
            raise RecipeError(
                "warmup and tangent belong to the Eulerian rule with through='target'"
            )

    def __call__(self, f: FlowMap, b: Points, models: Models) -> tuple[Tensor, Tensor]:
        v = models.velocity(self.velocity, b.x, b.times.s, b)
        if self.through == "target":
            return self._regress(f, b, v, models)
        s, _, t = b.times
        if self.through == "all":
            slope = along_source(
                _map(f, b), b.x, s, t, v, derivative=self.derivative, through=True
            )[1]
            return slope, torch.zeros_like(slope)
        moved = along_source(
            _map(f, b), b.x, s, t, torch.zeros_like(v), derivative=self.derivative, through=True
        )[1]
        return moved, -advection(_map(f, b), b.x, s, t, v, derivative=self.derivative)

    def _regress(self, f: FlowMap, b: Points, v: Tensor, models: Models) -> tuple[Tensor, Tensor]:
        s, _, t = b.times
        push = v if self.tangent is None else models.velocity(self.tangent, b.x, s, b)
        u, slope = along_source(_mean(f, b), b.x, s, t, push, derivative=self.derivative)
        if self.warmup is not None:
            slope = slope * self.warmup(b.progress)
        return u, (v + like(t - s, v) * slope).detach()


@final
@dataclass(frozen=True)
class Lagrangian:
    r"""Moving the target moves the endpoint with the flow: $\partial_t X(x,s,t) = b_t(X(x,s,t))$.

    Attributes:
        velocity: "self" (LSD), "ema" (TVM) or "teacher" (LMD, BOOT).
        through: "jvp": $\partial_t X$ with gradient, against a detached velocity (LSD, TVM). "target": the mean velocity
            regressed on $b_t(X)-(t-s)\partial_t u$, detached (AYF-LMD). "all": nothing detached (LMD).
        derivative: Exact or finite difference.
        warmup: Multiplies $\partial_t u$ when through="target".

    Raises:
        RecipeError: For the velocities of data, which are known at x and not at X(x, s, t).

    Source:
        Boffi et al. 2025 (arXiv:2505.18825), eq. 8; Boffi et al. 2024 (arXiv:2406.07507), proposition 3.
    """

    velocity: VelocitySource = "self"
    through: Through = "jvp"
    derivative: Derivative = EXACT
    warmup: Ramp | None = None

    def __post_init__(self) -> None:
        if self.velocity in OF_DATA:
            raise RecipeError(
                "the Lagrangian rule needs the velocity at X(x, s, t), where the conditional velocity of (x, s) is not "
                "known; use velocity='self', 'ema' or 'teacher'"
            )
        if self.through == "partial":
            raise RecipeError(
                "the Lagrangian rule takes through='jvp', 'target' or 'all'; got 'partial'"
            )
        if self.through == "all" and self.velocity != "teacher":
            raise RecipeError("the Lagrangian rule with through='all' needs velocity='teacher'")
        if self.warmup is not None and self.through != "target":
            raise RecipeError("the Lagrangian rule has a warmup only with through='target'")

    def __call__(self, f: FlowMap, b: Points, models: Models) -> tuple[Tensor, Tensor]:
        s, _, t = b.times
        if self.through == "target":
            u, slope = along_target(_mean(f, b), b.x, s, t, derivative=self.derivative)
            if self.warmup is not None:
                slope = slope * self.warmup(b.progress)
            gap = like(t - s, u)
            v = models.velocity(self.velocity, (b.x + gap * u).detach(), t, b)
            return u, (v - gap * slope).detach()
        end, slope = along_target(_map(f, b), b.x, s, t, derivative=self.derivative, through=True)
        point = end if self.through == "all" else end.detach()
        v = models.velocity(self.velocity, point, t, b)
        return slope, v if self.through == "all" else v.detach()


@final
@dataclass(frozen=True)
class Compositional:
    r"""Two jumps are one: $u(x,s,t) = \gamma\,u(x,s,w) + (1-\gamma)\,u(X(x,s,w),w,t)$, $\gamma = (w-s)/(t-s)$.

    The mean-velocity form drops the factor $(t-s)^2$ that the endpoint form carries, on purpose: it is a preconditioner.

    Attributes:
        jump: Who makes the two jumps: "self" (PSD), "ema" (shortcut) or "teacher" (progressive distillation).
        clip: Bound on the intermediate point and on the target (shortcut models clip at 4), or None.

    Raises:
        RecipeError: If `jump` is "conditional": no jump follows from data alone.

    Source:
        Boffi et al. 2025 (arXiv:2505.18825), eq. 10 and sec. 3.3; Frans et al. 2024 (arXiv:2410.12557), eq. 4-5.
    """

    jump: MapSource = "self"
    clip: float | None = None

    def __post_init__(self) -> None:
        if self.jump not in ("self", "ema", "teacher"):
            raise RecipeError(
                f"the compositional rule composes jumps of 'self', 'ema' or 'teacher'; got {self.jump!r}"
            )

    def __call__(self, f: FlowMap, b: Points, models: Models) -> tuple[Tensor, Tensor]:
        s, w, t = b.times
        first = models.jump(self.jump, b.x, s, w, b)
        middle = self._clip(b.x + like(w - s, b.x) * first)
        second = models.jump(self.jump, middle, w, t, b)
        same = s == t
        share = like(torch.where(same, 0.5, (w - s) / torch.where(same, 1.0, t - s)), b.x)
        target = self._clip(share * first + (1 - share) * second)
        return f.mean_velocity(b.x, s, t, **b.cond), target

    def _clip(self, x: Tensor) -> Tensor:
        return x if self.clip is None else x.clamp(-self.clip, self.clip)


def _mean(f: FlowMap, b: Points) -> TwoTime:
    return lambda x, s, t: f.mean_velocity(x, s, t, **b.cond)


def _map(f: FlowMap, b: Points) -> TwoTime:
    return lambda x, s, t: f(x, s, t, **b.cond)
