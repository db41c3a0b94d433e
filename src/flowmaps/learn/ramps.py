r"""What changes while a run goes on, as functions of its share that is done: progress from 0 to 1.

Ramp, Sigmoid, Decay   a factor: of a derivative, of the length of a first leg
stage, Count           a whole number: of the stage, of the points of a grid
"""

import math
from dataclasses import dataclass
from typing import Literal, final

import torch
from torch import Tensor

from ..errors import RecipeError


@final
@dataclass(frozen=True)
class Ramp:
    """The factor of a derivative: from `start` to `stop` while training progress goes from `begin` to `end`, linearly.

    Where it is not 1 the rule is biased towards its part without the derivative.

    Example:
        >>> Ramp(0.0, 1.0, end=0.5)(torch.tensor(0.25))
        tensor(0.5000)
    """

    start: float
    stop: float
    begin: float = 0.0
    end: float = 1.0

    def __post_init__(self) -> None:
        if not 0 <= self.begin < self.end <= 1:
            raise RecipeError(
                f"Ramp needs 0 <= begin < end <= 1; got begin={self.begin}, end={self.end}"
            )

    def __call__(self, progress: Tensor) -> Tensor:
        share = ((progress - self.begin) / (self.end - self.begin)).clamp(0, 1)
        return self.start + (self.stop - self.start) * share

    def finer(self, factor: int) -> "Ramp":
        """The ramp whose distance from 1, the rule itself, is `factor` times smaller."""
        start, stop = (1 - (1 - r) / factor for r in (self.start, self.stop))
        return Ramp(start, stop, self.begin, self.end)


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


def stage(progress: float, stages: int) -> int:
    """Which of `stages` equal stages of the run, 0-based, a share of it lies in; the end belongs to the last.

    Example:
        >>> [stage(i / 49, 49) for i in (0, 29, 48, 49)]
        [0, 29, 48, 48]
    """
    # i / n * n may fall short of i by rounding
    return min(int(progress * stages + 1e-9), stages - 1)


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
