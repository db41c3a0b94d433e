r"""Noise optimisation: climb the reward of what a noise becomes (ReNO, Eyring et al. 2024, arXiv:2406.04312).

With a map of one jump an iteration is one forward and one backward. It ends in a mode: many noises climb to similar samples, and
the pull to the shell on which noise lives is all that keeps them likely. For samples of the tilt use `noise_mcmc`.
"""

from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor

from ..core.flow_map import FlowMap
from ..core.shape import like
from ..errors import ControlError
from ..sample.sample import sample
from .budget import Budget, Result
from .conditions import ONE_JUMP, prior_scale, spread
from .rewards import Reward, slope


@final
@dataclass(frozen=True, eq=False)
class Optimised(Result):
    """The best sample of every row's climb.

    Attributes:
        noise: The noises (B, *D) that became `x`.
        trace: Rewards at every step (steps + 1, B).
    """

    noise: Tensor = torch.empty(0)
    trace: Tensor = torch.empty(0)


def optimize_noise(
    flow_map: FlowMap,
    reward: Reward,
    noise: Tensor,
    *,
    steps: int = 50,
    rate: float = 5.0,
    clip: float | None = 0.1,
    radius: float = 0.01,
    momentum: float = 0.9,
    gaussian: bool = False,
    times: Tensor = ONE_JUMP,
    **cond: Any,
) -> Optimised:
    r"""Gradient ascent of $r(X(z,1,0))$ in the noise, with Nesterov momentum and a prior on its length.

    Args:
        flow_map: Any flow map; a grid of one jump is the cheap one.
        reward: Differentiable.
        noise: Where rows start (B, *D).
        steps: Updates.
        rate: Their size, in units of the prior. ReNO's 5 goes with its clipped gradients.
        clip: Longest gradient per row; None leaves it.
        radius: Weight of $\log p$ of the length, $(d-1)\log|z|-\frac12|z|^2$: ReNO's.
        momentum: Nesterov's.
        gaussian: The density $-\frac12|z|^2$ instead, with weight `radius`. With 1 the end is the mode of the tilt in noise space:
            the posterior mean for Gaussian data and a quadratic reward.
        times: Grid from noise to data.
        cond: Conditions, with a leading 1 or B.

    Raises:
        ControlError: For a reward without gradient, or settings without meaning.
    """
    if steps < 1 or not rate > 0 or not 0 <= momentum < 1 or radius < 0:
        raise ControlError(
            f"optimisation needs steps >= 1, rate > 0, momentum in [0, 1), radius >= 0; got {steps}, {rate}, {momentum}, {radius}"
        )
    cond = spread(cond, len(noise))
    with Budget() as budget:
        model, score = budget.watch(flow_map), budget.score(reward)
        scale = prior_scale(model.interpolant)
        z, speed, trace = noise / scale, torch.zeros_like(noise), list[Tensor]()
        x, r, g = _ends(model, score, z, scale, times, cond)
        best = (x, r, z)
        for _ in range(steps):
            trace.append(r)
            g = g + radius * _to_shell(z, gaussian)
            if clip is not None:
                g = g * like(clip / g.flatten(1).norm(dim=1).clamp(min=clip), g)
            speed = momentum * speed + g
            z = z + rate * (g + momentum * speed)
            x, r, g = _ends(model, score, z, scale, times, cond)
            # a mode is asked for by `gaussian`, not the best by reward alone
            take = r >= r if gaussian else r > best[1]
            best = _chosen(take, (x, r, z), best)
    x, trace = best[0], torch.stack([*trace, r])
    return Optimised(x, budget.cost, best[1], noise=scale * best[2], trace=trace)


def _to_shell(z: Tensor, gaussian: bool) -> Tensor:
    """The gradient of the log-density of the noise, or of its length alone."""
    square = z.flatten(1).square().sum(1)
    return -z if gaussian else like((z[0].numel() - 1) / square - 1, z) * z


def _chosen(rows: Tensor, new: tuple[Tensor, ...], old: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return tuple(torch.where(like(rows, a), a, b) for a, b in zip(new, old, strict=True))


def _ends(
    model: FlowMap, score: Reward, z: Tensor, scale: float, times: Tensor, cond: dict[str, Any]
) -> tuple[Tensor, Tensor, Tensor]:
    """Samples, rewards and gradients in the noise."""
    kept: list[Tensor] = []

    def value(point: Tensor) -> Tensor:
        kept.append(sample(model, scale * point, times, **cond))
        return score(kept[-1])

    r, g = slope(value, z)
    return kept[-1].detach(), r, g
