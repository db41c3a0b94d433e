"""The audit: residuals of every condition over the (source, target) triangle, and a verdict in plain words."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, final

import torch
from torch import Generator, Tensor

from ..core.autodiff import EXACT, Derivative
from ..core.flow_map import FlowMap
from ..core.velocity import Velocity
from ..errors import DerivativeError, ShapeError
from ..metrics.hazards import Hazard, hazards
from ..metrics.identity import CONDITIONS, JvpCheck, jvp_check, layer_norm_trap, residuals
from .style import INK, SOFT, new_figure, plain, residual_colours, tidy

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

LIMIT = 0.1
"""A condition holds where the median of its relative residual is at most this: a tenth."""

LONG = 0.5
"""A jump is long when it crosses more than half of the time."""

_BROKEN = 1e9  # what a residual that is not finite counts as: json has no inf and no nan
_FINITE = Derivative("finite")
_TITLES = {
    "tangent": ("Tangent", "velocity = reference"),
    "lagrangian": ("Lagrangian", "end moves with the flow"),
    "eulerian": ("Eulerian", "start may slide"),
    "compositional": ("Compositional", "two jumps = one"),
    "round_trip": ("Round trip", "there and back"),
}
_FAULTS = {
    "tangent": "the map's own velocity is not the reference's",
    "lagrangian": "the map and its own velocity disagree",
    "eulerian": "the endpoint changes when the source slides along its trajectory",
    "compositional": "two jumps do not land where one does",
    "round_trip": "a jump there and back does not return",
}

Cells = tuple[tuple[float | None, ...], ...]


@final
@dataclass(frozen=True)
class Audit:
    """What was found.

    Attributes:
        edges: Borders of the bins of time (bins + 1,), increasing.
        cells: By condition, the medians: `cells[name][i][j]` has the source in bin i and the target in bin j <= i, and is None
            above the diagonal. "tangent" has no target and fills the diagonal only.
        summary: By condition "median", "short" and "long" (jumps of at most, of more than half the time; None where there
            are none) and "worst", the largest median of a cell.
        jvp: The check of the network's derivatives, or None when it has no forward mode.
        layer_norm: Whether the network calls `F.layer_norm`.
        hazards: What in the network spoils the training of a flow map, with advice.
        verdict: Sentences in plain words, the most important first.
    """

    edges: tuple[float, ...]
    cells: dict[str, Cells]
    summary: dict[str, dict[str, float | None]]
    jvp: JvpCheck | None
    layer_norm: bool
    verdict: tuple[str, ...]
    hazards: tuple[Hazard, ...] = ()

    @property
    def consistent(self) -> bool:
        """Whether all conditions of the map towards data hold ("round_trip" goes back and is not asked for)."""
        return all(_holds(self.summary[name]) for name in self.summary if name != "round_trip")

    def to_json(self) -> dict[str, Any]:
        """The audit as a tree of dictionaries, lists, numbers and strings; `from_json` reads it."""
        tree = asdict(self)
        return tree | {
            "edges": list(self.edges),
            "cells": {name: [list(row) for row in cells] for name, cells in self.cells.items()},
            "verdict": list(self.verdict),
            "hazards": [asdict(hazard) for hazard in self.hazards],
            "consistent": self.consistent,
        }

    @staticmethod
    def from_json(tree: Mapping[str, Any]) -> Audit:
        """The audit that `to_json` wrote."""
        return Audit(
            edges=tuple(tree["edges"]),
            cells={name: tuple(map(tuple, rows)) for name, rows in tree["cells"].items()},
            summary=dict(tree["summary"]),
            jvp=None if tree["jvp"] is None else JvpCheck(**tree["jvp"]),
            layer_norm=tree["layer_norm"],
            verdict=tuple(tree["verdict"]),
            hazards=tuple(Hazard(**hazard) for hazard in tree.get("hazards", ())),
        )


def audit(
    flow_map: FlowMap,
    x_0: Tensor,
    generator: Generator,
    *,
    bins: int = 8,
    per_cell: int = 32,
    velocity: Velocity | None = None,
    cond: dict[str, Tensor] | None = None,
) -> Audit:
    """Is this map right? Measures its residuals on points of the path.

    Args:
        flow_map: Any flow map, on the device of `x_0`.
        x_0: Data (N, *D), from which points of the path are drawn.
        generator: Draws rows, noises and times, on the CPU.
        bins: Bins of time along each side of the triangle.
        per_cell: Points per cell.
        velocity: Reference for the tangent condition, such as the teacher's; without one it is left out.
        cond: Conditioning of the rows of `x_0`, tensors with a leading N.

    Raises:
        ShapeError: If `x_0` is empty, a condition has another length, or a number is not positive.
    """
    cond = cond or {}
    if len(x_0) == 0 or min(bins, per_cell) < 1 or any(len(c) != len(x_0) for c in cond.values()):
        raise ShapeError(
            f"an audit needs data (N, *D) with N > 0, conditions of the same length, and positive bins and per_cell; got "
            f"{tuple(x_0.shape)}, { ({k: tuple(c.shape) for k, c in cond.items()}) }, {bins} and {per_cell}"
        )
    start = max(flow_map.interpolant.t_min, 0.0)
    edges = torch.linspace(start, 1, bins + 1, dtype=torch.float64)
    draw = _Draw(flow_map, x_0, generator, edges, per_cell, cond)
    x, s, t, rows = draw(bins - 1, 0)
    trap, dangers = layer_norm_trap(flow_map, x, s, t, **rows), hazards(flow_map, x, s, t, **rows)
    try:
        check, derivative = jvp_check(flow_map, x, s, t, **rows), EXACT
    except DerivativeError:
        check, derivative = None, _FINITE
    found: dict[str, dict[tuple[int, int], Tensor]] = {}
    for i, j in torch.tril_indices(bins, bins).T.tolist():
        x, s, t, rows = draw(i, j)
        reference = velocity if i == j else None
        cell = residuals(flow_map, x, s, t, velocity=reference, derivative=derivative, **rows)
        for name, values in cell.items():
            found.setdefault(name, {})[i, j] = values.cpu()
    named = {name: found[name] for name in CONDITIONS if name in found}
    summary = {name: _summary(cells, draw.spans) for name, cells in named.items()}
    medians = {name: _medians(cells, bins) for name, cells in named.items()}
    verdict = (*_verdict(summary), *map(str, dangers))
    return Audit(tuple(edges.tolist()), medians, summary, check, trap, verdict, dangers)


@final
class _Draw:
    """Points of the path for a cell of the triangle."""

    def __init__(
        self,
        flow_map: FlowMap,
        x_0: Tensor,
        generator: Generator,
        edges: Tensor,
        count: int,
        cond: dict[str, Tensor],
    ) -> None:
        self.path, self.x_0, self.generator = flow_map.interpolant, x_0, generator
        self.edges, self.count, self.cond = edges, count, cond
        self.spans: dict[tuple[int, int], Tensor] = {}

    def __call__(self, i: int, j: int) -> tuple[Tensor, Tensor, Tensor, dict[str, Tensor]]:
        """Points x at the sources s in bin i, targets t <= s in bin j, and their conditioning."""
        n, g = self.count, self.generator
        rows = torch.randint(len(self.x_0), (n,), generator=g)
        share = torch.rand(2, n, generator=g, dtype=torch.float64)
        low = self.edges[torch.tensor([i, j])][:, None]
        times = low + share * (self.edges[1] - self.edges[0])
        s, t = times.amax(0), times.amin(0)
        self.spans[i, j] = s - t
        x_0 = self.x_0[rows.to(self.x_0.device)]
        noise = torch.randn(x_0.shape, generator=g, dtype=x_0.dtype).to(x_0.device)
        wide = torch.promote_types(x_0.dtype, torch.float32)
        s, t = (time.to(x_0.device, wide) for time in (s, t))
        cond = {name: value[rows.to(value.device)] for name, value in self.cond.items()}
        return self.path.sample(x_0, noise, s)[0], s, t, cond


def _median(values: Tensor) -> float | None:
    return float(values.double().nan_to_num(_BROKEN, _BROKEN).median()) if len(values) else None


def _medians(cells: Mapping[tuple[int, int], Tensor], bins: int) -> Cells:
    return tuple(
        tuple(_median(cells[i, j]) if (i, j) in cells else None for j in range(bins))
        for i in range(bins)
    )


def _summary(
    cells: Mapping[tuple[int, int], Tensor], spans: Mapping[tuple[int, int], Tensor]
) -> dict[str, float | None]:
    values = torch.cat(list(cells.values()))
    gaps = torch.cat([spans[key] for key in cells])
    return {
        "median": _median(values),
        "short": _median(values[gaps <= LONG]),
        "long": _median(values[gaps > LONG]),
        "worst": max(_median(cell) or 0.0 for cell in cells.values()),
    }


def _holds(summary: Mapping[str, float | None]) -> bool:
    return all((summary[part] or 0.0) <= LIMIT for part in ("short", "long"))


def _verdict(summary: Mapping[str, Mapping[str, float | None]]) -> tuple[str, ...]:
    forward = [name for name in summary if name != "round_trip"]
    bad = [name for name in forward if not _holds(summary[name])]
    good = [name for name in forward if name not in bad]
    listed = ", ".join(f"{name} {plain(summary[name]['median'] or 0.0)}" for name in good)
    words = [_fault(name, summary[name]) for name in bad]
    if good:
        lead = "what holds" if bad else "consistent"
        words.append(
            f"{lead}: {listed} (median relative residuals; up to {LIMIT:g} counts as held)."
        )
    if not _holds(summary["round_trip"]):
        back = _fault("round_trip", summary["round_trip"]).rstrip(".")
        words.append(
            f"{back}; this matters for inversion only: most recipes train jumps towards data."
        )
    return tuple(words)


def _fault(name: str, summary: Mapping[str, float | None]) -> str:
    """What is wrong, and for which jumps."""
    short, long = summary["short"] or 0.0, summary["long"] or 0.0
    where = f"(median {plain(summary['median'] or 0.0)})"
    if summary["long"] is not None and short <= LIMIT < long:
        where = f"for long jumps (median {plain(long)} for s - t > {LONG:g})"
    elif summary["long"] is not None and long <= LIMIT < short:
        where = f"for short jumps (median {plain(short)} for s - t <= {LONG:g})"
    return f"{_FAULTS[name]} {where}."


def audit_figure(found: Audit) -> Figure:
    """One triangle per condition on one colour scale, which turns from blue to orange where a condition stops to hold."""
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import LogNorm

    text = "\n".join(
        textwrap.fill(f"\u2022 {line}", 31 * len(found.cells), subsequent_indent="   ")
        for line in found.verdict
    )
    count, lines = len(found.cells), text.count("\n") + 1
    figure = new_figure(2.15 * count + 1.0, 2.75 + 0.19 * lines)
    parts: Any = figure.subfigures(2, 1, height_ratios=[2.75, 0.19 * lines])
    panels, words = parts
    colours = ScalarMappable(LogNorm(LIMIT / 100, LIMIT * 100), residual_colours())
    row: list[Axes] = list(panels.subplots(1, count, squeeze=False)[0])
    for axes, name in zip(row, found.cells, strict=True):
        _triangle(axes, found, name, colours)
    row[0].set_ylabel("target t", fontsize=9, color=SOFT)
    bar = panels.colorbar(colours, ax=row, shrink=0.66, aspect=14, pad=0.02)
    bar.ax.tick_params(labelsize=8, colors=SOFT, length=3)
    bar.ax.tick_params(which="minor", length=0)
    bar.set_ticks(
        [0.001, 0.01, 0.1, 1, 10], labels=["\u2264 0.001", "0.01", "0.1", "1", "\u2265 10"]
    )
    bar.outline.set_visible(False)  # pyright: ignore[reportCallIssue]
    words.text(0.012, 0.98, text, va="top", fontsize=9, color=INK, linespacing=1.35)
    return figure


def _triangle(axes: Axes, found: Audit, name: str, colours: Any) -> None:  # noqa: ANN401
    title, meaning = _TITLES[name]
    tidy(axes, title, xlabel="source s")
    values = torch.tensor(
        [
            [float("nan") if cell is None else max(cell, LIMIT / 100) for cell in row]
            for row in found.cells[name]
        ]
    )
    axes.pcolormesh(
        found.edges, found.edges, values.T.numpy(), cmap=colours.cmap, norm=colours.norm,
        edgecolors="white", linewidth=0.6,
    )  # fmt: skip
    axes.set_aspect("equal")
    axes.set_xticks([0, 0.5, 1], ["0\ndata", "0.5", "1\nnoise"])
    axes.set_yticks([0, 0.5, 1], ["0", "0.5", "1"])
    axes.text(0.03, 0.97, meaning, transform=axes.transAxes, va="top", fontsize=7.5, color=SOFT)
    median = plain(float(f"{found.summary[name]['median'] or 0.0:.2g}"))
    axes.text(0.03, 0.87, median, transform=axes.transAxes, va="top", fontsize=13, color=INK)
    axes.text(0.03, 0.73, "median", transform=axes.transAxes, va="top", fontsize=7.5, color=SOFT)
