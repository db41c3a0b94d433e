r"""Laws compared by groups of particles that share their times, instead of trajectories one by one.

    PushForward      jumps have the law of the path: X(x_s, s, t) and x_t, from data alone
    Moments          jumps from s and from w to t have one law                              (inductive moment matching)
    EnergyDistance, KernelDistance    how far the two laws of a group are from each other
    Grouped          times that a group shares;    InductiveWeight    IMM's weight of them

Every rule for single trajectories has a blind spot: where the network cannot follow all of them, least squares averages, and
samples lose variance. The law of many endpoints shows that, and data alone tell what it should be: $X(\cdot,s,t)_\# p_s = p_t$.
This is necessary, not sufficient (any coupling of $p_s$ and $p_t$ satisfies it), so it accompanies a rule and replaces none.
"""

from dataclasses import dataclass
from typing import ClassVar, final

import torch
from torch import Generator, Tensor
from torch.nn import functional

from ..core.flow_map import FlowMap
from ..core.interpolant import Interpolant
from ..core.shape import like
from ..errors import RecipeError
from .rules import Models, Points, VelocitySource
from .times import TimeLaw, Times

_CODES = 64  # coordinates of a class, where laws are those of samples with their classes


@final
@dataclass(frozen=True)
class PushForward:
    r"""Jumps of particles have the law of the path: $X(x_s, s, t)$ and $x_t$, to be compared between groups that share s and t.

    The target $x_t$ (B, *D) is on the path of the row's own data and noise, so row i's prediction is independent of row j's
    target for $j \neq i$, and of those only: use it with `EnergyDistance`, which leaves i = j out, and `Grouped` times.

    Attributes:
        told: Root mean square distance between two classes. Above 0 the laws are those of samples with their classes, so that
            jumps must also keep to what they are told; at 0 a teacher has to see to that. Classes 64 apart are one.

    Raises:
        RecipeError: By `Recipe`, with guidance: the law of guided samples is not that of the data.
    """

    told: float = 0.0
    velocity: ClassVar[VelocitySource] = "conditional"
    unguided: ClassVar[bool] = True

    def __call__(self, f: FlowMap, b: Points, models: Models) -> tuple[Tensor, Tensor]:
        s, _, t = b.times
        x_0, eps = f.interpolant.endpoints(b.v, b.x, s, "velocity")
        prediction, target = f(b.x, s, t, **b.cond), f.interpolant.sample(x_0, eps, t)[0]
        if not self.told or "label" not in b.cond:
            return prediction, target
        code = functional.one_hot(b.cond["label"] % _CODES, _CODES).to(target.dtype)
        size = target[0].numel()
        code = code * self.told * (size / 2) ** 0.5
        # the metric's squares are means over all coordinates, those of the class too
        unit = (1 + _CODES / size) ** 0.5
        both = [torch.cat([side.flatten(1), code], 1) * unit for side in (prediction, target)]
        return both[0], both[1]


@final
@dataclass(frozen=True)
class Moments:
    r"""Particles that jump from s and from w to t have one law; measured by `KernelDistance` between groups of them.

    $x_w$ is the point of the same data and noise at w, so the law of $X(x_w, w, t)$ is that of $X(x_s, s, t)$ when the map is
    exact, though single particles differ. The target side is detached. Both sides are endpoints divided by
    $c = |\alpha_t\sigma_s-\alpha_s\sigma_t|$, the factor of the network's output in the endpoint ($s - t$ on the linear path).

    Attributes:
        floor: Smallest c: jumps shorter than this are compared as if they were this long.

    Source:
        Zhou et al. 2025 (IMM, arXiv:2503.07565).
    """

    floor: float = 1e-2
    velocity: ClassVar[VelocitySource] = "conditional"

    def __call__(self, f: FlowMap, b: Points, models: Models) -> tuple[Tensor, Tensor]:
        s, w, t = b.times
        path = f.interpolant
        x_0, eps = path.endpoints(b.v, b.x, s, "velocity")
        x_w = path.sample(x_0, eps, w)[0]
        reach = (path.alpha(t) * path.sigma(s) - path.alpha(s) * path.sigma(t)).abs()
        unit = like(reach.clamp(min=self.floor), b.x)
        other = x_w + like(t - w, x_w) * models.jump("self", x_w, w, t, b)
        return f(b.x, s, t, **b.cond) / unit, other / unit


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
            None makes one group of all rows, of every process its own: more particles, less noise.
        eps: Added to squared distances: the slope of a distance is not defined at 0.

    Raises:
        RecipeError: If the rows are not a multiple of `group`, or a group has one particle.

    Source:
        Szekely & Rizzo 2013 (energy statistics); as an MMD, Sejdinovic et al. 2013 (arXiv:1207.6076).
    """

    group: int | None = None
    eps: float = 1e-6

    def __post_init__(self) -> None:
        if self.group is not None and self.group < 2:
            raise RecipeError(f"energy distance compares particles: group >= 2; got {self.group}")

    def __call__(self, prediction: Tensor, target: Tensor | float = 0.0) -> Tensor:
        size = self.group or len(prediction)
        x, y = _groups(prediction, target, size)
        across = self._distances(x, y)
        within = self._distances(x, x) + self._distances(y, y)
        apart = 1 - torch.eye(size, dtype=x.dtype, device=x.device)
        pairs = (across + across.mT - within) * apart
        return (pairs.sum(-1) / max(size - 1, 1)).T.flatten()

    def _distances(self, x: Tensor, y: Tensor) -> Tensor:
        """(G, M, M), from inner products: differences of all pairs would need D times the memory."""
        squares = x.square().mean(-1)[:, :, None] + y.square().mean(-1)[:, None]
        return (squares - 2 * x @ y.mT / x.shape[-1]).clamp(min=0).add(self.eps).sqrt()


@final
@dataclass(frozen=True)
class KernelDistance:
    r"""The distance of two laws by a Laplace kernel, from groups of M particles $x_i$, $y_i$ of each: a metric of groups of rows.

    $$\frac1{M^2}\sum_{ij} k(x_i, x_j) + k(y_i, y_j) - 2 k(x_i, y_j), \qquad k(x, y) = e^{-\max(\|x-y\|, \epsilon)/D}.$$

    Row i carries the sum over j, symmetrised, so the mean over rows is the mean over groups. A V-statistic: a squared norm,
    never negative in the mean, 0 for equal particles; its part i = j couples the particles of a row, as in the paper.

    Attributes:
        group: M; the rows i, i + B/M, i + 2B/M, ... are a group (`Grouped`), so that shards of a batch hold whole groups.
        eps: Bound on the distance inside the kernel, whose slope is not finite at 0.

    Raises:
        RecipeError: If the rows are not a multiple of `group`.

    Source:
        Zhou et al. 2025 (IMM, arXiv:2503.07565).
    """

    group: int = 4
    eps: float = 1e-8

    def __call__(self, prediction: Tensor, target: Tensor | float = 0.0) -> Tensor:
        x, y = _groups(prediction, target, self.group)
        across = self._kernel(x, y)
        within = self._kernel(x, x) + self._kernel(y, y)
        return (within - across - across.mT).mean(-1).T.flatten()

    def _kernel(self, x: Tensor, y: Tensor) -> Tensor:
        """(G, M, M), from differences: particles of one row may be close, and inner products lose their digits."""
        square = (x[:, :, None] - y[:, None]).square().sum(-1)
        return torch.exp(-square.clamp(min=self.eps**2).sqrt() / x.shape[-1])


@final
@dataclass(frozen=True)
class InductiveWeight:
    r"""IMM's $\frac12\,\mathrm{sigmoid}(b-\lambda_s)(-\dot\lambda_s)\,\alpha_s^a/(\alpha_s^2+\sigma_s^2)$.

    $\lambda = \log\alpha^2/\sigma^2$; Zhou et al. 2025 (arXiv:2503.07565), with a in {1, 2} and b between 4 and 5.
    Written without the quotients that are infinite at the ends: $-\dot\lambda/2 = W/(\alpha\sigma)$ with the Wronskian
    $W = \alpha\dot\sigma-\dot\alpha\sigma$, and $\mathrm{sigmoid}(b-\lambda) = e^b\sigma^2/(e^b\sigma^2+\alpha^2)$.
    """

    a: int = 1
    b: float = 5.0

    def __post_init__(self) -> None:
        if self.a < 1:
            raise RecipeError(f"the weight is infinite at pure noise unless a >= 1; got {self.a}")

    def __call__(self, path: Interpolant, s: Tensor, t: Tensor) -> Tensor:
        alpha, sigma = path.alpha(s), path.sigma(s)
        wronskian = alpha * path.dsigma(s) - path.dalpha(s) * sigma
        lift = torch.exp(torch.as_tensor(self.b, dtype=s.dtype))
        top = lift * sigma * wronskian * alpha ** (self.a - 1)
        return top / ((lift * sigma.square() + alpha.square()) * (alpha.square() + sigma.square()))


@final
@dataclass(frozen=True)
class Grouped:
    """A law whose times are shared by groups of `size` rows: row i has those of row i + n/size, as metrics of groups want.

    With `size` None all rows have the same times.
    """

    law: TimeLaw
    size: int | None = None

    def __call__(self, n: int, generator: Generator, progress: float = 0.0) -> Times:
        size = self.size or n
        drawn = self.law(-(-n // size), generator, progress)
        return Times(*(time.repeat(size)[:n] for time in drawn))


def _groups(prediction: Tensor, target: Tensor | float, size: int) -> tuple[Tensor, Tensor]:
    """Both sides (B, *D) as groups of particles (B / size, size, D)."""
    if len(prediction) % size:
        raise RecipeError(
            f"laws are compared between groups of {size} particles, but there are {len(prediction)} rows; choose a batch "
            "for which share x batch is a multiple of the group on every process"
        )
    other = torch.as_tensor(target, dtype=prediction.dtype, device=prediction.device)
    x, y = (
        side.reshape(size, len(prediction) // size, -1).transpose(0, 1)
        for side in (prediction, other.expand_as(prediction))
    )
    return x, y
