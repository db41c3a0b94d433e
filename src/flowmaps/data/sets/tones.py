"""The sounds of `flowmaps.data.tones` by name: `tones` with classes, `tones:captions` with captions."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from flowmaps.data.batches import seeded
from flowmaps.data.captions import Captioned
from flowmaps.data.sets import Ask
from flowmaps.data.text import Encoder, Words
from flowmaps.data.tones import INSTRUMENTS, LOUDNESS, NOTES, RATE, SAMPLES, clip, frequency
from flowmaps.errors import DataError

CLIPS = 40
"""Clips of a class; more come with another seed."""


def parts(name: str) -> tuple[str, str, str | None]:
    """Loudness, instrument and note of a class."""
    loud, instrument, *note = name.split()
    return loud, instrument, note[0] if note else None


def _classes() -> tuple[str, ...]:
    kinds = [f"{i} {n}" for i in INSTRUMENTS if i != "drum" for n in NOTES]
    return tuple(f"{loud} {kind}" for loud in LOUDNESS for kind in (*kinds, "drum"))


@final
@dataclass(frozen=True)
class Tones:
    """Clips of one second (1, 16000). Row i is of class i modulo their number, and depends on seed, split and i only.

    Args:
        split: Names the draw, with the seed.
        seed: Names the draw.
    """

    split: str = "train"
    seed: int = 0
    name: str = "tones"
    rate: int = RATE
    classes: tuple[str, ...] = _classes()

    @property
    def shape(self) -> tuple[int, int]:
        """One channel and its samples."""
        return 1, SAMPLES

    @property
    def pitches(self) -> Tensor:
        """What is asked for by each class, in Hz; NaN of a drum."""
        notes = (parts(c)[2] for c in self.classes)
        return torch.tensor([frequency(n) if n else math.nan for n in notes])

    @property
    def families(self) -> Tensor:
        """Number of the instrument of each class."""
        return torch.tensor([INSTRUMENTS.index(parts(c)[1]) for c in self.classes])

    def __len__(self) -> int:
        return CLIPS * len(self.classes)

    def batch(self, index: Tensor) -> tuple[Tensor, Tensor]:
        """As `Data.batch`: sound in [-1, 1]."""
        return torch.stack([self._clip(int(i)) for i in index])[:, None], index % len(self.classes)

    def _clip(self, i: int) -> Tensor:
        loud, instrument, note = parts(self.classes[i % len(self.classes)])
        return clip(instrument, note, loud == "loud", seeded("tones", self.split, self.seed, i))


@final
@dataclass(frozen=True, eq=False)
class ToldTones(Captioned):
    """The same clips with captions in place of classes, such as "a soft string plays c4".

    Args:
        tones: The clips.
        encoder: What reads the captions.
    """

    tones: Tones
    encoder: Encoder = Words(length=8, letters=8)
    name: str = "tones:captions"
    rate: int = RATE
    shape: tuple[int, int] = (1, SAMPLES)
    classes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.tones)

    def batch(self, index: Tensor) -> tuple[Tensor, None]:
        """As `Data.batch`."""
        return self.tones.batch(index)[0], None

    def captions(self, index: Tensor) -> list[str]:
        """As `Captioned.captions`; the wording depends on seed, split and row."""
        return [self._caption(i) for i in index.tolist()]

    def _caption(self, i: int) -> str:
        loud, instrument, note = parts(self.tones.classes[i % len(self.tones.classes)])
        wording = seeded("caption", self.tones.split, self.tones.seed, i)
        form = _WORDINGS[int(torch.randint(len(_WORDINGS), (1,), generator=wording))]
        played = f" plays {note}" if note else " is hit"
        return form.format(loud=loud, instrument=instrument, played=played, note=note or "a hit")


_WORDINGS = (
    "a {loud} {instrument}{played}",
    "{instrument}, {loud}, {note}",
    "{note} on a {instrument}, {loud}",
)


def _tones(ask: Ask) -> Tones | ToldTones:
    """Seconds of sound; clips have no size.

    Raises:
        DataError: If a size is asked for.
    """
    if ask.size is not None:
        raise DataError(
            f"{ask.name}: expected no size, it is sound; got size={ask.size}; leave it out"
        )
    tones = Tones(ask.split, ask.seed)
    return ToldTones(tones) if ask.name == "tones:captions" else tones


LOADERS = {"tones": _tones, "tones:captions": _tones}
