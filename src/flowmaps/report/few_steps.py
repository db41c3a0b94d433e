"""The table on the model card of a distilled pipeline: how far what its folder draws in few steps is from the data."""

from typing import Any

import torch
from torch import Generator

from ..core.flow_map import NetFlowMap
from ..data import Conditioned
from ..data.told import no_samples
from ..metrics import frechet_distance, moments
from ..sample import sample
from ..train.setup import Prepared
from .change import STEPS, views

COUNT, FEW = 1000, 100
"""Samples of each row at most, and data below which there is no table."""


@torch.no_grad()
def few_steps(student: NetFlowMap, parts: Prepared) -> list[dict[str, Any]]:
    """Rows `{"steps", "samples", "Frechet distance to the data"}`, in `views` of the space that the denoiser sees.

    Of no data, or few, there are none.

    Args:
        student: A map of `adapters.diffusers`.
        parts: What it was trained on.
    """
    from ..adapters.export import start

    data = parts.data
    if no_samples(data) or len(data) < FEW:
        return []
    index = torch.randperm(len(data), generator=Generator().manual_seed(0))[:COUNT]
    x, labels = data.batch(index)
    known = {} if labels is None else {"label": labels}
    known |= data.conditions(index) if isinstance(data, Conditioned) else {}
    told = {name: known[name] for name in parts.about["data"]["conditions"]}
    seen, noise = views(data.shape), torch.randn(x.shape, generator=Generator().manual_seed(0))
    real, rows = moments(x, seen), list[dict[str, Any]]()
    for steps in STEPS:
        drawn = [
            sample(
                student,
                *start(student, noise[part], steps),
                **{k: v[part] for k, v in told.items()},
            )
            for part in torch.arange(len(x)).split(100)
        ]
        found = moments(torch.cat(drawn), seen)
        distance = frechet_distance(found.mean, found.cov, real.mean, real.cov)
        rows.append({"steps": steps, "samples": len(x), "Frechet distance to the data": distance})
    return rows
