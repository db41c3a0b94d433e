r"""Frechet distance: how far two clouds are apart if both were Gaussian.

$$ d^2 = \|m_1 - m_2\|^2 + \operatorname{tr} C_1 + \operatorname{tr} C_2
        - 2 \operatorname{tr} (C_1^{1/2} C_2 C_1^{1/2})^{1/2} . $$

The last trace is the sum of the singular values of $C_1^{1/2} C_2^{1/2}$. That form has no complex
numbers, and keeps all digits when covariances are singular, as they are with fewer samples than
dimensions: the square root of a small eigenvalue of the product would keep half of them.

Source:
    D. Dowson, B. Landau, *The Frechet distance between multivariate normal distributions*, 1982,
    eq. 4; as a score, M. Heusel et al., arXiv:1706.08500, eq. 6. Checked: tests/metrics.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from flowmaps.errors import ShapeError

Features = Callable[[Tensor], Tensor]
_BATCH = 512


def pixels(x: Tensor) -> Tensor:
    """The default features: each item (B, *D) as one row (B, prod D)."""
    return x.flatten(1)


def in_batches(features: Features, x: Tensor, batch: int = _BATCH) -> Tensor:
    """Features of all items, computed `batch` at a time without gradient; float64 on the CPU."""
    with torch.no_grad():
        return torch.cat([features(part).cpu().double() for part in x.split(batch)])


@final
@dataclass
class Moments:
    """Mean and covariance of rows that arrive in pieces, in float64.

    Pieces are merged by the pairwise update of Chan, Golub and LeVeque (1983), which loses no
    digits when the mean is large beside the spread. Kept on the CPU: other devices lack float64.

    Args:
        dim: Number of features d.

    Example:
        >>> moments = Moments(2)
        >>> moments.update(torch.tensor([[0.0, 1.0], [2.0, 1.0]]))
        >>> moments.mean.tolist(), moments.cov.tolist()
        ([1.0, 1.0], [[2.0, 0.0], [0.0, 0.0]])
    """

    dim: int

    def __post_init__(self) -> None:
        self.count = 0
        self.mean = torch.zeros(self.dim, dtype=torch.float64)
        self._scatter = torch.zeros(self.dim, self.dim, dtype=torch.float64)

    def update(self, rows: Tensor) -> None:
        """Adds rows (n, d).

        Raises:
            ShapeError: If the rows are not (n, d), or not finite.
        """
        if rows.ndim != 2 or rows.shape[1] != self.dim:
            raise ShapeError(
                f"expected rows of shape (n, {self.dim}); got {tuple(rows.shape)}; flatten them"
            )
        if not rows.isfinite().all():
            raise ShapeError("expected finite rows; got inf or nan; look at what made them")
        if len(rows) == 0:
            return
        rows = rows.detach().cpu().double()
        total, mean = self.count + len(rows), rows.mean(0)
        gap, centred = mean - self.mean, rows - mean
        weight = self.count * len(rows) / total
        self._scatter += centred.T @ centred + weight * torch.outer(gap, gap)
        self.mean = self.mean + gap * (len(rows) / total)
        self.count = total

    @property
    def cov(self) -> Tensor:
        """Unbiased covariance (d, d).

        Raises:
            ShapeError: If fewer than two rows have come.
        """
        if self.count < 2:
            raise ShapeError(f"expected two rows or more; got {self.count}; add samples")
        return self._scatter / (self.count - 1)


def moments(x: Tensor, features: Features = pixels, *, batch: int = _BATCH) -> Moments:
    """Moments of the features of items (N, *D), computed `batch` at a time."""
    found: Moments | None = None
    for part in x.split(batch):
        rows = in_batches(features, part, batch)
        found = found or Moments(rows.shape[-1])
        found.update(rows)
    return found or Moments(0)


def frechet_distance(m1: Tensor, c1: Tensor, m2: Tensor, c2: Tensor) -> float:
    """Squared Frechet distance of two Gaussians, as it is customary (FID is a square).

    Args:
        m1: Mean (d,).
        c1: Covariance (d, d), symmetric, may be singular.
        m2: The other mean (d,).
        c2: The other covariance (d, d).

    Returns:
        The distance in squared units of the features, at least 0.

    Raises:
        ShapeError: If shapes do not fit.
    """
    d = len(m1)
    if m1.shape != m2.shape or {c1.shape, c2.shape} != {(d, d)}:
        shapes = [tuple(each.shape) for each in (m1, c1, m2, c2)]
        raise ShapeError(
            f"expected shapes (d,), (d, d), (d,), (d, d); got {shapes}; use the same features"
        )
    m1, c1, m2, c2 = (each.detach().cpu().double() for each in (m1, c1, m2, c2))
    overlap = torch.linalg.svdvals(_root(c1) @ _root(c2)).sum()
    return max(float((m1 - m2).square().sum() + c1.trace() + c2.trace() - 2 * overlap), 0.0)


def _root(c: Tensor) -> Tensor:
    """Symmetric square root; eigenvalues within rounding of zero count as zero."""
    values, vectors = torch.linalg.eigh((c + c.T) / 2)
    floor = values.abs().max() * len(c) * torch.finfo(c.dtype).eps
    return (vectors * values.where(values > floor, 0).sqrt()) @ vectors.T


def frechet(x: Tensor, y: Tensor, features: Features = pixels, *, batch: int = _BATCH) -> float:
    """Frechet distance of two sets of samples, in pixels or in the features of a network.

    It is biased upwards by about 1/N: compare only values at equal N.

    Args:
        x: Samples (N, *D).
        y: Other samples (M, *D).
        features: From a batch (B, *D) to rows (B, d); put its network in evaluation mode.
        batch: Samples per call of `features`.

    Returns:
        The distance in squared units of the features.

    Raises:
        ShapeError: If a set has fewer than two samples, or features are not finite rows.
    """
    a, b = moments(x, features, batch=batch), moments(y, features, batch=batch)
    return frechet_distance(a.mean, a.cov, b.mean, b.cov)
