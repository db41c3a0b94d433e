"""Sound through the command line: train behind a codec, sample to files, compare and evaluate."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from flowmaps.cli.main import main
from flowmaps.cli.scores import judge
from flowmaps.data import load
from flowmaps.data.encoded import encoded
from flowmaps.data.sounds import read_sound, sound_bytes
from flowmaps.metrics import Classifier, save_classifier
from flowmaps.report import as_images
from flowmaps.train import load as load_checkpoint

RATE, SAMPLES = 16_000, 2000


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A flow map of half a dozen clips behind an MDCT, trained for three steps."""
    folder = tmp_path_factory.mktemp("sound")
    time = torch.arange(SAMPLES) / RATE
    for name, hertz in (("high", 880.0), ("low", 440.0)):
        (folder / "clips" / name).mkdir(parents=True)
        for k in range(3):
            x = 0.2 * (k + 1) * torch.sin(2 * math.pi * hertz * time)[None]
            (folder / "clips" / name / f"{k}.wav").write_bytes(sound_bytes(x, RATE))
    argv = ["train", "mean_flow", "--data", str(folder / "clips"), "--size", str(SAMPLES)]
    argv += ["--codec", "mdct:100", "--net", "dit-tiny", "--out", str(folder / "run")]
    argv += ["--run.steps", "3", "--run.batch", "4", "--run.precision", "fp32"]
    argv += ["--run.compile", "no", "--run.preview-every", "3"]
    assert main(argv) == 0
    return folder / "run"


def width(path: Path) -> int:
    with Image.open(path) as image:
        return image.width


def test_the_checkpoint_knows_codec_and_rate(run: Path):
    saved = load_checkpoint(run)
    assert (saved.shape, saved.rate, saved.classes) == ((100, 20), RATE, ("high", "low"))
    assert saved.codec is not None
    assert saved.codec.name == "mdct:100"
    assert saved.decode(torch.zeros(2, 100, 20)).shape == (2, 1, SAMPLES)
    assert width(run / "previews" / "step-00000003.png") > 300


def test_samples_are_clips(run: Path, tmp_path: Path, call):
    for name in ("x.wav", "x.png", "x.npy"):
        argv = ("sample", run, "-n", 3, "--batch", 4, "--class", "low", "--out", tmp_path / name)
        status, _, err = call(*argv)
        assert status == 0, err
    clips = np.load(tmp_path / "x.npy")
    assert clips.shape == (3, 1, SAMPLES)
    row, rate = read_sound(tmp_path / "x.wav")
    assert (rate, tuple(row.shape)) == (RATE, (1, 3 * SAMPLES + 2 * 2400))
    start = SAMPLES + 2400
    heard = torch.from_numpy(clips[1]).clamp(-1, 1)
    torch.testing.assert_close(row[:, start : start + SAMPLES], heard, atol=1e-4, rtol=0)


def test_what_is_no_sound_is_not_written_as_sound(runs: Path, tmp_path: Path, call):
    status, _, err = call("sample", runs / "map", "-n", 1, "--out", tmp_path / "x.wav")
    assert status == 2
    assert "are no sound: use --out samples.png" in err


def test_compare_and_evaluate_score_what_is_heard(run: Path, tmp_path: Path, call):
    argv = ("compare", run, "--steps", "1,2", "-n", 10, "--out", tmp_path, "--json")
    status, out, err = call(*argv)
    assert status == 0, err
    assert {"frechet"} < set(json.loads(out)[0])
    assert width(tmp_path / "samples.png") > 300
    status, out, err = call("evaluate", run, "-n", 10, "--json")
    assert status == 0, err
    assert json.loads(out)["scores"]["frechet"] > 0


def test_real_tones_are_in_tune_and_recognised_by_who_knows_them(tmp_path: Path, monkeypatch):
    from flowmaps.data.sets.tones import Tones

    tones = load("tones")
    monkeypatch.setattr(Tones, "__len__", lambda self: 132)
    save_classifier(tmp_path / "c.safetensors", Classifier(1, len(tones.classes)).eval())
    scores = judge(encoded(tones, "mdct"), tmp_path / "c.safetensors")
    x, labels = tones.batch(torch.arange(66))
    found = scores.quick(x, labels)
    assert set(found) == {"frechet", "accuracy", "instrument", "in_tune"}
    assert found["in_tune"] >= 0.98
    assert found["instrument"] >= found["accuracy"]
    lower = torch.nn.functional.interpolate(x, scale_factor=1.06)[..., :16000]  # a semitone
    assert scores.quick(lower, labels)["in_tune"] < 0.05
    by_ear = judge(tones)
    assert by_ear.quick(x, labels)["frechet"] < 0.2 * by_ear.quick(0.1 * x, labels)["frechet"]
    assert set(by_ear.quick(x, labels)) == {"frechet", "in_tune"}


def test_a_spectrogram_is_drawn_low_below_and_loud_bright():
    time = torch.arange(RATE) / RATE
    x = torch.sin(2 * math.pi * 300 * time)[None, None] * (time > 0.5)
    picture = as_images(x)
    assert picture.shape == (1, 3, 64, 63)
    assert (picture.min(), picture.max()) >= (-1, 0)
    bright = picture.mean(1)[0]
    assert bright[32:, 45].max() > 0 > bright[:20, 45].max()
    assert bright[:, 10].max() < -0.9
    images = torch.zeros(2, 3, 4, 4)
    assert as_images(images) is images
