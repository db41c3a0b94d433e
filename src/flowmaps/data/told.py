"""Data that know nothing of what a network is told: texts beside them, and no data at all."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import final

import torch
from torch import Tensor

from flowmaps.data.base import Wrapped
from flowmaps.data.captions import Captioned
from flowmaps.data.text import Encoder, kept


@final
@dataclass(frozen=True, eq=False)
class Prompted(Captioned, Wrapped):
    """Data with a text for every row, all texts in turn if there are fewer; read once, and kept in a file.

    Args:
        data: The samples; their classes are dropped.
        texts: One per row, or fewer.
        encoder: What reads them.
    """

    texts: tuple[str, ...] = field(repr=False)
    encoder: Encoder

    @property
    def classes(self) -> tuple[str, ...]:
        """None: it is the texts that are told."""
        return ()

    def batch(self, index: Tensor) -> tuple[Tensor, Tensor | None]:
        """As `Data.batch`, without labels."""
        return self.data.batch(index)[0], None

    def captions(self, index: Tensor) -> list[str]:
        """As `Captioned.captions`."""
        return [self.texts[i % len(self.texts)] for i in index.tolist()]

    def conditions(self, index: Tensor) -> dict[str, Tensor]:
        """As `Conditioned.conditions`."""
        table = kept(self.encoder, self.texts)
        return {name: value[index % len(value)] for name, value in table.items()}


@final
@dataclass(frozen=True)
class Nothing:
    """No data: zeros, for recipes that learn from noise and a teacher alone (`Recipe.needs_data`).

    Args:
        shape: Of one sample.
        classes: Names of the classes that the teacher knows, all in turn.
        length: How many rows there seem to be: at least one for each thing that the network may be told.
    """

    shape: tuple[int, ...]
    classes: tuple[str, ...] = ()
    length: int = 4096
    name: str = "none"

    def __len__(self) -> int:
        return self.length

    def batch(self, index: Tensor) -> tuple[Tensor, Tensor | None]:
        """As `Data.batch`."""
        labels = index % len(self.classes) if self.classes else None
        return torch.zeros(len(index), *self.shape), labels


def no_samples(data: object) -> bool:
    """Whether there are no samples, only what is told, however it is wrapped."""
    while isinstance(data, Wrapped):
        data = data.data
    return isinstance(data, Nothing)
