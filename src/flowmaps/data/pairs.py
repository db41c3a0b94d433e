r"""Stored trajectories of a model: noise, points on the way, and the sample that it becomes. Two times are the pairs of reflow.

A folder holds one file, `pairs.safetensors`: `points` (N, K, *shape) float32, `times` (K,), and `labels` (N,) if there are
classes; complete or absent, never half-written.
"""

from __future__ import annotations

import contextlib
import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import final

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from flowmaps.data.base import Wrapped, check_labels
from flowmaps.errors import DataError

FILE = "pairs.safetensors"


@final
@dataclass(frozen=True, eq=False)
class PairData:
    """A data set of trajectories; as data it gives their samples.

    Args:
        name: What to call it.
        points: (N, K, *shape), float32, from noise to sample.
        times: Their times (K,), from 1 down.
        labels: Classes (N,), int64, or None.
        classes: Names of the classes.

    Raises:
        DataError: If the shapes do not fit together.
    """

    name: str
    points: Tensor = field(repr=False)
    times: Tensor
    labels: Tensor | None = field(default=None, repr=False)
    classes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        shape = tuple(self.points.shape)
        if len(shape) < 3 or len(self.times) != shape[1] or shape[1] < 2 or not shape[0]:
            raise DataError(
                f"{self.name}: expected points (N, K, *shape) at K >= 2 times; got {shape} at {len(self.times)} times"
            )
        check_labels(self.name, shape[0], self.labels, self.classes)

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one sample."""
        return tuple(self.points.shape[2:])

    def __len__(self) -> int:
        return len(self.points)

    def batch(self, index: Tensor) -> tuple[Tensor, Tensor | None]:
        """As `Data.batch`: the samples at the end of the trajectories."""
        return self.points[index, -1], None if self.labels is None else self.labels[index]

    def trajectory(self, index: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """Points (B, K, *shape), times (K,) and labels (B,) of some rows (B,)."""
        labels = None if self.labels is None else self.labels[index]
        return self.points[index], self.times, labels

    def write(self, folder: Path) -> Path:
        """Store in a folder, atomically.

        Raises:
            DataError: If it cannot be written; what was there is untouched.
        """
        named = {"points": self.points.contiguous(), "times": self.times.contiguous()}
        if self.labels is not None:
            named["labels"] = self.labels.contiguous()
        draft = folder / f".{FILE}.{os.getpid()}"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            save_file(named, draft, {"classes": json.dumps(self.classes)})
            with draft.open("rb") as handle:
                os.fsync(handle)
            draft.replace(folder / FILE)
        except (OSError, SafetensorError) as error:
            with contextlib.suppress(OSError):
                draft.unlink()
            raise DataError(f"the pairs could not be written to {folder} ({error})") from error
        return folder / FILE


@final
@dataclass(frozen=True, eq=False)
class Accompanied(Wrapped):
    """A data set with trajectories beside it, which have rows of their own: terms on data and on trajectories in one recipe."""

    side: PairData

    def __post_init__(self) -> None:
        if self.data.shape != self.side.shape or self.data.classes != self.side.classes:
            raise DataError(
                f"{self.data.name} has samples of shape {self.data.shape} and {len(self.data.classes)} classes, "
                f"{self.side.name} of {self.side.shape} and {len(self.side.classes)}: they must be the same"
            )

    @property
    def name(self) -> str:
        """Of both."""
        return f"{self.data.name}+{self.side.name}"


def read_pairs(folder: Path, name: str) -> PairData:
    """The trajectories of a folder.

    Raises:
        DataError: If there are none, or the file is damaged.
    """
    file = folder / FILE
    if not file.is_file():
        raise DataError(
            f"{folder} has no {FILE}; make it with flowmaps pairs --teacher RUN --out {folder}"
        )
    try:
        with safe_open(file, "pt") as stored:
            named: dict[str, Tensor] = {key: stored.get_tensor(key) for key in stored.keys()}  # noqa: SIM118
            classes = tuple(json.loads((stored.metadata() or {}).get("classes", "[]")))
        return PairData(name, named["points"].float(), named["times"], named.get("labels"), classes)
    except (OSError, SafetensorError, KeyError, ValueError) as error:
        raise DataError(f"{file} is damaged or holds something else ({error})") from error
