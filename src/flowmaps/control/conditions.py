"""Rows of a batch and what is said about them: conditions follow their points through resampling, search and masks."""

from typing import Any

import torch
from torch import Generator, Tensor

from ..core.interpolant import Interpolant
from ..errors import ControlError

ONE_JUMP = torch.tensor([1.0, 0.0], dtype=torch.float64)
"""From noise to data at once."""


def spread(cond: dict[str, Any], n: int) -> dict[str, Any]:
    """Conditions for n rows: tensors with a leading n as they are, those with a leading 1 for every row.

    Raises:
        ControlError: For any other leading axis.
    """
    found: dict[str, Any] = {}
    for key, value in cond.items():
        if isinstance(value, Tensor) and (not value.ndim or len(value) not in (1, n)):
            raise ControlError(
                f"condition {key!r} needs one row, or one for each of {n} points; got shape {tuple(value.shape)}"
            )
        one = isinstance(value, Tensor) and len(value) != n
        found[key] = value.expand(n, *value.shape[1:]) if one else value
    return found


def pick(cond: dict[str, Any], rows: Tensor) -> dict[str, Any]:
    """The conditions of some rows, by index or mask."""
    return {k: v[rows.to(v.device)] if isinstance(v, Tensor) else v for k, v in cond.items()}


def normal(x: Tensor, generator: Generator) -> Tensor:
    """Standard normal numbers like `x`, drawn on the CPU: the same on every machine."""
    dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
    return torch.randn(x.shape, generator=generator, dtype=dtype).to(x)


def uniform(x: Tensor, generator: Generator) -> Tensor:
    """Uniform numbers, one per row of `x` (B,), float64."""
    return torch.rand(len(x), generator=generator, dtype=torch.float64).to(x.device)


def prior_scale(path: Interpolant) -> float:
    """The standard deviation of the noise at t = 1."""
    return float(path.sigma(torch.ones((), dtype=torch.float64)))
