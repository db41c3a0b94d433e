"""Guided teachers: classifier-free guidance on an interval, and autoguidance with a weaker model."""

from typing import Any, final

import torch
from torch import Tensor

from ..core.flow_map import FlowMap
from ..core.shape import like
from ..errors import AdapterError


@final
class Guided(FlowMap):
    r"""$u_{weak} + w\,(u - u_{weak})$; w = 1 is off.

    Classifier-free guidance (Ho & Salimans 2022, arXiv:2207.12598) if `weak` is the same model without its condition;
    autoguidance (Karras et al. 2024, arXiv:2406.02507) if it is a smaller or less trained model of the same data.

    Args:
        strong: The model to guide.
        scale: w.
        null: Conditioning that stands for "none"; tensors with one row, or numbers, are spread over the batch.
        weak: The weaker model, on the same path; by default `strong` itself.
        low: Guidance acts at source times in [low, high] (Kynkaanniemi et al. 2024, arXiv:2404.07724).
        high: See `low`.

    Raises:
        AdapterError: If there is neither `null` nor `weak`, or the two models live on different paths.
    """

    def __init__(
        self,
        strong: FlowMap,
        scale: float,
        *,
        null: dict[str, Any] | None = None,
        weak: FlowMap | None = None,
        low: float = 0.0,
        high: float = 1.0,
    ) -> None:
        super().__init__()
        if not null and weak is None:
            raise AdapterError(
                "guidance compares with something weaker: give null= (the conditioning that means none) or weak= (a model)"
            )
        if weak is not None and weak.interpolant != strong.interpolant:
            raise AdapterError(
                f"the weaker model lives on {weak.interpolant}, the guided on {strong.interpolant}: rematch one to the other"
            )
        self.strong, self.weak = strong, strong if weak is None else weak
        self.scale, self.null, self.low, self.high = scale, dict(null or {}), low, high
        self.interpolant = strong.interpolant

    def mean_velocity(self, x: Tensor, s: Tensor, t: Tensor, **cond: Any) -> Tensor:
        u = self.strong.mean_velocity(x, s, t, **cond)
        if self.scale == 1:
            return u
        null = {key: self._spread(value, x) for key, value in self.null.items()}
        weak = self.weak.mean_velocity(x, s, t, **(cond | null))
        scale = torch.where((s >= self.low) & (s <= self.high), self.scale, 1.0)
        return weak + like(scale.to(s.dtype), x) * (u - weak)

    def _spread(self, value: Any, x: Tensor) -> Tensor:
        if not isinstance(value, Tensor):
            return torch.full((len(x),), value, device=x.device)
        return value.expand(len(x), *value.shape[1:]) if len(value) == 1 else value
