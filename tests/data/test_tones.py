import pytest
import torch

from flowmaps.data import load
from flowmaps.data.tones import NOTES, clip, frequency
from flowmaps.errors import DataError
from flowmaps.metrics.sound import cents, pitch


def test_a_clip_depends_on_seed_split_and_number_only():
    data = load("tones", seed=3)
    x, labels = data.batch(torch.tensor([5, 71, 5]))
    assert (x.shape, x.dtype, labels is not None) == ((3, 1, 16000), torch.float32, True)
    torch.testing.assert_close(x[0], x[2])
    torch.testing.assert_close(load("tones", seed=3).batch(torch.tensor([71]))[0], x[1:2])
    for other in (load("tones", seed=4), load("tones", seed=3, split="test")):
        assert not torch.equal(other.batch(torch.tensor([5]))[0], x[:1])
    assert 0.1 < x.abs().amax(2).min() < x.abs().amax(2).max() < 1


def test_classes_come_in_turn_and_say_what_is_heard():
    data = load("tones")
    assert len(data) == 40 * len(data.classes) == 40 * 2 * (4 * len(NOTES) + 1)
    assert {"soft string a3", "loud voice e4", "loud drum"} <= set(data.classes)
    labels = data.batch(torch.arange(0, len(data), 997))[1]
    assert labels is not None
    assert labels.tolist() == [i % len(data.classes) for i in range(0, len(data), 997)]


def test_every_pitched_clip_has_the_pitch_of_its_note():
    data = load("tones", seed=1)
    x, labels = data.batch(torch.arange(len(data.classes)))
    asked = data.pitches[labels]  # type: ignore[attr-defined]
    error = cents(pitch(x, data.rate), asked.double())  # type: ignore[attr-defined]
    assert error[~asked.isnan()].abs().max() < 25  # a bell's partials are not quite harmonic
    assert error[asked.isnan()].isnan().all()


def test_loud_is_louder_and_brighter_than_soft():
    def centroid(x: torch.Tensor) -> float:
        power = torch.fft.rfft(x).abs().square()
        return float((power * torch.arange(len(power))).sum() / power.sum())

    for instrument in ("string", "bell", "organ", "voice"):
        pairs = [
            [
                clip(instrument, "d4", loud, torch.Generator().manual_seed(k))
                for loud in (False, True)
            ]
            for k in range(5)
        ]
        assert all(soft.abs().max() < loud.abs().max() for soft, loud in pairs)
        assert sum(centroid(s) for s, _ in pairs) < sum(centroid(l) for _, l in pairs)


def test_strings_decay_and_organs_do_not():
    def halves(instrument: str) -> float:
        x = clip(instrument, "c4", True, torch.Generator().manual_seed(0))
        return float(x[10_000:14_000].square().mean() / x[2000:6000].square().mean())

    assert halves("string") < 0.3
    assert halves("bell") < 0.3
    assert 0.9 < halves("organ") < 1.1


def test_frequencies_are_equally_tempered():
    assert frequency("a4") == pytest.approx(440)
    assert frequency("c4") == pytest.approx(261.6256, abs=1e-3)


def test_sound_has_no_size():
    with pytest.raises(DataError, match="tones: expected no size, it is sound"):
        load("tones", size=8)


def test_captions_say_what_classes_say_in_varied_words():
    told, tones = load("tones:captions", seed=2), load("tones", seed=2)
    rows = torch.arange(0, 1320, 5)
    captions = told.captions(rows)  # type: ignore[attr-defined]
    for caption, i in zip(captions, rows.tolist(), strict=True):
        loud, instrument, *note = tones.classes[i % len(tones.classes)].split()
        assert {loud, instrument, *note} <= set(caption.replace(",", "").split())
    assert len({c.split()[0] for c in captions}) > 3
    assert captions == told.captions(rows)  # type: ignore[attr-defined]
    read = told.conditions(rows[:3])  # type: ignore[attr-defined]
    assert read["text"].shape[1:] == told.null["text"].shape  # type: ignore[attr-defined]
    torch.testing.assert_close(told.batch(rows[:2])[0], tones.batch(rows[:2])[0])
