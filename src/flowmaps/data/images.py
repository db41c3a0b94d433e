"""Images that lie on disk: decoded when asked for, kept as bytes while memory lasts."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal, final

import torch
from torch import Tensor

from flowmaps.data.base import check_labels, to_unit
from flowmaps.data.folders import files_below, labels_of, split_folder, sub_folders
from flowmaps.errors import DataError

if TYPE_CHECKING:
    from PIL.Image import Image

Channels = Literal[1, 3]
_SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm"}
_THREADS = 4  # decoding releases the interpreter lock; more than 4 wait for each other on Linux
_BUDGET = 2**30  # bytes: all of CIFAR, or 87 000 images of 3 x 64 x 64


@final
@dataclass(frozen=True, eq=False)
class ImageCache:
    """Decoded images by number: centre-cropped, resized, uint8.

    Args:
        fetch: Opens image number i, fully decoded; raises DataError for a broken one.
        size: Side in pixels.
        channels: 1 for grayscale, 3 for RGB.
        budget: Bytes of decoded images to keep; what comes after is decoded every time.
    """

    fetch: Callable[[int], Image]
    size: int
    channels: Channels
    budget: int = _BUDGET
    _kept: dict[int, Tensor] = field(default_factory=dict[int, Tensor], init=False, repr=False)

    def __post_init__(self) -> None:
        if self.size < 1:
            raise DataError(f"expected size >= 1 pixel; got {self.size}; leave it out")

    @property
    def shape(self) -> tuple[int, int, int]:
        """Channels, height and width of every image."""
        return self.channels, self.size, self.size

    def get(self, index: Tensor) -> Tensor:
        """Images of the rows `index` (B,), as uint8 (B, channels, size, size)."""
        rows = [int(i) for i in index]
        missing = [i for i in dict.fromkeys(rows) if i not in self._kept]
        with ThreadPoolExecutor(_THREADS) as pool:
            new = dict(zip(missing, pool.map(self._decode, missing), strict=True))
        found = torch.stack([new[i] if i in new else self._kept[i] for i in rows])
        self._keep(new)
        return found

    def _keep(self, new: dict[int, Tensor]) -> None:
        room = self.budget // (self.channels * self.size**2) - len(self._kept)
        self._kept.update(list(new.items())[: max(room, 0)])

    def _decode(self, i: int) -> Tensor:
        return to_bytes(self.fetch(i), self.size, self.channels)


def to_bytes(image: Image, size: int, channels: Channels) -> Tensor:
    """An image centre-cropped to a square and resized, as uint8 (channels, size, size)."""
    import numpy as np
    from PIL.Image import Resampling
    from PIL.ImageOps import exif_transpose, fit

    flat = _eight_bit(exif_transpose(image)).convert("L" if channels == 1 else "RGB")
    square = fit(flat, (size, size), Resampling.BICUBIC)
    return torch.from_numpy(np.array(square)).reshape(size, size, channels).permute(2, 0, 1)


def _eight_bit(image: Image) -> Image:
    """PIL clips 16-bit images at 255 when it converts them; they are scaled here instead."""
    import numpy as np
    from PIL import Image

    if not image.mode.startswith("I;16"):
        return image
    return Image.fromarray((np.array(image) >> 8).astype(np.uint8))


def open_image(path: Path) -> Image:
    """A decoded image file.

    Raises:
        DataError: If the file is missing, damaged, or no image.
    """
    from PIL import Image

    try:
        with Image.open(path) as image:
            image.load()
            return image
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise DataError(
            f"{path}: expected an image; got '{error}'; replace the file or take it out"
        ) from error


def channels_of(image: Image) -> Channels:
    """1 for a grayscale image, 3 for any other."""
    return 1 if image.mode in ("1", "L", "LA") or image.mode.startswith("I") else 3


@final
@dataclass(frozen=True, eq=False)
class FolderData:
    """A folder of image files, one sub-folder per class if there are sub-folders.

    Build it with [`folder_data`][flowmaps.data.folder_data].

    Args:
        name: What to call it.
        images: The decoded images, cached.
        labels: Class of each image (N,), int64, or None.
        classes: Names of the classes (the sub-folders, sorted), or ().
        files: Path of each image.
    """

    name: str
    images: ImageCache
    labels: Tensor | None = field(repr=False)
    classes: tuple[str, ...]
    files: tuple[Path, ...] = field(repr=False)

    def __post_init__(self) -> None:
        check_labels(self.name, len(self.files), self.labels, self.classes)

    @property
    def shape(self) -> tuple[int, ...]:
        """Channels, height and width."""
        return self.images.shape

    def __len__(self) -> int:
        return len(self.files)

    def batch(self, index: Tensor) -> tuple[Tensor, Tensor | None]:
        """As `Data.batch`; raises DataError naming the file if one cannot be decoded."""
        return to_unit(self.images.get(index)), None if self.labels is None else self.labels[index]


def folder_data(
    folder: Path,
    *,
    size: int | None = None,
    channels: Channels | None = None,
    split: str = "train",
    budget: int = _BUDGET,
) -> FolderData:
    """Every image file below a folder.

    Args:
        folder: Images, or sub-folders of images (then they are the classes), or sub-folders
            named after splits that hold either.
        size: Side in pixels to crop and resize to; by default the shorter side of the first image.
        channels: 1 for grayscale, 3 for RGB; by default as the first image.
        split: Sub-folder to look into; "train" takes the folder itself if there is none.
        budget: Bytes of decoded images to keep in memory.

    Raises:
        DataError: If there is no image, no such split, or the first image is broken.
    """
    root = split_folder(folder, split)
    classes = sub_folders(root, _SUFFIXES)
    files = tuple(f for c in classes or ("",) for f in files_below(root / c, _SUFFIXES))
    if not files:
        raise DataError(
            f"{root}: expected image files ({', '.join(sorted(_SUFFIXES))}) or IDX files; "
            "got none; check the path"
        )
    first = open_image(files[0])
    images = ImageCache(
        lambda i: open_image(files[i]),
        min(first.size) if size is None else size,
        channels_of(first) if channels is None else channels,
        budget,
    )
    return FolderData(folder.name, images, labels_of(root, files, classes), classes, files)
