"""How smoothly a run went: loss and gradient norm of every step, thinned for pictures, and their spikes counted."""

import statistics
from collections.abc import Sequence
from typing import Any, final

import torch
from torch import Tensor

from .hooks import Event

POINTS = 160
"""Points of a stored curve."""

WINDOW = 200
"""Steps that a step is compared with."""

SPIKE = 10.0
"""A spike is so many times the median of the window before it."""


@final
class Recorder:
    """A hook that keeps loss and gradient norm of every step of a run."""

    def __init__(self) -> None:
        self.loss, self.norm, self.seconds = list[float](), list[float](), list[float]()

    def __call__(self, event: Event) -> None:
        self.loss.append(event.loss["total"])
        self.norm.append(event.norm)
        self.seconds.append(event.state.seconds)

    def to_json(self) -> dict[str, Any]:
        """Steps done, time, stability, and curves of at most `POINTS` points."""
        done = len(self.loss)
        if done < 2:
            return {
                "done": done,
                "seconds": 0.0,
                "step_seconds": None,
                "stability": None,
                "curve": None,
            }
        gaps = [b - a for a, b in zip(self.seconds, self.seconds[1:], strict=False)]
        return {
            "done": done,
            "seconds": self.seconds[-1],
            "step_seconds": statistics.median(gaps),
            "stability": {
                "loss_spikes": spikes(self.loss),
                "norm_spikes": spikes(self.norm),
                "norm_median": statistics.median(self.norm),
                "norm_max": max(self.norm),
            },
            "curve": {"loss": thinned(self.loss), "norm": thinned(self.norm)},
        }


def spikes(values: Sequence[float], factor: float = SPIKE, window: int = WINDOW) -> int:
    """Steps whose value is more than `factor` times the median magnitude of the `window` steps before.

    Steps are judged from the second window on.

    Example:
        >>> spikes([1.0] * 300 + [50.0] + [1.0] * 99)
        1
    """
    x = torch.tensor(values, dtype=torch.float64)
    if len(x) <= window:
        return 0
    before = x.abs().unfold(0, window, 1)[:-1]
    # in pieces: a window per step of a long run would not fit into memory
    medians = torch.cat([part.median(-1).values for part in before.split(4096)])
    return int((x[window:] > factor * medians).sum())


def thinned(values: Sequence[float], points: int = POINTS) -> dict[str, list[float]]:
    """Median and maximum of equal parts of a curve, and the step at the end of each.

    Example:
        >>> thinned([1.0, 5.0, 2.0, 3.0], 2)
        {'step': [2, 4], 'median': [1.0, 2.0], 'max': [5.0, 3.0]}
    """
    parts: Sequence[Tensor] = torch.tensor(values, dtype=torch.float64).tensor_split(
        min(points, len(values))
    )
    ends = torch.tensor([len(part) for part in parts]).cumsum(0)
    rounded = [[float(f"{v:.6g}") for v in (part.median(), part.max())] for part in parts]
    return {
        "step": ends.tolist(),
        "median": [pair[0] for pair in rounded],
        "max": [pair[1] for pair in rounded],
    }
