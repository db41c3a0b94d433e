"""Trains the classifier whose features measure Fashion-MNIST; writes weights and what they reach.

Run: `OMP_NUM_THREADS=1 python benchmarks/fashion_classifier.py` (three to six minutes on a shared
core with bfloat16 matrix instructions). It writes `fashion_classifier.safetensors` and
`fashion_classifier.json` beside itself. The floor is the Frechet distance of 10 000 real test
images against 10 000 real train images in these features: no generator can be told from data below.
Read it beside `feature_variance`, the trace of the covariance of these train images' features.
"""

from __future__ import annotations

import json
import logging
import platform
import time
from pathlib import Path

import torch

from flowmaps.data import Data, load
from flowmaps.metrics import accuracy, fit_classifier, frechet, moments, save_classifier

STEPS, BATCH, RATE, SEED = 1880, 256, 4e-3, 0
FLOOR_SAMPLES = 10_000
log = logging.getLogger("fashion_classifier")


def report(step: int, loss: float) -> None:
    """Logs every hundredth loss."""
    if step % 100 == 0:
        log.info("step %d loss %.3f", step, loss)


def images(data: Data, n: int) -> torch.Tensor:
    """As many images of the data, drawn without replacement."""
    rows = torch.randperm(len(data), generator=torch.Generator().manual_seed(SEED))[:n]
    return data.batch(rows)[0]


def main() -> None:
    """Trains, measures, stores."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    torch.set_num_threads(1)
    train, test = load("fashion-mnist"), load("fashion-mnist", split="test")
    start = time.perf_counter()
    net = fit_classifier(
        train, steps=STEPS, batch=BATCH, rate=RATE, seed=SEED, bf16=True, report=report
    )
    seconds = time.perf_counter() - start
    some = images(train, FLOOR_SAMPLES)
    floor = frechet(images(test, FLOOR_SAMPLES), some, net.features)
    result = {
        "data": train.name,
        "test_accuracy": accuracy(net, test),
        "frechet_test_against_train": floor,
        "frechet_samples": FLOOR_SAMPLES,
        "feature_variance": moments(some, net.features).cov.trace().item(),
        "parameters": sum(p.numel() for p in net.parameters()),
        "steps": STEPS,
        "batch": BATCH,
        "rate": RATE,
        "seed": SEED,
        "train_seconds": round(seconds, 1),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "machine": f"{platform.machine()}, 1 thread, bf16 autocast, channels last",
    }
    here = Path(__file__).with_suffix("")
    save_classifier(here.with_suffix(".safetensors"), net, data=train.name)
    here.with_suffix(".json").write_text(json.dumps(result, indent=2) + "\n")
    log.info("%s", json.dumps(result))


if __name__ == "__main__":
    main()
