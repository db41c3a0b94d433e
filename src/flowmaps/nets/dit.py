"""A diffusion transformer (Peebles & Xie 2023, arXiv:2212.09748) with two times and nothing that breaks under a JVP."""

import math
from typing import final

import torch
from torch import Tensor, nn

from .attention import attend
from .embed import Conditioning, rms_norm


@final
class DiT(nn.Module):
    """Patches to tokens, transformer blocks modulated by (s, s - t, class, scale), tokens to patches.

    RMSNorm without parameters everywhere (also on queries and keys), adaLN-zero modulation, learned positions.

    Args:
        shape: Shape of one sample (C, H, W).
        patch: Side of a patch; must divide H and W.
        width: Token size.
        depth: Transformer blocks.
        heads: Attention heads; must divide `width`.
        classes: Number of classes, 0 for none.
        guided: Whether the guidance scale is an input.
        split: The first `split` blocks see the source time alone, the others the target time alone (decoupled MeanFlow,
            arXiv:2510.24474: two thirds of the depth): a one-time network is a map without a new parameter. None: all see both.

    Raises:
        ValueError: If the patch does not divide the image, the heads do not divide the width, or the split not the depth.
    """

    def __init__(
        self,
        shape: tuple[int, ...],
        patch: int = 4,
        width: int = 192,
        depth: int = 6,
        heads: int = 3,
        *,
        classes: int = 0,
        guided: bool = False,
        split: int | None = None,
    ) -> None:
        super().__init__()
        if len(shape) != 3 or shape[1] % patch or shape[2] % patch:
            raise ValueError(
                f"dit needs images (C, H, W) whose sides are multiples of patch={patch}; got {tuple(shape)}: "
                "choose another patch or resize the data"
            )
        if width % heads:
            raise ValueError(
                f"dit needs heads that divide the width; got width={width}, heads={heads}"
            )
        if split is not None and not 0 < split < depth:
            raise ValueError(
                f"dit splits its blocks in two: 0 < split < depth={depth}; got {split}"
            )
        self.shape, self.patch, self.split = tuple(shape), patch, split
        channels, height, breadth = self.shape
        tokens, size = (height // patch) * (breadth // patch), channels * patch * patch
        self.condition = Conditioning(width, classes, guided=guided)
        self.first = nn.Linear(size, width)
        self.position = nn.Parameter(torch.randn(tokens, width) / math.sqrt(width))
        self.blocks = nn.ModuleList(_Block(width, heads) for _ in range(depth))
        self.modulate = nn.Linear(width, 2 * width)
        self.last = nn.Linear(width, size)
        for layer in (self.modulate, self.last):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(
        self,
        x: Tensor,
        s: Tensor,
        t: Tensor,
        *,
        label: Tensor | None = None,
        scale: Tensor | None = None,
    ) -> Tensor:
        """Output (B, C, H, W) at points (B, C, H, W) and times (B,)."""
        apart = self.split is not None
        c = nn.functional.silu(self.condition(s, s if apart else t, label, scale))
        h = self.first(self._patches(x)) + self.position
        for i, block in enumerate(self.blocks):
            if i == self.split:
                c = nn.functional.silu(self.condition(t, t, label, scale))
            h = block(h, c)
        shift, gain = self.modulate(c)[:, None].chunk(2, -1)
        return self._image(self.last(rms_norm(h) * (1 + gain) + shift))

    def _patches(self, x: Tensor) -> Tensor:
        channels, height, width = self.shape
        p = self.patch
        x = x.reshape(-1, channels, height // p, p, width // p, p)
        return x.permute(0, 2, 4, 1, 3, 5).reshape(len(x), -1, channels * p * p)

    def _image(self, tokens: Tensor) -> Tensor:
        channels, height, width = self.shape
        p = self.patch
        x = tokens.reshape(-1, height // p, width // p, channels, p, p)
        return x.permute(0, 3, 1, 4, 2, 5).reshape(-1, channels, height, width)


class _Block(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.modulate = nn.Linear(width, 6 * width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        nn.init.zeros_(self.modulate.weight)  # adaLN-zero: every block starts as the identity
        nn.init.zeros_(self.modulate.bias)

    def forward(self, h: Tensor, c: Tensor) -> Tensor:
        shift_a, gain_a, gate_a, shift_m, gain_m, gate_m = self.modulate(c)[:, None].chunk(6, -1)
        h = h + gate_a * self._attend(rms_norm(h) * (1 + gain_a) + shift_a)
        inner = rms_norm(h) * (1 + gain_m) + shift_m
        return h + gate_m * self.down(nn.functional.gelu(self.up(inner), approximate="tanh"))

    def _attend(self, h: Tensor) -> Tensor:
        batch, tokens, width = h.shape
        q, k, v = self.qkv(h).reshape(batch, tokens, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        mixed = attend(rms_norm(q), rms_norm(k), v)
        return self.out(mixed.transpose(1, 2).reshape(batch, tokens, width))
