"""What a codec is, and how a name opens one."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Protocol, cast, runtime_checkable

from torch import Tensor

from ..errors import DataError

Opener = Callable[[str, tuple[int, ...]], "Codec"]
"""From what follows the colon of a name ("" without one) and the shape of one sample of the data to a codec."""

CODECS: dict[str, str | Opener] = {
    "mdct": "flowmaps.codec.mdct:open_mdct",
    "stft": "flowmaps.codec.stft:open_stft",
    "advance": "flowmaps.codec.stft:open_advance",
    "mel": "flowmaps.codec.stft:open_mel",
    "vae": "flowmaps.adapters.vae:open_vae",
}
"""Openers by name, or where to import one when it is asked for."""


@runtime_checkable
class Codec(Protocol):
    """Points instead of data. Both ways are pure functions of single rows: a row's neighbours never matter."""

    @property
    def name(self) -> str:
        """What `open_codec` opens the same codec by, with all its settings: `mdct:500`."""
        ...

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one encoded sample."""
        ...

    def encode(self, x: Tensor) -> Tensor:
        """Data (B, *data) as points (B, *shape), float32, about of unit variance."""
        ...

    def decode(self, z: Tensor) -> Tensor:
        """Points (B, *shape) as data (B, *data); what no data encode to is decoded all the same."""
        ...


def open_codec(name: str, shape: tuple[int, ...]) -> Codec:
    """The codec of a name such as `mdct`, `mdct:256` or `vae:FOLDER`, for data of a shape.

    Raises:
        DataError: If there is no such codec, or it does not take such data.

    Example:
        >>> open_codec("mdct", (1, 16000)).shape
        (500, 32)
    """
    head, _, rest = name.partition(":")
    if head not in CODECS:
        raise DataError(
            f"expected a codec of {', '.join(sorted(CODECS))}; got '{name}'; write one of them, or leave it out"
        )
    opener = CODECS[head]
    if isinstance(opener, str):
        module, _, function = opener.partition(":")
        opener = cast("Opener", getattr(import_module(module), function))
    return opener(rest, shape)


def check_clips(codec: str, shape: tuple[int, ...]) -> None:
    """Codecs of sound take clips (channels, samples).

    Raises:
        DataError: For anything else.
    """
    if len(shape) != 2 or min(shape) < 1:
        raise DataError(
            f"codec {codec}: expected clips of shape (channels, samples); got {shape}; use it with sound"
        )


def whole(codec: str, text: str, default: int) -> int:
    """The positive number after the colon of a codec's name.

    Raises:
        DataError: If it is none.
    """
    if not text:
        return default
    if not text.isdigit() or int(text) < 2:
        raise DataError(
            f"codec {codec}: expected a number of at least 2 after the colon; got '{text}'; write {codec}:{default}"
        )
    return int(text)
