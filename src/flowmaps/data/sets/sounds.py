"""Sound that lies on disk, and digits that espeak-ng speaks.

`sounds:FOLDER` refuses a folder with broken or silent files and names the first; `sounds+skip:FOLDER` leaves them out. A folder
alone is looked into as well: one with sound means `sounds:FOLDER`.
"""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import final

import torch
from torch import Tensor

from flowmaps.data.batches import seeded
from flowmaps.data.sets import Ask
from flowmaps.data.sounds import RATE, SoundData, read_clip, sound_data
from flowmaps.errors import DataError

DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
_VOICES = ("m1", "m2", "m3", "m4", "m5", "m6", "m7", "f1", "f2", "f3", "f4", "f5")
_CLIPS = 120
"""Of a digit; more come with another seed."""


@final
@dataclass(frozen=True, eq=False)
class Speech:
    """Digits spoken by espeak-ng, one second each: row i is digit i modulo 10, in a voice, pitch and speed of its own.

    Args:
        split: Names the draw, with the seed.
        seed: Names the draw.
        samples: Length of a clip at 16 kHz.

    Raises:
        DataError: If espeak-ng is not installed, or does not speak.
    """

    split: str = "train"
    seed: int = 0
    samples: int = RATE
    name: str = "speech"
    rate: int = RATE
    classes: tuple[str, ...] = DIGITS
    _kept: dict[int, Tensor] = field(default_factory=dict[int, Tensor], init=False, repr=False)

    def __post_init__(self) -> None:
        if shutil.which("espeak-ng") is None:
            raise DataError(
                "speech: expected the program espeak-ng; got none; install it (Debian: apt-get install espeak-ng), or take "
                "the data 'tones', which need nothing"
            )

    @property
    def shape(self) -> tuple[int, int]:
        """One channel and its samples."""
        return 1, self.samples

    def __len__(self) -> int:
        return _CLIPS * len(DIGITS)

    def batch(self, index: Tensor) -> tuple[Tensor, Tensor]:
        """As `Data.batch`: sound in [-1, 1]."""
        for i in index.tolist():
            if i not in self._kept:
                self._kept[i] = self._speak(i)
        return torch.stack([self._kept[i] for i in index.tolist()]), index % len(DIGITS)

    def _speak(self, i: int) -> Tensor:
        draw = torch.rand(3, generator=seeded("speech", self.split, self.seed, i)).tolist()
        voice, pitch, speed = (
            _VOICES[int(draw[0] * len(_VOICES))],
            20 + 60 * draw[1],
            130 + 70 * draw[2],
        )
        manner = f"-v en+{voice} -p {int(pitch)} -s {int(speed)}".split()
        with TemporaryDirectory() as folder:
            file = Path(folder) / "digit.wav"
            said = subprocess.run(
                ["espeak-ng", *manner, "-w", str(file), DIGITS[i % len(DIGITS)]],
                capture_output=True,
                text=True,
                check=False,
            )
            if said.returncode or not file.exists():
                raise DataError(
                    f"speech: expected espeak-ng to speak; got '{said.stderr.strip()}'; try espeak-ng {' '.join(manner)} one"
                )
            return read_clip(file, self.samples)


def _speech(ask: Ask) -> Speech:
    return Speech(ask.split, ask.seed, ask.size or RATE)


def _sounds(ask: Ask) -> SoundData:
    skip = ask.name.startswith("sounds+skip:")
    place = Path(ask.rest).expanduser()
    if not place.is_dir():
        raise DataError(f"expected a folder of sound; got '{place}'; check the path")
    return sound_data(place, samples=ask.size or RATE, split=ask.split, skip=skip)


LOADERS = {"sounds:": _sounds, "sounds+skip:": _sounds, "speech": _speech}
