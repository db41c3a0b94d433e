r"""Laws of single times, and the usual laws of jumps (s, w, t): source s, intermediate w, target t.

A `Law` draws one time per row; a `TimeLaw` draws a jump per row. They are frozen, so that a recipe prints itself; all draws are
float32 on the CPU from a generator. Laws with one method to serve are in `jumps`, those of short first legs in `splits`.

    Uniform, LogitNormal, NoiseLevel, UShaped, Fixed    a time; LogUniform a guidance scale
    Diagonal                                            t = s
    SortedPair, Downwards                               t < s, and Upwards t > s
    ToData                                              t = 0
"""

import math
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol, final

import torch
from torch import Generator, Tensor

from ..core.interpolant import Interpolant, edm
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
class Either:
    """One of two values: `rare` with probability `odds`, else `common`.

    Raises:
        RecipeError: If `odds` is no probability.
    """

    common: float
    rare: float
    odds: float = 0.5

    def __post_init__(self) -> None:
        if not 0 <= self.odds <= 1:
            raise RecipeError(f"Either has odds in [0, 1]; got {self.odds}")

    def __call__(self, n: int, generator: Generator) -> Tensor:
        rare = torch.rand(n, generator=generator) < self.odds
        return torch.where(rare, self.rare, self.common)


@final
@dataclass(frozen=True)
class NoiseLevel:
    r"""The time at which $\sigma_t/\alpha_t = e^{mean + std\,z}$, z normal or Student's t, cut to [low, high].

    Drawn through a table of the cumulative distribution in $\log\sigma$. Data of unit deviation: for data of deviation
    $\sigma_d$ a published mean is shifted by $-\log\sigma_d$.

    Attributes:
        mean: Of the logarithm of the noise level (EDM's P_mean).
        std: Of the same (P_std).
        low: Smallest noise level; 0 does not cut a normal law.
        high: Largest noise level; infinity does not cut a normal law.
        freedom: Degrees of freedom of Student's t; None is the normal law.
        path: Turns noise levels into times.

    Source:
        Karras et al. 2022 (arXiv:2206.00364); uncut on the trig path, Lu & Song 2025 (arXiv:2410.11081).
    """

    mean: float
    std: float
    low: float = 0.002
    high: float = 80.0
    freedom: float | None = None
    path: Interpolant = field(default_factory=edm)

    def __post_init__(self) -> None:
        if not (0 <= self.low <= self.high and self.high > 0 and self.std > 0):
            raise RecipeError(
                f"NoiseLevel needs 0 <= low <= high and std > 0; got low={self.low}, high={self.high}, std={self.std}"
            )
        if self.freedom is not None and not (self.low > 0 and math.isfinite(self.high)):
            raise RecipeError(
                f"Student's t has long tails: cut it at levels 0 < low and high < inf; got {self.low} and {self.high}"
            )

    def __call__(self, n: int, generator: Generator) -> Tensor:
        # beyond 9 deviations lies 1e-19 of a normal law
        low = math.log(self.low) if self.low > 0 else self.mean - 9 * self.std
        high = math.log(self.high) if math.isfinite(self.high) else self.mean + 9 * self.std
        level = torch.linspace(low, high, 8193, dtype=torch.float64)
        z = (level - self.mean) / self.std
        nu = self.freedom
        logp = -z.square() / 2 if nu is None else -(nu + 1) / 2 * torch.log1p(z.square() / nu)
        mass = torch.logaddexp(logp[1:], logp[:-1])  # trapezoids; their common width cancels
        total = torch.cat([torch.zeros(1, dtype=torch.float64), torch.softmax(mass, 0).cumsum(0)])
        at = torch.rand(n, generator=generator).double()
        k = torch.searchsorted(total, at, right=True).clamp(1, len(level) - 1)
        inside = (at - total[k - 1]) / (total[k] - total[k - 1])
        drawn = level[k - 1] + inside * (level[k] - level[k - 1])
        return self.path.time_at(-drawn).clamp(0, 1).float()


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
            s, t = either_way(s, t, generator)
        return Times(s, s + (t - s) * self.split(n, generator), t)


def skewed(
    skew: float | None = None,
    starts: float = 0.0,
    ends: float = 0.0,
    split: Law = Uniform(),
    *,
    both: bool = False,
) -> SortedPair:
    """Uniform pairs; with a `skew`, sources are logit-normal(skew / 2, 1.6) and targets logit-normal(-skew, 1.6).

    That is nearer to where few-step samplers jump, and where residuals are largest (the audit shows it). `starts`, `ends` and
    `both` are those of `SortedPair`.
    """
    if skew is None:
        return SortedPair(Uniform(), split=split, both=both, starts=starts, ends=ends)
    early, late = LogitNormal(skew / 2, 1.6), LogitNormal(-skew, 1.6)
    return SortedPair(early, target=late, split=split, both=both, starts=starts, ends=ends)


@final
@dataclass(frozen=True)
class Upwards:
    """The jumps of another law the other way round: from its targets to its sources, such as from data to noise."""

    law: TimeLaw

    def __call__(self, n: int, generator: Generator, progress: float = 0.0) -> Times:
        s, w, t = self.law(n, generator, progress)
        return Times(t, w, s)


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
class Downwards:
    """Sources of a law, targets uniform between them and the data; w at the target."""

    law: Law = Uniform()

    def __call__(self, n: int, generator: Generator, progress: float = 0.0) -> Times:
        s = self.law(n, generator)
        t = s * torch.rand(n, generator=generator)
        return Times(s, t, t)


def either_way(s: Tensor, t: Tensor, generator: Generator) -> tuple[Tensor, Tensor]:
    """Source and target exchanged for half of the jumps."""
    swap = torch.rand(len(s), generator=generator) < 0.5
    return torch.where(swap, t, s), torch.where(swap, s, t)
