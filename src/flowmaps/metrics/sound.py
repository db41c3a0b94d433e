r"""Scores of sound: the pitch that is heard, how far two spectra are apart, and pictures in which clips are recognised.

Clips are (B, samples) or (B, channels, samples); what needs one channel takes the mean.
"""

from __future__ import annotations

import torch
from torch import Tensor

from flowmaps.codec.stft import LogMel, transform
from flowmaps.errors import ShapeError

BANDS = 64


def pitch(x: Tensor, rate: int, *, low: float = 150.0, high: float = 1000.0) -> Tensor:
    r"""Fundamental frequency in Hz (B,), from half a second after the first 50 ms; NaN where nothing repeats.

    The normalised square difference $n(\tau) = 2\sum_i x_i x_{i+\tau} / \sum_i (x_i^2 + x_{i+\tau}^2)$ is 1 at a period; the
    first of its peaks above nine tenths of the highest is taken, between samples by a parabola.

    Args:
        x: Clips.
        rate: Samples per second.
        low: Lowest frequency that is looked for, in Hz.
        high: Highest.

    Raises:
        ShapeError: If the clips are shorter than three periods of `low`.

    Source:
        P. McLeod, G. Wyvill, *A smarter way to find pitch*, 2005. Checked: tests/metrics/test_sound.py.
    """
    mono = _mono(x)[:, int(0.05 * rate) : int(0.55 * rate)].double()
    first, last = int(rate / high), int(rate / low) + 2
    if mono.shape[1] < 3 * last:
        raise ShapeError(
            f"expected clips of at least {3 * last + int(0.05 * rate)} samples; got {x.shape[-1]}; raise `low`"
        )
    mono = mono - mono.mean(1, keepdim=True)
    n = mono.shape[1]
    power = torch.fft.rfft(mono, 2 * n).abs().square()
    products = torch.fft.irfft(power)[:, : last + 1]
    ahead = torch.cat([mono.new_zeros(len(mono), 1), mono.square().cumsum(1)], 1)
    lags = torch.arange(last + 1)
    energy = ahead[:, n - lags] + ahead[:, -1:] - ahead[:, lags]
    likeness = 2 * products / energy.clamp(min=1e-12)
    here, before, after = likeness[:, 1:-1], likeness[:, :-2], likeness[:, 2:]
    peak = (here >= before) & (here > after) & (lags[1:-1] >= first)
    best = here.where(peak, -1.0).amax(1, keepdim=True)
    chosen = (peak & (here >= 0.9 * best)).int().argmax(1, keepdim=True)
    y0, y1, y2 = (part.gather(1, chosen)[:, 0] for part in (before, here, after))
    lag = chosen[:, 0] + 1 + 0.5 * (y0 - y2) / (y0 - 2 * y1 + y2)
    return torch.where(best[:, 0] > 0.5, rate / lag, torch.nan)


def cents(heard: Tensor, asked: Tensor) -> Tensor:
    """Interval between frequencies in hundredths of a semitone, positive where `heard` is higher."""
    return 1200 * torch.log2(heard / asked)


def in_tune(x: Tensor, rate: int, asked: Tensor, *, within: float = 50.0) -> float:
    """Share of the clips that have a pitch to hit (`asked` in Hz, NaN without) and are `within` so many cents of it."""
    pitched = ~asked.isnan()
    error = cents(pitch(x[pitched], rate), asked[pitched].double())
    return float((error.abs() <= within).double().mean())  # NaN is not within


def log_spectral_distance(x: Tensor, y: Tensor, *, hop: int = 256, floor: float = -80.0) -> Tensor:
    """Root mean square difference of power spectra in dB, per frame, then its mean over frames (B,).

    Args:
        x: Clips.
        y: As many others of the same shape.
        hop: Samples between frames.
        floor: Quieter than so many dB below the loudest place of `x` counts as silence, in both.
    """
    a, b = (transform(_mono(each), hop).abs().square() for each in (x, y))
    lowest = a.amax((1, 2), keepdim=True) * 10 ** (floor / 10) + 1e-30
    gap = 10 * (torch.maximum(a, lowest).log10() - torch.maximum(b, lowest).log10())
    return gap.square().mean(1).sqrt().mean(1)


def spectrograms(x: Tensor) -> Tensor:
    """Log-mel pictures (B, 1, 64, frames) of clips, about in [-1, 1]: what a classifier of sound looks at."""
    mono = _mono(x)[:, None]
    return LogMel((1, mono.shape[-1]), BANDS).encode(mono)[:, None]


def loudness(x: Tensor) -> Tensor:
    """Mean and deviation over time of every band's loudness (B, 128): features of sound that need no network."""
    bands = spectrograms(x)[:, 0]
    return torch.cat([bands.mean(-1), bands.std(-1)], 1)


def _mono(x: Tensor) -> Tensor:
    return x if x.ndim == 2 else x.mean(1)
