r"""Laws of jumps that one family of methods brought along.

EqualJumps      those of samplers of given numbers of equal jumps
Dyadic          lengths 2^-k on a grid                              (shortcut models)
HalvingGrid     one step of a grid that coarsens in stages          (progressive distillation)
Within          no longer than a band, which widens in stages       (progressive flow map matching)
SourceThenGap   a source, then how far down                         (Re-MeanFlow)
GapThenTarget   a length, then a target that leaves room for it     (terminal velocity matching)
Inductive       w a fixed distance of noise level below s           (inductive moment matching)
Until           those of another law, shrunk to sources up to a time
"""

from dataclasses import dataclass
from typing import final

import torch
from torch import Generator, Tensor

from ..core.interpolant import Interpolant
from ..errors import RecipeError
from .ramps import stage
from .times import Law, LogitNormal, TimeLaw, Times, Uniform, UShaped, either_way


@final
@dataclass(frozen=True)
class EqualJumps:
    """Any of the jumps that samplers of equal jumps make, their number uniform among `counts`; w halves it."""

    counts: tuple[int, ...]

    def __post_init__(self) -> None:
        if not self.counts or min(self.counts) < 1:
            raise RecipeError(f"EqualJumps needs numbers of jumps >= 1; got {self.counts}")

    def __call__(self, n: int, generator: Generator, progress: float = 0.0) -> Times:
        which = torch.randint(0, len(self.counts), (n,), generator=generator)
        count = torch.tensor(self.counts, dtype=torch.float32)[which]
        cell = torch.floor(torch.rand(n, generator=generator) * count)
        s, length = (cell + 1) / count, 1 / count
        return Times(s, s - length / 2, s - length)


@final
@dataclass(frozen=True)
class Dyadic:
    """Jumps of length $2^{-k}$, k uniform in 0..levels-1, on the matching grid, halved at w (Frans et al. 2024)."""

    levels: int = 7

    def __post_init__(self) -> None:
        if self.levels < 1:
            raise RecipeError(f"Dyadic needs levels >= 1; got {self.levels}")

    def __call__(self, n: int, generator: Generator, progress: float = 0.0) -> Times:
        return EqualJumps(tuple(2**k for k in range(self.levels)))(n, generator, progress)


@final
@dataclass(frozen=True)
class HalvingGrid:
    """Progressive distillation's jumps: one step of a grid of N, w in the middle; N halves at every stage.

    Stage i of `stages` has $N = 2^{stages-1-i}$ steps, so the last one is one step. Stages share the run equally.
    """

    stages: int = 6

    def __post_init__(self) -> None:
        if self.stages < 1:
            raise RecipeError(f"HalvingGrid needs stages >= 1; got {self.stages}")

    def __call__(self, n: int, generator: Generator, progress: float = 0.0) -> Times:
        count = 2.0 ** (self.stages - 1 - stage(progress, self.stages))
        cell = torch.floor(torch.rand(n, generator=generator) * count)
        s = (cell + 1) / count
        return Times(s, s - 0.5 / count, s - 1 / count)


@final
@dataclass(frozen=True)
class Within:
    """Jumps no longer than a band, uniform among all such pairs of times; w lies in the middle.

    Attributes:
        band: Longest jump of the first stage, in (0, 1].
        stages: Stages that share the run equally; the band doubles with each, up to all jumps.
        both: Exchange source and target for half of the jumps.
    """

    band: float = 1.0
    stages: int = 1
    both: bool = False

    def __post_init__(self) -> None:
        if not 0 < self.band <= 1 or self.stages < 1:
            raise RecipeError(
                f"Within needs 0 < band <= 1 and stages >= 1; got band={self.band}, stages={self.stages}"
            )

    def __call__(self, n: int, generator: Generator, progress: float = 0.0) -> Times:
        reach = min(1.0, self.band * 2 ** stage(progress, self.stages))
        # a gap g leaves room 1 - g for the pair: invert the distribution g - g^2 / 2 on [0, reach]
        share = torch.rand(n, generator=generator) * (reach - reach**2 / 2)
        gap = 1 - torch.sqrt(1 - 2 * share)
        t = torch.rand(n, generator=generator) * (1 - gap)
        s = t + gap
        if self.both:
            s, t = either_way(s, t, generator)
        return Times(s, (s + t) / 2, t)


@final
@dataclass(frozen=True)
class SourceThenGap:
    """A source, then a gap below it: t = max(s - gap, 0); from sources above `early`, targets below `late` are moved to 0.

    Zhang et al. 2025 (Re-MeanFlow, arXiv:2511.23342), whose code has early = 0.8 and late = 0.4.
    """

    source: Law = UShaped()
    gap: Law = LogitNormal(-0.4, 1.0)
    split: Law = Uniform()
    early: float = 0.8
    late: float = 0.4

    def __call__(self, n: int, generator: Generator, progress: float = 0.0) -> Times:
        s = self.source(n, generator)
        t = (s - self.gap(n, generator)).clamp(min=0)
        t = torch.where((s > self.early) & (t < self.late), 0.0, t)
        return Times(s, s + (t - s) * self.split(n, generator), t)


@final
@dataclass(frozen=True)
class GapThenTarget:
    r"""Terminal velocity matching's jumps: a gap g first, then a target that leaves room for it, s = t + g, w in the middle.

    The target is logit-normal(mean, std), truncated to [0, 1 - g] by its inverse distribution function: no jump has length 0
    and none is thrown away (Zhou et al. 2025, arXiv:2511.19797).

    Attributes:
        gap: Law of g, in (0, 1).
        mean: Of the logit of the target, before it is truncated.
        std: Likewise.
    """

    gap: Law = LogitNormal(-0.8, 1.0)
    mean: float = -0.4
    std: float = 1.0

    def __call__(self, n: int, generator: Generator, progress: float = 0.0) -> Times:
        gap = self.gap(n, generator)
        room = torch.special.ndtr((torch.logit(1 - gap) - self.mean) / self.std)
        share = torch.rand(n, generator=generator) * room
        t = torch.sigmoid(self.mean + self.std * torch.special.ndtri(share))
        s = (t + gap).clamp(max=1)
        return Times(s, (s + t) / 2, t)


@final
@dataclass(frozen=True)
class Inductive:
    r"""Target and source uniform on [0, T] with t <= s, and w a fixed fraction of the range of $\eta = \sigma/\alpha$ below s.

    $\eta_w = \max(\eta_s - (\eta_T - \eta_0)\,2^{-k}, \eta_t)$ (Zhou et al. 2025, IMM, arXiv:2503.07565).
    """

    path: Interpolant
    high: float = 0.994
    k: float = 12.0

    def __call__(self, n: int, generator: Generator, progress: float = 0.0) -> Times:
        t = self.high * torch.rand(n, generator=generator)
        s = t + (self.high - t) * torch.rand(n, generator=generator)
        top = self._eta(torch.full((), self.high))
        eta = torch.maximum(self._eta(s) - top * 2.0**-self.k, self._eta(t))
        w = self.path.time_at(-eta.clamp(min=1e-12).log())
        return Times(s, torch.minimum(torch.maximum(w, t), s), t)

    def _eta(self, t: Tensor) -> Tensor:
        return self.path.sigma(t) / self.path.alpha(t)


@final
@dataclass(frozen=True)
class Until:
    """The jumps of another law; those that begin after `end` are shrunk to begin there."""

    law: TimeLaw
    end: float

    def __call__(self, n: int, generator: Generator, progress: float = 0.0) -> Times:
        times = self.law(n, generator, progress)
        share = (self.end / times.s.clamp(min=self.end)).clamp(max=1)
        return Times(*(share * time for time in times))
