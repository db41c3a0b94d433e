"""IDX, the file format of MNIST and its relatives.

A file is: two zero bytes, a type byte (8 = unsigned byte), the number of axes, then each axis
length as a big-endian 32-bit integer, then the values; often gzipped.

Source:
    Y. LeCun, C. Cortes, C. Burges, *The MNIST database*, section "The IDX file format".
    Checked: tests/data/test_idx.py.
"""

from __future__ import annotations

import gzip
import struct
import zlib
from math import prod
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from flowmaps.data.base import TensorData
from flowmaps.errors import DataError

_UNSIGNED_BYTE = 8
_PREFIX = {"train": "train", "test": "t10k"}


def read_idx(path: Path, axes: int) -> Tensor:
    """One IDX file of unsigned bytes.

    Args:
        path: The file, gzipped or not (told by its first bytes, not by its name).
        axes: Number of axes to expect: 3 for images (N, H, W), 1 for labels (N,).

    Returns:
        The values, uint8, with `axes` axes.

    Raises:
        DataError: If the file is missing, not IDX, of another rank, truncated, or has a tail.
    """
    raw = _bytes(path)
    start = 4 + 4 * axes
    magic = struct.pack(">HBB", 0, _UNSIGNED_BYTE, axes)
    if len(raw) < start or raw[:4] != magic:
        raise DataError(
            f"{path}: expected an IDX header {magic.hex()} and {axes} axis lengths; got "
            f"{raw[:4].hex() or 'an empty file'} in {len(raw)} bytes; download the file again"
        )
    shape = struct.unpack(f">{axes}I", raw[4:start])
    if len(raw) != start + prod(shape):
        raise DataError(
            f"{path}: expected {prod(shape)} values for shape {shape}; got {len(raw) - start}; "
            "the file is truncated or damaged, download it again"
        )
    return torch.frombuffer(bytearray(raw), dtype=torch.uint8, offset=start).reshape(shape)


def _bytes(path: Path) -> bytes:
    try:
        raw = path.read_bytes()
        return gzip.decompress(raw) if raw[:2] == b"\x1f\x8b" else raw
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(
            f"{path}: expected a readable IDX file; got '{error}'; download it again"
        ) from error


def find_idx(folder: Path, split: str) -> tuple[Path, Path] | None:
    """Image and label file of a split in MNIST's layout, or None if neither is there.

    Raises:
        DataError: If there is one without the other, or the split is not "train" or "test".
    """
    if split not in _PREFIX:
        raise DataError(f"{folder}: expected split 'train' or 'test'; got '{split}'; name one")
    images, labels = (_find(folder, f"{_PREFIX[split]}-{what}") for what in ("images", "labels"))
    if images is not None and labels is not None:
        return images, labels
    if images is None and labels is None:
        return None
    raise DataError(
        f"{folder}: expected images and labels of split '{split}'; got only "
        f"{(images or labels)}; put the other file beside it"
    )


def _find(folder: Path, stem: str) -> Path | None:
    """The file as MNIST (`-idx`) or its mirrors (`.idx`) spell it, plain before gzipped."""
    axes = 3 if stem.endswith("images") else 1
    names = (f"{stem}{dot}idx{axes}-ubyte{end}" for end in ("", ".gz") for dot in "-.")
    return next((folder / name for name in names if (folder / name).is_file()), None)


def has_idx(folder: Path) -> bool:
    """Whether any file of MNIST's layout lies in the folder."""
    return any(find_idx(folder, split) is not None for split in _PREFIX)


def idx_data(
    folder: Path,
    *,
    name: str,
    split: str = "train",
    size: int | None = None,
    classes: tuple[str, ...] = (),
) -> TensorData:
    """A folder in MNIST's layout as a data set of 1 x H x W images.

    Args:
        folder: Where `train-images-idx3-ubyte` and its relatives lie.
        name: What to call the data set.
        split: "train", or "test" for the files that begin with `t10k`.
        size: Side to resize to, in pixels; None keeps the stored size.
        classes: Names of the classes; by default the numbers 0..max.

    Raises:
        DataError: If a file is missing or damaged, or counts differ.
    """
    files = find_idx(folder, split)
    if files is None:
        raise DataError(
            f"{folder}: expected {_PREFIX[split]}-images-idx3-ubyte[.gz] for split '{split}'; "
            "got no such file; check the folder or ask for the other split"
        )
    images, labels = read_idx(files[0], 3), read_idx(files[1], 1).long()
    if len(images) != len(labels):
        raise DataError(
            f"{folder}: expected as many images as labels; got {len(images)} and {len(labels)}; "
            "the two files are not of the same set"
        )
    numbers = tuple(str(k) for k in range(int(labels.max()) + 1))
    return TensorData(name, resize(images[:, None], size), labels, classes or numbers)


def resize(x: Tensor, size: int | None) -> Tensor:
    """Images (N, C, H, W) at `size` x `size` by antialiased bilinear interpolation; None: as is."""
    if size is None or x.shape[-2:] == (size, size):
        return x
    return interpolate(x, (size, size), mode="bilinear", antialias=True)
