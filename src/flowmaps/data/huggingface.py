"""Image data sets of the Hugging Face hub, through the package `datasets`, imported when used."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any, final

import torch
from torch import Tensor

from flowmaps.data.base import check_labels, to_unit
from flowmaps.data.captions import CaptionedImages
from flowmaps.data.images import Channels, ImageCache, channels_of
from flowmaps.data.text import words_for
from flowmaps.errors import DataError


@final
@dataclass(frozen=True, eq=False)
class HubData:
    """Rows of a Hugging Face data set; build it with [`hub_data`][flowmaps.data.hub_data].

    Args:
        name: What to call it.
        images: The decoded images, cached.
        labels: Class of each image (N,), int64, or None.
        classes: Names of the classes, or ().
        n: Number of rows.
    """

    name: str
    images: ImageCache
    labels: Tensor | None = field(repr=False)
    classes: tuple[str, ...]
    n: int

    def __post_init__(self) -> None:
        check_labels(self.name, self.n, self.labels, self.classes)

    @property
    def shape(self) -> tuple[int, ...]:
        """Channels, height and width."""
        return self.images.shape

    def __len__(self) -> int:
        return self.n

    def batch(self, index: Tensor) -> tuple[Tensor, Tensor | None]:
        """As `Data.batch`."""
        return to_unit(self.images.get(index)), None if self.labels is None else self.labels[index]


def hub_data(
    name: str,
    *,
    split: str = "train",
    size: int | None = None,
    channels: Channels | None = None,
    image: str | None = None,
    label: str | None = None,
    text: str | None = None,
) -> HubData | CaptionedImages:
    """An image data set of the hub, or one saved or laid out in a local folder.

    Args:
        name: Repository on the hub, or a folder: saved by `save_to_disk`, or one of images.
        split: As the data set calls it.
        size: Side in pixels; by default the shorter side of the first image.
        channels: 1 for grayscale, 3 for RGB; by default as the first image.
        image: Column of the images; by default the only one of type `Image`.
        label: Column of the classes; by default the only one of type `ClassLabel`, if any.
        text: Column of captions, instead of classes; by default one that is called text, caption or prompt, if there are no
            classes.

    Raises:
        DataError: If `datasets` is missing, the set or split cannot be read, or a column is not
            there or cannot be told from others.
    """
    rows = _open(name, split)
    image = _column(name, rows, "Image", image)
    label = _column(name, rows, "ClassLabel", label)
    if image is None:
        raise DataError(
            f"hf:{name}: expected a column of type Image; got {list(rows.features)}; "
            "name it with hub_data(..., image=...)"
        )
    pictures = rows.select_columns([image])
    first = pictures[0][image]
    cache = ImageCache(
        lambda i: pictures[i][image],
        min(first.size) if size is None else size,
        channels_of(first) if channels is None else channels,
    )
    told = [c for c in ("text", "caption", "prompt") if c in rows.features and label is None]
    if text is not None or told:
        captions = tuple(
            str(t) for t in rows[_column(name, rows, "Value", text) if text else told[0]]
        )
        return CaptionedImages(f"hf:{name}", cache, captions, words_for(captions))
    labels, classes = (None, ()) if label is None else _labels(rows, label)
    return HubData(f"hf:{name}", cache, labels, classes, len(rows))


def _datasets() -> ModuleType:
    try:
        import datasets  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise DataError(
            "hf: expected the package 'datasets'; got no such package; pip install datasets"
        ) from error
    return datasets


def _open(name: str, split: str) -> Any:  # noqa: ANN401
    """The rows of one split; errors of `datasets` are many, so all are told as one kind."""
    datasets = _datasets()
    folder = Path(name).expanduser()
    try:
        if any((folder / f).is_file() for f in ("dataset_dict.json", "state.json")):
            saved: Any = datasets.load_from_disk(str(folder))
            rows = saved[split] if isinstance(saved, dict) else saved
        else:
            rows = datasets.load_dataset(str(folder) if folder.is_dir() else name, split=split)
    except Exception as error:
        raise DataError(
            f"hf:{name}: expected split '{split}' of a data set; got {type(error).__name__} "
            f"'{error}'; check name, split and network"
        ) from error
    if len(rows) == 0:
        raise DataError(f"hf:{name}: expected rows in split '{split}'; got none; choose another")
    return rows


def _column(name: str, rows: Any, kind: str, given: str | None) -> str | None:  # noqa: ANN401
    """The column given, or the only one of a type, or None if there is none."""
    found = [c for c, feature in rows.features.items() if type(feature).__name__ == kind]
    if given is not None and given not in rows.features:
        raise DataError(f"hf:{name}: expected a column '{given}'; got {list(rows.features)}")
    if given is None and len(found) > 1:
        raise DataError(
            f"hf:{name}: expected one column of type {kind}; got {found}; "
            f"name it with hub_data(..., {'image' if kind == 'Image' else 'label'}=...)"
        )
    return given or next(iter(found), None)


def _labels(rows: Any, column: str) -> tuple[Tensor, tuple[str, ...]]:  # noqa: ANN401
    """Class numbers and names; columns of another type than ClassLabel are numbered sorted."""
    values: list[Any] = list(rows[column])
    if type(rows.features[column]).__name__ == "ClassLabel":
        return torch.tensor(values), tuple(rows.features[column].names)
    names = sorted(set(values))
    number = {value: k for k, value in enumerate(names)}
    return torch.tensor([number[v] for v in values]), tuple(str(v) for v in names)
