"""A flow map of sound against the walks of its teacher and of itself: numbers, picture and clips of two runs of `tones`.

    make demo-sound && python benchmarks/sound.py demo-sound        from the demo's runs, 264 clips
    python benchmarks/sound.py FOLDER --clips 132 --reference 10    fewer clips, and ten of each class to compare them with

FOLDER holds the runs `baseline` and `flow_map`. Writes sound.json beside itself, docs/pictures/sound.png, docs/sounds/*.wav.
"""

import argparse
import json
from dataclasses import replace
from pathlib import Path

import torch
from histories import add_histories

from flowmaps.cli.demo import measure
from flowmaps.cli.demo_page import heard, samples_picture
from flowmaps.cli.demo_settings import DEMOS
from flowmaps.codec import open_codec
from flowmaps.data import load
from flowmaps.data.sets import tones
from flowmaps.metrics.sound import in_tune, log_spectral_distance
from flowmaps.report import save_png

HERE = Path(__file__).parent
DOCS = HERE.parent / "docs"


def round_trips() -> dict[str, dict[str, float]]:
    """What a clip loses on its way through each codec: largest error of a sample, spectral distance in dB, clips in tune."""
    data = load("tones", split="test")
    x, labels = data.batch(torch.arange(66))
    found = {}
    for name in ("advance", "mdct", "stft", "mel"):
        codec = open_codec(name, data.shape)
        again = codec.decode(codec.encode(x))
        found[name] = {
            "largest_error": float((again - x).abs().max()),
            "log_spectral_distance": float(log_spectral_distance(x, again).mean()),
            "in_tune": in_tune(again, data.rate, data.pitches[labels]),
        }
    return found


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--clips", type=int, default=DEMOS["sound"].samples)
    parser.add_argument("--reference", type=int, default=tones.CLIPS, help="clips of a class")
    options = parser.parse_args()
    tones.CLIPS = options.reference
    demo = replace(DEMOS["sound"], baseline_steps=(16, 64))
    report, measured = measure(demo, options.folder, options.clips)
    add_histories(report, baseline=measured.baseline, flow_map=measured.model)
    report |= {"reference_clips": len(load("tones")), "codecs": round_trips()}
    (HERE / "sound.json").write_text(json.dumps(report, indent=1) + "\n")
    save_png(samples_picture(measured), DOCS / "pictures" / "sound.png")
    few = replace(demo, shown=demo.shown[:10:2])
    heard(replace(measured, demo=few), DOCS / "sounds")


if __name__ == "__main__":
    main()
