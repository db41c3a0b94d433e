r"""Where w divides a jump into a short leg and the rest, for `ShortLeg` and `LastLeg`; legs that shorten, grids that get finer.

FirstLeg      a share of the jump                                   (alpha-Flow, SoFlow)
FixedLeg      a length                                              (RCGM)
LastGap       a length before the target, for `LastLeg`         (distillation)
Neighbours    one cell of a grid, then on to the data               (consistency models)
GridTriple    three points of a grid                                (consistency trajectory models)
Tuning        a share of the noise level, smaller in every stage    (easy consistency tuning)
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import final

import torch
from torch import Generator, Tensor

from ..core.interpolant import Interpolant, edm
from ..errors import RecipeError
from .ramps import Count, stage
from .times import Law, TimeLaw, Times, Uniform


class _Legs:
    """Laws whose w ends a short first leg: methods that use them are right as w goes to s."""

    def finer(self: TimeLaw, factor: int) -> "Nearer":
        """The same law with legs `factor` times shorter."""
        return Nearer(self, factor)


@final
@dataclass(frozen=True)
class Nearer:
    """The jumps of another law, with w `factor` times nearer to s."""

    law: TimeLaw
    factor: int

    def __call__(self, n: int, generator: Generator, progress: float = 0.0) -> Times:
        s, w, t = self.law(n, generator, progress)
        # near s differences of float32 times are few digits; the exam computes in float64
        return Times(s, (s.double() + (w - s).double() / self.factor), t)


@final
@dataclass(frozen=True)
class FirstLeg(_Legs):
    r"""Jumps of another law, divided at $w = s + \gamma(t-s)$ with $\gamma$ a number or a function of progress."""

    law: TimeLaw
    share: float | Callable[[Tensor], Tensor]

    def __call__(self, n: int, generator: Generator, progress: float = 0.0) -> Times:
        s, _, t = self.law(n, generator, progress)
        gamma = self.share(torch.tensor(progress)) if callable(self.share) else self.share
        return Times(s, torch.lerp(s, t, gamma), t)  # exactly s at 0 and t at 1


@final
@dataclass(frozen=True)
class FixedLeg(_Legs):
    """Jumps of another law, divided at a distance `length` from s, or at t where the jump is shorter."""

    law: TimeLaw
    length: float = 0.01

    def __call__(self, n: int, generator: Generator, progress: float = 0.0) -> Times:
        s, _, t = self.law(n, generator, progress)
        gap = t - s
        return Times(s, torch.where(gap.abs() < self.length, t, s + gap.sign() * self.length), t)


@final
@dataclass(frozen=True)
class LastGap:
    """Jumps of another law, divided at a distance uniform in [0, `length`] from t, or at s where the jump is shorter: `LastLeg`."""

    law: TimeLaw
    length: float = 0.1

    def finer(self, factor: int) -> "LastGap":
        """The same law with legs `factor` times shorter."""
        return LastGap(self.law, self.length / factor)

    def __call__(self, n: int, generator: Generator, progress: float = 0.0) -> Times:
        s, _, t = self.law(n, generator, progress)
        gap = s - t
        leg = torch.minimum(self.length * torch.rand(n, generator=generator), gap.abs())
        return Times(s, t + gap.sign() * leg, t)


@final
@dataclass(frozen=True)
class Neighbours(_Legs):
    """One step of a grid of N times in [0, 1], equal in time, and from there to the data: s = i/(N-1), w = (i-1)/(N-1), t = 0.

    Attributes:
        law: Where on the grid: the step is the one that a draw falls in. `NoiseLevel` makes iCT's discretised lognormal.
        points: N, fixed or growing.
    """

    law: Law = Uniform()
    points: int | Count = 18

    def __call__(self, n: int, generator: Generator, progress: float = 0.0) -> Times:
        cells = (self.points if isinstance(self.points, int) else self.points(progress)) - 1
        cell = torch.floor(self.law(n, generator) * cells).clamp(max=cells - 1)
        return Times((cell + 1) / cells, cell / cells, torch.zeros(n))


@final
@dataclass(frozen=True)
class GridTriple(_Legs):
    """Three points s > w >= t of a grid of N times: s uniform, t below it, w between and at most `reach` cells from s (CTM)."""

    points: int = 18
    reach: int = 17

    def __post_init__(self) -> None:
        if not 1 <= self.reach < self.points:
            raise RecipeError(
                f"GridTriple needs 1 <= reach < points; got points={self.points}, reach={self.reach}"
            )

    def __call__(self, n: int, generator: Generator, progress: float = 0.0) -> Times:
        cells = self.points - 1
        share = torch.rand(3, n, generator=generator)
        s = 1 + torch.floor(share[0] * cells)
        t = torch.floor(share[1] * s)
        w = s - 1 - torch.floor(share[2] * (s - t).clamp(max=self.reach))
        return Times(s / cells, w / cells, t / cells)


@final
@dataclass(frozen=True)
class Tuning(_Legs):
    r"""Easy consistency tuning: $\sigma_w = \sigma_s\,(1 - q^{-(k+1)}(1+8\,\mathrm{sigmoid}(-\sigma_s)))^+$ in stage k, t = 0.

    Stages share the run equally; where the bracket is empty, w = 0 and the target is data: denoising
    (Geng et al. 2024, arXiv:2406.14548). `limit` bounds $1 - q^{-(k+1)}$ (TCM's code: 0.999).
    """

    law: Law
    stages: int = 8
    q: float = 2.0
    limit: float = 1.0
    path: Interpolant = field(default_factory=edm)

    def __call__(self, n: int, generator: Generator, progress: float = 0.0) -> Times:
        s = self.law(n, generator).double()
        left = max(self.q ** -(stage(progress, self.stages) + 1), 1 - self.limit)
        sigma = self.path.sigma(s) / self.path.alpha(s)
        ahead = sigma * (1 - left * (1 + 8 * torch.sigmoid(-sigma))).clamp(min=0)
        w = self.path.time_at(-torch.log(ahead)).clamp(0, 1)
        return Times(s.float(), w.float(), torch.zeros(n))
