r"""Finite legs: the Eulerian rule before its limit (consistency models, alpha-Flow, SoFlow, RCGM), and the Lagrangian rule.

First the short *first* leg, `ShortLeg`.

Split the jump s -> t at $w = s + \gamma(t-s)$. A velocity makes the short leg, a frozen map the long one:

$$ T = \gamma\,a + (1-\gamma)\,u^-(x_w, w, t), \qquad x_w = x + (w-s)\,a, \qquad g = (u - T)/\gamma . $$

As $\gamma \to 0$, $g \to u - a - (t-s)(\partial_s u + \nabla_x u\,a)$, MeanFlow's; $\gamma = 1$ is trajectory flow matching, with
the conditional velocity denoising (methods.md 2.1). Two evaluations of the network take the place of a JVP.

The short *last* leg, `LastLeg`, is its mirror image: a frozen jump s -> w, then a solver step of the velocity w -> t.
"""

from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, Literal, final

import torch
from torch import Tensor

from ..core.autodiff import Derivative
from ..core.flow_map import FlowMap
from ..core.shape import like
from ..core.solver import EULER, HEUN
from ..errors import RecipeError
from .rules import OF_DATA, Eulerian, MapSource, Models, Points, VelocitySource

Leg = Literal["euler", "heun", "path"]
Form = Literal["slope", "velocity", "data"]


@final
@dataclass(frozen=True)
class ShortLeg:
    r"""One jump is a short leg and the jump from there; w of the term's times divides them.

    Attributes:
        velocity: Whose velocity makes the short leg.
        jump: Who answers for the long leg, frozen.
        leg: "euler" and "heun" are solver steps along the velocity. "path" moves along the path of (x_0, eps), which the
            conditional velocity at x determines: consistency training's shared noise. On the linear path it is "euler".
        steps: Solver steps of the short leg, equal in time.
        legs: Jumps that make the long leg, equal in time (RCGM).
        form: What is returned. "slope": u and u - g, an error that neither grows nor fades with the leg. "velocity": u and
            T. "data": both ends carried on to t = 0 by `jump` and compared there; the gradient passes through it (CTM).
        below: Who answers for the long leg instead where the noise level sigma/alpha at w is below
            `boundary` (truncated consistency models).
        boundary: See `below`.
        derivative: Where a batch holds rows with w = s < t, what takes their limit, the Eulerian rule; None never.

    Raises:
        RecipeError: For a combination without meaning.

    Source:
        Song et al. 2023 (arXiv:2303.01469), eq. 7 and 10; Zhang et al. 2025 (alpha-Flow, arXiv:2510.20771).
    """

    velocity: VelocitySource = "conditional"
    jump: MapSource = "self"
    leg: Leg = "euler"
    steps: int = 1
    legs: int = 1
    form: Form = "slope"
    below: MapSource | None = None
    boundary: float = 0.0
    derivative: Derivative | None = None

    def __post_init__(self) -> None:
        data = self.velocity in OF_DATA
        if self.jump not in ("self", "ema", "teacher"):
            raise RecipeError(
                f"the long leg is a jump of 'self', 'ema' or 'teacher'; got {self.jump!r}"
            )
        if min(self.steps, self.legs) < 1:
            raise RecipeError(
                f"steps and legs count from 1; got steps={self.steps}, legs={self.legs}"
            )
        if self.leg == "path" and self.velocity != "conditional":
            raise RecipeError(
                f"leg='path' follows the conditional velocity's own (x_0, eps); got velocity={self.velocity!r}: "
                "take leg='euler' or 'heun'"
            )
        if data and (self.leg == "heun" or self.steps > 1):
            raise RecipeError(
                "the conditional velocity is known at x alone, so it makes one Euler step or follows its path; "
                "take leg='euler' or 'path' with steps=1, or velocity='self' or 'teacher'"
            )
        if self.form == "data" and self.jump == "self":
            raise RecipeError(
                "form='data' needs a frozen outer map: take jump='ema' or 'teacher'; got 'self'"
            )
        if (self.below is None) != (self.boundary == 0):
            raise RecipeError("below and boundary belong together: give both or neither")
        if self.derivative is not None and (self.legs > 1 or self.form == "data" or self.below):
            raise RecipeError(
                "the limit of a short leg (derivative=) is taken of one long leg, in form 'slope' or 'velocity', without below"
            )

    @property
    def order(self) -> int:
        """Order in the leg's length of the bias of g: the exact map is a fixed point only as the legs shorten."""
        return 2 if self.leg == "heun" else 1

    @property
    def fall(self) -> int:
        """Power of the leg's length with which the mean gradient at the exact map falls; a wrong rule's falls with one less."""
        return self.order + (self.form != "slope")

    def __call__(self, f: FlowMap, b: Points, models: Models) -> tuple[Tensor, Tensor]:
        s, w, t = b.times
        if self.derivative is not None and bool(((w == s) & (s != t)).any()):
            return Eulerian(self.velocity, derivative=self.derivative)(f, b, models)
        # "slope" divides a difference of close values by the leg's share, a fiftieth, say: bfloat16 leaves a fifth of it noise
        wide = self.form == "slope"
        with torch.autocast(b.x.device.type, enabled=False) if wide else nullcontext():
            return self._split(f, b, models)

    def _split(self, f: FlowMap, b: Points, models: Models) -> tuple[Tensor, Tensor]:
        s, w, t = b.times
        with torch.no_grad():
            first = self._first(f, b, models)
            rest = self._rest(f, b.x + like(w - s, b.x) * first, b, models)
        # a leg below the resolution of times is as long as its jump, which is hardly longer
        same = (s == t) | ((s == w) & ((s - t).abs() < 1e-3))
        share = like(torch.where(same, 1.0, (w - s) / torch.where(same, 1.0, t - s)), b.x)
        u = f.mean_velocity(b.x, s, t, **b.cond)
        target = share * first + (1 - share) * rest
        if self.form == "velocity":
            return u, target
        if self.form == "data":
            return self._at_data(u, b, models), self._at_data(target, b, models)
        held = u.detach()
        # (u - T) / share, with only the difference of close values divided by it
        return u, held - (rest - first + (held - rest) / share)

    def _first(self, f: FlowMap, b: Points, models: Models) -> Tensor:
        """The mean velocity of the short leg."""
        s, w, _ = b.times
        if self.leg == "path":
            x_0, eps = f.interpolant.endpoints(b.v, b.x, s, "velocity")
            dalpha, dsigma = f.interpolant.secant(s, w)
            return like(dalpha, b.x) * x_0 + like(dsigma, b.x) * eps
        solver, length = (EULER if self.leg == "euler" else HEUN), (w - s) / self.steps
        slopes: list[Tensor] = []  # list[Tensor]() cannot be compiled
        x = b.x

        def field(x: Tensor, t: Tensor, **cond: Any) -> Tensor:
            return models.velocity(self.velocity, x, t, b)

        for k in range(self.steps):
            begin = s + k * length
            slopes.append(solver.slope(field, x, begin, begin + length))
            x = x + like(length, x) * slopes[-1]
        return torch.stack(slopes).mean(0)

    def _rest(self, f: FlowMap, x: Tensor, b: Points, models: Models) -> Tensor:
        """The mean velocity of the long leg from `x` (B, *D)."""
        s, w, t = b.times
        # an empty long leg has no weight, but data is no place to ask a network: it answers at the source instead
        w = torch.where(w == t, s, w)
        jumps: list[Tensor] = []
        length = (t - w) / self.legs
        for k in range(self.legs):
            begin = w + k * length
            u = models.jump(self.jump, x, begin, begin + length, b)
            if self.below is not None:
                other = models.jump(self.below, x, begin, begin + length, b)
                noise = f.interpolant.sigma(begin) / f.interpolant.alpha(begin)
                u = torch.where(like(noise < self.boundary, x), other, u)
            jumps.append(u)
            x = x + like(length, x) * jumps[-1]
        return torch.stack(jumps).mean(0)

    def _at_data(self, u: Tensor, b: Points, models: Models) -> Tensor:
        s, _, t = b.times
        end, zero = b.x + like(t - s, u) * u, torch.zeros_like(t)
        carried = models.jump(self.jump, end, t, zero, b, through=True)
        return end + like(zero - t, u) * carried


@final
@dataclass(frozen=True)
class LastLeg:
    r"""One jump is a jump and a short leg from there: $u = \gamma\,u^-(x,s,w) + (1-\gamma)\,\Phi(X^-(x,s,w), w, t)$.

    $\gamma = (w-s)/(t-s)$ and $\Phi$ is the slope of one solver step along a velocity. As w goes to t it is the Lagrangian rule
    in mean-velocity form, $u + (t-s)\partial_t u = b_t(X)$, without its forward-mode derivative.

    Attributes:
        velocity: Whose velocity makes the last leg: "teacher", or "self" and "ema" for self-distillation.
        jump: Who answers for the jump, frozen.
        leg: "euler" (bias of first order in the leg's length) or "heun" (second).

    Raises:
        RecipeError: For the velocities of data, which are known at x and not at X(x, s, w).

    Source:
        Sabour et al. 2025 (AYF-LMD, arXiv:2506.14603), before its limit; Boffi et al. 2024 (arXiv:2406.07507).
    """

    velocity: VelocitySource = "teacher"
    jump: MapSource = "self"
    leg: Literal["euler", "heun"] = "heun"

    def __post_init__(self) -> None:
        if self.velocity in OF_DATA:
            raise RecipeError(
                "the last leg begins at X(x, s, w), where the conditional velocity of (x, s) is not known; "
                "use velocity='self', 'ema' or 'teacher'"
            )

    @property
    def fall(self) -> int:
        """Power of the leg's length with which the mean gradient at the exact map falls; a wrong rule's falls with one less."""
        return 2 if self.leg == "euler" else 3

    def __call__(self, f: FlowMap, b: Points, models: Models) -> tuple[Tensor, Tensor]:
        s, w, t = b.times
        solver = EULER if self.leg == "euler" else HEUN

        def field(x: Tensor, t: Tensor, **cond: Any) -> Tensor:
            return models.velocity(self.velocity, x, t, b)

        with torch.no_grad():
            first = models.jump(self.jump, b.x, s, w, b)
            last = solver.slope(field, b.x + like(w - s, b.x) * first, w, t)
        same = s == t
        share = like(torch.where(same, 0.0, (w - s) / torch.where(same, 1.0, t - s)), b.x)
        return f.mean_velocity(b.x, s, t, **b.cond), share * first + (1 - share) * last
