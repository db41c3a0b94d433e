"""Scenes of coloured shapes with captions, drawn as they are asked for: `shapes`, and what `flowmaps.data.scenes` holds back."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

from torch import Tensor

from flowmaps.data.base import to_unit
from flowmaps.data.captions import Captioned
from flowmaps.data.reading import fulfilled, read
from flowmaps.data.scenes import SIDE, Scene, draw, scene
from flowmaps.data.sets import Ask
from flowmaps.data.text import Encoder, Words
from flowmaps.errors import DataError

SPLITS = ("train", "test", "held-out")
WORDS = 28  # the longest caption
EPOCH = 2**18


@final
@dataclass(frozen=True, eq=False)
class Shapes(Captioned):
    """Scenes 3 x 32 x 32 with captions; any row may be asked for, `len` is only what counts as an epoch.

    Args:
        name: What to call it.
        split: "train", "test" (other scenes of the same law), or "held-out": with a pair of shape and colour never seen.
        seed: Names the draw.
        encoder: What reads the captions.
    """

    name: str
    split: str = "train"
    seed: int = 0
    encoder: Encoder = Words(WORDS)
    classes: tuple[str, ...] = ()  # captions tell more

    @property
    def shape(self) -> tuple[int, ...]:
        """Channels, height and width."""
        return 3, SIDE, SIDE

    def __len__(self) -> int:
        return EPOCH

    def scenes(self, index: Tensor) -> list[Scene]:
        """The scenes of rows (B,)."""
        key, held_out = f"shapes/{self.split}/{self.seed}", self.split == "held-out"
        return [scene(key, i, held_out=held_out) for i in index.tolist()]

    def batch(self, index: Tensor) -> tuple[Tensor, Tensor | None]:
        """As `Data.batch`."""
        return to_unit(draw(self.scenes(index))), None

    def captions(self, index: Tensor) -> list[str]:
        """As `Captioned.captions`."""
        return [each.caption for each in self.scenes(index)]

    def scores(self, x: Tensor, index: Tensor) -> dict[str, float]:
        """As `Judging.scores`: how much of what the captions of rows (B,) ask for is in samples (B, 3, 32, 32)."""
        return fulfilled(read(x.cpu()), [each.asked for each in self.scenes(index.cpu())])


def shapes(ask: Ask) -> Shapes:
    """The scenes of a split, which may stand behind the name: `shapes:held-out`."""
    split = ask.rest or ask.split
    if split not in SPLITS or ask.size not in (None, SIDE):
        raise DataError(
            f"{ask.name}: expected split {', '.join(SPLITS)} and size {SIDE}; got {split} and {ask.size}"
        )
    return Shapes(ask.name, split, ask.seed)


LOADERS = {"shapes": shapes, "shapes:": shapes}
