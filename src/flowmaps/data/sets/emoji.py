"""Colour emoji with their Unicode names, from the font of Debian's fonts-noto-color-emoji: a real set that needs no hub."""

from __future__ import annotations

import unicodedata
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, final

import torch
from torch import Tensor

from flowmaps.data.captions import CaptionedImages
from flowmaps.data.images import ImageCache
from flowmaps.data.sets import Ask
from flowmaps.data.text import words_for
from flowmaps.errors import DataError

if TYPE_CHECKING:
    from PIL.Image import Image

FONT = "NotoColorEmoji.ttf"
FOLDERS = ("/usr/share/fonts", "/usr/local/share/fonts", "~/.local/share/fonts", "~/.fonts")
STRIKE = 109  # the one size that the font holds, in pixels
TESTED = 10  # every tenth emoji is held back for the split "test"


@final
@dataclass(frozen=True, eq=False)
class Emoji(CaptionedImages):
    """Emoji, which tell whether a picture is the one that was asked for: it is nearer to it than to any other."""

    def scores(self, x: Tensor, index: Tensor) -> dict[str, float]:
        """As `Judging.scores`: the share of samples whose nearest emoji is their own, and how far in root mean squares it is."""
        known = self.batch(torch.arange(len(self)))[0].flatten(1)
        exact = "donot_use_mm_for_euclid_dist"  # by products equal pictures are a hundredth apart
        apart = torch.cdist(x.cpu().float().flatten(1), known, compute_mode=exact)
        own = apart.gather(1, index.cpu()[:, None])[:, 0]
        # some signs are drawn alike: a tie is no mistake
        found = own <= apart.min(1).values * (1 + 1e-5)
        return {
            "found": float(found.double().mean()),
            "distance": float(own.mean()) / known.shape[1] ** 0.5,
        }


def emoji(ask: Ask) -> Emoji:
    """Some 1,300 pictures on white with names such as "grinning face", 32 pixels wide unless another size is asked for.

    Raises:
        DataError: If the font is not installed, or there is no such split.
    """
    if ask.split not in ("train", "test"):
        raise DataError(f"{ask.name}: expected split 'train' or 'test'; got '{ask.split}'")
    places = (Path(folder).expanduser() for folder in FOLDERS)
    font = next((file for place in places for file in sorted(place.rglob(FONT))), None)
    if font is None:
        raise DataError(
            f"{ask.name}: expected the font {FONT} in {', '.join(FOLDERS)}; got none; apt-get install fonts-noto-color-emoji"
        )
    signs = _signs(font)
    kept = [sign for i, sign in enumerate(signs) if (i % TESTED == 0) == (ask.split == "test")]
    texts = tuple(unicodedata.name(sign).lower() for sign in kept)
    size = 32 if ask.size is None else ask.size
    # as many words as the longest of all names, so that both splits fit one network
    reader = words_for([unicodedata.name(sign).lower() for sign in signs])
    return Emoji(ask.name, ImageCache(lambda i: _drawn(font, kept[i]), size, 3), texts, reader)


def _signs(font: Path) -> list[str]:
    """The single characters that are pictures: named, and neither letters, digits nor parts of flags and families."""
    from fontTools.ttLib import TTFont

    with TTFont(font) as table:
        codes = sorted(table.getBestCmap() or {})
    signs = [chr(code) for code in codes if code > 0x2000]
    return [
        s
        for s in signs
        if unicodedata.category(s) == "So" and "REGIONAL" not in unicodedata.name(s, "REGIONAL")
    ]


def _drawn(font: Path, sign: str) -> Image:
    """A sign in colour on white."""
    from PIL import Image, ImageDraw, ImageFont

    face = ImageFont.truetype(str(font), STRIKE)
    left, top, right, bottom = face.getbbox(sign)
    side = int(max(right - left, bottom - top))
    page = Image.new("RGB", (side, side), "white")
    place = ((side - right - left) / 2, (side - bottom - top) / 2)
    ImageDraw.Draw(page).text(place, sign, font=face, embedded_color=True)
    return page


LOADERS = {"emoji": emoji}
