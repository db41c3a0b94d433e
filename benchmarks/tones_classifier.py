"""Trains the classifier whose features measure the sound of `tones`; writes weights and what they reach.

Run: `OMP_NUM_THREADS=1 python benchmarks/tones_classifier.py` (about a minute of one core). It looks at log-mel
spectrograms of clips. It writes `tones_classifier.safetensors` and `tones_classifier.json` beside itself. The floor is the
Frechet distance of as many clips of another draw: no generator can be told from data below.
"""

from __future__ import annotations

import json
import logging
import platform
import time
from pathlib import Path

import torch
from torch import Tensor

from flowmaps.data import TensorData, load
from flowmaps.metrics import fit_classifier, frechet, moments, save_classifier
from flowmaps.metrics.sound import spectrograms

STEPS, BATCH, RATE, SEED = 260, 64, 4e-3, 0
CLIPS = 1980  # thirty of a class
log = logging.getLogger("tones_classifier")


def report(step: int, loss: float) -> None:
    """Logs every fiftieth loss."""
    if step % 50 == 0:
        log.info("step %d loss %.3f", step, loss)


def seen(split: str) -> tuple[TensorData, Tensor]:
    """Spectrograms of the first clips of a split as a data set, and their labels."""
    data = load("tones", split=split)
    parts = [data.batch(rows) for rows in torch.arange(CLIPS).split(100)]
    pictures = torch.cat([spectrograms(x) for x, _ in parts])
    labels = torch.cat([part[1] for part in parts])
    return TensorData(f"tones {split}", pictures, labels, data.classes), labels


def main() -> None:
    """Trains, measures, stores."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    torch.set_num_threads(1)
    (train, _), (test, labels) = seen("train"), seen("test")
    start = time.process_time()
    net = fit_classifier(
        train, steps=STEPS, batch=BATCH, rate=RATE, seed=SEED, bf16=True, report=report
    )
    seconds = time.process_time() - start
    kinds = load("tones").families
    with torch.no_grad():
        found = torch.cat([net(part).argmax(1) for part in test.x.split(200)])
    result = {
        "data": "tones",
        "test_accuracy": float((found == labels).double().mean()),
        "test_accuracy_of_the_instrument": float((kinds[found] == kinds[labels]).double().mean()),
        "frechet_test_against_train": frechet(test.x, train.x, net.features),
        "frechet_clips": CLIPS,
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
    here = Path(__file__).with_suffix("")
    save_classifier(here.with_suffix(".safetensors"), net, data="tones")
    here.with_suffix(".json").write_text(json.dumps(result, indent=2) + "\n")
    log.info("%s", json.dumps(result))


if __name__ == "__main__":
    main()
