"""What all pictures share: one palette, quiet axes, and PNGs whose bytes depend on their content only.

Colours are Okabe and Ito's, which colour-blind readers tell apart, and have one meaning each: blue is the flow map,
vermilion the step-by-step walk of a solved model, grey the exact curve, green the data.
"""

from __future__ import annotations

import io
import math
import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..errors import ShapeError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.colors import Colormap
    from matplotlib.figure import Figure
    from PIL.Image import Image

JUMP, WALK, EXACT, DATA = "#0072b2", "#d55e00", "#4d4d4d", "#009e73"
INK, SOFT, FAINT = "#1f2328", "#59636e", "#d8dee4"
RAMP = ("#f3f6f9", "#c9dcea", "#7fb2d3", "#f0b27a", "#d55e00", "#7a2d00")
"""From "holds" (pale) over the limit of 0.1 (blue to orange) to "wrong" (dark)."""

DPI = 160


def new_figure(width: float, height: float) -> Figure:
    """An empty figure, inches; no pyplot, so nothing global is touched and nothing stays open."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    layout = ConstrainedLayoutEngine(w_pad=0.08, h_pad=0.08)
    figure = Figure(figsize=(width, height), dpi=DPI, facecolor="white", layout=layout)
    FigureCanvasAgg(figure)
    return figure


def tidy(axes: Axes, title: str = "", xlabel: str = "", ylabel: str = "") -> None:
    """Quiet axes: two spines, small grey ticks, a bold title on the left."""
    axes.set_title(title, loc="left", fontsize=10, fontweight="bold", color=INK, pad=8)
    axes.set_xlabel(xlabel, fontsize=9, color=SOFT)
    axes.set_ylabel(ylabel, fontsize=9, color=SOFT)
    axes.tick_params(labelsize=8, colors=SOFT, length=3, which="major")
    axes.tick_params(length=0, which="minor")
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set_color(FAINT)


def residual_colours() -> Colormap:
    """The ramp of residuals."""
    from matplotlib.colors import LinearSegmentedColormap

    return LinearSegmentedColormap.from_list("residual", list(RAMP))


def plain(value: float) -> str:
    """A number as a reader writes it: three digits, no exponent between 0.001 and 100 000.

    Example:
        >>> plain(0.03141), plain(64.0), plain(1.5e-7)
        ('0.0314', '64', '1.5e-07')
    """
    if not math.isfinite(value):
        return str(value)
    if value == round(value) and abs(value) < 1e5:
        return f"{value:.0f}"
    text = f"{value:.3g}"
    return text if "e+" not in text else f"{value:.0f}"


def png_bytes(picture: Figure | Image) -> bytes:
    """The picture as PNG: same picture, same bytes (no date, no version in it)."""
    from PIL.Image import Image

    buffer = io.BytesIO()
    if isinstance(picture, Image):
        picture.save(buffer, format="PNG", optimize=True)
    else:
        picture.savefig(buffer, format="png", dpi=DPI, metadata={"Software": None})
    return buffer.getvalue()


def save_png(picture: Figure | Image, path: Path | str) -> Path:
    """Write the picture atomically: a reader sees the old file or the new one, never half of one."""
    return write_atomically(Path(path), png_bytes(picture))


def write_atomically(path: Path, content: bytes) -> Path:
    """Write beside the file, then rename; folders are made. If it fails, an earlier file is left as it was."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
        mask = os.umask(0)
        os.umask(mask)
        Path(name).chmod(0o666 & ~mask)  # mkstemp makes files that only their owner reads
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
    return path


def check_images(x: Tensor) -> None:
    """Images are (N, C, H, W), finite, with 1 or 3 channels."""
    if x.ndim != 4 or x.shape[1] not in (1, 3) or x.numel() == 0:
        raise ShapeError(
            f"expected images (N, 1, H, W) or (N, 3, H, W); got {tuple(x.shape)}; add the missing axis"
        )
    if not bool(x.isfinite().all()):
        raise ShapeError("expected finite images; got inf or nan; look at what made them")


def to_pixels(x: Tensor) -> Tensor:
    """Images (N, C, H, W) in [-1, 1] as bytes (N, H, W, 3); values outside are clipped."""
    unit = (x.detach().cpu().float().clamp(-1, 1) + 1) * 127.5
    return unit.round().to(torch.uint8).expand(-1, 3, -1, -1).movedim(1, -1)
