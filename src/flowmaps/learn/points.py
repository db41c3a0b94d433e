"""Points as a whole: changed, moved to a device, cut into shards."""

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from ..errors import RecipeError
from .pooled import Pool
from .rules import Points
from .times import Times


def map_points(
    change: Callable[[Tensor], Tensor],
    points: Points,
    shared: Callable[[Tensor], Tensor] | None = None,
) -> Points:
    """The same change applied to every tensor that has a row per sample, and `shared` (by default as well) to what rows share."""
    pool = points.pool
    return Points(
        change(points.x),
        change(points.v),
        Times(*(change(time) for time in points.times)),
        {key: change(value) for key, value in points.cond.items()},
        points.progress,
        None if points.scale is None else change(points.scale),
        points.seed,
        None if points.end is None else change(points.end),
        None if pool is None else Pool((shared or change)(pool.x), change(pool.same)),
    )


def move(points: Points, device: torch.device | str) -> Points:
    """The same points on a device."""
    moved = map_points(lambda tensor: tensor.to(device), points)
    return replace(moved, progress=points.progress.to(device))


def shard(points: Points, rank: int, world: int) -> Points:
    """The rows of one process: every `world`-th row from `rank`.

    Raises:
        RecipeError: If the rows do not divide evenly, which would weight them unequally.
    """
    if len(points.x) % world:
        raise RecipeError(
            f"a term has {len(points.x)} rows, which {world} processes cannot share evenly; "
            "choose a batch for which share x batch is a multiple of the number of processes"
        )
    mine = map_points(lambda tensor: tensor[rank::world], points, shared=lambda tensor: tensor)
    return replace(mine, seed=points.seed + rank)  # other rows, other dropout masks
