"""A transformer block that is modulated by one vector and may look at tokens of another kind."""

from typing import final

import torch
from torch import Tensor, nn

from .attention import attend
from .embed import rms_norm


def gelu(x: Tensor) -> Tensor:
    """GELU by tanh (Hendrycks & Gimpel 2016, arXiv:1606.08415).

    Compiled it is written with the logistic function that it equals: inductor's exponential on a CPU takes four fifths of the
    time of its tanh (benchmarks/kernels.json).
    """
    if torch.compiler.is_compiling():
        return x * torch.sigmoid(1.5957691216057308 * x * (1 + 0.044715 * x * x))
    return nn.functional.gelu(x, approximate="tanh")


@final
class Block(nn.Module):
    """Attention and two layers, modulated as in adaLN-zero: before training it is the identity.

    Args:
        width: Token size.
        heads: Attention heads; must divide `width`.
        told: Whether it looks at tokens of another kind, such as text, as well: their keys and values stand beside its own
            (Nichol et al. 2021, GLIDE, arXiv:2112.10741, sec. 2.3).
    """

    def __init__(self, width: int, heads: int, *, told: bool = False) -> None:
        super().__init__()
        self.heads = heads
        self.modulate = nn.Linear(width, 6 * width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.told = nn.Linear(width, 2 * width) if told else None
        nn.init.zeros_(self.modulate.weight)  # adaLN-zero: every block starts as the identity
        nn.init.zeros_(self.modulate.bias)

    def forward(
        self, h: Tensor, c: Tensor, told: Tensor | None = None, seen: Tensor | None = None
    ) -> Tensor:
        """Tokens (B, N, width), from tokens and what modulates them.

        Args:
            h: Tokens (B, N, width).
            c: What modulates them (B, width).
            told: Tokens of another kind (B, M, width), which are looked at.
            seen: Which tokens are there (B, N + M); None: all.
        """
        shift_a, gain_a, gate_a, shift_m, gain_m, gate_m = self.modulate(c)[:, None].chunk(6, -1)
        h = h + gate_a * self._attend(rms_norm(h) * (1 + gain_a) + shift_a, told, seen)
        inner = rms_norm(h) * (1 + gain_m) + shift_m
        return h + gate_m * self.down(gelu(self.up(inner)))

    def _attend(self, h: Tensor, told: Tensor | None, seen: Tensor | None) -> Tensor:
        q, k, v = self._split(self.qkv(h), 3)
        if self.told is not None and told is not None:
            more_k, more_v = self._split(self.told(rms_norm(told)), 2)
            k, v = torch.cat([k, more_k], 2), torch.cat([v, more_v], 2)
        mixed = attend(rms_norm(q), rms_norm(k), v, seen)
        return self.out(mixed.transpose(1, 2).reshape(h.shape))

    def _split(self, h: Tensor, parts: int) -> Tensor:
        """Parts, rows, heads, tokens, size of a head."""
        return h.reshape(*h.shape[:2], parts, self.heads, -1).permute(2, 0, 3, 1, 4)
