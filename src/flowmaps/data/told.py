"""What the network is told of rows that know nothing themselves: embeddings in a table, and no data at all."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import final

import torch
from torch import Tensor

from flowmaps.data.base import Data
from flowmaps.errors import DataError


@final
@dataclass(frozen=True, eq=False)
class Told:
    """Data with a row of a table beside each sample, such as the embedding of its caption; `Conditioned`.

    Args:
        data: The samples; their classes are dropped.
        table: By the name of a condition, its values (P, ...).
        which: Row of the table of every sample (N,), int64.
        null: By the same names, one row that stands for "nothing is told".

    Raises:
        DataError: If lengths or names do not fit together.
    """

    data: Data
    table: Mapping[str, Tensor] = field(repr=False)
    which: Tensor = field(repr=False)
    null: Mapping[str, Tensor] = field(repr=False)
    classes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        rows = {len(values) for values in self.table.values()}
        if len(rows) != 1 or set(self.null) - set(self.table):
            raise DataError(
                f"{self.data.name}: expected conditions with equally many rows and a null among their names; "
                f"got { ({name: len(v) for name, v in self.table.items()}) } and the nulls {sorted(self.null)}"
            )
        if len(self.which) != len(self.data) or int(self.which.max()) >= next(iter(rows)):
            raise DataError(
                f"{self.data.name}: expected a row of the table for each of {len(self.data)} samples; "
                f"got {len(self.which)}, up to row {int(self.which.max())} of {next(iter(rows))}"
            )

    @property
    def name(self) -> str:
        return self.data.name

    @property
    def shape(self) -> tuple[int, ...]:
        return self.data.shape

    def __len__(self) -> int:
        return len(self.data)

    def batch(self, index: Tensor) -> tuple[Tensor, Tensor | None]:
        """As `Data.batch`, without labels."""
        return self.data.batch(index)[0], None

    def conditions(self, index: Tensor) -> dict[str, Tensor]:
        """As `Conditioned.conditions`."""
        rows = self.which[index]
        return {name: values[rows] for name, values in self.table.items()}


@final
@dataclass(frozen=True)
class Nothing:
    """No data: zeros, for recipes that learn from noise and a teacher alone (`Recipe.needs_data`).

    Args:
        shape: Of one sample.
        classes: Names of the classes that the teacher knows, all in turn.
        rows: How many there seem to be: at least one for each thing that the network may be told.
    """

    shape: tuple[int, ...]
    classes: tuple[str, ...] = ()
    rows: int = 4096
    name: str = "none"

    def __len__(self) -> int:
        return self.rows

    def batch(self, index: Tensor) -> tuple[Tensor, Tensor | None]:
        """As `Data.batch`."""
        labels = index % len(self.classes) if self.classes else None
        return torch.zeros(len(index), *self.shape), labels
