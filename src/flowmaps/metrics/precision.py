r"""Scores that need no Gaussian: precision and recall by neighbours, and the kernel distance.

The support of a set is estimated by balls around its points, each reaching to the point's $k$-th
neighbour. *Precision* is the fraction of generated points in the real support (quality), *recall*
the fraction of real points in the generated support (coverage).

The kernel distance is the squared maximum mean discrepancy with $k(a, b) = (a \cdot b / d + 1)^3$,
$$ \tfrac{1}{N(N-1)} \sum_{i \ne j} k(x_i, x_j) + \tfrac{1}{M(M-1)} \sum_{i \ne j} k(y_i, y_j)
   - \tfrac{2}{NM} \sum_{ij} k(x_i, y_j) , $$
unbiased at every N, unlike the Frechet distance; it may therefore be negative.

Source:
    T. Kynkaanniemi et al., arXiv:1904.06991, eqs. 1-2 (k = 3 as there); M. Binkowski et al.,
    arXiv:1801.01401, section 3 and appendix D. Checked: tests/metrics/test_precision.py.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from flowmaps.errors import ShapeError
from flowmaps.metrics.frechet import Features, in_batches, pixels

_BLOCK = 1024  # rows of a distance matrix at a time: 1024 x 50 000 in float64 are 400 MB


class PrecisionRecall(NamedTuple):
    """Fractions in [0, 1]: precision (quality), recall (coverage)."""

    precision: float
    recall: float


def precision_recall(
    real: Tensor, fake: Tensor, features: Features = pixels, *, k: int = 3
) -> PrecisionRecall:
    """Precision and recall by k-nearest-neighbour balls.

    Args:
        real: Data (N, *D).
        fake: Generated samples (M, *D); both fractions depend on N and M, compare at equal ones.
        features: From a batch (B, *D) to rows (B, d).
        k: Which neighbour the balls reach to, not counting the point itself.

    Raises:
        ShapeError: If a set has k samples or fewer, or features do not fit.
    """
    a, b = _rows(real, fake, features, least=k + 1)
    return PrecisionRecall(_covered(b, a, k), _covered(a, b, k))


def _covered(points: Tensor, support: Tensor, k: int) -> float:
    """The fraction of points in at least one ball of the support."""
    # k + 1: the nearest neighbour of a point in its own set is itself
    radius = torch.cat(
        [_distance(part, support).kthvalue(k + 1).values for part in support.split(_BLOCK)]
    )
    inside = [(_distance(part, support) <= radius).any(1) for part in points.split(_BLOCK)]
    return float(torch.cat(inside).double().mean())


def _distance(a: Tensor, b: Tensor) -> Tensor:
    """Plain differences: the matrix product form puts rounding noise on points that coincide."""
    return torch.cdist(a, b, compute_mode="donot_use_mm_for_euclid_dist")


def kernel_distance(x: Tensor, y: Tensor, features: Features = pixels) -> float:
    """Squared maximum mean discrepancy (KID), unbiased, over all pairs.

    Args:
        x: Samples (N, *D).
        y: Other samples (M, *D).
        features: From a batch (B, *D) to rows (B, d).

    Returns:
        The estimate, 0 in expectation for equal laws, possibly negative.

    Raises:
        ShapeError: If a set has fewer than two samples, or features do not fit.
    """
    a, b = _rows(x, y, features, least=2)
    return _mean_kernel(a, a, True) + _mean_kernel(b, b, True) - 2 * _mean_kernel(a, b, False)


def _mean_kernel(a: Tensor, b: Tensor, same: bool) -> float:
    """Mean of the kernel over pairs; of different rows if both sets are the same."""
    d, total = a.shape[1], 0.0
    for part in a.split(_BLOCK):
        total += float((part @ b.T / d + 1).pow(3).sum())
    if not same:
        return total / (len(a) * len(b))
    total -= float((a.square().sum(1) / d + 1).pow(3).sum())
    return total / (len(a) * (len(a) - 1))


def _rows(x: Tensor, y: Tensor, features: Features, least: int) -> tuple[Tensor, Tensor]:
    """Features of both sets, checked."""
    if min(len(x), len(y)) < least:
        raise ShapeError(
            f"expected at least {least} samples in each set; got {len(x)} and {len(y)}; draw more"
        )
    a, b = in_batches(features, x), in_batches(features, y)
    if a.ndim != 2 or a.shape[1:] != b.shape[1:]:
        raise ShapeError(
            f"expected features (N, d) and (M, d); got {tuple(a.shape)} and {tuple(b.shape)}; "
            "use the same features on items of one shape"
        )
    if not (a.isfinite().all() and b.isfinite().all()):
        raise ShapeError("expected finite features; got inf or nan; look at what made them")
    return a, b
