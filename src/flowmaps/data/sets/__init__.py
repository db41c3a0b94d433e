"""The data sets that have a name; one file each, found by looking into this folder.

A file here defines `LOADERS`, a dictionary from names to functions `Ask -> Data`. A name that ends
in a colon takes the rest of what the user wrote, as in `hf:mnist`. Nothing else needs to be edited.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from pkgutil import iter_modules
from typing import final

from flowmaps.data.base import Data


@final
@dataclass(frozen=True)
class Ask:
    """What the user wants of a data set.

    Args:
        name: The name as written.
        rest: What follows the colon of a name that takes more, else "".
        size: Side of the images in pixels, or None for the size they come in.
        split: "train", "test", or what the source calls it.
        seed: Names the draw, for sets that are drawn.
    """

    name: str
    rest: str
    size: int | None
    split: str
    seed: int


Loader = Callable[[Ask], Data]


@cache
def loaders() -> dict[str, Loader]:
    """Every named data set, by name."""
    files = sorted(module.name for module in iter_modules(__path__))
    found: list[dict[str, Loader]] = [import_module(f"{__name__}.{f}").LOADERS for f in files]
    return {name: loader for each in found for name, loader in each.items()}
