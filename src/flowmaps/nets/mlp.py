"""A residual MLP for points and very small images."""

import math
from typing import final

from torch import Tensor, nn

from .embed import Conditioning, rms_norm


@final
class MLP(nn.Module):
    """Residual MLP on the flattened sample, modulated by times, class and guidance scale.

    Args:
        shape: Shape of one sample, such as (2,) or (1, 8, 8).
        width: Hidden size.
        depth: Residual blocks, each of two layers.
        classes: Number of classes, 0 for none.
        guided: Whether the guidance scale is an input.
    """

    def __init__(
        self,
        shape: tuple[int, ...],
        width: int = 256,
        depth: int = 4,
        *,
        classes: int = 0,
        guided: bool = False,
    ) -> None:
        super().__init__()
        self.shape = tuple(shape)
        size = math.prod(self.shape)
        inner = max(64, width // 2)  # a third of the weights would sit in the modulation otherwise
        self.condition = Conditioning(inner, classes, guided=guided)
        self.first = nn.Linear(size, width)
        self.blocks = nn.ModuleList(_Block(width, inner) for _ in range(depth))
        self.last = nn.Linear(width, size)
        nn.init.zeros_(self.last.weight)
        nn.init.zeros_(self.last.bias)

    def forward(
        self,
        x: Tensor,
        s: Tensor,
        t: Tensor,
        *,
        label: Tensor | None = None,
        scale: Tensor | None = None,
    ) -> Tensor:
        """Output (B, *shape) at points (B, *shape) and times (B,)."""
        c = nn.functional.silu(self.condition(s, t, label, scale))
        h = self.first(x.flatten(1))
        for block in self.blocks:
            h = block(h, c)
        return self.last(rms_norm(h)).reshape(x.shape)


class _Block(nn.Module):
    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.modulate = nn.Linear(inner, 3 * width)
        self.up, self.down = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)
        nn.init.zeros_(self.modulate.weight)
        nn.init.zeros_(self.modulate.bias)

    def forward(self, h: Tensor, c: Tensor) -> Tensor:
        shift, gain, gate = self.modulate(c).chunk(3, -1)
        inner = rms_norm(h) * (1 + gain) + shift
        return h + (1 + gate) * self.down(nn.functional.silu(self.up(inner)))
