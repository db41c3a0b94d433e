"""The flow map against the solved model: quality, evaluations and wall time at equal numbers of steps, from the same noise."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, final

import torch
from torch import Tensor

from ..core.flow_map import FlowMap
from ..core.solver import SOLVERS
from ..errors import ShapeError
from ..metrics import frechet
from ..sample import generate, solve, uniform
from .style import FAINT, JUMP, WALK, new_figure, plain, tidy

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from rich.table import Table

Quality = Callable[[Tensor], dict[str, float]]
"""From samples (N, *D), in the order of the noises, to scores by name, such as {"frechet": 0.2, "accuracy": 0.99}."""

HIGHER = ("accuracy", "precision", "recall", "adherence", "adherence_held_out", "number", "all")
"""Scores of which more is better; of all others less is."""

_NAMES = {"flow_map": "flow map", "solved": "solved model"}
_COLOURS = {"flow_map": JUMP, "solved": WALK}


@final
@dataclass(frozen=True)
class Row:
    """One way to sample, and what came of it.

    Attributes:
        model: "flow_map" jumps; "solved" is the local model, integrated.
        sampler: "jump", or the name of the solver.
        steps: Intervals of the uniform grid.
        nfe: Evaluations of the map or velocity per sample, counted (a mean over batches for adaptive solvers).
        seconds: Wall time of sampling everything, the device's work included.
        quality: Scores of the samples.
    """

    model: Literal["flow_map", "solved"]
    sampler: str
    steps: int
    nfe: float
    seconds: float
    quality: dict[str, float]

    def to_json(self) -> dict[str, Any]:
        """One flat dictionary; whole evaluations are integers."""
        nfe = int(self.nfe) if self.nfe == int(self.nfe) else self.nfe
        row = {"model": self.model, "sampler": self.sampler, "steps": self.steps, "nfe": nfe}
        return row | self.quality | {"seconds": self.seconds}


def compare(
    flow_map: FlowMap,
    x_1: Tensor,
    reference: Tensor,
    *,
    steps: Sequence[int] = (1, 2, 4, 8, 16, 32, 64),
    solver: str = "heun",
    cond: dict[str, Tensor] | None = None,
    batch: int = 500,
    quality: Quality | None = None,
    local: FlowMap | None = None,
) -> list[Row]:
    """Sample both models from the same noise at every number of steps.

    Args:
        flow_map: The map that jumps.
        x_1: Noise (N, *D), on the device of the models.
        reference: Data (M, *D), for the default quality.
        steps: Numbers of steps on the uniform grid.
        solver: A name of `flowmaps.SOLVERS`, for the local model.
        cond: Conditioning of the noises, tensors with a leading N.
        batch: Samples per call.
        quality: Scores of samples; by default their Frechet distance to `reference`, in pixels.
        local: The model whose velocity is integrated; by default the flow map's own.

    Returns:
        The flow map's rows, then the solved model's, each in the order of `steps`.

    Raises:
        ShapeError: If a name is unknown, or noise, conditions or numbers do not fit.
    """
    cond, walked = cond or {}, local or flow_map
    _check(x_1, cond, steps, solver, batch)
    score = quality or (lambda x: {"frechet": frechet(x, reference)})

    def jump(x: Tensor, k: int, tally: _Tally, c: dict[str, Tensor]) -> Tensor:
        tally.calls += k  # `generate` makes one call per interval
        return generate(flow_map, x, uniform(k), **c)

    def walk(x: Tensor, k: int, tally: _Tally, c: dict[str, Tensor]) -> Tensor:
        field = tally.counted(walked.velocity)
        return solve(field, x, uniform(k), walked.interpolant, SOLVERS[solver], **c)

    rows: list[Row] = []
    ways: tuple[tuple[Literal["flow_map", "solved"], str, _Way], ...] = (
        ("flow_map", "jump", jump),
        ("solved", solver, walk),
    )
    for model, sampler, way in ways:
        _run(way, x_1, 1, cond, batch, first_only=True)  # the first call allocates and compiles
        for k in steps:
            x, nfe, seconds = _run(way, x_1, k, cond, batch)
            rows.append(Row(model, sampler, k, nfe, seconds, score(x)))
    return rows


@final
class _Tally:
    """Counts the calls of a velocity."""

    def __init__(self) -> None:
        self.calls = 0

    def counted(self, velocity: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def count(x: Tensor, t: Tensor, **cond: Any) -> Tensor:
            self.calls += 1
            return velocity(x, t, **cond)

        return count


_Way = Callable[[Tensor, int, _Tally, dict[str, Tensor]], Tensor]


def _run(
    way: _Way,
    x_1: Tensor,
    steps: int,
    cond: dict[str, Tensor],
    batch: int,
    *,
    first_only: bool = False,
) -> tuple[Tensor, float, float]:
    """Samples, evaluations per sample and seconds."""
    tally, parts = _Tally(), x_1[:batch].split(batch) if first_only else x_1.split(batch)
    done: list[Tensor] = []
    with torch.no_grad():
        _wait(x_1)
        start = time.perf_counter()
        for i, x in enumerate(parts):
            rows = {name: c[i * batch : i * batch + len(x)] for name, c in cond.items()}
            done.append(way(x, steps, tally, rows))
        _wait(x_1)
        seconds = time.perf_counter() - start
    return torch.cat(done), tally.calls / len(parts), seconds


def _wait(x: Tensor) -> None:
    if x.is_cuda:
        torch.cuda.synchronize(x.device)


def _check(
    x_1: Tensor, cond: dict[str, Tensor], steps: Sequence[int], solver: str, batch: int
) -> None:
    if solver not in SOLVERS:
        raise ShapeError(f"solver must be one of {', '.join(SOLVERS)}; got {solver!r}")
    if len(x_1) == 0 or batch < 1 or not steps or min(steps) < 1:
        raise ShapeError(
            f"a comparison needs noise (N, *D) with N > 0, positive steps and batch; got {tuple(x_1.shape)}, "
            f"{list(steps)} and {batch}"
        )
    for name, value in cond.items():
        if len(value) != len(x_1):
            raise ShapeError(f"{name} must have one row per noise, {len(x_1)}; got {len(value)}")


def compare_table(rows: Sequence[Row]) -> tuple[Table, list[dict[str, Any]]]:
    """The rows as a table for the terminal, and as dictionaries for json."""
    from rich.table import Table

    table = Table(title="The same noise, sampled two ways", title_justify="left")
    scores = list(rows[0].quality) if rows else []
    for name in ("model", "sampler"):
        table.add_column(name)
    for name in ("steps", "NFE", *scores, "seconds"):
        table.add_column(name, justify="right")
    for i, row in enumerate(rows):
        numbers = (row.steps, row.nfe, *(row.quality[name] for name in scores), row.seconds)
        last = i + 1 < len(rows) and rows[i + 1].model != row.model
        cells = (_NAMES[row.model], row.sampler, *map(plain, numbers))
        table.add_row(*cells, end_section=last)
    return table, [row.to_json() for row in rows]


def compare_figure(rows: Sequence[Row]) -> Figure:
    """Every score, and the wall time, against the number of evaluations, for both models.

    A dotted line carries the solved model's longest walk to the left: where the flow map crosses it, it is as good.
    """
    scores = list(rows[0].quality)
    figure = new_figure(4.0 * (len(scores) + 1), 3.5)
    panels = figure.subplots(1, len(scores) + 1, squeeze=False)[0]
    for axes, name in zip(panels, scores, strict=False):
        better = "higher is better" if name in HIGHER else "lower is better"
        tidy(
            axes,
            f"{name.replace('_', ' ').capitalize()} ({better})",
            "network evaluations per sample",
        )
        _curves(axes, rows, lambda row, name=name: row.quality[name], log=name not in HIGHER)
        walks = [row for row in rows if row.model == "solved"]
        if walks:
            best = max(walks, key=lambda row: row.nfe)
            axes.axhline(
                best.quality[name], color=WALK, linewidth=0.9, linestyle=(0, (1, 2)), zorder=1
            )
    tidy(panels[-1], "Seconds for all samples", "network evaluations per sample")
    _curves(panels[-1], rows, lambda row: row.seconds, log=True, named=False)
    return figure


def _curves(
    axes: Axes, rows: Sequence[Row], value: Callable[[Row], float], *, log: bool, named: bool = True
) -> None:
    """One labelled line per model."""
    axes.set_xscale("log", base=2)
    if log and all(value(row) > 0 for row in rows):
        axes.set_yscale("log")
    for model, colour in _COLOURS.items():
        line = sorted((row for row in rows if row.model == model), key=lambda row: row.nfe)
        if line:
            x, y = [row.nfe for row in line], [value(row) for row in line]
            axes.plot(x, y, color=colour, marker="o", markersize=4.5, linewidth=1.8, zorder=3)
            if named:
                name = (
                    _NAMES[model] if model == "flow_map" else f"{_NAMES[model]}, {line[0].sampler}"
                )
                # beside the flow map's first point, on the side that its line, getting better, leaves; right of the solved model's
                place = (-4, 8 if log else -16) if model == "flow_map" else (9, -3)
                axes.annotate(
                    name, (x[0], y[0]), xytext=place, textcoords="offset points", fontsize=9, fontweight="bold",
                    color=colour, zorder=6,
                )  # fmt: skip
    ticks = sorted({row.nfe for row in rows})
    axes.set_xticks(ticks, [plain(tick) for tick in ticks])
    axes.xaxis.minorticks_off()
    axes.yaxis.set_major_formatter(lambda y, _: plain(y))
    axes.yaxis.set_minor_formatter(lambda y, _: "")
    axes.grid(axis="y", color=FAINT, linewidth=0.6)
    axes.margins(y=0.12)
    axes.set_axisbelow(True)
