r"""Moving averages of the weights, with half-lives that grow with the run.

$\bar\theta \leftarrow \beta\bar\theta + (1-\beta)\theta$ with $\beta = 2^{-1/(r k)}$ at step k: the half-life is a share r of the
steps done so far, so the profile has the same shape whatever the length of the run (the power-function average of Karras et
al. 2024, arXiv:2312.02696, eq. 5: $\beta_k \approx (1-1/k)^{\ln 2/r}$).
"""

from collections.abc import Mapping
from typing import final

import torch
from torch import Tensor, nn

EVERY, DENSE = 8, 256
"""Averages are read and written in memory whole, so they are updated at every 8th step once they change slowly."""


@final
class Average:
    """One moving average of a module's parameters, kept as clones, updated in one fused call."""

    def __init__(self, module: nn.Module, half_life: float) -> None:
        self.half_life = half_life
        self.weights = {name: p.detach().clone() for name, p in module.named_parameters()}

    @torch.no_grad()
    def update(self, module: nn.Module, step: int) -> None:
        """Take in the weights after step `step` (1-based), at every step at first and at every eighth later."""
        span = 1 if step <= DENSE else EVERY
        if step % span:
            return
        new = [p.detach() for p in module.parameters()]
        # floor 1/2: the average starts as a copy, at step 1 nearly all is new
        decay = 0.5 ** (span / max(self.half_life * step, 0.5))
        torch._foreach_lerp_(list(self.weights.values()), new, 1 - decay)  # pyright: ignore

    def load(self, weights: Mapping[str, Tensor]) -> None:
        """Replace the average."""
        for name, value in self.weights.items():
            value.copy_(weights[name])

    @torch.no_grad()
    def copy_to(self, module: nn.Module) -> None:
        """Write the average into a module of the same shape."""
        for name, p in module.named_parameters():
            p.copy_(self.weights[name])
