"""The point clouds of `flowmaps.data.toy` as data sets of 10 000 points."""

from __future__ import annotations

from collections.abc import Callable

from torch import Generator, Tensor

from flowmaps.data import toy
from flowmaps.data.base import TensorData
from flowmaps.data.batches import seeded
from flowmaps.data.sets import Ask, Loader
from flowmaps.errors import DataError

_POINTS = 10_000


def _cloud(draw: Callable[[int, Generator], Tensor]) -> Loader:
    def cloud(ask: Ask) -> TensorData:
        """The cloud, drawn anew for every seed and split; points have no `size`."""
        if ask.size is not None:
            raise DataError(f"{ask.name}: expected no size, it is points; got size={ask.size}")
        return TensorData(ask.name, draw(_POINTS, seeded(ask.name, ask.split, ask.seed)))

    return cloud


LOADERS = {
    "toy:moons": _cloud(toy.moons),
    "toy:checkerboard": _cloud(toy.checkerboard),
    "toy:rings": _cloud(toy.rings),
    "toy:mixture": _cloud(toy.mixture),
}
