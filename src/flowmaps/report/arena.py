"""What an arena found: means over seeds, a ranking, and the pictures of its page."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, final

import torch
from torch import Tensor

from ..errors import ShapeError
from ..train.arena import STEPS, TEACHER, WALK
from .compare import HIGHER
from .style import DATA, FAINT, INK, JUMP, new_figure, plain, tidy
from .style import WALK as VERMILION

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from rich.table import Table

Json = dict[str, Any]

ACROSS = 6
"""Panels side by side."""

SHADES = {1: "#0072b2", 2: "#56b4e9", 4: "#e69f00", 8: "#999999"}
"""Colour of a number of network calls."""


class Mean(NamedTuple):
    """Mean over seeds and its standard error, nan from one seed."""

    value: float
    error: float

    def __str__(self) -> str:
        spread = "" if math.isnan(self.error) else f" ± {plain(float(f'{self.error:.1g}'))}"
        return plain(self.value) + spread


@final
@dataclass(frozen=True)
class Standing:
    """A contestant over its seeds.

    Attributes:
        label: Its name.
        first: The first of its results, for what is equal in all: recipe, settings, cost, steps.
        seeds: Runs, failed ones included.
        errors: Sentences of failed runs.
        scores: (sampler, steps) to score to mean, over the runs that did not fail.
        loss_spikes: Mean number per run.
        norm_spikes: Mean number per run.
        peak: Largest gradient norm over its median, of the worst run.
        cost: Forward-pass equivalents per sample, nan if they could not be counted.
        steps: Mean number of steps done.
        step_seconds: Median time of a step.
        seconds: Mean training time.
    """

    label: str
    first: Json
    seeds: int
    errors: tuple[str, ...]
    scores: dict[tuple[str, int], dict[str, Mean]]
    loss_spikes: float
    norm_spikes: float
    peak: float
    cost: float
    steps: float
    step_seconds: float
    seconds: float

    @property
    def start(self) -> str:
        """Where the runs began, and whether a teacher that they do not start from taught them."""
        if self.first.get("copied"):
            return "teacher"
        return "taught" if self.first["taught"] else "scratch"

    def score(self, name: str, steps: int, sampler: str = "") -> Mean | None:
        """A score, if some run has it; by default of the map's own sampler: jumps, or jumps to data and noise again."""
        ways = [(sampler, steps)] if sampler else [("jump", steps), ("renoise", steps)]
        return next((self.scores[way].get(name) for way in ways if way in self.scores), None)

    def to_json(self) -> Json:
        """Flat, for arena.json."""
        keys = ("recipe", "set", "value", "taught", "local")
        rows = [
            {"sampler": sampler, "steps": steps}
            | {name: [mean.value, _or_none(mean.error)] for name, mean in found.items()}
            for (sampler, steps), found in self.scores.items()
        ]
        stable = ("loss_spikes", "norm_spikes", "peak", "cost", "steps", "step_seconds", "seconds")
        return {
            "label": self.label,
            **{key: self.first[key] for key in keys},
            "start": self.start,
            "seeds": self.seeds,
            "failed": list(self.errors),
            "scores": rows,
            **{name: _or_none(getattr(self, name)) for name in stable},
        }


def _or_none(value: float) -> float | None:
    return value if math.isfinite(value) else None


def standing(runs: Sequence[Json]) -> Standing:
    """One contestant's results, put together."""
    done = [run for run in runs if run["status"] == "done"]
    ways = dict.fromkeys((row["sampler"], row["steps"]) for run in done for row in run["rows"])
    stable = [run["stability"] for run in runs if run["stability"] is not None]
    timed = [run["step_seconds"] for run in runs if run["step_seconds"] is not None]
    return Standing(
        label=runs[0]["label"],
        first=runs[0],
        seeds=len(runs),
        errors=tuple(f"seed {run['seed']}: {run['error']}" for run in runs if "error" in run),
        scores={way: _means(done, way) for way in ways},
        loss_spikes=_mean([s["loss_spikes"] for s in stable]),
        norm_spikes=_mean([s["norm_spikes"] for s in stable]),
        peak=max((s["norm_max"] / max(s["norm_median"], 1e-30) for s in stable), default=math.nan),
        cost=next((run["cost"] for run in runs if "cost" in run), math.nan),
        steps=_mean([run["done"] for run in runs]),
        step_seconds=statistics.median(timed) if timed else math.nan,
        seconds=_mean([run["seconds"] for run in runs]),
    )


def _mean(values: Sequence[float]) -> float:
    return statistics.fmean(values) if values else math.nan


def _means(runs: Sequence[Json], way: tuple[str, int]) -> dict[str, Mean]:
    rows = [
        row["scores"]
        for run in runs
        for row in run["rows"]
        if (row["sampler"], row["steps"]) == way
    ]
    found: dict[str, Mean] = {}
    for name in rows[0]:
        values = [row[name] for row in rows]
        error = statistics.stdev(values) / len(values) ** 0.5 if len(values) > 1 else math.nan
        found[name] = Mean(statistics.fmean(values), error)
    return found


def standings(results: Sequence[Json]) -> list[Standing]:
    """All contestants, the best at one step first, those without a finished run last; teachers are in."""
    labels = dict.fromkeys(run["label"] for run in results)
    found = [standing([run for run in results if run["label"] == label]) for label in labels]
    name = leading(found)

    def place(one: Standing) -> tuple[bool, float, str]:
        mean = one.score(name, 1)
        if mean is None:
            return True, 0.0, one.label
        return False, -mean.value if name in HIGHER else mean.value, one.label

    return sorted(found, key=place)


def leading(found: Sequence[Standing]) -> str:
    """The score that ranks: the first one."""
    return next((name for one in found for row in one.scores.values() for name in row), "")


def contestants(found: Sequence[Standing]) -> list[Standing]:
    """All but the teacher."""
    return [one for one in found if one.label != TEACHER]


HEAD = (
    *("recipe", "start"),
    *(f"{k} step{'s' * (k > 1)}" for k in STEPS),
    f"{WALK} Heun",
    *("FPE", "steps", "ms/step", "spikes", "seeds"),
)


def cells(one: Standing, name: str) -> list[str]:
    """A row of the ranking, as texts in the order of `HEAD`; empty where nothing was measured."""
    at = [one.score(name, k) for k in STEPS] + [one.score(name, WALK, "heun")]
    failed = f", {len(one.errors)} failed" * bool(one.errors)
    return [
        one.label,
        one.start,
        *("" if mean is None else str(mean) for mean in at),
        *(_number(v) for v in (one.cost, one.steps, 1e3 * one.step_seconds)),
        f"{_number(one.loss_spikes)} / {_number(one.norm_spikes)}",
        f"{one.seeds}{failed}",
    ]


def _number(value: float) -> str:
    return "" if math.isnan(value) else plain(float(f"{value:.4g}"))


def arena_table(found: Sequence[Standing]) -> Table:
    """The ranking for the terminal."""
    from rich.table import Table

    name = leading(found)
    table = Table(
        title=f"{name}, mean ± standard error over seeds",
        title_justify="left",
        padding=(0, 1, 0, 0),
    )
    for i, head in enumerate(HEAD):
        table.add_column(head, justify="left" if i < 2 else "right", no_wrap=True)
    for one in found:
        table.add_row(*cells(one, name))
    return table


def ranking_figure(found: Sequence[Standing]) -> Figure:
    """One line per recipe, the best at one step on top; a dot, with its error, for every number of network calls."""
    name, shown = leading(found), [one for one in contestants(found) if one.scores]
    if not shown:
        raise ShapeError("a ranking needs a finished run; every run failed")
    figure = new_figure(8.6, 1.2 + 0.24 * len(shown))
    axes = figure.subplots()
    better = "higher" if name in HIGHER else "lower"
    tidy(axes, f"{name.capitalize()} after 1, 2, 4 and 8 network calls ({better} is better)")
    for k in reversed(STEPS):
        dots = [(mean, i) for i, one in enumerate(shown) if (mean := one.score(name, k))]
        axes.errorbar(
            [mean.value for mean, _ in dots], [i for _, i in dots],
            xerr=[0.0 if math.isnan(mean.error) else mean.error for mean, _ in dots],
            fmt="o", markersize=7.5 if k == 1 else 5, color=SHADES[k], elinewidth=1.2, label=f"{k}", zorder=4 if k == 1 else 3,
        )  # fmt: skip
    _reference(axes, found, name)
    axes.set_yticks(range(len(shown)), [one.label for one in shown])
    axes.tick_params(axis="y", labelsize=9, colors=INK, length=0)
    axes.set_ylim(len(shown) - 0.4, -0.6)
    _log(axes, "x", name)
    axes.grid(axis="both", color=FAINT, linewidth=0.6)
    axes.set_axisbelow(True)
    handles, labels = axes.get_legend_handles_labels()
    axes.legend(handles[::-1], labels[::-1], title="calls", fontsize=8, title_fontsize=8, frameon=False,
                loc="center left", bbox_to_anchor=(1.0, 0.5))  # fmt: skip
    return figure


def _reference(axes: Axes, found: Sequence[Standing], name: str) -> None:
    """A dotted line where the best walk of 64 Heun steps ends."""
    walks = [mean.value for one in contestants(found) if (mean := one.score(name, WALK, "heun"))]
    if walks:
        best = max(walks) if name in HIGHER else min(walks)
        axes.axvline(best, color=VERMILION, linewidth=1.0, linestyle=(0, (1, 2)), zorder=2)


def _log(axes: Axes, which: Literal["x", "y"], name: str) -> None:
    """A logarithmic axis with a label at 1, 2 and 5 of every decade, or every few decades; scores that go up stay linear."""
    if name in HIGHER:
        return
    from matplotlib.ticker import LogLocator, NullLocator

    axis = axes.xaxis if which == "x" else axes.yaxis
    (axes.set_xscale if which == "x" else axes.set_yscale)("log")
    low, high = axis.get_view_interval()
    narrow = math.log10(high / low) < 2
    axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if narrow else (1.0,), numticks=5))
    axis.set_major_formatter(lambda y, _: plain(y))
    axis.set_minor_formatter(lambda y, _: "")
    axis.set_minor_locator(NullLocator())


def _panels(count: int, height: float) -> tuple[Figure, list[Axes]]:
    """Small multiples on common scales, row by row."""
    rows, across = -(-count // ACROSS), min(count, ACROSS)
    figure = new_figure(2.0 * across + 0.4, height * rows + 0.3)
    grid = figure.subplots(rows, across, squeeze=False)
    panels: list[Axes] = [axes for row in grid for axes in row]
    for axes in panels[count:]:
        axes.set_axis_off()
    return figure, panels[:count]


def steps_figure(found: Sequence[Standing]) -> Figure:
    """Score against network calls: a panel per recipe, with all the others grey behind it, on one scale."""
    name, shown = leading(found), [one for one in contestants(found) if one.scores]
    figure, panels = _panels(len(shown), 1.55)
    lines = [_line(one, name) for one in shown]
    values = [y for _, ys, _ in lines for y in ys if name in HIGHER or y > 0]
    for i, (axes, one) in enumerate(zip(panels, shown, strict=True)):
        _small(axes, one.label)
        for x, y, _ in lines:
            axes.plot(x, y, color=FAINT, linewidth=0.6, zorder=1)
        x, y, error = lines[i]
        colour = VERMILION if one.first["local"] else JUMP
        axes.errorbar(
            x,
            y,
            yerr=error,
            color=colour,
            marker="o",
            markersize=3.5,
            linewidth=1.6,
            elinewidth=1,
            zorder=3,
        )
        axes.set_xscale("log", base=2)
        axes.set_xticks(list(STEPS), [str(k) for k in STEPS])
        axes.xaxis.minorticks_off()
        margin = 1.25 if name not in HIGHER else 1.0
        axes.set_ylim(min(values) / margin, max(values) * margin)
        _log(axes, "y", name)
        if i % ACROSS:
            axes.tick_params(axis="y", labelleft=False, which="both")
    return figure


def _line(one: Standing, name: str) -> tuple[list[int], list[float], list[float]]:
    """Calls, means and errors of a recipe's jumps."""
    means = [(k, mean) for k in STEPS if (mean := one.score(name, k))]
    errors = [0.0 if math.isnan(mean.error) else mean.error for _, mean in means]
    return [k for k, _ in means], [mean.value for _, mean in means], errors


def _small(axes: Axes, title: str) -> None:
    tidy(axes)
    size = 8.5 if len(title) < 22 else 8.5 * 22 / len(title)
    axes.set_title(title, loc="left", fontsize=size, fontweight="bold", color=INK, pad=4)
    axes.tick_params(labelsize=7, length=2)


CURVES = {"loss": JUMP, "norm": DATA}


def curves_figure(results: Sequence[Json], kind: str, order: Sequence[str]) -> Figure:
    """Loss ("loss") or gradient norm ("norm") of every run: a panel per recipe, medians bold, maxima faint.

    Args:
        results: Runs with their curves.
        kind: Which curve.
        order: Labels in the order of the panels.
    """
    runs = {label: _curves(results, kind, label) for label in order}
    shown = [label for label in order if runs[label]]
    if not shown:
        raise ShapeError("curves need a run of at least two steps; there is none")
    figure, panels = _panels(len(shown), 1.45)
    for axes, label in zip(panels, shown, strict=True):
        _small(axes, label)
        for curve in runs[label]:
            axes.plot(curve["step"], curve["max"], color=CURVES[kind], linewidth=0.5, alpha=0.35)
            axes.plot(curve["step"], curve["median"], color=CURVES[kind], linewidth=1.2)
        low = min(min(curve["median"]) for curve in runs[label])
        if low > 0:
            _log(axes, "y", kind)
        else:  # a spike would flatten all the rest
            high = torch.tensor([curve["max"] for curve in runs[label]]).quantile(0.97)
            axes.set_ylim(low - 0.05 * (float(high) - low), float(high))
        axes.xaxis.set_major_formatter(lambda x, _: f"{x / 1000:g}k" if x >= 1000 else f"{x:g}")
        axes.locator_params(axis="x", nbins=4)
        axes.set_axisbelow(True)
    return figure


def _curves(results: Sequence[Json], kind: str, label: str) -> list[Mapping[str, list[float]]]:
    return [
        run["curve"][kind] for run in results if run["label"] == label and run["curve"] is not None
    ]


def clouds_figure(clouds: Mapping[str, Tensor], data: Tensor) -> Figure:
    """Points of the plane, a panel per recipe, the data first.

    Args:
        clouds: Label to samples (N, 2).
        data: What they should look like (M, 2).
    """
    shown = {"data": data} | dict(clouds)
    figure, panels = _panels(len(shown), 2.05)
    reach = 1.2 * float(data.abs().max())
    for axes, (label, points) in zip(panels, shown.items(), strict=True):
        _small(axes, label)
        x, y = points.double().T
        colour = DATA if label == "data" else JUMP
        axes.scatter(x.numpy(), y.numpy(), s=1.5, alpha=0.5, color=colour, linewidths=0)
        axes.set_xlim(-reach, reach)
        axes.set_ylim(-reach, reach)
        axes.set_aspect("equal")
        axes.set_xticks([])
        axes.set_yticks([])
    return figure
