"""What a data set is: a name, a shape, and batches drawn by index.

There is no iterator and no worker process here: a training loop asks a
[`Sampler`][flowmaps.data.Sampler] which rows come at a step, and the data set for those rows.
Both are pure functions of their arguments, which makes a run resumable from its step number.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from flowmaps.errors import DataError


class Data(Protocol):
    """A finite data set with random access; the only thing that training needs to know of it."""

    @property
    def name(self) -> str:
        """What to call it in logs and checkpoints."""
        ...

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one x_0, channels first for images."""
        ...

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes, in the order of the labels; empty when unlabelled."""
        ...

    def __len__(self) -> int: ...

    def batch(self, index: Tensor) -> tuple[Tensor, Tensor | None]:
        """Rows of the set.

        Args:
            index: Which rows (B,), int64.

        Returns:
            x_0 (B, *shape), float32, in [-1, 1] for images; labels (B,), int64, or None.
        """
        ...


@runtime_checkable
class Conditioned(Protocol):
    """Data whose samples come with more than a class, such as a caption: what the network is told of a row."""

    @property
    def null(self) -> Mapping[str, Tensor]:
        """What stands for "nothing is told": one row (without B) by the name of its condition."""
        ...

    def conditions(self, index: Tensor) -> dict[str, Tensor]:
        """What is told of the rows (B,), by name, with a leading B."""
        ...


@runtime_checkable
class Judging(Protocol):
    """Data that can tell whether samples are what was asked for."""

    def scores(self, x: Tensor, index: Tensor) -> dict[str, float]:
        """Scores by name of samples (B, *shape) that were told what rows (B,) are told."""
        ...


@dataclass(frozen=True, eq=False)
class Wrapped:
    """Data made of other data, which answer for all that a subclass does not change.

    Args:
        data: The data inside.
    """

    data: Data

    @property
    def name(self) -> str:
        """As `Data.name`."""
        return self.data.name

    @property
    def shape(self) -> tuple[int, ...]:
        """As `Data.shape`."""
        return self.data.shape

    @property
    def classes(self) -> tuple[str, ...]:
        """As `Data.classes`."""
        return self.data.classes

    def __len__(self) -> int:
        return len(self.data)

    def batch(self, index: Tensor) -> tuple[Tensor, Tensor | None]:
        """As `Data.batch`."""
        return self.data.batch(index)


def nulls(data: object) -> Mapping[str, Tensor]:
    """What stands for "nothing is told" of a row of `Data`: of data with classes, the label after the last."""
    if isinstance(data, Conditioned):
        return data.null
    classes = getattr(data, "classes", ())
    return {"label": torch.tensor(len(classes))} if classes else {}


def to_unit(pixels: Tensor) -> Tensor:
    """Bytes 0..255 as float32 in [-1, 1]; float tensors pass unchanged."""
    return pixels.float() / 127.5 - 1 if pixels.dtype == torch.uint8 else pixels


@dataclass(frozen=True, eq=False)
class TensorData:
    """A data set that lies in memory.

    Args:
        name: What to call it.
        x: All x_0 (N, *shape): uint8 pixels 0..255, or float32 as they are (images in [-1, 1]).
        labels: Classes (N,), int64, or None.
        classes: Names of the classes; empty exactly when `labels` is None.

    Raises:
        DataError: If dtypes, lengths or label values do not fit together.

    Example:
        >>> data = TensorData("bytes", torch.tensor([[0], [255]], dtype=torch.uint8))
        >>> data.batch(torch.tensor([1, 0]))[0].flatten().tolist()
        [1.0, -1.0]
    """

    name: str
    x: Tensor = field(repr=False)
    labels: Tensor | None = field(default=None, repr=False)
    classes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.x.dtype not in (torch.uint8, torch.float32):
            raise DataError(
                f"{self.name}: expected x in uint8 or float32; got {self.x.dtype}; convert it first"
            )
        if self.x.ndim < 2 or len(self.x) == 0:
            raise DataError(
                f"{self.name}: expected x of shape (N, *shape) with N > 0; got "
                f"{tuple(self.x.shape)}; stack the items along a first axis"
            )
        check_labels(self.name, len(self.x), self.labels, self.classes)

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one x_0."""
        return tuple(self.x.shape[1:])

    def __len__(self) -> int:
        return len(self.x)

    def batch(self, index: Tensor) -> tuple[Tensor, Tensor | None]:
        """As `Data.batch`."""
        return to_unit(self.x[index]), None if self.labels is None else self.labels[index]


def check_labels(name: str, n: int, labels: Tensor | None, classes: tuple[str, ...]) -> None:
    """Labels are None without classes, else (n,) int64 in 0..len(classes)-1."""
    if labels is None or not classes:
        if labels is not None or classes:
            raise DataError(f"{name}: expected labels and classes together; got one of the two")
        return
    if labels.dtype != torch.int64 or labels.shape != (n,):
        raise DataError(
            f"{name}: expected int64 labels of shape ({n},); got {labels.dtype} of "
            f"{tuple(labels.shape)}; give one class number per item"
        )
    if labels.min() < 0 or labels.max() >= len(classes):
        raise DataError(
            f"{name}: expected labels in 0..{len(classes) - 1}; got {int(labels.min())}.."
            f"{int(labels.max())}; name every class, or renumber the labels"
        )
