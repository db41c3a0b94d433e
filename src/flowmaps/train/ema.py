r"""Moving averages of the weights, with half-lives that grow with the run.

$\bar\theta \leftarrow \beta\bar\theta + (1-\beta)\theta$ with $\beta = 2^{-1/(r k)}$ at step k: the half-life is a share r of the
steps done so far, so the profile has the same shape whatever the length of the run (the power-function average of Karras et
al. 2024, arXiv:2312.02696, eq. 5: $\beta_k \approx (1-1/k)^{\ln 2/r}$).
"""

import math
from collections.abc import Mapping
from typing import final

import torch
from torch import Tensor, nn

EVERY, DENSE, LEAST = 8, 256, 2.0**-10
"""Averages are read and written in memory whole, so they are updated at every 8th step once they change slowly, and ever
more rarely once a single update would be less than 1/1024 of the way: its last bits would be lost."""


def span_of(rate: float, every: int = 1) -> int:
    """After how many steps of an average with 1 - decay = `rate` an update is due: a power of two times `every`.

    Example:
        >>> span_of(1e-2), span_of(1e-4), span_of(1e-5, 8)
        (1, 16, 128)
    """
    return every * 2 ** max(0, math.ceil(math.log2(LEAST / (rate * every))))


def warmed(decay: float, step: int) -> float:
    """The decay of a target average at a step (1-based): at most (1 + k) / (10 + k), so that it soon forgets its random start.

    Without that, decay 0.999 would teach a run of two thousand steps from its initial weights.

    Example:
        >>> warmed(0.999, 1), warmed(0.999, 100_000)
        (0.181..., 0.999)
    """
    return min(decay, (1 + step) / (10 + step))


@final
class Average:
    """One moving average of the parameters that a module learns, kept as float32 clones, updated in one fused call."""

    def __init__(self, module: nn.Module, half_life: float) -> None:
        self.half_life = half_life
        self.weights = {name: _wide(p).clone() for name, p in _learned(module).items()}

    @torch.no_grad()
    def update(self, module: nn.Module, step: int) -> None:
        """Take in the weights after step `step` (1-based), at every step at first and at every eighth later."""
        rate = math.log(2) / max(self.half_life * step, 0.5)  # floor: at step 1 nearly all is new
        span = 1 if step <= DENSE else span_of(rate, EVERY)
        if step % span:
            return
        new = [_wide(p) for p in _learned(module).values()]
        torch._foreach_lerp_(list(self.weights.values()), new, -math.expm1(-rate * span))  # pyright: ignore

    def load(self, weights: Mapping[str, Tensor]) -> None:
        """Replace the average."""
        for name, value in self.weights.items():
            value.copy_(weights[name])

    @torch.no_grad()
    def copy_to(self, module: nn.Module) -> None:
        """Write the average into a module of the same shape."""
        named = dict(module.named_parameters())
        for name, value in self.weights.items():
            named[name].copy_(value)


def _learned(module: nn.Module) -> dict[str, nn.Parameter]:
    """What LoRA freezes needs no average."""
    return {name: p for name, p in module.named_parameters() if p.requires_grad}


def _wide(weight: Tensor) -> Tensor:
    """Float32 at least: in bfloat16 an update of less than 1/256 is no update."""
    return weight.detach().to(torch.promote_types(weight.dtype, torch.float32))
