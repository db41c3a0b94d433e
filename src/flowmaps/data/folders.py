"""Folders of files: sub-folders are splits or classes."""

from __future__ import annotations

from collections.abc import Container
from pathlib import Path

import torch
from torch import Tensor

from flowmaps.errors import DataError


def split_folder(folder: Path, split: str) -> Path:
    """The sub-folder of a split; "train" is the folder itself if there is none.

    Raises:
        DataError: If another split has no sub-folder.
    """
    if (folder / split).is_dir():
        return folder / split
    if split == "train":
        return folder
    raise DataError(
        f"{folder}: expected a sub-folder '{split}' for that split; got none; "
        "make one, or ask for split 'train'"
    )


def sub_folders(root: Path, suffixes: Container[str]) -> tuple[str, ...]:
    """Sub-folders that hold such a file, sorted: the classes.

    Raises:
        DataError: If such files lie in the root as well.
    """
    folders = sorted(p for p in root.iterdir() if p.is_dir() and not p.name.startswith("."))
    named = tuple(p.name for p in folders if files_below(p, suffixes))
    loose = [p for p in files_below(root, suffixes) if p.parent == root]
    if named and loose:
        raise DataError(
            f"{root}: expected files in sub-folders or beside each other; got both "
            f"({loose[0].name} and {named[0]}/); move the loose ones into a class"
        )
    return named


def files_below(folder: Path, suffixes: Container[str]) -> list[Path]:
    """Files below a folder whose names end so, sorted; hidden files and folders (thumbnails) do not count."""
    found = (p for p in folder.rglob("*") if p.suffix.lower() in suffixes and p.is_file())
    parts = ((p, p.relative_to(folder).parts) for p in found)
    return sorted(p for p, names in parts if not any(name.startswith(".") for name in names))


def labels_of(root: Path, files: tuple[Path, ...], classes: tuple[str, ...]) -> Tensor | None:
    """Number of the sub-folder of each file (N,), int64; None without classes."""
    if not classes:
        return None
    number = {name: k for k, name in enumerate(classes)}
    return torch.tensor([number[f.relative_to(root).parts[0]] for f in files])
