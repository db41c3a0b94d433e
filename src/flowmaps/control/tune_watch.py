r"""How far a tuned map has gone, and whether it is still a map: what is looked at while rewards are climbed.

A reward that rises says little. `examine` puts beside it the rewards that nobody trained on, what the rise has cost, between
two estimates of the divergence from the base, and whether one, two and four jumps still end in the same place.

* `kl_path`, from above: the divergence of the two memoryless processes, $\frac12\int E|D_\theta-D_{base}|^2\,d\,\mathrm{snr}$ along
  the path of the tuned map's own samples (D the denoised mean, snr $=\alpha^2/\sigma^2$; Girsanov), at the midpoints of equal
  cells of time. Exact at a tilt whose velocities are right; blind to what jumps do without their velocities, which `disagree`
  tells: then neither is to be trusted.
* `kl_reward`, from below: the divergence of the rewards alone, by Gaussians of their mean and their deviation given the
  condition. Any function of the samples diverges less than the samples do.
"""

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, final

import torch
from torch import Generator, Tensor

from ..core.flow_map import FlowMap
from ..core.interpolant import Interpolant
from ..core.shape import like
from ..errors import ControlError
from ..sample import generate, uniform
from .conditions import normal
from .rewards import Reward, scored
from .tune_rules import centred

STEPS = (1, 2, 4)
"""Jumps that samples are drawn with."""


@final
@dataclass(frozen=True)
class Standing:
    """Where a tuned map stands.

    Attributes:
        rewards: Of every reward by name, the mean over samples of 1, 2 and 4 jumps (`Examiner.steps`).
        deviations: Of every reward, the deviation over samples of one jump that are told the same.
        kl_path: Divergence from the base, from above, in nats.
        kl_reward: Divergence from the base, from below, in nats: of the first reward alone.
        disagree: Distance of the samples of 1 and of 2 jumps from those of the most jumps, over their spread.
        spread: Deviation of the samples of one jump over that of the base's (1 is as diverse; falls when modes are lost).
        moved: Root mean square distance of the samples of one jump from the base's of the same noise, over the base's spread.
    """

    rewards: dict[str, list[float]]
    deviations: dict[str, float]
    kl_path: float
    kl_reward: float
    disagree: list[float]
    spread: float
    moved: float

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for json."""
        return asdict(self)


@final
class Examiner:
    """Examines maps on the same noises, beside one base.

    Args:
        base: The map before tuning.
        rewards: By name; the first is the one that is tuned to, the others are held out.
        noise: Noises (N, *D) that are never trained on.
        steps: Jumps that samples are drawn with, the fewest first; a model of velocities needs more than `STEPS`.
        cells: Midpoints of the integral of `kl_path`.
        batch: Rows per call.
        cond: Conditions of the noises.

    Raises:
        ControlError: Without rewards or with less than two noises.
    """

    def __init__(
        self,
        base: FlowMap,
        rewards: Mapping[str, Reward],
        noise: Tensor,
        *,
        steps: Sequence[int] = STEPS,
        cells: int = 16,
        batch: int = 250,
        **cond: Any,
    ) -> None:
        if not rewards or len(noise) < 2:
            raise ControlError(
                f"an examiner needs a reward and two noises; got {len(rewards)} and {len(noise)}"
            )
        self.base, self.rewards, self.noise = base, dict(rewards), noise
        self.steps, self.cells, self.batch, self.cond = tuple(steps), cells, batch, cond
        self.drawn = self.draw(base, self.steps[0])
        self.before = scored(next(iter(self.rewards.values())), self.drawn)
        self.deviation = self._deviation(self.before)

    @torch.no_grad()
    def draw(self, flow_map: FlowMap, steps: int) -> Tensor:
        """Samples (N, *D) of so many jumps."""
        grid = uniform(steps)
        parts = (generate(flow_map, z, grid, **cond) for z, cond in self._parts(self.noise))
        return torch.cat(list(parts))

    @torch.no_grad()
    def __call__(self, flow_map: FlowMap) -> Standing:
        """Where a map stands."""
        drawn = [self.draw(flow_map, k) for k in self.steps]
        found = {name: [scored(r, x) for x in drawn] for name, r in self.rewards.items()}
        deviations = {name: self._deviation(each[0]) for name, each in found.items()}
        first = next(iter(found))
        gap = float(found[first][0].mean() - self.before.mean())
        spread, base_spread = _spread(drawn[0]), _spread(self.drawn)
        last = _spread(drawn[-1])
        return Standing(
            rewards={name: [float(r.mean()) for r in each] for name, each in found.items()},
            deviations=deviations,
            kl_path=self.kl_path(flow_map, drawn[0]),
            kl_reward=gaussian_kl(gap, deviations[first], self.deviation),
            disagree=[_distance(x, drawn[-1]) / last for x in drawn[:-1]],
            spread=spread / base_spread,
            moved=_distance(drawn[0], self.drawn) / base_spread,
        )

    @torch.no_grad()
    def kl_path(self, flow_map: FlowMap, x_0: Tensor) -> float:
        """The integral of the module's first formula, on samples (N, *D); the noise is always the same."""
        generator = Generator().manual_seed(0)
        total, path = 0.0, flow_map.interpolant
        times = (torch.arange(self.cells) + 0.5) / self.cells
        for t in times.to(x_0):
            for x, cond in self._parts(x_0):
                at = t.expand(len(x)).contiguous()
                x_t, _ = path.sample(x, normal(x, generator), at)
                off = flow_map.velocity(x_t, at, **cond) - self.base.velocity(x_t, at, **cond)
                squares = off.square() * like(girsanov(path, at), off)
                total += float(squares.sum()) / len(x_0) / self.cells
        return total

    def _deviation(self, r: Tensor) -> float:
        return float(centred(r, self.cond).square().mean().sqrt())

    def _parts(self, x: Tensor) -> list[tuple[Tensor, dict[str, Any]]]:
        cuts = [*range(0, len(x), self.batch), len(x)]
        return [
            (x[a:b], {key: value[a:b] for key, value in self.cond.items()})
            for a, b in itertools.pairwise(cuts)
        ]


def girsanov(path: Interpolant, t: Tensor) -> Tensor:
    r"""$\alpha/(\sigma(\alpha\dot\sigma-\dot\alpha\sigma))$ (B,): what a squared difference of velocities counts in `kl_path`.

    On the linear path it is (1 - t) / t.
    """
    alpha, sigma = path.alpha(t), path.sigma(t)
    return alpha / (sigma * (alpha * path.dsigma(t) - path.dalpha(t) * sigma))


def gaussian_kl(gap: float, deviation: float, base: float) -> float:
    """The divergence, in nats, of a normal law from one of deviation `base` whose mean is `gap` away; 0 if that does not vary.

    Example:
        >>> gaussian_kl(2.0, 1.0, 1.0)
        2.0
    """
    if not base > 0:
        return 0.0
    ratio = deviation / base
    return 0.5 * (ratio**2 + (gap / base) ** 2 - 1) - math.log(max(ratio, 1e-12))


def _spread(x: Tensor) -> float:
    """Root mean square distance from the mean."""
    return float((x - x.mean(0)).square().flatten(1).sum(1).mean().sqrt())


def _distance(x: Tensor, y: Tensor) -> float:
    return float((x - y).square().flatten(1).sum(1).mean().sqrt())
