"""Small scenes of one to three objects, and their captions in varied wording.

An object has a shape, a colour, a size and a place on a 3 x 3 board. A scene is a function of a key and a number, so there are as
many as one asks for, the same on every machine. What its caption asks for is kept, so that a picture can be held against it
([`flowmaps.data.reading`][flowmaps.data.reading]).
"""

from __future__ import annotations

import hashlib
import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from typing import NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor

SIDE = 32
SHAPES = ("circle", "square", "triangle", "cross")
COLOURS: Mapping[str, tuple[int, int, int]] = {
    "red": (225, 45, 45),
    "green": (40, 185, 75),
    "blue": (50, 95, 240),
    "yellow": (250, 215, 50),
    "purple": (175, 70, 215),
    "white": (245, 245, 245),
}
BACKGROUND = (18, 20, 28)
RADII = (3.5, 5.6)  # of small and big objects
STRIDE = 8.0  # pixels between neighbouring places
HELD_OUT = ((0, 2), (1, 0), (2, 3), (3, 1))
"""Pairs of shape and colour that training never sees: blue circles, red squares, yellow triangles, green crosses."""

_PAIRS = itertools.product(range(len(SHAPES)), range(len(COLOURS)))
_SEEN = tuple(pair for pair in _PAIRS if pair not in HELD_OUT)
_LAYOUTS = (
    tuple((cell,) for cell in itertools.product(range(3), range(3))),
    tuple(((0, k), (2, k)) for k in range(3)) + tuple(((k, 0), (k, 2)) for k in range(3)),
    tuple(itertools.combinations(((0, 0), (0, 2), (2, 0), (2, 2)), 3)),
)
_NOUNS = (("circle", "disc"), ("square", "box"), ("triangle",), ("cross", "plus"))
_SIZES = (("small", "tiny", "little"), ("big", "large"))
_ROWS, _COLUMNS = ("top", "", "bottom"), ("left", "", "right")
_ABOVE = ("{0} above {1}", "{1} below {0}", "{0} over {1}", "{1} under {0}")
_BESIDE = ("{0} left of {1}", "{1} right of {0}", "{0} to the left of {1}")

T = TypeVar("T")


class Thing(NamedTuple):
    """An object: numbers of its shape, colour and size, and its row and column; None where a caption is silent."""

    shape: int | None
    colour: int | None
    size: int | None
    row: int | None
    column: int | None


class Scene(NamedTuple):
    """Objects, by how much each is shifted (down, right) and stretched, a caption, and what the caption asks for."""

    things: tuple[Thing, ...]
    jitter: tuple[tuple[float, float, float], ...]
    caption: str
    asked: tuple[Thing, ...]


@lru_cache(maxsize=2**14)
def scene(key: str, number: int, *, held_out: bool = False) -> Scene:
    """The scene of a number; with `held_out` one of its objects is a pair of shape and colour that training never sees."""
    digest = hashlib.blake2b(f"{key}/{number}".encode(), digest_size=8).digest()
    numbers = np.random.Generator(np.random.PCG64(int.from_bytes(digest, "big"))).random(64)
    chance = iter(numbers.tolist())
    cells = _pick(chance, _pick(chance, _LAYOUTS))
    pairs = [_pick(chance, _SEEN) for _ in cells]
    odd, new = _pick(chance, range(len(cells))), _pick(chance, HELD_OUT)
    if held_out:
        pairs[odd] = new
    sizes = [_pick(chance, (0, 1)) for _ in cells]
    things = tuple(
        Thing(*p, size, *cell) for p, size, cell in zip(pairs, sizes, cells, strict=True)
    )
    jitter = tuple(tuple(r * (2 * next(chance) - 1) for r in (1.2, 1.2, 0.06)) for _ in cells)
    return Scene(things, jitter, *_told(chance, things))


def _pick(chance: Iterator[float], options: Sequence[T]) -> T:
    return options[int(next(chance) * len(options))]


def _told(chance: Iterator[float], things: tuple[Thing, ...]) -> tuple[str, tuple[Thing, ...]]:
    """A caption, and what it asks for."""
    phrases, asked = zip(*(_phrase(chance, thing) for thing in things), strict=True)
    placed, related = next(chance) < 0.8, next(chance) < 0.7
    if not placed:
        return " and ".join(phrases), tuple(t._replace(row=None, column=None) for t in asked)
    if len(things) == 2 and related:
        above = things[0].column == things[1].column
        words = _pick(chance, _ABOVE if above else _BESIDE).format(*phrases)
        silent = {"column": None} if above else {"row": None}
        return words, tuple(t._replace(**silent) for t in asked)
    return " and ".join(f"{p} {_place(t)}" for p, t in zip(phrases, things, strict=True)), asked


def _phrase(chance: Iterator[float], thing: Thing) -> tuple[str, Thing]:
    size, noun = _pick(chance, _SIZES[thing.size or 0]), _pick(chance, _NOUNS[thing.shape or 0])
    sized, coloured = next(chance) < 0.7, next(chance) < 0.9
    words = ["a"] + [size] * sized + [tuple(COLOURS)[thing.colour or 0]] * coloured + [noun]
    asked = thing if sized else thing._replace(size=None)
    return " ".join(words), asked if coloured else asked._replace(colour=None)


def _place(thing: Thing) -> str:
    row, column = _ROWS[thing.row or 0], _COLUMNS[thing.column or 0]
    if not row and not column:
        return "in the middle"
    return " ".join(filter(None, ("at the", row, column))) if row else f"on the {column}"


def draw(scenes: Sequence[Scene]) -> Tensor:
    """Pictures (N, 3, 32, 32), uint8, with smooth edges."""
    owner = torch.tensor([i for i, each in enumerate(scenes) for _ in each.things])
    things = torch.tensor([tuple(t) for each in scenes for t in each.things])
    jitter = torch.tensor([j for each in scenes for j in each.jitter])
    centre = STRIDE * (1 + things[:, 3:]) - 0.5 + jitter[:, :2]
    radius = torch.tensor(RADII)[things[:, 2]] * (1 + jitter[:, 2])
    cover = torch.zeros(len(things), 1, SIDE, SIDE)
    for k in range(len(SHAPES)):
        rows = things[:, 0] == k
        cover[rows, 0] = coverage(k, centre[rows], radius[rows])
    paint = torch.tensor(list(COLOURS.values())).float()[things[:, 1]] - torch.tensor(BACKGROUND)
    canvas = torch.tensor(BACKGROUND).float()[:, None, None].repeat(len(scenes), 1, SIDE, SIDE)
    canvas.index_add_(0, owner, cover * paint[:, :, None, None])
    return canvas.clamp(0, 255).round().byte()


def coverage(shape: int, centre: Tensor, radius: Tensor) -> Tensor:
    """How much of every pixel an object of a shape covers: (N, 32, 32) at centres (N, 2), with radii (N,)."""
    pixel = torch.arange(SIDE, dtype=centre.dtype)
    y = pixel[:, None] - centre[:, 0, None, None]
    x = pixel - centre[:, 1, None, None]
    r = radius[:, None, None]
    if shape == SHAPES.index("circle"):
        outside = (x.square() + y.square()).sqrt() - r
    elif shape == SHAPES.index("square"):
        outside = torch.maximum(x.abs(), y.abs()) - 0.886 * r
    elif shape == SHAPES.index("triangle"):
        outside = torch.maximum(y, x.abs() * math.sqrt(0.75) - y / 2) - 0.58 * r
    else:
        bars = (torch.maximum(a.abs() - r, b.abs() - 0.36 * r) for a, b in ((x, y), (y, x)))
        outside = torch.minimum(*bars)
    return (0.5 - outside).clamp(0, 1)
