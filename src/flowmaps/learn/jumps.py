r"""More laws of jumps: shared by groups, within a band that grows, from U-shaped sources, and IMM's nearby pairs.

All are laws as those of `times`, drawn in float32 on the CPU.
"""

from dataclasses import dataclass
from typing import final

import torch
from torch import Generator, Tensor

from ..core.interpolant import Interpolant
from ..errors import RecipeError
from .times import Law, LogitNormal, TimeLaw, Times, Uniform


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
        stage = min(int(progress * self.stages + 1e-9), self.stages - 1)
        reach = min(1.0, self.band * 2**stage)
        # a gap g leaves room 1 - g for the pair: invert the distribution g - g^2 / 2 on [0, reach]
        share = torch.rand(n, generator=generator) * (reach - reach**2 / 2)
        gap = 1 - torch.sqrt(1 - 2 * share)
        t = torch.rand(n, generator=generator) * (1 - gap)
        s = t + gap
        if self.both:
            swap = torch.rand(n, generator=generator) < 0.5
            s, t = torch.where(swap, t, s), torch.where(swap, s, t)
        return Times(s, (s + t) / 2, t)


@final
@dataclass(frozen=True)
class UShaped:
    """Density proportional to exp(a t) + exp(a (1 - t)): the ends of the path (Lee et al. 2024, RF++, arXiv:2405.20320; a = 4)."""

    a: float = 4.0

    def __call__(self, n: int, generator: Generator) -> Tensor:
        u = torch.rand(n, generator=generator)
        rising = torch.log1p(u * torch.expm1(torch.tensor(self.a))) / self.a
        return torch.where(torch.rand(n, generator=generator) < 0.5, 1 - rising, rising)


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
class Grouped:
    """A law whose times are shared by groups of `size` rows: row i has those of row i + n/size, as `KernelDistance` wants."""

    law: TimeLaw
    size: int = 4

    def __call__(self, n: int, generator: Generator, progress: float = 0.0) -> Times:
        groups = -(-n // self.size)
        drawn = self.law(groups, generator, progress)
        return Times(*(time.repeat(self.size)[:n] for time in drawn))


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
