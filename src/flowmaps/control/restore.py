r"""Restoration: what data can have been seen as $y = A x + \sigma n$? Draws of the posterior, or its best point.

`restore` sets the problem, one of the methods of `flowmaps.control.restorers` solves it, or one of `flowmaps.control.amortised`
that was learned before, and `coverage` tells whether its draws mean what they say. A Gaussian world tells the methods apart: its
posterior is known.
"""

from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Generator, Tensor

from ..core.flow_map import FlowMap
from .amortised import VFM, CoSIGN
from .budget import Budget, Result
from .conditions import spread
from .operators import Measurement, Operator
from .restorers import (
    Denoise,
    NoiseMAP,
    NoisePosterior,
    PiGDM,
    PlugAndPlay,
    PnPCM,
    Problem,
    Restorer,
    denoised,
)

__all__ = [
    "VFM",
    "CoSIGN",
    "Denoise",
    "NoiseMAP",
    "NoisePosterior",
    "PiGDM",
    "PlugAndPlay",
    "PnPCM",
    "Problem",
    "Restored",
    "Restorer",
    "coverage",
    "denoised",
    "restore",
]


@final
@dataclass(frozen=True, eq=False, kw_only=True)
class Restored(Result):
    r"""What `restore` found: in `x` the draws (N, B, *D).

    Attributes:
        residual: $|y-Ax|^2/(m\sigma^2)$ of every draw (N, B): about 1 if the noise is as claimed, below it the noise was fitted.
    """

    residual: Tensor

    @property
    def mean(self) -> Tensor:
        """The mean over draws (B, *D): the least-squares restoration."""
        return self.x.mean(0)

    @property
    def std(self) -> Tensor:
        """The deviation over draws (B, *D): where not to trust it."""
        return self.x.std(0, unbiased=len(self.x) > 1)


def restore(
    flow_map: FlowMap,
    y: Tensor,
    operator: Operator,
    sigma: float,
    *,
    shape: tuple[int, ...],
    method: Restorer | None = None,
    draws: int = 1,
    generator: Generator,
    **cond: Any,
) -> Restored:
    """Data that can have been measured as `y`, under the law of a flow map.

    Args:
        flow_map: Any flow map.
        y: Measurements (B, *M).
        operator: The linear measurement: `Mask`, `Blur`, `Downsample`, `Matrix`, or any linear function torch can differentiate.
        sigma: Deviation of the measurement's noise; never less than the true one.
        shape: Of one datum, (*D).
        method: How; `PiGDM()` by default.
        draws: Draws per measurement, from independent noises.
        generator: CPU generator; it advances.
        cond: Conditioning, tensors with a leading B.

    Raises:
        ControlError: If the operator is not linear or does not fit, or sigma is not positive.
    """
    seen = Measurement(y, operator, sigma)
    like_one = torch.zeros(len(y), *shape, dtype=y.dtype, device=y.device)
    seen.check(like_one)
    noise = flow_map.interpolant.prior((draws * len(y), *shape), generator).to(like_one)
    given = {
        key: value.repeat(draws, *[1] * (value.ndim - 1)) if isinstance(value, Tensor) else value
        for key, value in spread(cond, len(y)).items()
    }
    with torch.no_grad(), Budget() as budget:
        watched = budget.watch(flow_map)
        problem = Problem(watched, seen.repeat(draws), noise, generator, given)
        found = (method or PiGDM())(problem)
    x = found.reshape(draws, len(y), *shape)
    residual = problem.seen.residual(found).reshape(draws, len(y))
    return Restored(x=x, cost=budget.cost, residual=residual)


def coverage(
    draws: Tensor, truth: Tensor, levels: tuple[float, ...] = (0.68, 0.95)
) -> dict[float, float]:
    """How often the truth lies in the central interval of the draws.

    By ranks: calibrated draws put it in each of N + 1 gaps equally often, so they cover a level as often as it says at any N.

    Draws are (N, B, *D), what was drawn first is (B, *D).
    """
    width = 1 / (len(draws) + 1)
    low = (draws < truth).double().sum(0) * width

    def covered(level: float) -> float:
        top, bottom = (low + width).clamp(max=(1 + level) / 2), low.clamp(min=(1 - level) / 2)
        return float((top - bottom).clamp(min=0).mean() / width)

    return {level: covered(level) for level in levels}
