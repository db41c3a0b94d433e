r"""Data that come with a measurement of themselves, $y = A(m \odot x) + \sigma n$: what learned restorers learn from."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import final

import torch
from torch import Generator, Tensor

from flowmaps.data.base import Conditioned, Wrapped, nulls
from flowmaps.data.batches import seeded
from flowmaps.errors import DataError

Masks = Callable[[int, Generator], Tensor]
"""Draws masks of ones and zeros: (n, ...), to be spread over samples (n, *shape)."""


def _whole(x: Tensor) -> Tensor:
    return x


@final
@dataclass(frozen=True, eq=False)
class Measured(Wrapped):
    r"""Data that tell, beside what they tell anyhow, how they were seen (`Conditioned`).

    * `back` (B, *shape): $A^\top y$, all that a Gaussian likelihood knows of y, in the shape of a sample;
    * `seen` (B, *shape): the mask m, ones without `masks`;
    * `sigma` (B,): the deviation of the noise.

    Mask and noise are fixed by the rows of a batch together: the same batch is seen in the same way, so a run resumes bit for
    bit, and in the next epoch, where a row has other neighbours, it is seen anew. Never mirror such data (`Run.flip`): what is
    told would be of the other side.

    Args:
        data: The data.
        sigma: Deviation of the noise, above 0.
        operator: A, linear, of (B, *shape); the identity by default.
        masks: Draws m; by default nothing is hidden.
        seed: Of masks and noise.

    Raises:
        DataError: If sigma is not positive.

    Example:
        >>> from flowmaps.data import TensorData
        >>> data = Measured(TensorData("two", torch.ones(2, 1)), 0.1, lambda x: 2 * x)
        >>> told = data.conditions(torch.tensor([0, 1]))
        >>> told["back"].shape, told["seen"].flatten().tolist()
        (torch.Size([2, 1]), [1.0, 1.0])
    """

    sigma: float
    operator: Callable[[Tensor], Tensor] = _whole
    masks: Masks | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.sigma > 0:
            raise DataError(
                f"expected noise of deviation sigma > 0; got {self.sigma:g}; 1e-3 stands for none"
            )

    @property
    def null(self) -> Mapping[str, Tensor]:
        """As `Conditioned.null`: nothing is seen."""
        nothing = torch.zeros(self.shape)
        return {**nulls(self.data), "back": nothing, "seen": nothing, "sigma": torch.ones(())}

    def conditions(self, index: Tensor) -> dict[str, Tensor]:
        """As `Conditioned.conditions`."""
        x, labels = self.data.batch(index)
        told = {} if labels is None else {"label": labels}
        if isinstance(self.data, Conditioned):
            told = self.data.conditions(index)
        generator = seeded("measured", self.seed, *index.tolist())
        seen = torch.ones_like(x)
        if self.masks is not None:
            seen = self.masks(len(x), generator).to(x).expand_as(x).contiguous()
        with torch.enable_grad():
            origin = x.clone().requires_grad_()
            clean = self.operator(seen * origin)
            y = clean.detach() + self.sigma * torch.randn(clean.shape, generator=generator)
            back = torch.autograd.grad(clean, origin, y)[0]
        return {**told, "back": back, "seen": seen, "sigma": torch.full((len(x),), self.sigma)}
