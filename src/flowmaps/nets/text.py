"""Text inside a network: tokens from the bytes of words, or from the embeddings of a pretrained encoder."""

import math
from collections.abc import Mapping
from typing import Any, final

import torch
from torch import Tensor, nn

from .block import Block

LETTER = 16  # numbers that stand for a byte


@final
class TextTokens(nn.Module):
    """A small transformer over a text. Nothing in it depends on points or times, so no derivative goes through it.

    Args:
        width: Token size.
        heads: Attention heads.
        length: L, words or tokens of a text.
        size: Bytes of a word, or features of a token.
        letters: Whether texts are bytes (B, L, size), zero where nothing is; else embeddings (B, L, size) with a mask.
        depth: Transformer blocks.
    """

    def __init__(
        self, width: int, heads: int, *, length: int, size: int, letters: bool, depth: int = 2
    ) -> None:
        super().__init__()
        self.shape = (length, size)
        self.letters = nn.Embedding(256, LETTER) if letters else None
        self.into = nn.Linear(size * (LETTER if letters else 1), width)
        self.start = nn.Parameter(torch.randn(width) / math.sqrt(width))
        self.position = nn.Parameter(torch.randn(length, width) / math.sqrt(width))
        self.style = nn.Parameter(torch.randn(width))  # modulates the blocks, as times do elsewhere
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(depth))
        self.whole = nn.Linear(width, width)
        nn.init.zeros_(self.whole.weight)
        nn.init.zeros_(self.whole.bias)

    def forward(
        self, rows: int, text: Tensor | None = None, mask: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Tokens of B = `rows` texts, or of as many empty ones.

        Returns:
            Tokens (B, 1 + L, width), the first of which is always there; which ones are there (B, 1 + L); and a vector
            that stands for the whole text (B, width), zero before training.
        """
        if text is None:
            text = self.position.new_zeros(rows, *self.shape)
        seen = (text != 0).any(-1) if mask is None else mask
        known = text if self.letters is None else self.letters(text.long()).flatten(2)
        h = torch.cat([self.start.expand(rows, 1, -1), self.into(known) + self.position], 1)
        seen = torch.cat([seen.new_ones(rows, 1), seen], 1)
        for block in self.blocks:
            h = block(h, self.style.expand(rows, -1), seen=seen)
        return h, seen, self.whole(h[:, 0])


def text_settings(null: Mapping[str, Tensor]) -> dict[str, Any] | None:
    """What `TextTokens` must know of texts, from the empty one (L, size) and its mask; None if none are told."""
    if "text" not in null:
        return None
    length, size = null["text"].shape
    return {"length": length, "size": size, "letters": "mask" not in null}
