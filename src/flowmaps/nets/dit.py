"""A diffusion transformer (Peebles & Xie 2023, arXiv:2212.09748) with two times and nothing that breaks under a JVP."""

import math
from typing import Any, final

import torch
from torch import Tensor, nn

from .block import Block
from .embed import Conditioning, rms_norm
from .text import TextTokens


@final
class DiT(nn.Module):
    """Patches to tokens, transformer blocks modulated by (s, s - t, class, scale) that look at the text, tokens to patches.

    RMSNorm without parameters everywhere (also on queries and keys), adaLN-zero modulation, learned positions.

    Args:
        shape: Shape of one sample (C, H, W), or (C, L) of a sequence, such as frames of sound.
        patch: Side of a patch; must divide H and W, or L.
        width: Token size.
        depth: Transformer blocks.
        heads: Attention heads; must divide `width`.
        classes: Number of classes, 0 for none.
        guided: Whether the guidance scale is an input.
        text: Settings of `TextTokens`, if it is told texts.
        split: The first `split` blocks see the source time alone, the others the target time alone (decoupled MeanFlow,
            arXiv:2510.24474: two thirds of the depth): a one-time network is a map without a new parameter. None: all see both.
        skip: The output has the input in it, times a gain that every token decides for each of its numbers: for patches of more
            numbers than the width, whose noise tokens cannot carry through.
        spread: Standard deviation of the classes' vectors before training; 0.02 in the paper. Among many classes it takes long
            to be noticed: of 66 sounds nothing was after 75 steps at 0.02, and much at 1.

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
        text: dict[str, Any] | None = None,
        split: int | None = None,
        skip: bool = False,
        spread: float = 0.02,
    ) -> None:
        super().__init__()
        if len(shape) not in (2, 3) or any(side % patch for side in shape[1:]):
            raise ValueError(
                f"dit needs images (C, H, W), or sequences (C, L), whose sides are multiples of patch={patch}; got "
                f"{tuple(shape)}: choose another patch or resize the data"
            )
        if width % heads:
            raise ValueError(
                f"dit needs heads that divide the width; got width={width}, heads={heads}"
            )
        if split is not None and not 0 < split < depth:
            raise ValueError(
                f"dit splits its blocks in two: 0 < split < depth={depth}; got {split}"
            )
        self.shape, self.patch, self.split, self.skip = tuple(shape), patch, split, skip
        self.grid = tuple(side // patch for side in shape[1:])
        tokens, size = math.prod(self.grid), shape[0] * patch ** len(self.grid)
        self.condition = Conditioning(width, classes, guided=guided, spread=spread)
        self.first = nn.Linear(size, width)
        self.position = nn.Parameter(torch.randn(tokens, width) / math.sqrt(width))
        self.text = TextTokens(width, heads, **text) if text is not None else None
        told = text is not None
        self.blocks = nn.ModuleList(Block(width, heads, told=told) for _ in range(depth))
        self.modulate = nn.Linear(width, 2 * width)
        self.last = nn.Linear(width, 2 * size if skip else size)
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
        text: Tensor | None = None,
        mask: Tensor | None = None,
    ) -> Tensor:
        """Output (B, *shape) at points (B, *shape) and times (B,); without a text, as for the empty one."""
        apart = self.split is not None
        told, seen, whole = self._told(x.shape[0], text, mask)
        c = nn.functional.silu(self.condition(s, s if apart else t, label, scale) + whole)
        patches = self._patches(x)
        h = self.first(patches) + self.position
        for i, block in enumerate(self.blocks):
            if i == self.split:
                c = nn.functional.silu(self.condition(t, t, label, scale) + whole)
            h = block(h, c, told, seen)
        shift, gain = self.modulate(c)[:, None].chunk(2, -1)
        out = self.last(rms_norm(h) * (1 + gain) + shift)
        if self.skip:
            out, gain = out.chunk(2, -1)
            out = out + gain * patches
        return self._unpatched(out)

    def _told(
        self, rows: int, text: Tensor | None, mask: Tensor | None
    ) -> tuple[Tensor | None, Tensor | None, Tensor | float]:
        """Tokens of the text, which tokens of picture and text are there, and what the text as a whole adds to the times."""
        if self.text is None:
            return None, None, 0.0
        told, seen, whole = self.text(rows, text, mask)
        return told, torch.cat([seen.new_ones(rows, len(self.position)), seen], 1), whole

    def _patches(self, x: Tensor) -> Tensor:
        """Points (B, *shape) as tokens (B, tokens, size)."""
        axes = len(self.grid)
        split = x.reshape(-1, self.shape[0], *(n for side in self.grid for n in (side, self.patch)))
        order = (0, *range(2, 2 * axes + 2, 2), 1, *range(3, 2 * axes + 3, 2))
        return split.permute(order).reshape(x.shape[0], math.prod(self.grid), -1)

    def _unpatched(self, tokens: Tensor) -> Tensor:
        axes = len(self.grid)
        split = tokens.reshape(-1, *self.grid, self.shape[0], *[self.patch] * axes)
        order = (0, axes + 1, *(k for i in range(1, axes + 1) for k in (i, axes + 1 + i)))
        return split.permute(order).reshape(-1, *self.shape)
