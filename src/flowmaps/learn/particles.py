r"""Laws compared by their samples: jumps push the law of the path at s forward to its law at t.

Every rule for single trajectories has a blind spot: where the network cannot follow all of them, least squares averages, and
samples lose variance. The law of many endpoints shows that, and data alone tell what it should be: $X(\cdot,s,t)_\# p_s = p_t$.
This is necessary, not sufficient (any coupling of $p_s$ and $p_t$ satisfies it), so it accompanies a rule and replaces none.
"""

from dataclasses import dataclass
from typing import ClassVar, final

import torch
from torch import Tensor

from ..core.flow_map import FlowMap
from ..errors import RecipeError
from .rules import Models, Points


@final
@dataclass(frozen=True)
class PushForward:
    r"""Jumps of particles have the law of the path: $X(x_s, s, t)$ and $x_t$, to be compared between groups that share s and t.

    The target $x_t$ (B, *D) is on the path of the row's own data and noise, so row i's prediction is independent of row j's
    target for $j \neq i$, and of those only: use it with `EnergyDistance`, which leaves i = j out, and `Grouped` times.

    Raises:
        RecipeError: By `Recipe`, with guidance: the law of guided samples is not that of the data.
    """

    unguided: ClassVar[bool] = True

    def __call__(self, f: FlowMap, b: Points, models: Models) -> tuple[Tensor, Tensor]:
        s, _, t = b.times
        x_0, eps = f.interpolant.endpoints(b.v, b.x, s, "velocity")
        return f(b.x, s, t, **b.cond), f.interpolant.sample(x_0, eps, t)[0]


@final
@dataclass(frozen=True)
class EnergyDistance:
    r"""Energy distance of two laws from groups of M particles $x_i$ and $y_i$ of each: a metric of groups of rows.

    $$\frac{1}{M(M-1)}\sum_{i\neq j} \|x_i-y_j\| + \|y_i-x_j\| - \|x_i-x_j\| - \|y_i-y_j\|, \qquad
      \|x\|^2 = \tfrac1D\textstyle\sum_d x_d^2 .$$

    A U-statistic: its mean is zero if and only if the laws are equal, and positive otherwise, also where $x_i$ and $y_i$ of one
    row depend on each other; single values may be negative. Row i carries the sum over j.

    Attributes:
        group: M; the rows i, i + B/M, i + 2B/M, ... are a group (`Grouped`), so that shards of a batch hold whole groups.
        eps: Added to squared distances: the slope of a distance is not defined at 0.

    Raises:
        RecipeError: If the rows are not a multiple of `group`, or a group has one particle.

    Source:
        Szekely & Rizzo 2013 (energy statistics); as an MMD, Sejdinovic et al. 2013 (arXiv:1207.6076).
    """

    group: int = 64
    eps: float = 1e-6

    def __post_init__(self) -> None:
        if self.group < 2:
            raise RecipeError(f"energy distance compares particles: group >= 2; got {self.group}")

    def __call__(self, prediction: Tensor, target: Tensor | float = 0.0) -> Tensor:
        if len(prediction) % self.group:
            raise RecipeError(
                f"the energy distance compares groups of {self.group} particles, but has {len(prediction)} rows; choose a "
                "batch for which share x batch is a multiple of the group on every process"
            )
        other = torch.as_tensor(target, dtype=prediction.dtype, device=prediction.device)
        x, y = (
            side.reshape(self.group, len(prediction) // self.group, -1).transpose(0, 1)
            for side in (prediction, other.expand_as(prediction))
        )
        across = self._distances(x, y)
        within = self._distances(x, x) + self._distances(y, y)
        apart = 1 - torch.eye(self.group, dtype=x.dtype, device=x.device)
        pairs = (across + across.mT - within) * apart
        return (pairs.sum(-1) / (self.group - 1)).T.flatten()

    def _distances(self, x: Tensor, y: Tensor) -> Tensor:
        """(G, M, M), from inner products: differences of all pairs would need D times the memory."""
        squares = x.square().mean(-1)[:, :, None] + y.square().mean(-1)[:, None]
        return (squares - 2 * x @ y.mT / x.shape[-1]).clamp(min=0).add(self.eps).sqrt()
