"""Reading the scenes of [`flowmaps.data.scenes`][flowmaps.data.scenes] back from pixels, and how many wishes a picture fulfils."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from functools import cache
from typing import Any, cast

import torch
from scipy import ndimage
from torch import Tensor

from flowmaps.data.scenes import BACKGROUND, COLOURS, RADII, SHAPES, STRIDE, Thing, coverage

LEAST = 6.0  # pixels; what is smaller is no object
MOST = 5  # objects of a picture, the largest ones


def read(x: Tensor) -> list[tuple[Thing, ...]]:
    """The objects in pictures (N, 3, 32, 32) in [-1, 1].

    An object is a connected patch that is not background. Its colour is the nearest to its mean; of the shapes, drawn at its
    centre and with its area, it is the one that differs least.
    """
    owner, masks = _patches(x)
    if not owner:
        return [() for _ in x]
    mask = torch.stack(masks).double()
    lit = (x.double() + 1) * 127.5 - torch.tensor(BACKGROUND)[:, None, None].double()
    lit = lit[torch.tensor(owner)] * mask[:, None]
    paints = torch.tensor(list(COLOURS.values())).double() - torch.tensor(BACKGROUND)
    mean = lit.flatten(2).sum(-1)
    colour = torch.nn.functional.cosine_similarity(mean[:, None], paints, dim=-1).argmax(1)
    paint = paints[colour]
    cover = (lit * paint[:, :, None, None]).sum(1) / paint.square().sum(-1)[:, None, None]
    cover = cover.clamp(0, 1)
    area = cover.flatten(1).sum(-1)
    pixel = torch.arange(x.shape[-1]).double()
    centre = torch.stack([cover.sum(2) @ pixel, cover.sum(1) @ pixel], -1) / area[:, None]
    radius = (area[:, None] / _areas()).sqrt()
    drawn = torch.stack([coverage(k, centre, radius[:, k]) for k in range(len(SHAPES))], 1)
    shape = (drawn - cover[:, None]).square().flatten(2).sum(-1).argmin(1)
    size = radius[torch.arange(len(shape)), shape] > sum(RADII) / 2
    place = ((centre + 0.5) / STRIDE - 1).round().clamp(0, 2)
    rows = torch.stack([shape, colour, size.long(), *place.long().T], 1)
    found: list[list[Thing]] = [[] for _ in x]
    for i, thing, real in zip(owner, rows.tolist(), (area >= LEAST).tolist(), strict=True):
        if real:
            found[i].append(Thing(*thing))
    return [tuple(each) for each in found]


def _patches(x: Tensor) -> tuple[list[int], list[Tensor]]:
    """The largest connected patches that are not background: in which picture, and where (32, 32)."""
    lit = (x.double() + 1) * 127.5 - torch.tensor(BACKGROUND)[:, None, None]
    away = lit.square().sum(1).sqrt()
    owner, masks = list[int](), list[Tensor]()
    for i, core in enumerate((away > 90).numpy()):
        labels, count = _label(core)
        sizes = torch.from_numpy(labels).flatten().bincount(minlength=count + 1)[1:]
        # edges are darker than the core, and wide if the picture is blurred
        wide = torch.from_numpy(ndimage.grey_dilation(labels, size=(5, 5)))
        patch = torch.where(torch.from_numpy(core), torch.from_numpy(labels), wide)
        for k in sizes.argsort(descending=True)[:MOST].tolist():
            owner.append(i)
            masks.append(patch == k + 1)
    return owner, masks


def _label(core: Any) -> tuple[Any, int]:  # noqa: ANN401
    """Connected pixels, neighbours across corners included, by number (H, W), and how many numbers there are."""
    return cast("Any", ndimage.label(core, structure=[[1, 1, 1]] * 3))


@cache
def _areas() -> Tensor:
    """Area of each shape at radius 1."""
    centre, radius = torch.full((1, 2), 15.5).double(), torch.full((1,), 10.0).double()
    return torch.cat([coverage(k, centre, radius).sum((1, 2)) for k in range(len(SHAPES))]) / 100


def fulfilled(
    found: Sequence[tuple[Thing, ...]], asked: Sequence[tuple[Thing, ...]]
) -> dict[str, float]:
    """Shares of what captions ask for that is there.

    Objects are matched so that most wishes are fulfilled. `adherence` counts shapes, colours and places together; `number` is
    the share of pictures with as many objects as asked for, `all` of those with every wish fulfilled and nothing besides.
    """
    names = ("shape", "colour", "size", "place")
    right: dict[str, int] = dict.fromkeys(names, 0)
    wished: dict[str, int] = dict.fromkeys(names, 0)
    number = whole = 0
    for things, wishes in zip(found, asked, strict=True):
        best = max(_matches(things, wishes), key=lambda each: sum(h for h in each if h))
        for name, hit in zip(itertools.cycle(names), best, strict=False):
            wished[name] += hit is not None
            right[name] += bool(hit)
        number += len(things) == len(wishes)
        whole += len(things) == len(wishes) and False not in best
    shares = {name: right[name] / max(wished[name], 1) for name in names}
    told = [name for name in names if name != "size"]
    adherence = sum(right[n] for n in told) / max(sum(wished[n] for n in told), 1)
    n = len(asked)
    return {"adherence": adherence, **shares, "number": number / n, "all": whole / n}


def _matches(things: tuple[Thing, ...], wishes: tuple[Thing, ...]) -> list[list[bool | None]]:
    """For every way to match objects with wishes: which wishes are fulfilled, four for an object; None where nothing was asked."""
    none = Thing(None, None, None, None, None)
    padded = (*things, *[none] * max(0, len(wishes) - len(things)))
    return [
        [hit for thing, wish in zip(chosen, wishes, strict=True) for hit in _hits(thing, wish)]
        for chosen in itertools.permutations(padded, len(wishes))
    ]


def _hits(thing: Thing, wish: Thing) -> list[bool | None]:
    hits = [None if w is None else w == t for t, w in zip(thing, wish, strict=True)]
    told = [hit for hit in hits[3:] if hit is not None]
    return [*hits[:3], all(told) if told else None]
