"""What fine-tuning did to a few-step map: quality before and after, on the new data and on what the old map drew."""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Generator, Tensor

from ..core.flow_map import FlowMap
from ..metrics import frechet_distance, moments
from ..sample import generate, uniform
from ..train.finetune import Rehearsed

STEPS = (1, 2, 4)
"""Jumps at which quality is reported."""

LARGE, VIEWS = 2048, 512
"""Points of more numbers than that are seen through as many directions: a covariance of all has the square of them."""


def views(shape: tuple[int, ...]) -> Callable[[Tensor], Tensor]:
    """Features for distances of laws: a point's numbers (B, *shape) to (B, D), or fixed random directions of them if they are many.

    The directions have unit length, so a distance of pure shift is that in all numbers times VIEWS / D, in the mean.
    """
    size = math.prod(shape)
    if size <= LARGE:
        return lambda x: x.flatten(1)
    directions = torch.randn(size, VIEWS, generator=Generator().manual_seed(0))
    directions = directions / directions.norm(dim=0)
    return lambda x: x.flatten(1) @ directions.to(x)


@torch.no_grad()
def change(
    data: Rehearsed, before: FlowMap, after: FlowMap, *, classes: int = 0, count: int = 2000
) -> list[dict[str, Any]]:
    """Squared Frechet distances in the space that the maps draw in; rows `{"data", "steps", "before", "after"}`.

    Of points of more than LARGE numbers in `views` of it.
    Samples are told what rows of the data are told. Of a class that the old map does not know it is told "no class".

    Args:
        data: New data and samples of the old map, against which "new" and "old" are measured.
        before: The old map.
        after: The new one.
        classes: How many classes the old map knows.
        count: Samples of each kind, and rows of data at most.
    """
    split, rows, seen = len(data.new), [], views(data.shape)
    kinds = {"new": torch.arange(split), "old": torch.arange(split, len(data))}
    for name, there in kinds.items():
        real = moments(data.batch(there[: 5 * count])[0], seen)
        index = there[torch.arange(count) % len(there)]
        told = data.conditions(index)
        plain = {k: v.clamp(max=classes) if k == "label" else v for k, v in told.items()}
        for steps in STEPS:
            row: dict[str, Any] = {"data": name, "steps": steps}
            for when, flow_map, cond in (("before", before, plain), ("after", after, told)):
                found = moments(drawn(flow_map, data.shape, steps, cond, count), seen)
                row[when] = frechet_distance(found.mean, found.cov, real.mean, real.cov)
            rows.append(row)
    return rows


def drawn(
    flow_map: FlowMap, shape: tuple[int, ...], steps: int, cond: dict[str, Tensor], count: int
) -> Tensor:
    """Samples (count, *shape) of a map, told `cond`."""
    device = next(flow_map.parameters()).device
    noise = flow_map.interpolant.prior((count, *shape), Generator().manual_seed(1))
    found = [
        generate(
            flow_map,
            noise[rows].to(device),
            uniform(steps),
            **{k: v[rows].to(device) for k, v in cond.items()},
        ).cpu()
        for rows in torch.arange(count).split(256)
    ]
    return torch.cat(found)
