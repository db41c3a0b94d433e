"""Pictures of samples: grids, the ladder from one step to many, and what a trajectory looks like from every place on it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from textwrap import wrap
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..core.flow_map import FlowMap
from ..core.solver import HEUN, Solver
from ..errors import ShapeError
from .style import INK, SOFT, check_images, to_pixels

if TYPE_CHECKING:
    from PIL.Image import Image
    from PIL.ImageDraw import ImageDraw
    from PIL.ImageFont import FreeTypeFont

_CELL = 96  # pixels that a small image is enlarged to, at least


def image_grid(
    x: Tensor, *, columns: int | None = None, scale: int | None = None, gap: int = 2
) -> Image:
    """Images side by side, every pixel enlarged to a square of `scale` by `scale`.

    Args:
        x: Images (N, C, H, W) in [-1, 1], 1 or 3 channels; values outside are clipped.
        columns: Images per row; by default the grid is about square.
        scale: Size of a pixel; by default images become at least 96 pixels high.
        gap: White pixels between images.

    Raises:
        ShapeError: If `x` is not finite images, or a number is not positive.

    Example:
        >>> image_grid(torch.zeros(6, 1, 8, 8), columns=3, scale=2, gap=1).size
        (50, 33)
    """
    check_images(x)
    columns = columns or max(1, round(len(x) ** 0.5))
    scale = scale or _scale(x)
    if min(columns, scale) < 1 or gap < 0:
        raise ShapeError(
            f"a grid needs positive columns and scale; got {columns} and {scale}, gap {gap}"
        )
    rows, (height, width) = -(-len(x) // columns), x.shape[-2:]
    canvas = _canvas(columns * (width * scale + gap) - gap, rows * (height * scale + gap) - gap)
    for i, image in enumerate(_enlarged(x, scale)):
        row, column = divmod(i, columns)
        canvas.paste(image, (column * (width * scale + gap), row * (height * scale + gap)))
    return canvas


def told_grid(
    rows: Sequence[tuple[str, Tensor]], *, heads: Sequence[str] = (), scale: int | None = None
) -> Image:
    """A row of images for every text, which stands before it.

    Args:
        rows: Texts and their images (N, C, H, W), equally many.
        heads: What stands above the columns.
        scale: Size of a pixel.
    """
    grids = [image_grid(x, columns=len(x), scale=scale) for _, x in rows]
    width, height = grids[0].size
    font, margin, above = _font(16), 340, 36 if heads else 0
    canvas = _canvas(margin + width, above + (height + 2) * len(grids) - 2)
    draw = _draw(canvas)
    for i, head in enumerate(heads):
        middle = margin + (i + 0.5) * (width + 2) / len(heads) - 1
        draw.text((middle, above / 2), head, font=_font(16, bold=True), fill=INK, anchor="mm")
    for i, ((text, _), grid) in enumerate(zip(rows, grids, strict=True)):
        top = above + i * (height + 2)
        lines = wrap(text, 36, max_lines=max(1, height // 22), placeholder=" …")
        place = (margin - 14, top + height / 2)
        draw.multiline_text(
            place, "\n".join(lines), font=font, fill=INK, anchor="rm", align="right"
        )
        canvas.paste(grid, (margin, top))
    return canvas


def ladder(
    columns: Mapping[str, Tensor],
    *,
    across: int = 1,
    scale: int | None = None,
    per_row: int | None = None,
) -> Image:
    """The same noises, treated differently: one labelled block of images per treatment.

    Args:
        columns: Label to images (N, C, H, W), the same N noises in the same order: "noise", "1 step", ...
        across: Images per row of a block. With 1 a noise is one row of the picture.
        scale: Size of a pixel.
        per_row: Blocks side by side; by default all of them.

    Raises:
        ShapeError: If there is no column or shapes differ.
    """
    shapes = {tuple(x.shape) for x in columns.values()}
    if len(shapes) != 1:
        raise ShapeError(f"a ladder needs columns of one shape (N, C, H, W); got {sorted(shapes)}")
    grids = [image_grid(x, columns=across, scale=scale) for x in columns.values()]
    width, height = grids[0].size
    font, gutter = _font(22, bold=True), 14 if across == 1 else 28
    label_width = max(int(font.getlength(label)) for label in columns)
    pitch, wide = max(width, label_width) + gutter, min(per_row or len(grids), len(grids))
    canvas = _canvas(pitch * wide - gutter + 16, (height + 56) * -(-len(grids) // wide))
    draw = _draw(canvas)
    for i, (label, grid) in enumerate(zip(columns, grids, strict=True)):
        row, column = divmod(i, wide)
        left, top = 8 + column * pitch + (pitch - gutter - width) // 2, row * (height + 56)
        draw.text((left + width / 2, top + 24), label, font=font, fill=INK, anchor="mm")
        canvas.paste(grid, (left, top + 48))
    return canvas


def trajectory_strip(
    flow_map: FlowMap,
    x_1: Tensor,
    *,
    local: FlowMap | None = None,
    frames: int = 9,
    steps: int = 64,
    solver: Solver = HEUN,
    cond: dict[str, Any] | None = None,
    see: Callable[[Tensor], Tensor] = lambda x: x,
) -> Image:
    """One sample's way from noise to data, and what is seen from every place on it.

    Three rows: the point x_t that the solver carries; the end of the tangent at x_t (the model's mean of all data that
    could be meant, hence a blur); and the flow map's jump X(x_t, t, 0), which is the same picture from everywhere.

    Args:
        flow_map: The map that jumps.
        x_1: One noise (1, *D).
        local: The model that is walked; by default the map's own velocity.
        frames: Columns.
        steps: Steps of the solver, a multiple of `frames - 1`.
        solver: Its method.
        cond: Conditioning for both, tensors with a leading 1.
        see: From points (N, *D) to the images that are drawn.
    """
    if len(x_1) != 1 or frames < 2 or steps % (frames - 1):
        raise ShapeError(
            f"a strip shows one noise (1, *D), at frames - 1 that divide {steps} steps; "
            f"got {tuple(x_1.shape)} and {frames} frames"
        )
    cond, walked = cond or {}, local or flow_map
    times = torch.linspace(1, 0, steps + 1, dtype=torch.float64, device=x_1.device)
    times = times.to(torch.promote_types(x_1.dtype, torch.float32))
    with torch.no_grad():
        path = list(solver.integrate(walked.velocity, x_1, times, walked.interpolant, **cond))
        points = torch.cat([x_1, *path])[:: steps // (frames - 1)]
        stops = times[:: steps // (frames - 1)]
        pairs = [(points[i : i + 1], t) for i, t in enumerate(stops)]
        tangents = torch.cat([walked.denoise(x, t, **cond) for x, t in pairs])
        jumps = torch.cat([flow_map(x, t, 0.0, **cond) for x, t in pairs])
    rows = {
        f"walk\n{solver.name}, {steps} steps": points,
        "tangent\nfollowed to t = 0": tangents,
        "jump\nX(x, t, 0)": jumps,
    }
    rows = {name: see(x) for name, x in rows.items()}
    return _strip(rows, [f"{float(t):.3g}" for t in stops])


def _strip(rows: Mapping[str, Tensor], heads: Sequence[str]) -> Image:
    scale, gap, margin, top = _scale(next(iter(rows.values()))), 6, 236, 48
    grids = [image_grid(x, columns=len(heads), scale=scale, gap=gap) for x in rows.values()]
    width, height = grids[0].size
    canvas = _canvas(margin + width + 12, top + len(grids) * (height + 12))
    draw, cell = _draw(canvas), (width + gap) / len(heads)
    for i, head in enumerate(heads):
        text = f"t = {head}" if i == 0 else head
        centre = margin + i * cell + (cell - gap) / 2
        draw.text((centre, top / 2), text, font=_font(20), fill=SOFT, anchor="mm")
    for i, (label, grid) in enumerate(zip(rows, grids, strict=True)):
        y = top + i * (height + 12)
        canvas.paste(grid, (margin, y))
        name, detail = label.split("\n")
        middle = y + height / 2
        draw.text((12, middle - 14), name, font=_font(23, bold=True), fill=INK, anchor="lm")
        draw.text((12, middle + 15), detail, font=_font(18), fill=SOFT, anchor="lm")
    return canvas


def _scale(x: Tensor) -> int:
    return max(1, -(-_CELL // max(x.shape[-2:])))


def _enlarged(x: Tensor, scale: int) -> list[Image]:
    from PIL import Image

    pixels = to_pixels(x).repeat_interleave(scale, 1).repeat_interleave(scale, 2)
    return [Image.fromarray(each.numpy()) for each in pixels]


def _canvas(width: int, height: int) -> Image:
    from PIL import Image

    return Image.new("RGB", (width, height), "white")


def _draw(canvas: Image) -> ImageDraw:
    from PIL import ImageDraw

    return ImageDraw.Draw(canvas)


def _font(size: int, *, bold: bool = False) -> FreeTypeFont:
    """The font of the figures: matplotlib brings it along, so every machine has the same."""
    import matplotlib
    from PIL import ImageFont

    name = "DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf"
    return ImageFont.truetype(str(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / name), size)
