"""Real data for the commands that start from them: which rows, their conditions, and where picture and numbers go."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, final

import torch
from torch import Generator, Tensor

from ..data import Data
from ..errors import DataError
from .draw import Model, data_of
from .options import UsageError

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from PIL.Image import Image


@final
@dataclass(frozen=True)
class Examples:
    """Rows of a data set on the model's device: data (N, *D) and the conditions they come with."""

    x: Tensor
    cond: dict[str, Any]
    data: Data

    def labelled(self, number: int) -> dict[str, Any]:
        """The same conditions with another class."""
        return self.cond | {"label": torch.full((len(self.x),), number, device=self.x.device)}


def examples(
    model: Model, n: int, *, seed: int = 0, only: str | None = None, name: str | None = None
) -> Examples:
    """`n` random rows of the model's test data, or of all its data if there is no test part.

    Args:
        model: The model.
        n: How many.
        seed: Which ones.
        only: Name or number of a class.
        name: Name or path of other data of the same shape.

    Raises:
        UsageError: If there are not so many, or the class is unknown.
        DataError: If the data are missing.
    """
    data = _held_out(model, name)
    rows = torch.randperm(len(data), generator=Generator().manual_seed(seed))
    if only is not None:
        labels = data.batch(rows)[1]
        if labels is None:
            raise UsageError(f"{data.name} has no classes: leave out --class")
        rows = rows[labels == model.class_number(only)]
    if len(rows) < n:
        raise UsageError(f"there are {len(rows)} such rows of {data.name}, fewer than -n {n}")
    x, _ = data.batch(rows[:n])
    return Examples(x.to(model.device), model.told_of(data, rows[:n]), data)


def _held_out(model: Model, name: str | None) -> Data:
    data = data_of(model, name)
    try:
        return data_of(model, name, "test")
    except DataError:  # digits and toys have one part only
        return data


def check_drawable(shape: tuple[int, ...]) -> None:
    """Pictures are drawn of images, 1 or 3 channels.

    Raises:
        UsageError: For samples of another shape.
    """
    if len(shape) != 3 or shape[0] not in (1, 3):
        raise UsageError(f"samples of shape {shape} are no picture: use flowmaps.control in Python")


def leave(
    out: Path, picture: "Figure | Image", report: Mapping[str, Any], *, as_json: bool
) -> None:
    """Write the picture, and the numbers beside it as json; print the numbers if asked for."""
    from ..report.style import save_png, write_atomically
    from .options import to_json

    if out.suffix != ".png":
        raise UsageError(f"--out ends in .png, its numbers go beside it; got {out}")
    save_png(picture, out)
    beside = out.with_suffix(".json")
    text = json.dumps(report, indent=1, ensure_ascii=False) + "\n"
    write_atomically(beside, text.encode())
    if as_json:
        to_json(report)


def level_scale(data: Data, rows: int = 200) -> float | None:
    """How many values a unit of the data holds (127.5 for bytes in [-1, 1]); None if they are not discrete."""
    x = data.batch(torch.arange(min(rows, len(data))))[0]
    values = x.flatten().double().unique()
    if not 1 < len(values) <= 4096:
        return None
    gap = float(values.diff().min())
    return 1 / gap if gap > 1e-4 else None


def rounded(value: float) -> float:
    """Six digits, for json."""
    return float(f"{value:.6g}")
