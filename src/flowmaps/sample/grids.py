"""Grids of times from noise (1) to data (0): where the jumps of a sampler begin and end.

Every grid is a decreasing float64 tensor (steps + 1,), so that differences of close times keep their digits.
"""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ..core.interpolant import Interpolant, linear
from ..errors import ShapeError


def uniform(steps: int, path: Interpolant | None = None) -> Tensor:
    """Equal steps in time.

    Example:
        >>> uniform(2)
        tensor([1.0000, 0.5000, 0.0000], dtype=torch.float64)
    """
    return torch.linspace(1, 0, _positive(steps) + 1, dtype=torch.float64)


def shifted(steps: int, path: Interpolant | None = None, shift: float = 3.0) -> Tensor:
    r"""Uniform times moved towards noise, $t \mapsto kt/(1+(k-1)t)$ (Esser et al. 2024, arXiv:2403.03206, eq. 23)."""
    t = uniform(steps)
    return shift * t / (1 + (shift - 1) * t)


def karras(
    steps: int,
    path: Interpolant | None = None,
    rho: float = 7.0,
    low: float = 0.002,
    high: float = 80.0,
) -> Tensor:
    r"""EDM's grid (Karras et al. 2022, arXiv:2206.00364, eq. 5): $\sigma/\alpha$ uniform in the power $1/\rho$, then 0.

    Noise-to-signal ratios run from `high` to `low` in `steps` values; the first is pulled to t = 1, and 0 is appended. On a path
    that keeps noise at its data end (`edm`) that noise is the last of `steps` + 1 values.
    """
    path = path or linear()
    high = min(high, math.exp(-_noisiest(path)))
    zero = torch.zeros((), dtype=torch.float64)
    least = float(path.sigma(zero) / path.alpha(zero))
    count = _positive(steps) + (least >= low)
    power = torch.linspace(
        high ** (1 / rho), max(low, least) ** (1 / rho), count, dtype=torch.float64
    )[:steps]
    return _pinned(path.time_at(-rho * power.log()).clamp(max=1.0))


def log_snr(
    steps: int, path: Interpolant | None = None, low: float = -5.0, high: float = 5.0
) -> Tensor:
    r"""Equal steps in $\lambda = \log(\alpha/\sigma)$ from `low` to `high`, between t = 1 and 0: DPM-Solver's grid."""
    path = path or linear()
    low = max(low, _noisiest(path))
    lam = torch.linspace(low, high, _positive(steps), dtype=torch.float64)
    return _pinned(path.time_at(lam).clamp(max=1.0))


def from_times(times: Sequence[float]) -> Tensor:
    """A grid as given; it must decrease strictly within [0, 1].

    Raises:
        ShapeError: If it does not.
    """
    grid = torch.as_tensor(times, dtype=torch.float64)
    ok = grid.ndim == 1 and len(grid) > 1 and bool((grid.diff() < 0).all())
    if not ok or grid[0] > 1 or grid[-1] < 0:
        raise ShapeError(
            f"times must decrease strictly from at most 1 to at least 0; got {list(times)}"
        )
    return grid


GRIDS: dict[str, Callable[..., Tensor]] = {
    "uniform": uniform,
    "shifted": shifted,
    "karras": karras,
    "log_snr": log_snr,
}
"""Grids by name; each takes the number of steps and the path."""


def grid(name: str, steps: int, path: Interpolant) -> Tensor:
    """A grid by name.

    Raises:
        ShapeError: For an unknown name.
    """
    if name not in GRIDS:
        raise ShapeError(f"grid must be one of {', '.join(GRIDS)}; got {name!r}")
    return GRIDS[name](steps, path)


def _noisiest(path: Interpolant) -> float:
    """The log-SNR at which the path ends: -inf, or a number where it keeps a trace of data."""
    return float(path.log_snr(torch.ones((), dtype=torch.float64)))


def _pinned(times: Tensor) -> Tensor:
    inner = times[1:]
    return torch.cat(
        [torch.ones(1, dtype=torch.float64), inner, torch.zeros(1, dtype=torch.float64)]
    )


def _positive(steps: int) -> int:
    if steps < 1:
        raise ShapeError(f"a grid needs at least one step; got {steps}")
    return steps
