"""How good samples are: distances to all of the data, and whether a class that was asked for is recognised."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import final

import torch
from torch import Generator, Tensor

from ..data import Data
from ..metrics import (
    Classifier,
    Moments,
    fit_agreement,
    frechet_distance,
    kernel_distance,
    load_classifier,
    moments,
    precision_recall,
)
from ..metrics.agreement import DIGITS_GAMMA
from ..metrics.frechet import Features, pixels

SMALL = 5000
"""Up to so many images a support vector machine is fitted on the data at hand in about a second."""


@final
@dataclass(frozen=True)
class Judge:
    """Scores of samples against one data set.

    Attributes:
        moments: Mean and covariance of the features of all data.
        some: A random part of the data (M, *D), for scores that compare pairs.
        features: What distances are taken in.
        recognise: From samples to classes, or None without labels.
    """

    moments: Moments
    some: Tensor
    features: Features
    recognise: Callable[[Tensor], Tensor] | None

    def frechet(self, x: Tensor) -> float:
        """Squared Frechet distance of samples (N, *D) to all data."""
        found = moments(x, self.features)
        return frechet_distance(found.mean, found.cov, self.moments.mean, self.moments.cov)

    def quick(self, x: Tensor, labels: Tensor | None) -> dict[str, float]:
        """Frechet distance, and accuracy where classes can be told."""
        found = {"frechet": self.frechet(x)}
        if self.recognise is not None and labels is not None:
            right = self.recognise(x) == labels.cpu()
            found["accuracy"] = float(right.double().mean())
        return found

    def thorough(self, x: Tensor, labels: Tensor | None) -> dict[str, float]:
        """`quick`, kernel distance, precision and recall; the last two at equal numbers of samples and data."""
        found = self.quick(x, labels)
        count = min(len(x), len(self.some))
        found["kernel_distance"] = kernel_distance(x[:count], self.some[:count], self.features)
        close = precision_recall(self.some[:count], x[:count], self.features)
        return found | {"precision": close.precision, "recall": close.recall}


def judge(data: Data, features: Path | None = None, *, some: int = 5000) -> Judge:
    """A judge for a data set.

    Args:
        data: The data.
        features: A classifier's safetensors (`flowmaps.metrics.save_classifier`), or None for pixels.
        some: Rows kept for scores that compare pairs.

    Raises:
        CheckpointError: If the classifier cannot be read.
        ShapeError: If it does not fit the data.
    """
    net = None if features is None else load_classifier(features)
    extract: Features = pixels if net is None else net.features
    rows = torch.randperm(len(data), generator=Generator().manual_seed(0))
    x, labels = data.batch(rows[: min(some, len(data))])
    return Judge(_moments(data, extract), x, extract, _recogniser(data, net, x, labels))


def _moments(data: Data, features: Features) -> Moments:
    def part(rows: Tensor) -> Tensor:
        with torch.no_grad():
            return features(data.batch(rows)[0])

    pieces = torch.arange(len(data)).split(1000)
    first = part(pieces[0])
    found = Moments(first.shape[-1])
    found.update(first)
    for rows in pieces[1:]:
        found.update(part(rows))
    return found


def _recogniser(
    data: Data, net: Classifier | None, x: Tensor, labels: Tensor | None
) -> Callable[[Tensor], Tensor] | None:
    if labels is None:
        return None
    if net is not None:
        classifier = net

        def recognise(samples: Tensor) -> Tensor:
            with torch.no_grad():
                return torch.cat([classifier(part).argmax(1) for part in samples.split(500)])

        return recognise
    if len(data) > SMALL:
        return None
    return fit_agreement(
        x, labels, gamma=DIGITS_GAMMA if data.name == "digits" else "scale"
    ).predict
