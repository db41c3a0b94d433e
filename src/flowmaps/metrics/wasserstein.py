r"""Wasserstein-2 distance of two clouds: the root mean square length of the cheapest matching.

$$ W_2^2(x, y) = \min_\pi \tfrac1N \sum_i \|x_i - y_{\pi(i)}\|^2 . $$

Source:
    G. Peyre, M. Cuturi, *Computational Optimal Transport*, arXiv:1803.00567, section 2.2 (exact);
    N. Bonneel et al., *Sliced and Radon Wasserstein barycenters*, 2015, definition 1 (sliced).
    Checked: tests/metrics/test_wasserstein.py.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Generator, Tensor

from flowmaps.errors import ShapeError


def wasserstein(x: Tensor, y: Tensor) -> float:
    """Exact W2, by an optimal assignment: O(N^3), so for a few thousand samples.

    Args:
        x: Samples (N, *D).
        y: Other samples (N, *D).

    Returns:
        The distance in units of the data.

    Raises:
        ShapeError: If shapes differ, or samples are not finite.
    """
    from scipy.optimize import linear_sum_assignment

    a, b = _rows(x, y)
    # differences before squares: |a|^2 + |b|^2 - 2ab would lose the digits of close pairs
    cost = torch.cdist(a, b, compute_mode="donot_use_mm_for_euclid_dist").square().numpy()
    pairs: tuple[Any, Any] = linear_sum_assignment(cost)
    return float(cost[pairs].mean()) ** 0.5


def sliced_wasserstein(
    x: Tensor, y: Tensor, generator: Generator, *, directions: int = 256
) -> float:
    """W2 along random directions, root mean square over them: O(N log N), for any N.

    In d dimensions a shift by a vector a gives about |a| / sqrt(d).

    Args:
        x: Samples (N, *D).
        y: Other samples (N, *D).
        generator: Draws the directions, on the CPU.
        directions: How many; the error falls as 1 / sqrt(directions).

    Returns:
        The distance in units of the data.

    Raises:
        ShapeError: If shapes differ, or samples are not finite.
    """
    a, b = _rows(x, y)
    axes = torch.randn(a.shape[1], directions, generator=generator, dtype=a.dtype)
    axes = axes / axes.norm(dim=0)
    gaps = (a @ axes).sort(0).values - (b @ axes).sort(0).values
    return float(gaps.square().mean().sqrt())


def _rows(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Both sets as float64 rows on the CPU."""
    if x.shape != y.shape or x.ndim < 2 or x.numel() == 0:
        raise ShapeError(
            f"expected two sets of one shape (N, *D); got {tuple(x.shape)} and {tuple(y.shape)}; "
            "draw equally many of the same kind"
        )
    if not (x.isfinite().all() and y.isfinite().all()):
        raise ShapeError("expected finite samples; got inf or nan; look at what made them")
    a, b = (each.detach().cpu().double().flatten(1) for each in (x, y))
    return a, b
