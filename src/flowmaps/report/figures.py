"""Figures that explain: tangents against jumps, in one dimension and in two, and how a training went."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..core import oracle
from ..core.flow_map import FlowMap
from ..core.interpolant import linear, trig
from ..core.solver import EULER
from ..errors import ShapeError
from ..sample import uniform
from .style import DATA, EXACT, FAINT, INK, JUMP, SOFT, WALK, new_figure, plain, tidy

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def article_figures() -> dict[str, Figure]:
    """`tangents_and_jumps` as "plane" and `time_and_space` as "line", in closed-form worlds made for them."""
    generator, half = torch.Generator().manual_seed(0), torch.full((2, 2), 0.5)
    means, stds = torch.tensor([[4.6, -1.5], [4.6, 1.5]]), torch.tensor([[0.28, 0.2]] * 2)
    plane = oracle.Product(half, means, stds, trig())
    x_1 = torch.tensor([[-0.9, 1.25], [0.55, 0.55], [-0.35, -0.22], [0.5, -1.35]])
    line = oracle.Product(half[:, :1], means[:, 1:] * 0.87, stds[:, 1:] * 0.75, linear())
    y_1 = torch.tensor([[-1.4], [-0.5], [0.12], [0.9]])
    return {
        "plane": tangents_and_jumps(plane.flow_map, x_1, data=plane.sample(700, generator)),
        "line": time_and_space(line.flow_map, y_1, data=line.sample(4000, generator)),
    }


def tangents_and_jumps(
    flow_map: FlowMap, x_1: Tensor, *, data: Tensor | None = None, steps: int = 3
) -> Figure:
    """Why a flow map needs one step: a walk along tangents leaves the curve, jumps land on it.

    Args:
        flow_map: Map of points in the plane, such as a world of `flowmaps.oracle`.
        x_1: A few noises (N, 2); four to six read well.
        data: Draws of the data (M, 2), as a cloud behind.
        steps: Tangents of the walk, and jumps.

    Raises:
        ShapeError: If the points are not in the plane.
    """
    if x_1.ndim != 2 or x_1.shape[1] != 2 or len(x_1) == 0:
        raise ShapeError(f"the picture needs noises (N, 2) in the plane; got {tuple(x_1.shape)}")
    curve = _jumps(flow_map, x_1, uniform(96))
    walk = _walk(flow_map, x_1, steps)
    jumps = _jumps(flow_map, x_1, uniform(steps))
    figure = new_figure(9.6, 3.9)
    left, right = figure.subplots(1, 2, sharex=True, sharey=True)
    for axes in (left, right):
        if data is not None:
            axes.scatter(*data.T.tolist(), s=5, color=DATA, alpha=0.22, linewidths=0, zorder=1)
        for line in curve.unbind(1):
            axes.plot(*line.T.tolist(), color=EXACT, linewidth=1.1, alpha=0.75, zorder=2)
        axes.scatter(
            *x_1.T.tolist(), s=34, facecolor="white", edgecolor=INK, linewidth=1.2, zorder=5
        )
        axes.set_aspect("equal")
        axes.set_axis_off()
    _title(
        left,
        f"Tangents: {steps} steps of Euler",
        "each step follows the direction here and now",
        WALK,
    )
    _title(
        right, "Jumps of the flow map", "each lands on the curve, at any time, in one call", JUMP
    )
    _arrows(left, walk, WALK, bend=0.0)
    _misses(left, walk[-1], curve[-1])
    for k in range(1, steps + 1):
        _arrows(right, torch.stack([x_1, jumps[k]]), JUMP, bend=0.16, dot=True)
    _names(left, curve, data)
    return figure


def time_and_space(flow_map: FlowMap, x_1: Tensor, *, data: Tensor, steps: int = 3) -> Figure:
    """The same in one dimension, with time as the other: noise on the left, data on the right.

    Args:
        flow_map: Map of points on a line.
        x_1: A few noises (N, 1).
        data: Many draws of the data (M, 1): they and their trajectories shade the background with the density of x_t.
        steps: Tangents of the walk.

    Raises:
        ShapeError: If the points are not on a line.
    """
    if x_1.shape[1:] != (1,) or data.shape[1:] != (1,) or min(len(x_1), len(data)) == 0:
        raise ShapeError(
            f"the picture needs noises and data on a line, (N, 1); got {tuple(x_1.shape)} and {tuple(data.shape)}"
        )
    times = uniform(160)
    curve = _jumps(flow_map, x_1, times)[..., 0]
    walk = _walk(flow_map, x_1, steps)[..., 0]
    figure = new_figure(9.6, 3.9)
    panels = figure.subplots(1, 2, sharey=True)
    shade, reach = _density(flow_map, data)
    for axes in panels:
        axes.imshow(
            shade, extent=(0, 1, -reach, reach), origin="lower", aspect="auto", cmap="Greens",
            vmin=0, vmax=2.4, interpolation="bilinear", zorder=0,
        )  # fmt: skip
        axes.plot(1 - times, curve, color=EXACT, linewidth=1.2, zorder=2)
        axes.set_xticks([0, 0.5, 1], ["1\nnoise", "0.5", "0\ndata"])
        axes.set_yticks([])
        axes.set_xlim(-0.02, 1.03)
        axes.scatter([0] * len(x_1), x_1[:, 0], s=30, facecolor="white", edgecolor=INK, zorder=5)
    left, right = panels
    tidy(left, xlabel="time")
    tidy(right, xlabel="time")
    _title(
        left,
        f"Tangents: {steps} steps of Euler",
        "the slope of the curve, followed for too long",
        WALK,
    )
    _title(
        right, "Jumps: one call to any time", "where the curve will be, known from its start", JUMP
    )
    way = 1 - uniform(steps)
    for line in walk.unbind(1):
        left.plot(way, line, color=WALK, linewidth=1.8, marker="o", markersize=4, zorder=4)
    for start, line in zip(x_1[:, 0].tolist(), curve.unbind(1), strict=True):
        for k in (len(times) // 2, len(times) - 1):
            end = (1 - float(times[k]), float(line[k]))
            _arrow(right, (0.0, start), end, JUMP, -0.14 if start >= 0 else 0.14)
            right.plot(*end, color=JUMP, marker="o", markersize=4.5, zorder=5)
    for end, true in zip(walk[-1].tolist(), curve[-1].tolist(), strict=True):
        left.plot([1, 1], [end, true], color=WALK, linewidth=1.2, linestyle=(0, (2, 2)), zorder=3)
        left.plot(1, true, color=EXACT, marker="o", markersize=4.5, zorder=5)
    return figure


def loss_curve(rows: Sequence[Mapping[str, Any]], *, smooth: float = 0.02) -> Figure:
    """The loss and its parts against the step, each as measured (faint) and smoothed (bold), labelled at its end.

    Args:
        rows: One mapping per logged step, with "step" and numbers by name; names that do not begin with "loss" are left out.
        smooth: Width of the moving median, as a share of the rows.

    Raises:
        ShapeError: If no row has a step and a loss.
    """
    names = sorted({name for row in rows for name in row if name.startswith("loss")})
    if not rows or not names or any("step" not in row for row in rows):
        raise ShapeError("a loss curve needs rows with 'step' and a name that begins with 'loss'")
    figure = new_figure(7.2, 3.2)
    axes = figure.subplots()
    tidy(axes, "Loss", "step")
    colours = [JUMP, WALK, DATA, "#cc79a7", "#e69f00", EXACT]
    positive, ends = True, list[tuple[float, str, str]]()
    for i, name in enumerate(names):
        pairs = [(float(row["step"]), float(row[name])) for row in rows if name in row]
        x, y = torch.tensor(pairs, dtype=torch.float64).T
        colour, bold = colours[i % len(colours)], _moving_median(y, max(1, round(smooth * len(y))))
        positive = positive and bool((y > 0).all())
        axes.plot(x, y, color=colour, linewidth=0.7, alpha=0.3)
        axes.plot(x, bold, color=colour, linewidth=1.8)
        label = (
            f"{name.removeprefix('loss').strip('/_. ') or 'loss'} {plain(float(f'{bold[-1]:.3g}'))}"
        )
        ends.append((float(bold[-1]), label, colour))
    axes.set_yscale("log" if positive else "linear")
    axes.yaxis.set_major_formatter(lambda y, _: plain(y))
    axes.yaxis.set_minor_formatter(lambda y, _: "")
    axes.grid(axis="y", color=FAINT, linewidth=0.6)
    axes.margins(x=0)
    _end_labels(axes, ends)
    return figure


def _end_labels(axes: Axes, ends: list[tuple[float, str, str]]) -> None:
    """Labels right of the last points, moved apart until none covers another."""
    axes.autoscale_view()
    to_axes = axes.transScale + axes.transLimits
    heights = sorted((float(to_axes.transform((0.0, y))[1]), text, c) for y, text, c in ends)
    floor = float("-inf")
    for height, text, colour in heights:
        floor = max(height, floor + 0.075)
        axes.annotate(
            text, (1, floor), xytext=(6, 0), xycoords="axes fraction", textcoords="offset points",
            va="center", fontsize=9, color=colour, annotation_clip=False,
        )  # fmt: skip


def _moving_median(y: Tensor, width: int) -> Tensor:
    half = width // 2
    return torch.stack([y[max(0, i - half) : i + half + 1].median() for i in range(len(y))])


def _jumps(flow_map: FlowMap, x: Tensor, times: Tensor) -> Tensor:
    """Points (K + 1, N, D) at all times: each by one jump from the start."""
    with torch.no_grad():
        return torch.stack([x, *(flow_map(x, float(times[0]), float(t)) for t in times[1:])])


def _walk(flow_map: FlowMap, x: Tensor, steps: int) -> Tensor:
    """Points (steps + 1, N, D) of Euler's method."""
    times = uniform(steps).to(torch.promote_types(x.dtype, torch.float32))
    with torch.no_grad():
        walked = EULER.integrate(flow_map.velocity, x, times, flow_map.interpolant)
        return torch.stack([x, *walked])


def _density(flow_map: FlowMap, data: Tensor) -> tuple[Any, float]:
    """Histogram of x_t (heights, times) from the trajectories of the data, each column up to 1, and half its height."""
    times = torch.linspace(1, 0, 60)
    with torch.no_grad():
        points = torch.stack([flow_map(data, 0.0, float(t))[:, 0] for t in times])
    reach = 1.05 * float(points.double().abs().quantile(0.998))
    columns = [torch.histc(row.float(), 64, -reach, reach) for row in points]
    shade = torch.stack([column / column.max().clamp(min=1) for column in columns], 1)
    return shade.sqrt().numpy(), reach


def _arrow(
    axes: Axes, start: tuple[float, float], end: tuple[float, float], colour: str, bend: float
) -> None:
    axes.annotate(
        "", end, start, zorder=4,
        arrowprops={"arrowstyle": "-|>,head_width=0.22,head_length=0.45", "color": colour, "linewidth": 1.7,
                    "shrinkA": 3, "shrinkB": 2, "connectionstyle": f"arc3,rad={bend}"},
    )  # fmt: skip


def _arrows(axes: Axes, points: Tensor, colour: str, *, bend: float, dot: bool = False) -> None:
    """An arrow for every step of every row of points (K + 1, N, 2)."""
    for row in points.unbind(1):
        pairs: list[tuple[float, float]] = [(float(x), float(y)) for x, y in row]
        for start, end in pairwise(pairs):
            _arrow(axes, start, end, colour, -bend if row[0, 1] > 0 else bend)
    if dot:
        axes.scatter(*points[-1].T.tolist(), s=22, color=colour, zorder=5)


def _misses(axes: Axes, ends: Tensor, truth: Tensor) -> None:
    """Where the walk ended, and by how much it missed the end of the curve."""
    for end, true in zip(ends.tolist(), truth.tolist(), strict=True):
        pair = zip(end, true, strict=True)
        axes.plot(*pair, color=WALK, linewidth=1.1, linestyle=(0, (2, 2)), zorder=3)
    axes.scatter(*ends.T.tolist(), s=46, marker="X", color=WALK, edgecolor="white", zorder=6)
    axes.scatter(*truth.T.tolist(), s=22, color=EXACT, zorder=5)


def _title(axes: Axes, title: str, subtitle: str, colour: str) -> None:
    axes.set_title(title, loc="left", fontsize=12, fontweight="bold", color=colour, pad=22)
    axes.annotate(
        subtitle, (0, 1), xytext=(0, 7), xycoords="axes fraction", textcoords="offset points",
        fontsize=9, color=SOFT, annotation_clip=False,
    )  # fmt: skip


def _names(axes: Axes, curve: Tensor, data: Tensor | None) -> None:
    """Names of what is drawn, beside it."""
    top = int(curve[0, :, 1].argmax())
    middle = len(curve) // 2
    places = [
        (curve[0, top], "noise", INK, (0, 9), "center"),
        (curve[middle, top], "exact curve", EXACT, (-4, 9), "right"),
    ]
    if data is not None:
        low = data[data[:, 1].argmin()]
        places.append((low, "data", DATA, (0, -12), "center"))
    for point, text, colour, offset, align in places:
        axes.annotate(
            text, (float(point[0]), float(point[1])), xytext=offset, textcoords="offset points",
            ha=align, fontsize=9, color=colour, annotation_clip=False,
        )  # fmt: skip
