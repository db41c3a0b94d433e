"""Data whose samples come with captions, and what a checkpoint remembers of them."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Self, cast

import torch
from torch import Tensor

from flowmaps.data.base import Data, Wrapped, to_unit
from flowmaps.data.folders import split_folder
from flowmaps.data.images import ImageCache, channels_of, open_image
from flowmaps.data.text import Encoder, Pretrained, Words, encoder, kept, words_for
from flowmaps.errors import DataError


class Captioned(ABC):
    """Data whose rows have captions; a subclass is a frozen dataclass with an `encoder` field. It implements `Conditioned`."""

    encoder: Encoder

    @abstractmethod
    def captions(self, index: Tensor) -> list[str]:
        """The captions of rows (B,)."""

    @property
    def null(self) -> Mapping[str, Tensor]:
        """As `Conditioned.null`: the empty text."""
        return {name: value[0] for name, value in self.encoder([""]).items()}

    def conditions(self, index: Tensor) -> dict[str, Tensor]:
        """As `Conditioned.conditions`."""
        return self.encoder(self.captions(index))

    def read_by(self, encoder: Encoder) -> Self:
        """The same data, with another encoder."""
        return replace(cast("Any", self), encoder=encoder)


@dataclass(frozen=True, eq=False)
class CaptionedImages(Captioned):
    """Images with a caption each: a folder with metadata.jsonl, a column of texts on the hub, emoji with their names.

    Args:
        name: What to call it.
        images: The decoded images, cached.
        texts: Caption of each image.
        encoder: What reads the captions.
    """

    name: str
    images: ImageCache
    texts: tuple[str, ...] = field(repr=False)
    encoder: Encoder
    classes: tuple[str, ...] = ()

    @property
    def shape(self) -> tuple[int, ...]:
        """Channels, height and width."""
        return self.images.shape

    def __len__(self) -> int:
        return len(self.texts)

    def batch(self, index: Tensor) -> tuple[Tensor, Tensor | None]:
        """As `Data.batch`."""
        return to_unit(self.images.get(index)), None

    def captions(self, index: Tensor) -> list[str]:
        """As `Captioned.captions`."""
        return [self.texts[i] for i in index.tolist()]

    def conditions(self, index: Tensor) -> dict[str, Tensor]:
        """As `Conditioned.conditions`; a pretrained encoder reads every caption once, and what it said is kept in a file."""
        if isinstance(self.encoder, Words):
            return super().conditions(index)
        return {name: value[index] for name, value in kept(self.encoder, self.texts).items()}


def read_by(data: Data, model: str | None) -> Data:
    """The data with their captions read by a text model of transformers; without a name as they are.

    Raises:
        DataError: If the data have no captions.
    """
    if model is None:
        return data
    if not isinstance(data, Captioned):
        raise DataError(
            f"{data.name}: expected captions for the text model {model!r}; got none; leave it out"
        )
    return cast("Data", data.read_by(Pretrained(model)))


EXAMPLES = 12
"""Captions that a checkpoint remembers."""


def texts(data: Data) -> dict[str, Any]:
    """What a checkpoint must remember to read prompts: `text`, the settings of the encoder, and some captions, `examples`."""
    told = data
    while isinstance(told, Wrapped) and not isinstance(told, Captioned):
        told = told.data
    if not isinstance(told, Captioned):
        return {}
    rows = torch.arange(min(EXAMPLES, len(data)))
    return {"text": told.encoder.settings, "examples": told.captions(rows)}


def in_turn(about: Mapping[str, Any], rows: Tensor) -> dict[str, Tensor]:
    """What samples are told when nobody asks for anything: the classes in turn, or the captions that the checkpoint remembers.

    Args:
        about: The part `data` of a checkpoint's description.
        rows: Numbers of the samples (B,).
    """
    if about.get("examples"):
        told = encoder(about["text"])(about["examples"])
        return {name: value[rows % len(value)] for name, value in told.items()}
    classes = about.get("classes", ())
    return {"label": rows % len(classes)} if classes else {}


METADATA = "metadata.jsonl"


def captioned_folder(
    folder: Path, *, size: int | None = None, split: str = "train"
) -> CaptionedImages:
    """A folder of images with captions in metadata.jsonl, laid out as `datasets` does: a json object per line, `file_name`, `text`.

    Args:
        folder: Where the file lies, or a sub-folder of it that is called after the split.
        size: Side in pixels to crop and resize to; by default the shorter side of the first image.
        split: Sub-folder to look into; "train" takes the folder itself if there is none.

    Raises:
        DataError: If there is no such split, a line is not understood, or an image is missing.
    """
    root = split_folder(folder, split)
    rows = [
        _row(root, k, line) for k, line in enumerate(_lines(root / METADATA), 1) if line.strip()
    ]
    if not rows:
        raise DataError(f"{root / METADATA}: expected a line for each image; got none")
    files, texts = zip(*rows, strict=True)
    first = open_image(files[0])
    cache = ImageCache(
        lambda i: open_image(files[i]),
        min(first.size) if size is None else size,
        channels_of(first),
    )
    return CaptionedImages(folder.name, cache, texts, words_for(texts))


def has_captions(folder: Path, split: str) -> bool:
    """Whether a folder, or its sub-folder of a split, has captions."""
    return (folder / METADATA).is_file() or (folder / split / METADATA).is_file()


def _lines(file: Path) -> list[str]:
    try:
        return file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{file}: expected lines of json in UTF-8; got '{error}'") from error


def _row(root: Path, number: int, line: str) -> tuple[Path, str]:
    try:
        row = json.loads(line)
        return root / row["file_name"], str(row["text"])
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(
            f'{root / METADATA}: expected {{"file_name": ..., "text": ...}} in line {number}; got {line[:60]!r}'
        ) from error
