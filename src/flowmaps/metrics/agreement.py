"""Does a sample show the class that was asked for? A support vector machine says.

It is fitted on real data, so it needs no network and no training of ours: for scikit-learn's digits
it names 99 % of held-out images rightly, which is the ceiling of the score.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, cast, final

import torch
from torch import Tensor

from flowmaps.errors import ShapeError

DIGITS_GAMMA = 0.001 * 8**2  # scikit-learn's digits example has 0.001 on the scale [0, 16]


@final
@dataclass(frozen=True, eq=False)
class Agreement:
    """The fraction of samples that a fitted classifier puts into the class asked for.

    Build it with [`fit_agreement`][flowmaps.metrics.fit_agreement].

    Args:
        judge: The fitted `sklearn.svm.SVC`.
        shape: Shape of one item.
    """

    judge: Any
    shape: tuple[int, ...]

    def predict(self, x: Tensor) -> Tensor:
        """Classes (N,), int64, of items (N, *shape) on the scale of the data fitted on."""
        if x.shape[1:] != self.shape or len(x) == 0:
            raise ShapeError(
                f"expected samples (N, {', '.join(map(str, self.shape))}); got {tuple(x.shape)}; "
                "fit on data of that shape"
            )
        return torch.from_numpy(self.judge.predict(_matrix(x))).long()

    def __call__(self, x: Tensor, labels: Tensor) -> float:
        """Agreement in [0, 1].

        Args:
            x: Samples (N, *shape) on the scale of the data fitted on.
            labels: Classes that were asked for (N,).

        Raises:
            ShapeError: If shapes do not fit.
        """
        _check_labels(x, labels)
        return float((self.predict(x) == labels.cpu()).double().mean())


def fit_agreement(
    x: Tensor, labels: Tensor, *, gamma: float | Literal["scale"] = DIGITS_GAMMA
) -> Agreement:
    """A judge fitted on real data by `sklearn.svm.SVC` with a radial kernel; deterministic.

    Args:
        x: Real data (N, *shape), in [-1, 1].
        labels: Their classes (N,).
        gamma: Inverse squared length of the kernel. The default is for digits in [-1, 1]; "scale"
            is 1 / (number of values * variance), a fair start for other data.

    Raises:
        ShapeError: If shapes do not fit.
    """
    from sklearn.svm import SVC

    _check_labels(x, labels)
    judge: Any = SVC(gamma=cast("Any", gamma))  # the stub knows no number
    return Agreement(judge.fit(_matrix(x), labels.cpu().numpy()), tuple(x.shape[1:]))


def _matrix(x: Tensor) -> Any:  # noqa: ANN401
    return x.detach().cpu().double().flatten(1).numpy()


def _check_labels(x: Tensor, labels: Tensor) -> None:
    if labels.shape != (len(x),):
        raise ShapeError(
            f"expected labels of shape ({len(x)},), one per sample; got {tuple(labels.shape)}"
        )
