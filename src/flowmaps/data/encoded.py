"""A data set seen through a codec: points to learn from instead of images or clips, every row encoded once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, cast, final

import torch
from torch import Tensor

from flowmaps.codec import Codec, open_codec
from flowmaps.data.base import Conditioned, Data, Wrapped
from flowmaps.data.pairs import Accompanied, PairData
from flowmaps.errors import DataError

_BUDGET = 2**30  # bytes: some 16 000 seconds of sound at 16 kHz


@dataclass(frozen=True, eq=False)
class Encoded(Wrapped):
    """The rows of a data set as a codec's points, with the labels of the data; build it with `encoded`.

    Args:
        data: What is encoded.
        codec: How.
        budget: Bytes of points to keep; what comes after is encoded every time.
    """

    codec: Codec
    budget: int = _BUDGET
    _kept: dict[int, tuple[Tensor, Tensor | None]] = field(
        default_factory=dict[int, tuple[Tensor, Tensor | None]], init=False, repr=False
    )

    @property
    def rate(self) -> int | None:
        """Samples per second, if the data are sound."""
        return getattr(self.data, "rate", None)

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the points."""
        return self.codec.shape

    def batch(self, index: Tensor) -> tuple[Tensor, Tensor | None]:
        """As `Data.batch`."""
        rows = index.tolist()
        missing = [i for i in dict.fromkeys(rows) if i not in self._kept]
        found = self._encode(missing) if missing else {}
        pairs = [found[i] if i in found else self._kept[i] for i in rows]
        room = self.budget // max(pairs[0][0].nbytes, 1) - len(self._kept)
        self._kept.update(list(found.items())[: max(room, 0)])
        points = torch.stack([z for z, _ in pairs])
        if pairs[0][1] is None:
            return points, None
        return points, torch.stack([cast("Tensor", label) for _, label in pairs])

    def _encode(self, rows: list[int]) -> dict[int, tuple[Tensor, Tensor | None]]:
        x, labels = self.data.batch(torch.tensor(rows))
        with torch.no_grad():
            points = self.codec.encode(x)
        return {
            i: (points[k].clone(), None if labels is None else labels[k])
            for k, i in enumerate(rows)
        }


@final
class _Told(Encoded):
    """Encoded data whose rows come with more than a class."""

    @property
    def null(self) -> Mapping[str, Tensor]:
        return cast("Conditioned", self.data).null

    def conditions(self, index: Tensor) -> dict[str, Tensor]:
        return cast("Conditioned", self.data).conditions(index)


def encoded(data: Data, codec: str | None) -> Data:
    """The data seen through the codec of a name (`flowmaps.codec.open_codec`); without a name the data themselves.

    Raises:
        DataError: If there is no such codec, it does not take such data, or the data hold points already.
    """
    if codec is None:
        return data
    if isinstance(data, PairData | Accompanied):
        raise DataError(
            f"{data.name}: expected data of their own for codec '{codec}'; got stored trajectories, whose points are "
            "encoded already; leave the codec or the trajectories out"
        )
    kind = _Told if isinstance(data, Conditioned) else Encoded
    return kind(data, open_codec(codec, data.shape))


def medium(data: Data) -> dict[str, Any]:
    """What a checkpoint must remember to turn points into files: `rate` of sound; `codec`, and `decoded`, the shape behind it."""
    found: dict[str, Any] = {}
    if getattr(data, "rate", None) is not None:
        found["rate"] = cast("Any", data).rate
    if isinstance(data, Encoded):
        found |= {"codec": data.codec.name, "decoded": list(data.data.shape)}
    return found
