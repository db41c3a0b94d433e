r"""Five instruments that are computed: one second at 16 kHz of a note, known to the cent.

string  Karplus and Strong's: a burst of noise goes round a loop as long as a period, and loses its highs
bell    partials that are nearly harmonic and die the faster the higher they are
organ   six drawbars, held
voice   a buzz through the resonances of a vowel
drum    a falling tone and a burst of noise; it has no note

Loops and oscillators start together, as a keyboard's do; loudness, brightness, decay, attack, vowel, plucking place and the
noises vary from clip to clip.

Source:
    K. Karplus, A. Strong, *Digital synthesis of plucked-string and drum timbres*, 1983. Formants: G. Peterson, H. Barney,
    *Control methods used in a study of the vowels*, 1952, table II (men). Checked: tests/data/test_tones.py.
"""

from __future__ import annotations

import math

import torch
from torch import Generator, Tensor

RATE = 16_000
SAMPLES = 16_000
NOTES = ("a3", "b3", "c4", "d4", "e4", "f4", "g4", "a4")
_STEPS = (0, 2, 3, 5, 7, 8, 10, 12)
INSTRUMENTS = ("string", "bell", "organ", "voice", "drum")
LOUDNESS = ("soft", "loud")
_VOWELS = ((270, 2290, 3010), (530, 1840, 2480), (730, 1090, 2440), (570, 840, 2410), (300, 870, 2240))  # fmt: skip
_WIDTHS = (60.0, 90.0, 150.0)  # of the resonances in Hz


def frequency(note: str) -> float:
    """Hz of a note of the scale of a minor from a3 to a4, 440 Hz, in equal temperament.

    Example:
        >>> frequency("a3"), round(frequency("c4"), 2)
        (220.0, 261.63)
    """
    return 220.0 * 2 ** (_STEPS[NOTES.index(note)] / 12)


def clip(instrument: str, note: str | None, loud: bool, generator: Generator) -> Tensor:
    """One second of sound (16000,), float32 in [-1, 1]; `note` is None for a drum."""
    f = 0.0 if note is None else frequency(note)
    make = {"string": _string, "bell": _bell, "organ": _organ, "voice": _voice}
    x = make[instrument](f, loud, generator) if instrument in make else _drum(loud, generator)
    x = x * _fade(0.002, 0.03)
    peak = (0.8 if loud else 0.25) * _between(0.8, 1.2, generator)
    return (x * (peak / x.abs().max())).float()


def _string(f: float, loud: bool, generator: Generator) -> Tensor:
    from scipy.signal import lfilter

    period = RATE / f - 0.5  # the average of two neighbours delays by half a sample
    whole, part = int(period), period % 1
    burst = torch.zeros(SAMPLES, dtype=torch.float64)
    noise = torch.randn(whole, generator=generator, dtype=torch.float64)
    place = int(whole * _between(0.1, 0.3, generator))
    burst[:whole] = noise - noise.roll(place)
    dark = _between(0.2, 0.4, generator) if loud else _between(0.6, 0.75, generator)
    loss = 10 ** (-3 / (f * _between(0.8, 1.6, generator)))  # -60 dB after so many seconds
    loop = torch.zeros(whole + 3, dtype=torch.float64)
    loop[0] = 1
    taps = torch.tensor([1 - part, 1.0, part], dtype=torch.float64)
    loop[whole:] = -loss / 2 * taps
    heard = lfilter([1 - dark], [1, -dark], burst.numpy())
    return torch.from_numpy(lfilter([1.0], loop.numpy(), heard))


def _bell(f: float, loud: bool, generator: Generator) -> Tensor:
    ratios = torch.tensor([1, 2, 3, 4.07, 5.2, 6.8], dtype=torch.float64)
    start = torch.tensor([1, 0.7, 0.5, 0.35, 0.3, 0.2], dtype=torch.float64)
    bright = _between(0.8, 1.0, generator) if loud else _between(0.5, 0.65, generator)
    levels = start * bright ** torch.arange(6) * _vary(6, 0.25, generator)
    die = _between(0.3, 0.8, generator) / ratios**0.7
    return (levels[:, None] * (_time() / -die[:, None]).exp() * _sines(f * ratios)).sum(0)


def _organ(f: float, loud: bool, generator: Generator) -> Tensor:
    ratios = torch.tensor([1, 2, 3, 4, 6, 8], dtype=torch.float64)
    levels = torch.rand(6, generator=generator, dtype=torch.float64) + 0.1
    levels[0] += 0.5  # without it the note would be heard an octave higher
    levels = levels * (1.0 if loud else 0.7) ** torch.arange(6)
    return (levels[:, None] * _sines(f * ratios)).sum(0) * _fade(
        _between(0.02, 0.06, generator), 0.1
    )


def _voice(f: float, loud: bool, generator: Generator) -> Tensor:
    harmonics = f * torch.arange(1, int(4000 / f) + 1, dtype=torch.float64)
    vowel = _VOWELS[int(torch.randint(len(_VOWELS), (1,), generator=generator))]
    shift = _between(0.95, 1.1, generator)
    peaks = torch.tensor(vowel, dtype=torch.float64) * shift
    widths = torch.tensor(_WIDTHS, dtype=torch.float64)
    near = 1 / (1 + ((harmonics[:, None] - peaks) / widths).square())
    levels = (near * torch.tensor([1, 0.6, 0.3])).sum(1).sqrt() + 0.02
    levels = levels * (harmonics / f) ** (-0.8 if loud else -1.4)
    return (levels[:, None] * _sines(harmonics)).sum(0) * _fade(
        _between(0.05, 0.12, generator), 0.15
    )


def _drum(loud: bool, generator: Generator) -> Tensor:
    from scipy.signal import lfilter

    time, low = _time(), _between(50, 70, generator)
    fall = _between(0.03, 0.06, generator)
    sweep = low * time + _between(80, 160, generator) * fall * (1 - (-time / fall).exp())
    tone = (2 * math.pi * sweep).sin() * (-time / _between(0.1, 0.25, generator)).exp()
    noise = torch.randn(SAMPLES, generator=generator, dtype=torch.float64)
    dark = 0.3 if loud else 0.7
    hiss = torch.from_numpy(lfilter([1 - dark], [1, -dark], noise.numpy()))
    return tone + 0.6 * hiss * (-time / _between(0.03, 0.1, generator)).exp()


def _time() -> Tensor:
    return torch.arange(SAMPLES, dtype=torch.float64) / RATE


def _sines(hertz: Tensor) -> Tensor:
    """Sines (K, samples) that start at zero, by turning a phasor: a tenth of the time of as many sines."""
    coarse, fine = 125, SAMPLES // 125
    step = 2 * math.pi * hertz / RATE
    small = torch.polar(torch.ones_like(step)[:, None].expand(-1, fine), step[:, None] * torch.arange(fine))  # fmt: skip
    large = torch.polar(torch.ones_like(step)[:, None].expand(-1, coarse), step[:, None] * fine * torch.arange(coarse))  # fmt: skip
    return (large[:, :, None] * small[:, None, :]).imag.reshape(len(hertz), -1)


def _fade(attack: float, release: float) -> Tensor:
    """An envelope that rises for `attack` seconds and falls for the last `release`."""
    time = _time()
    rise, fall = time / attack, (SAMPLES / RATE - time) / release
    return torch.minimum(rise, fall).clamp(max=1)


def _vary(n: int, spread: float, generator: Generator) -> Tensor:
    return (spread * torch.randn(n, generator=generator, dtype=torch.float64)).exp()


def _between(low: float, high: float, generator: Generator) -> float:
    return low + (high - low) * float(torch.rand(1, generator=generator))
