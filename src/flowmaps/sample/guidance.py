"""Classifier-free guidance when sampling: a transform that keeps the type."""

from typing import Any, final

import torch
from torch import Tensor

from ..core.flow_map import FlowMap
from ..core.shape import like, spread


@final
class CFG(FlowMap):
    r"""$u_\varnothing + w\,(u_c - u_\varnothing)$ (Ho & Salimans 2022, arXiv:2207.12598, in diffusers' convention: w = 1 is off).

    On the velocity of a diffusion model this is classifier-free guidance. On the jumps of a flow map it is a heuristic:
    prefer guidance folded into the map (`flowmaps.learn.guidance`).

    Args:
        flow_map: Any conditional flow map.
        scale: w; 1 switches guidance off.
        null: Conditioning that stands for "none", such as `{"label": 10}`: a number or one row for all.
        low: Guidance acts on source times in [low, high] (Kynkaanniemi et al. 2024, arXiv:2404.07724).
        high: See `low`.
    """

    def __init__(
        self,
        flow_map: FlowMap,
        scale: float,
        null: dict[str, Any],
        *,
        low: float = 0.0,
        high: float = 1.0,
    ) -> None:
        super().__init__()
        self.flow_map, self.scale, self.null = flow_map, scale, null
        self.low, self.high = low, high
        self.interpolant = flow_map.interpolant

    def mean_velocity(self, x: Tensor, s: Tensor, t: Tensor, **cond: Any) -> Tensor:
        u = self.flow_map.mean_velocity(x, s, t, **cond)
        if self.scale == 1:
            return u
        none = self.flow_map.mean_velocity(x, s, t, **(cond | self._null(x)))
        scale = torch.where((s >= self.low) & (s <= self.high), self.scale, 1.0)
        return none + like(scale, x) * (u - none)

    def _null(self, x: Tensor) -> dict[str, Any]:
        return {name: spread(row, x) for name, row in self.null.items()}
