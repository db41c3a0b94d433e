"""Guidance when sampling: transforms that keep the type, so that the strength is chosen when a map is used."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, Self, final

import torch
from torch import Tensor

from ..core.flow_map import FlowMap, rematch
from ..core.shape import like, spread


class _Extrapolated(FlowMap, ABC):
    """`away + scale (u - away)` at source times in [low, high], and u elsewhere."""

    def __init__(self, flow_map: FlowMap, scale: float, low: float, high: float) -> None:
        super().__init__()
        self.flow_map, self.scale, self.low, self.high = flow_map, scale, low, high
        self.interpolant, self.to_data = flow_map.interpolant, flow_map.to_data

    def mean_velocity(self, x: Tensor, s: Tensor, t: Tensor, **cond: Any) -> Tensor:
        u = self.flow_map.mean_velocity(x, s, t, **cond)
        acts = (s >= self.low) & (s <= self.high)
        if self.scale == 1 or not bool(acts.any()):
            return u
        away = self._away(x, s, t, **cond)
        return away + like(torch.where(acts, self.scale, 1.0), x) * (u - away)

    @abstractmethod
    def _away(self, x: Tensor, s: Tensor, t: Tensor, **cond: Any) -> Tensor: ...

    @abstractmethod
    def over(self, change: Callable[[FlowMap], FlowMap]) -> Self:
        """The same guidance over changed maps: counted ones, for example."""


@final
class CFG(_Extrapolated):
    r"""$u_\varnothing + w\,(u_c - u_\varnothing)$ (Ho & Salimans 2022, arXiv:2207.12598, in diffusers' convention: w = 1 is off).

    On the velocity of a diffusion model this is classifier-free guidance. On the jumps of a flow map it is a heuristic:
    prefer guidance folded into the map (`flowmaps.learn.guidance`). Between Gaussians of deviations s and s' a walk ends at
    deviation $s^ws'^{1-w}$, which is that of no product of their densities.

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
        super().__init__(flow_map, scale, low, high)
        self.null = null

    def _away(self, x: Tensor, s: Tensor, t: Tensor, **cond: Any) -> Tensor:
        none = {name: spread(row, x) for name, row in self.null.items()}
        return self.flow_map.mean_velocity(x, s, t, **(cond | none))

    def over(self, change: Callable[[FlowMap], FlowMap]) -> "CFG":
        """The same guidance over a changed map."""
        return CFG(change(self.flow_map), self.scale, self.null, low=self.low, high=self.high)


@final
class Autoguidance(_Extrapolated):
    r"""$u_{weak} + w\,(u - u_{weak})$: away from a worse model of the same data (Karras et al. 2024, arXiv:2406.02507).

    The weak model is a smaller or younger one, and gets the same conditions, so nothing has to be dropped in training, and an
    unconditional model can be guided. As `CFG`, it belongs on velocities and is a heuristic on jumps.

    Args:
        flow_map: Any flow map.
        weak: Another; if its path differs, it is seen on this one.
        scale: w; 1 switches guidance off.
        low: Guidance acts on source times in [low, high].
        high: See `low`.
    """

    def __init__(
        self,
        flow_map: FlowMap,
        weak: FlowMap,
        scale: float,
        *,
        low: float = 0.0,
        high: float = 1.0,
    ) -> None:
        super().__init__(flow_map, scale, low, high)
        self.weak = rematch(weak, flow_map.interpolant)

    def _away(self, x: Tensor, s: Tensor, t: Tensor, **cond: Any) -> Tensor:
        return self.weak.mean_velocity(x, s, t, **cond)

    def over(self, change: Callable[[FlowMap], FlowMap]) -> "Autoguidance":
        """The same guidance over changed maps."""
        strong, weak = change(self.flow_map), change(self.weak)
        return Autoguidance(strong, weak, self.scale, low=self.low, high=self.high)
