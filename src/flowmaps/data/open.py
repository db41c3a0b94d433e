"""From what a user writes to a data set."""

from __future__ import annotations

import os
from difflib import get_close_matches
from pathlib import Path

from flowmaps.data.base import Data
from flowmaps.data.captions import captioned_folder, has_captions
from flowmaps.data.idx import has_idx, idx_data
from flowmaps.data.images import folder_data
from flowmaps.data.pairs import Accompanied, read_pairs
from flowmaps.data.sets import Ask, loaders
from flowmaps.data.sounds import has_sound
from flowmaps.errors import DataError


def names() -> tuple[str, ...]:
    """Every name that `load` knows; one that ends in a colon takes a name or folder after it."""
    return tuple(sorted(loaders()))


def load(
    name_or_path: str | Path, *, size: int | None = None, split: str = "train", seed: int = 0
) -> Data:
    """The data set behind a name or a folder.

    Args:
        name_or_path: One of [`names`][flowmaps.data.names], or a folder: with IDX files (MNIST's
            layout), with sound, with images and captions (metadata.jsonl), or with images (sub-folders
            are the classes). "NAME+pairs:FOLDER" puts stored trajectories beside it.
        size: Side of the images in pixels; None keeps the size they come in. Of sound the samples of a clip.
        split: "train", "test", or what the source calls it.
        seed: Names the draw, for the toys; stored data do not depend on it.

    Returns:
        The data set; images are float32 in [-1, 1], channels first.

    Raises:
        DataError: If the name is unknown, or the data are missing or damaged.

    Example:
        >>> data = load("toy:moons", seed=3)
        >>> len(data), data.shape
        (10000, (2,))
    """
    if size is not None and size < 1:
        raise DataError(f"expected size >= 1 pixel; got {size}; leave it out or enlarge it")
    name = os.fspath(name_or_path)
    main, beside, folder = name.partition("+pairs:")
    if beside:
        data = load(main, size=size, split=split, seed=seed)
        return Accompanied(data, read_pairs(Path(folder).expanduser(), f"pairs:{folder}"))
    known, head = loaders(), name.partition(":")[0] + ":"
    if name in known:
        return known[name](Ask(name, "", size, split, seed))
    if head in known and name != head:
        return known[head](Ask(name, name[len(head) :], size, split, seed))
    place = Path(name).expanduser()
    if not place.is_dir():
        raise _unknown(name)
    return _folder(place, Ask(name, name, size, split, seed))


def _folder(place: Path, ask: Ask) -> Data:
    """The data of a folder, by what lies in it."""
    if has_idx(place):
        return idx_data(place, name=place.name, split=ask.split, size=ask.size)
    if has_captions(place, ask.split):
        return captioned_folder(place, size=ask.size, split=ask.split)
    if has_sound(place):
        return loaders()["sounds:"](ask)
    return folder_data(place, size=ask.size, split=ask.split)


def _unknown(name: str) -> DataError:
    near = get_close_matches(name, names(), n=1, cutoff=0.0)[0]
    return DataError(
        f"expected the name of a data set or a folder; got '{name}'; did you mean '{near}'? "
        f"Known: {', '.join(names())}"
    )
