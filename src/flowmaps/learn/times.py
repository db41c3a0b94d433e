"""Laws of the times (s, w, t) of a jump: source s, intermediate w, target t. Frozen, so that a recipe prints itself.

A `Law` draws one time per row; a `TimeLaw` draws a jump per row. All draws are float32 on the CPU from a generator.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal, NamedTuple, Protocol, final

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


# Short legs: where w lies, and grids that get finer ---------------------------------------------------------------------


@final
@dataclass(frozen=True)
class Sigmoid:
    r"""$1 - 1/(1+e^{-k(z-1/2)})$ of $z = (p - \mathrm{begin})/(\mathrm{end}-\mathrm{begin})$, p the share of the run: from 1 to 0.

    Zhang et al. 2025 (alpha-Flow, arXiv:2510.20771). `floor` snaps the last values to 0 and the first to 1.
    """

    begin: float = 0.0
    end: float = 1.0
    slope: float = 25.0
    floor: float = 5e-3

    def __call__(self, progress: Tensor) -> Tensor:
        z = (progress - self.begin) / (self.end - self.begin)
        value = torch.sigmoid(self.slope * (0.5 - z))
        value = torch.where(value < self.floor, 0.0, value)
        return torch.where(value > 1 - self.floor, 1.0, value)


@final
@dataclass(frozen=True)
class Decay:
    """From `start` to `stop` exponentially in the share of the run (SoFlow)."""

    start: float
    stop: float

    def __post_init__(self) -> None:
        if not 0 < self.stop <= self.start:
            raise RecipeError(f"Decay needs 0 < stop <= start; got {self.start} to {self.stop}")

    def __call__(self, progress: Tensor) -> Tensor:
        return self.start * (self.stop / self.start) ** progress


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
class Downwards:
    """Sources of a law, targets uniform between them and the data; w at the target."""

    law: Law = Uniform()

    def __call__(self, n: int, generator: Generator, progress: float = 0.0) -> Times:
        s = self.law(n, generator)
        t = s * torch.rand(n, generator=generator)
        return Times(s, t, t)


@final
@dataclass(frozen=True)
class NoiseLevel:
    r"""The time at which $\sigma_t/\alpha_t = e^{mean + std\,z}$, z normal or Student's t, cut to [low, high].

    Drawn through a table of the cumulative distribution in $\log\sigma$.

    Attributes:
        mean: Of the logarithm of the noise level (EDM's P_mean).
        std: Of the same (P_std).
        low: Smallest noise level.
        high: Largest noise level.
        freedom: Degrees of freedom of Student's t; None is the normal law.
        path: Turns noise levels into times.
    """

    mean: float
    std: float
    low: float = 0.002
    high: float = 80.0
    freedom: float | None = None
    path: Interpolant = field(default_factory=edm)

    def __post_init__(self) -> None:
        if not (0 < self.low <= self.high and self.std > 0):
            raise RecipeError(
                f"NoiseLevel needs 0 < low <= high and std > 0; got low={self.low}, high={self.high}, std={self.std}"
            )

    def __call__(self, n: int, generator: Generator) -> Tensor:
        level = torch.linspace(math.log(self.low), math.log(self.high), 8193, dtype=torch.float64)
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
class Count:
    r"""Points of a grid that grows from `start` + 1 to `stop` + 1 over the run.

    "sqrt": consistency training's $N(k) = \lceil\sqrt{p((s_1+1)^2-s_0^2)+s_0^2}-1\rceil+1$ (arXiv:2303.01469, appendix C).
    "double": iCT's, a doubling in equal stages (arXiv:2310.14189, eq. 8).
    """

    start: int
    stop: int
    growth: Literal["sqrt", "double"] = "double"

    def __post_init__(self) -> None:
        if not 1 <= self.start <= self.stop:
            raise RecipeError(
                f"Count needs 1 <= start <= stop; got start={self.start}, stop={self.stop}"
            )

    def __call__(self, progress: float) -> int:
        if self.growth == "sqrt":
            low, high = self.start**2, (self.stop + 1) ** 2
            # the last bracket must not round up past stop
            return max(math.ceil(math.sqrt(progress * (high - low) + low) - 1 - 1e-9), 1) + 1
        stages = math.floor(math.log2(self.stop / self.start)) + 1
        return min(self.start * 2 ** min(int(progress * stages + 1e-9), stages), self.stop) + 1


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
        stage = min(int(progress * self.stages + 1e-9), self.stages - 1)
        left = max(self.q ** -(stage + 1), 1 - self.limit)
        sigma = self.path.sigma(s) / self.path.alpha(s)
        ahead = sigma * (1 - left * (1 + 8 * torch.sigmoid(-sigma))).clamp(min=0)
        w = self.path.time_at(-torch.log(ahead)).clamp(0, 1)
        return Times(s.float(), w.float(), torch.zeros(n))


@final
@dataclass(frozen=True)
class LogTangent:
    r"""$t = \frac2\pi\arctan(e^z)$, $z \sim N(\text{mean}, \text{std}^2)$: on the trig path the noise-to-data ratio is log-normal.

    Data of unit deviation; sCM's P_mean for data of deviation $\sigma_d$ is mean + log $\sigma_d$ (arXiv:2410.11081).
    """

    mean: float = 0.0
    std: float = 1.0

    def __call__(self, n: int, generator: Generator) -> Tensor:
        return torch.atan(torch.exp(self.mean + self.std * torch.randn(n, generator=generator))) / (
            torch.pi / 2
        )


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
