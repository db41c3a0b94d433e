"""How good samples are: distances to all of the data, and whether a class that was asked for is recognised."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import final

import torch
from torch import Generator, Tensor

from ..data import Data, Judging
from ..data.encoded import Encoded
from ..data.sets.tones import Tones
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
from ..metrics.sound import in_tune, loudness, spectrograms

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
        data: The data, which may know more of their classes: the pitch and the instrument.
    """

    moments: Moments
    some: Tensor
    features: Features
    recognise: Callable[[Tensor], Tensor] | None
    data: Data

    def frechet(self, x: Tensor) -> float:
        """Squared Frechet distance of samples (N, *D) to all data."""
        found = moments(x, self.features)
        return frechet_distance(found.mean, found.cov, self.moments.mean, self.moments.cov)

    def quick(self, x: Tensor, labels: Tensor | None) -> dict[str, float]:
        """Frechet distance, and accuracy where classes can be told."""
        found = {"frechet": self.frechet(x)}
        if self.recognise is not None and labels is not None:
            seen = self.recognise(x)
            found["accuracy"] = _share(seen == labels.cpu())
            if isinstance(self.data, Tones):
                kinds = self.data.families
                found["instrument"] = _share(kinds[seen] == kinds[labels.cpu()])
        if isinstance(self.data, Tones) and labels is not None:
            found["in_tune"] = in_tune(x, self.data.rate, self.data.pitches[labels.cpu()])
        return found

    def thorough(self, x: Tensor, labels: Tensor | None) -> dict[str, float]:
        """`quick`, kernel distance, precision and recall; the last two at equal numbers of samples and data."""
        found = self.quick(x, labels)
        count = min(len(x), len(self.some))
        found["kernel_distance"] = kernel_distance(x[:count], self.some[:count], self.features)
        close = precision_recall(self.some[:count], x[:count], self.features)
        return found | {"precision": close.precision, "recall": close.recall}


@final
@dataclass(frozen=True)
class Reader:
    """Scores by data that can tell whether samples are what their first rows ask for (`flowmaps.data.Judging`).

    Attributes:
        data: Who tells.
        some: A part of the data (M, *D).
    """

    data: Judging
    some: Tensor

    def quick(self, x: Tensor, labels: Tensor | None) -> dict[str, float]:
        """The first of the scores of samples (N, *D) that were told what the rows 0..N-1 are told."""
        return dict(list(self.thorough(x, labels).items())[:1])

    def thorough(self, x: Tensor, labels: Tensor | None) -> dict[str, float]:
        """All scores."""
        return self.data.scores(x, torch.arange(len(x)))


def _share(right: Tensor) -> float:
    return float(right.double().mean())


def judge(data: Data, features: Path | None = None, *, some: int = 5000) -> Judge | Reader:
    """A judge for a data set.

    Args:
        data: The data.
        features: A classifier's safetensors (`flowmaps.metrics.save_classifier`), or None for pixels, or the loudness of
            bands of sound. Data behind a codec are judged as they are without it, and so must be the samples.
        some: Rows kept for scores that compare pairs.

    Raises:
        CheckpointError: If the classifier cannot be read.
        ShapeError: If it does not fit the data.
    """
    data = data.data if isinstance(data, Encoded) else data
    if isinstance(data, Judging) and features is None:
        return Reader(data, data.batch(torch.arange(min(some, len(data), 1000)))[0])
    net = None if features is None else load_classifier(features)
    see: Features | None = spectrograms if getattr(data, "rate", None) else None
    extract: Features = _after(see, net.features) if net else loudness if see else pixels
    rows = torch.randperm(len(data), generator=Generator().manual_seed(0))
    x, labels = data.batch(rows[: min(some, len(data))])
    return Judge(_moments(data, extract), x, extract, _recogniser(data, net, see, x, labels), data)


def _after(see: Features | None, extract: Features) -> Features:
    """Features of what is seen of samples: of clips their spectrograms."""
    return extract if see is None else lambda x: extract(see(x))


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
    data: Data, net: Classifier | None, see: Features | None, x: Tensor, labels: Tensor | None
) -> Callable[[Tensor], Tensor] | None:
    if labels is None:
        return None
    if net is not None:
        logits = _after(see, net)

        def recognise(samples: Tensor) -> Tensor:
            with torch.no_grad():
                return torch.cat([logits(part).argmax(1) for part in samples.split(500)])

        return recognise
    if len(data) > SMALL or see is not None:
        return None
    return fit_agreement(
        x, labels, gamma=DIGITS_GAMMA if data.name == "digits" else "scale"
    ).predict
