r"""The modified discrete cosine transform: sound as frames of frequencies, as many numbers as samples, nothing lost.

A clip is cut into K blocks of N samples. Around every inner boundary samples at equal distances d from it are turned in
pairs by the angle of the sine window, $c = \sin(\pi/4 + \pi d/2N)$ and $\sqrt{1-c^2}$ (time-domain aliasing), then every
block goes through the DCT-IV. Both are orthogonal, so the inverse is the transpose, and the ends need no padding.

Source:
    J. Princen, A. Bradley, 1986 (aliasing that cancels); H. Malvar, *Signal Processing with Lapped Transforms*, 1992
    (the factors). Checked: tests/codec/test_mdct.py.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import final

import torch
from torch import Tensor
from torch.nn.functional import pad

from .base import check_clips, whole

BINS = 500
"""Frequencies of a frame: at 16 kHz 31 ms, 16 Hz apart."""


@final
@dataclass(frozen=True)
class MDCT:
    r"""Clips (channels, samples) as (channels x bins, frames), loudness companded: $z = g\,\mathrm{sign}(y)\,|y|^p$.

    Attributes:
        clip: Channels and samples; samples are padded to whole frames, and cut again.
        bins: N, frequencies of a frame and samples between frames; even.
        power: p. Quiet partials come up, and an error in silence nearly vanishes when it is decoded.
        gain: g.
    """

    clip: tuple[int, int]
    bins: int = BINS
    power: float = 0.4
    gain: float = 3.0

    @property
    def name(self) -> str:
        return f"mdct:{self.bins}"

    @property
    def shape(self) -> tuple[int, int]:
        return self.clip[0] * self.bins, -(-self.clip[1] // self.bins)

    def encode(self, x: Tensor) -> Tensor:
        blocks = pad(x, (0, self.shape[1] * self.bins - self.clip[1]))
        blocks = blocks.reshape(len(x), self.clip[0], -1, self.bins)
        y = (_turn(blocks, 1) @ _dct(self.bins).to(x)).transpose(-1, -2)
        return (self.gain * y.sign() * y.abs().pow(self.power)).reshape(len(x), *self.shape)

    def decode(self, z: Tensor) -> Tensor:
        z = z.reshape(len(z), self.clip[0], self.bins, -1).transpose(-1, -2) / self.gain
        y = z.sign() * z.abs().pow(1 / self.power)
        return _turn(y @ _dct(self.bins).to(z), -1).flatten(-2)[..., : self.clip[1]]


def open_mdct(rest: str, shape: tuple[int, ...]) -> MDCT:
    """`mdct` or `mdct:BINS`."""
    check_clips("mdct", shape)
    bins = whole("mdct", rest, BINS)
    return MDCT((shape[0], shape[1]), bins + bins % 2)


@lru_cache(maxsize=4)
def _dct(bins: int) -> Tensor:
    """DCT-IV, orthonormal and symmetric: its own inverse (N, N)."""
    odd = torch.arange(bins, dtype=torch.float64) + 0.5
    return math.sqrt(2 / bins) * torch.cos(math.pi / bins * odd[:, None] * odd)


def _turn(blocks: Tensor, way: int) -> Tensor:
    """Blocks (..., K, N) with the pairs around inner boundaries turned, or turned back."""
    half = blocks.shape[-1] // 2
    distance = torch.arange(half, dtype=torch.float64) + 0.5
    angle = math.pi / 4 + math.pi * distance / (4 * half)
    own, other = (fn(angle).to(blocks) for fn in (torch.sin, torch.cos))
    after, before = blocks[..., 1:, :half], blocks[..., :-1, half:].flip(-1)
    out = blocks.clone()
    out[..., 1:, :half] = own * after + way * other * before
    out[..., :-1, half:] = (own * before - way * other * after).flip(-1)
    return out
