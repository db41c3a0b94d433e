"""Laws of the times (s, w, t) of a jump: source s, intermediate w, target t. Frozen, so that a recipe prints itself.

A `Law` draws one time per row; a `TimeLaw` draws a jump per row. All draws are float32 on the CPU from a generator.
"""

from dataclasses import dataclass
from typing import NamedTuple, Protocol, final

import torch
from torch import Generator, Tensor

from ..errors import RecipeError


class Times(NamedTuple):
    """Source, intermediate and target times, each (n,), in [0, 1], with w between s and t."""

    s: Tensor
    w: Tensor
    t: Tensor


class Law(Protocol):
    """Draws n numbers (n,)."""

    def __call__(self, n: int, generator: Generator) -> Tensor: ...


class TimeLaw(Protocol):
    """Draws n jumps. `progress` in [0, 1] is how far training is, for laws that change with it."""

    def __call__(self, n: int, generator: Generator, progress: float = 0.0) -> Times: ...


@final
@dataclass(frozen=True)
class Uniform:
    """Uniform on [low, high]."""

    low: float = 0.0
    high: float = 1.0

    def __post_init__(self) -> None:
        if not self.low <= self.high:
            raise RecipeError(f"Uniform needs low <= high; got low={self.low}, high={self.high}")

    def __call__(self, n: int, generator: Generator) -> Tensor:
        return self.low + (self.high - self.low) * torch.rand(n, generator=generator)


@final
@dataclass(frozen=True)
class LogitNormal:
    """The sigmoid of N(mean, std^2) (Esser et al. 2024, arXiv:2403.03206)."""

    mean: float = 0.0
    std: float = 1.0

    def __call__(self, n: int, generator: Generator) -> Tensor:
        return torch.sigmoid(self.mean + self.std * torch.randn(n, generator=generator))


@final
@dataclass(frozen=True)
class LogUniform:
    """exp of a uniform law on [log low, log high]: for guidance scales."""

    low: float = 1.0
    high: float = 4.0

    def __post_init__(self) -> None:
        if not 0 < self.low <= self.high:
            raise RecipeError(
                f"LogUniform needs 0 < low <= high; got low={self.low}, high={self.high}"
            )

    def __call__(self, n: int, generator: Generator) -> Tensor:
        return self.low * (self.high / self.low) ** torch.rand(n, generator=generator)


@final
@dataclass(frozen=True)
class Fixed:
    """Always the same number."""

    value: float

    def __call__(self, n: int, generator: Generator) -> Tensor:
        return torch.full((n,), float(self.value))


@final
@dataclass(frozen=True)
class Diagonal:
    """Jumps of length zero, t = s, at the times of a law, or at the sources of a law of jumps."""

    law: "Law | SortedPair"

    def __call__(self, n: int, generator: Generator, progress: float = 0.0) -> Times:
        drawn = self.law(n, generator)
        s = drawn.s if isinstance(drawn, Times) else drawn
        return Times(s, s, s)


@final
@dataclass(frozen=True)
class SortedPair:
    """Two draws of a law, the larger is the source; w divides the jump by a draw of `split`.

    Attributes:
        law: Law of both times, or of the source when `target` is given.
        target: Law of the target, if another; sorted all the same.
        split: Law of (s - w) / (s - t): uniform (PSD-U), or `Fixed(0.5)` (PSD-M, shortcut).
        both: Exchange source and target for half of the jumps, so that the map learns data -> noise as well.
        starts: Share of the jumps whose source is moved to pure noise, s = 1 (all that a one-step sampler asks for).
        ends: Share of the jumps whose target is moved to clean data, t = 0, drawn independently of `starts`.
    """

    law: Law
    target: Law | None = None
    split: Law = Uniform()
    both: bool = False
    starts: float = 0.0
    ends: float = 0.0

    def __call__(self, n: int, generator: Generator, progress: float = 0.0) -> Times:
        a, b = self.law(n, generator), (self.target or self.law)(n, generator)
        s, t = torch.maximum(a, b), torch.minimum(a, b)
        if self.starts:
            s = torch.where(torch.rand(n, generator=generator) < self.starts, 1.0, s)
        if self.ends:
            t = torch.where(torch.rand(n, generator=generator) < self.ends, 0.0, t)
        if self.both:
            swap = torch.rand(n, generator=generator) < 0.5
            s, t = torch.where(swap, t, s), torch.where(swap, s, t)
        return Times(s, s + (t - s) * self.split(n, generator), t)


@final
@dataclass(frozen=True)
class ToData:
    """Jumps to clean data, t = 0, from the sources of a law: consistency models."""

    law: Law
    split: Law = Uniform()

    def __call__(self, n: int, generator: Generator, progress: float = 0.0) -> Times:
        s = self.law(n, generator)
        return Times(s, s * (1 - self.split(n, generator)), torch.zeros_like(s))


@final
@dataclass(frozen=True)
class Dyadic:
    """Jumps of length $2^{-k}$, k uniform in 0..levels-1, on the matching grid, halved at w (Frans et al. 2024)."""

    levels: int = 7

    def __post_init__(self) -> None:
        if self.levels < 1:
            raise RecipeError(f"Dyadic needs levels >= 1; got {self.levels}")

    def __call__(self, n: int, generator: Generator, progress: float = 0.0) -> Times:
        k = torch.randint(0, self.levels, (n,), generator=generator)
        count = 2.0**k
        cell = torch.floor(torch.rand(n, generator=generator) * count)
        s, length = (cell + 1) / count, 1 / count
        return Times(s, s - length / 2, s - length)


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

    def stage(self, progress: float) -> int:
        """The stage, 0-based, at a share of the run."""
        # i / n * n may fall short of i by rounding
        return min(int(progress * self.stages + 1e-9), self.stages - 1)

    def __call__(self, n: int, generator: Generator, progress: float = 0.0) -> Times:
        count = 2.0 ** (self.stages - 1 - self.stage(progress))
        cell = torch.floor(torch.rand(n, generator=generator) * count)
        s = (cell + 1) / count
        return Times(s, s - 0.5 / count, s - 1 / count)
