import math
import shutil
import wave
from pathlib import Path

import pytest
import torch
from torch import Tensor

from flowmaps.data import load
from flowmaps.data.sets.sounds import Speech
from flowmaps.data.sounds import in_a_row, read_sound, resampled, sound_bytes, sound_data
from flowmaps.errors import DataError, MissingExtraError
from flowmaps.metrics.sound import cents, pitch


def tone(hertz: float, samples: int, rate: int, channels: int = 1) -> Tensor:
    time = torch.arange(samples, dtype=torch.float64) / rate
    x = 0.5 * torch.sin(2 * math.pi * hertz * time).float()
    return torch.stack([x / (k + 1) for k in range(channels)])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, hertz in (("high", 440), ("low", 220)):
        (tmp_path / name).mkdir()
        for k in range(2):
            x = tone(hertz, 9000 + 4000 * k, 16000)
            (tmp_path / name / f"{k}.wav").write_bytes(sound_bytes(x, 16000))
    return tmp_path


def test_a_folder_of_wavs_with_classes(folder: Path):
    data = load(folder, size=10_000)
    x, labels = data.batch(torch.arange(4))
    assert (data.shape, data.classes, data.rate) == ((1, 10_000), ("high", "low"), 16000)  # type: ignore[attr-defined]
    assert labels is not None
    assert labels.tolist() == [0, 0, 1, 1]
    torch.testing.assert_close(x[0, :, :9000], tone(440, 9000, 16000), atol=1e-4, rtol=0)
    assert x[0, :, 9000:].abs().max() == 0  # shorter ones end in silence
    torch.testing.assert_close(x[3], tone(220, 10_000, 16000), atol=1e-4, rtol=0)


def test_a_stereo_file_at_96_khz_is_mixed_and_resampled(tmp_path: Path):
    (tmp_path / "wide.wav").write_bytes(sound_bytes(tone(440, 96000, 96000, channels=2), 96000))
    x = load(tmp_path).batch(torch.tensor([0]))[0]
    assert x.shape == (1, 1, 16000)
    assert cents(pitch(x, 16000), torch.tensor([440.0])).abs() < 1
    inner = slice(1000, -1000)
    torch.testing.assert_close(
        x[0, 0, inner], 0.75 * tone(440, 16000, 16000)[0, inner], atol=2e-3, rtol=0
    )
    both = sound_data(tmp_path, channels=2)
    assert both.shape == (2, 16000)
    torch.testing.assert_close(both.x[0, 0], 2 * both.x[0, 1], atol=1e-4, rtol=0)


@pytest.mark.parametrize("width", [1, 2, 3, 4])
def test_wavs_of_every_width(tmp_path: Path, width: int):
    x = tone(300, 800, 16000)[0]
    scale = 2 ** (8 * width - 1)
    whole = (x.double() * scale).round().long() + (128 if width == 1 else 0)
    raw = b"".join(int(v).to_bytes(width, "little", signed=width > 1) for v in whole)
    with wave.open(str(tmp_path / "x.wav"), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(width)
        file.setframerate(16000)
        file.writeframes(raw)
    found, rate = read_sound(tmp_path / "x.wav")
    assert rate == 16000
    torch.testing.assert_close(found[0], x, atol=1 / scale, rtol=0)


def test_a_wav_of_floats_is_read_and_what_is_cut_off_at_its_end_is_missing(tmp_path: Path):
    from scipy.io import wavfile

    x = tone(300, 800, 16000, channels=2)
    wavfile.write(tmp_path / "x.wav", 16000, x.T.numpy())
    found, rate = read_sound(tmp_path / "x.wav")
    assert rate == 16000
    assert torch.equal(found, x)
    whole = sound_bytes(x, 16000)
    (tmp_path / "cut.wav").write_bytes(whole[: -4 * 300])
    found, _ = read_sound(tmp_path / "cut.wav")
    torch.testing.assert_close(found, x[:, :500], atol=1e-4, rtol=0)


def test_broken_and_silent_files_are_named_and_skipped_only_when_asked(folder: Path):
    (folder / "low" / "silent.wav").write_bytes(sound_bytes(torch.zeros(1, 5000), 16000))
    with pytest.raises(DataError, match=r"silent\.wav: expected sound; got silence"):
        load(folder)
    (folder / "high" / "00.wav").write_text("this is no sound")
    with pytest.raises((DataError, MissingExtraError), match=r"00\.wav: expected a"):
        load(folder)
    (folder / "high" / "00.wav").write_bytes(sound_bytes(torch.zeros(1, 0), 16000))
    with pytest.warns(UserWarning, match=r"left out 2 files: .*00\.wav.*empty.*silent\.wav"):
        data = load(f"sounds+skip:{folder}")
    assert len(data) == 4
    assert data.batch(torch.arange(4))[1].tolist() == [0, 0, 1, 1]  # type: ignore[union-attr]


def test_a_text_file_named_wav_is_refused_in_one_sentence(tmp_path: Path):
    (tmp_path / "notes.wav").write_text("a text")
    with pytest.raises((DataError, MissingExtraError), match=r"notes\.wav: expected a") as error:
        load(tmp_path)
    assert "\n" not in str(error.value)
    with pytest.raises(DataError, match="expected a folder of sound; got 'nowhere'"):
        load("sounds:nowhere")


def test_flac_and_ogg_through_soundfile(tmp_path: Path):
    soundfile = pytest.importorskip("soundfile")
    x = tone(330, 22050, 22050)
    for name in ("a.flac", "b.ogg"):
        soundfile.write(tmp_path / name, x.T.numpy(), 22050)
    data = load(tmp_path)
    heard = pitch(data.batch(torch.arange(2))[0], 16000)
    assert cents(heard, torch.tensor([330.0, 330.0])).abs().max() < 2


def test_resampling_keeps_what_fits():
    x = tone(440, 44100, 44100)
    torch.testing.assert_close(
        resampled(x, 44100, 16000)[:, 500:-500], tone(440, 16000, 16000)[:, 500:-500], atol=2e-3, rtol=0
    )  # fmt: skip
    assert resampled(tone(7900, 44100, 44100), 44100, 8000)[:, 500:-500].abs().max() < 0.01


def test_a_wav_comes_back_and_is_clipped(tmp_path: Path):
    x = torch.cat([tone(440, 1000, 8000), torch.full((1, 1000), 3.0)])
    (tmp_path / "x.wav").write_bytes(sound_bytes(x, 8000))
    found, rate = read_sound(tmp_path / "x.wav")
    assert rate == 8000
    torch.testing.assert_close(found, x.clamp(-1, 1), atol=1e-4, rtol=0)


def test_clips_in_a_row_have_pauses_between_them():
    x = torch.ones(3, 1, 100)
    row = in_a_row(x, 100, gap=0.5)
    assert row.shape == (1, 400)
    assert row[0, 100:150].abs().max() == 0
    assert row[0, -1] == 1


def test_without_espeak_one_is_told_where_it_is(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("PATH", "")
    with pytest.raises(DataError, match="apt-get install espeak-ng"):
        load("speech")


@pytest.mark.skipif(shutil.which("espeak-ng") is None, reason="espeak-ng is not installed")
def test_spoken_digits():
    data = load("speech")
    x, labels = data.batch(torch.tensor([3, 13, 3]))
    assert labels is not None
    assert labels.tolist() == [3, 3, 3]
    assert x.shape == (3, 1, 16000)
    assert not torch.equal(x[0], x[1])
    torch.testing.assert_close(Speech()._speak(3), x[2])
