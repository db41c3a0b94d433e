import math

import pytest
import torch
from torch import Tensor

from flowmaps.errors import ShapeError
from flowmaps.metrics.sound import (
    cents,
    in_tune,
    log_spectral_distance,
    pitch,
    spectrograms,
)

RATE = 16_000


def tone(hertz: float, *levels: float, samples: int = RATE) -> Tensor:
    time = torch.arange(samples, dtype=torch.float64) / RATE
    parts = [a * torch.sin(2 * math.pi * (k + 1) * hertz * time + k) for k, a in enumerate(levels)]
    return torch.stack(parts).sum(0)[None]


@pytest.mark.parametrize("hertz", [163.7, 261.63, 440.0, 871.3])
def test_pitch_is_heard_to_a_few_cents_also_without_its_own_partial(hertz: float):
    for levels in ((1.0,), (1, 0.5, 0.3, 0.2), (0, 1, 1, 1)):
        heard = pitch(tone(hertz, *levels), RATE)
        assert cents(heard, torch.tensor([hertz])).abs() < 5


def test_pitch_needs_no_more_than_a_few_periods():
    for hertz in (163.7, 310.0):
        heard = pitch(tone(hertz, 1, 0.5, samples=1200), RATE)  # 25 ms of it are looked at
        assert cents(heard, torch.tensor([hertz])).abs() < 5


def test_noise_and_silence_have_no_pitch():
    noise = torch.randn(3, RATE, generator=torch.Generator().manual_seed(0))
    assert pitch(noise, RATE).isnan().all()
    assert pitch(torch.zeros(2, 1, RATE), RATE).isnan().all()


def test_in_tune_counts_clips_that_should_have_a_pitch():
    x = torch.cat([tone(220.0, 1), tone(220 * 2 ** (0.4 / 12), 1), tone(220 * 2 ** (-0.6 / 12), 1)])
    x = torch.cat([x, torch.randn(2, RATE, generator=torch.Generator().manual_seed(1))])
    asked = torch.tensor([220.0, 220, 220, 220, math.nan])
    assert in_tune(x, RATE, asked) == pytest.approx(2 / 4)


def test_cents():
    found = cents(torch.tensor([440.0, 220 * 2 ** (1 / 12), 110]), torch.tensor([220.0, 220, 220]))
    torch.testing.assert_close(found, torch.tensor([1200.0, 100, -1200]))


def test_log_spectral_distance_is_in_decibels():
    x = torch.randn(2, 1, 4000, generator=torch.Generator().manual_seed(2))
    torch.testing.assert_close(
        log_spectral_distance(x, 0.1 * x), torch.full((2,), 20.0), rtol=1e-3, atol=0
    )
    assert log_spectral_distance(x, x).max() == 0


def test_spectrograms_show_frequency_upwards_and_time_to_the_right():
    x = torch.zeros(1, 1, RATE)
    x[..., RATE // 2 :] = tone(3000.0, 1)[:, RATE // 2 :]
    picture = spectrograms(x)
    assert picture.shape == (1, 1, 64, 63)
    assert picture[..., :30].max() == -2
    band = picture[0, 0, :, 45].argmax()
    mel = 2595 * math.log10(1 + 3000 / 700) / (2595 * math.log10(1 + 8000 / 700)) * 65 - 1
    assert abs(float(band) - mel) <= 1


def test_clips_that_are_too_short_are_refused():
    with pytest.raises(ShapeError, match="expected clips of at least"):
        pitch(torch.zeros(1, 500), RATE)
