"""Trains the classifier whose features measure the sound of `tones`, or of `speech`; writes weights and what they reach.

    OMP_NUM_THREADS=1 python benchmarks/sound_classifier.py            tones: about a minute of one core
    OMP_NUM_THREADS=1 python benchmarks/sound_classifier.py speech     spoken digits, where espeak-ng is installed

It looks at log-mel spectrograms of clips, and writes `NAME_classifier.safetensors` and `NAME_classifier.json` beside itself. The
floor is the Frechet distance of as many clips of another draw: no generator can be told from data below.
"""

from __future__ import annotations

import json
import logging
import platform
import sys
import time
from pathlib import Path

import torch
from torch import Tensor

from flowmaps.data import TensorData, load
from flowmaps.metrics import fit_classifier, frechet, moments, save_classifier
from flowmaps.metrics.sound import spectrograms

STEPS, BATCH, RATE, SEED = 260, 64, 4e-3, 0
CLIPS = {"tones": 1980, "speech": 1200}  # thirty of a class, and all
log = logging.getLogger("sound_classifier")


def report(step: int, loss: float) -> None:
    """Logs every fiftieth loss."""
    if step % 50 == 0:
        log.info("step %d loss %.3f", step, loss)


def seen(name: str, split: str) -> tuple[TensorData, Tensor]:
    """Spectrograms of the first clips of a split as a data set, and their labels."""
    data = load(name, split=split)
    parts = [data.batch(rows) for rows in torch.arange(CLIPS[name]).split(100)]
    pictures = torch.cat([spectrograms(x) for x, _ in parts])
    labels = torch.cat([part[1] for part in parts])
    return TensorData(f"{name} {split}", pictures, labels, data.classes), labels


def main(name: str) -> None:
    """Trains, measures, stores."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    torch.set_num_threads(1)
    (train, _), (test, labels) = seen(name, "train"), seen(name, "test")
    start = time.process_time()
    net = fit_classifier(
        train, steps=STEPS, batch=BATCH, rate=RATE, seed=SEED, bf16=True, report=report
    )
    seconds = time.process_time() - start
    kinds = getattr(load(name), "families", None)
    with torch.no_grad():
        found = torch.cat([net(part).argmax(1) for part in test.x.split(200)])
    result = {
        "data": name,
        "test_accuracy": float((found == labels).double().mean()),
        "frechet_test_against_train": frechet(test.x, train.x, net.features),
        "frechet_clips": CLIPS[name],
        "feature_variance": moments(train.x, net.features).cov.trace().item(),
        "parameters": sum(p.numel() for p in net.parameters()),
        "steps": STEPS,
        "batch": BATCH,
        "rate": RATE,
        "seed": SEED,
        "train_processor_seconds": round(seconds, 1),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "machine": f"{platform.machine()}, 1 thread, bf16 autocast, channels last",
    }
    if kinds is not None:
        right = float((kinds[found] == kinds[labels]).double().mean())
        result["test_accuracy_of_the_instrument"] = right
    here = Path(__file__).with_name(f"{name}_classifier")
    save_classifier(here.with_suffix(".safetensors"), net, data=name)
    here.with_suffix(".json").write_text(json.dumps(result, indent=2) + "\n")
    log.info("%s", json.dumps(result))


if __name__ == "__main__":
    main(*(sys.argv[1:] or ["tones"]))
