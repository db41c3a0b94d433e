r"""Short-time Fourier transforms: complex and invertible, with phases or their advance, or loudness alone.

Windows are Hann's over two hops, so frames overlap by half.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from .base import check_clips, whole

HOP = 500
"""Samples between frames: at 16 kHz 31 ms, and frequencies 16 Hz apart."""

MELS, MEL_HOP = 64, 256


@final
@dataclass(frozen=True)
class STFT:
    r"""Clips (channels, samples) as real and imaginary parts (channels x 2 x (hop + 1), frames) of $g|y|^{p}e^{i\varphi}$.

    Twice as many numbers as samples: points that are no transform of any clip decode to the nearest one.

    Attributes:
        clip: Channels and samples.
        hop: Samples between frames.
        advance: $\varphi$ is how far the phase went since the frame before, not the phase itself: a steady note has the same
            numbers in every frame. (The instantaneous frequency of GANSynth, Engel et al. 2019, arXiv:1902.08710, sec. 2.1,
            as an angle, which never jumps, times the loudness, so that the phases of silence weigh nothing.)
        power: p.
        gain: g.
    """

    clip: tuple[int, int]
    hop: int = HOP
    advance: bool = False
    power: float = 0.4
    gain: float = 4.5

    @property
    def name(self) -> str:
        return f"{'advance' if self.advance else 'stft'}:{self.hop}"

    @property
    def shape(self) -> tuple[int, int]:
        return self.clip[0] * 2 * (self.hop + 1), self.clip[1] // self.hop + 1

    def encode(self, x: Tensor) -> Tensor:
        y = transform(x, self.hop)
        phase = y.angle()
        if self.advance:
            phase = phase.diff(dim=-1, prepend=torch.zeros_like(phase[..., :1]))
        z = torch.view_as_real(torch.polar(self.gain * y.abs().pow(self.power), phase))
        return z.movedim(-1, 2).reshape(len(x), *self.shape)

    def decode(self, z: Tensor) -> Tensor:
        parts = z.reshape(len(z), self.clip[0], 2, self.hop + 1, -1).movedim(2, -1).contiguous()
        y = torch.view_as_complex(parts)
        phase = y.angle().cumsum(-1) if self.advance else y.angle()
        return inverse(
            torch.polar((y.abs() / self.gain).pow(1 / self.power), phase), self.hop, self.clip[1]
        )


@final
@dataclass(frozen=True)
class LogMel:
    r"""Loudness in bands of equal hearing width (channels x bands, frames); phases are lost, and guessed by Griffin and Lim.

    Points are $(\log_{10}(b + 10^{-5}) + 2.5) / 1.25$ of the band's loudness b.

    Attributes:
        clip: Channels and samples.
        bands: Number of bands.
        hop: Samples between frames.
        iterations: Of the guess: phases of the transform of the clip that the last guess decodes to.

    Source:
        D. Griffin, J. Lim, *Signal estimation from modified short-time Fourier transform*, 1984; with momentum 0.99,
        N. Perraudin, P. Balazs, P. Sondergaard, *A fast Griffin-Lim algorithm*, 2013. Mel: 2595 log10(1 + f/700), the
        highest frequency taken to be 8 kHz.
    """

    clip: tuple[int, int]
    bands: int = MELS
    hop: int = MEL_HOP
    iterations: int = 32

    @property
    def name(self) -> str:
        return f"mel:{self.bands}"

    @property
    def shape(self) -> tuple[int, int]:
        return self.clip[0] * self.bands, self.clip[1] // self.hop + 1

    def encode(self, x: Tensor) -> Tensor:
        bands = mel_bank(self.bands, self.hop + 1).to(x) @ transform(x, self.hop).abs()
        return ((torch.log10(bands + 1e-5) + 2.5) / 1.25).reshape(len(x), *self.shape)

    def decode(self, z: Tensor) -> Tensor:
        bands = 10 ** (z * 1.25 - 2.5).reshape(len(z), self.clip[0], self.bands, -1) - 1e-5
        bank = mel_bank(self.bands, self.hop + 1)
        loud = (torch.linalg.pinv(bank).to(z) @ bands.clamp(min=0)).clamp(min=0)
        generator = torch.Generator().manual_seed(0)
        phase = torch.rand(loud.shape[1:], generator=generator).to(z) * 2 * math.pi
        guess = last = torch.polar(torch.ones_like(loud), phase.expand_as(loud))
        for _ in range(self.iterations):
            found = transform(inverse(loud * guess, self.hop, self.clip[1]), self.hop)
            ahead = found + 0.99 * (found - last)
            guess, last = ahead / ahead.abs().clamp(min=1e-12), found
        return inverse(loud * guess, self.hop, self.clip[1])


def open_stft(rest: str, shape: tuple[int, ...]) -> STFT:
    """`stft` or `stft:HOP`."""
    check_clips("stft", shape)
    return STFT((shape[0], shape[1]), whole("stft", rest, HOP))


def open_advance(rest: str, shape: tuple[int, ...]) -> STFT:
    """`advance` or `advance:HOP`."""
    check_clips("advance", shape)
    return STFT((shape[0], shape[1]), whole("advance", rest, HOP), advance=True)


def open_mel(rest: str, shape: tuple[int, ...]) -> LogMel:
    """`mel` or `mel:BANDS`."""
    check_clips("mel", shape)
    return LogMel((shape[0], shape[1]), whole("mel", rest, MELS))


def transform(x: Tensor, hop: int) -> Tensor:
    """Clips (..., samples) as complex frames (..., hop + 1, samples // hop + 1)."""
    window = torch.hann_window(2 * hop, dtype=x.dtype, device=x.device)
    rows = x.reshape(-1, x.shape[-1])
    y = torch.stft(
        rows, 2 * hop, hop, window=window, pad_mode="constant", normalized=True, return_complex=True
    )
    return y.reshape(*x.shape[:-1], *y.shape[1:])


def inverse(y: Tensor, hop: int, samples: int) -> Tensor:
    """Complex frames (..., hop + 1, frames) as the clips (..., samples) whose transform is nearest."""
    window = torch.hann_window(2 * hop, dtype=y.real.dtype, device=y.device)
    rows = y.reshape(-1, *y.shape[-2:])
    x = torch.istft(rows, 2 * hop, hop, window=window, normalized=True, length=samples)
    return x.reshape(*y.shape[:-2], samples)


def mel_bank(bands: int, bins: int, top: float = 8000.0) -> Tensor:
    """Triangles (bands, bins) over frequencies 0..top, evenly on the mel scale, each of peak 1."""
    edges = 700 * (
        10 ** (torch.linspace(0, 2595 * math.log10(1 + top / 700), bands + 2) / 2595) - 1
    )
    f = torch.linspace(0, top, bins)
    up = (f - edges[:-2, None]) / (edges[1:-1] - edges[:-2])[:, None]
    down = (edges[2:, None] - f) / (edges[2:] - edges[1:-1])[:, None]
    return torch.minimum(up, down).clamp(min=0)
