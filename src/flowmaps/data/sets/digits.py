"""Handwritten digits of 1 x 8 x 8, as scikit-learn ships them: no download, trains in seconds."""

from __future__ import annotations

from typing import Any

import torch

from flowmaps.data.base import TensorData
from flowmaps.data.idx import resize
from flowmaps.data.sets import Ask
from flowmaps.errors import DataError


def digits(ask: Ask) -> TensorData:
    """All 1797 digits, ink 0..16 mapped to [-1, 1].

    Raises:
        DataError: If scikit-learn is missing, or a split other than "train" is asked for.

    Source:
        E. Alpaydin, C. Kaynak, *Optical Recognition of Handwritten Digits*, UCI, 1998 (test part).
    """
    if ask.split != "train":
        raise DataError(
            f"digits: expected split 'train', the only one; got '{ask.split}'; "
            "hold out rows of it yourself"
        )
    bunch = _bunch()
    x = torch.from_numpy(bunch.images).float()[:, None] / 8 - 1
    labels = torch.from_numpy(bunch.target).long()
    return TensorData("digits", resize(x, ask.size), labels, tuple("0123456789"))


def _bunch() -> Any:  # noqa: ANN401
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise DataError(
            "digits: expected scikit-learn; got no such package; pip install scikit-learn"
        ) from error
    return load_digits()


LOADERS = {"digits": digits}
