"""The curves of a tuning: reward, rewards held out, divergence and health, so that a hacked reward is seen while it happens."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, final

from ..control.tune_watch import STEPS, Examiner
from ..errors import CheckpointError
from ..train.hooks import Event
from .style import (
    DATA,
    EXACT,
    FAINT,
    INK,
    JUMP,
    SOFT,
    WALK,
    new_figure,
    plain,
    save_png,
    tidy,
    write_atomically,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Row = dict[str, Any]

HUES = (DATA, "#cc79a7", "#e69f00", "#56b4e9")
"""Of rewards that are held out."""


@final
class Curves:
    """A hook of `fit`: examines the averaged map every `run.preview_every` steps, and writes tuning.json and tuning.png.

    A resumed run goes on where its file ends.

    Args:
        folder: Of the run.
        examiner: Looks at maps; its base is the map of step 0.
    """

    def __init__(self, folder: Path | str, examiner: Examiner) -> None:
        self.folder, self.examiner = Path(folder), examiner
        self.rows = self._earlier() or [{"step": 0, **examiner(examiner.base).as_dict()}]

    def __call__(self, event: Event) -> None:
        if not event.due(event.run.preview_every):
            return
        step = event.state.step
        row: Row = {"step": step, **self.examiner(event.state.averaged()).as_dict()}
        self.rows = [*(each for each in self.rows if each["step"] < step), row]
        text = json.dumps({"jumps": list(self.examiner.steps), "rows": self.rows}, indent=1) + "\n"
        write_atomically(self.folder / "tuning.json", text.encode())
        save_png(curves(self.rows, self.examiner.steps), self.folder / "tuning.png")

    def _earlier(self) -> list[Row]:
        file = self.folder / "tuning.json"
        if not file.exists():
            return []
        try:
            return json.loads(file.read_text())["rows"]
        except (ValueError, KeyError, TypeError) as error:
            raise CheckpointError(
                f"{file} is not what a tuning wrote ({error}): remove it to start its curves anew"
            ) from error


def curves(rows: Sequence[Row], jumps: Sequence[int] = STEPS) -> Figure:
    """Four panels over steps: the reward, those held out, the divergence from the base, and health.

    Args:
        rows: Of tuning.json, each a step and where the map stood then.
        jumps: Of the samples.
    """
    figure = new_figure(9.6, 5.6)
    (reward, held), (kl, health) = figure.subplots(2, 2, sharex=True)
    first, *others = rows[0]["rewards"]
    steps = [row["step"] for row in rows]
    _reward(reward, rows, steps, first, jumps)
    _held(held, rows, steps, first, others)
    _kl(kl, rows, steps)
    _health(health, rows, steps, jumps)
    for axes in (kl, health):
        axes.set_xlabel("step", fontsize=9, color=SOFT)
    return figure


def _reward(
    axes: Axes, rows: Sequence[Row], steps: Sequence[int], name: str, jumps: Sequence[int]
) -> None:
    start, spread = rows[0]["rewards"][name][0], rows[0]["deviations"][name]
    for k, text in enumerate(("base", "+1 deviation", "+2")):
        axes.axhline(start + k * spread, color=FAINT, linewidth=1, zorder=0)
        place = (1.0, start + k * spread)
        axes.annotate(
            text,
            place,
            xycoords=("axes fraction", "data"),
            ha="right",
            va="bottom",
            fontsize=7,
            color=SOFT,
        )
    for i, k in enumerate(jumps):
        values, shade = [row["rewards"][name][i] for row in rows], 0.55**i
        label = f"{k} jump{'s' * (k > 1)}"
        axes.plot(steps, values, color=JUMP, alpha=shade, marker="o", markersize=3, label=label)
    tidy(axes, "Reward", ylabel=name)
    _legend(axes)


def _held(
    axes: Axes, rows: Sequence[Row], steps: Sequence[int], tuned: str, others: Sequence[str]
) -> None:
    for name, hue in zip((tuned, *others), (JUMP, *HUES), strict=False):
        start, spread = rows[0]["rewards"][name][0], rows[0]["deviations"][name] or 1.0
        values = [(row["rewards"][name][0] - start) / spread for row in rows]
        style = ":" if name == tuned else "-"
        label = f"{name}{' (tuned to)' * (name == tuned)}"
        axes.plot(steps, values, color=hue, linestyle=style, marker="o", markersize=3, label=label)
    axes.axhline(0, color=FAINT, linewidth=1, zorder=0)
    tidy(axes, "Held out", ylabel="change in deviations of the base")
    _legend(axes)


def _kl(axes: Axes, rows: Sequence[Row], steps: Sequence[int]) -> None:
    above, below = ([row[key] for row in rows] for key in ("kl_path", "kl_reward"))
    axes.plot(steps, above, color=WALK, marker="o", markersize=3, label="of paths (from above)")
    axes.plot(steps, below, color=EXACT, marker="o", markersize=3, label="of rewards (from below)")
    axes.set_yscale("symlog", linthresh=1.0)
    axes.yaxis.set_major_formatter(lambda value, _: plain(value))
    axes.set_ylim(bottom=0)
    tidy(axes, "Divergence from the base", ylabel="nats")
    _legend(axes)


def _health(axes: Axes, rows: Sequence[Row], steps: Sequence[int], jumps: Sequence[int]) -> None:
    for i, k in enumerate(jumps[:-1]):
        values, shade = [row["disagree"][i] for row in rows], 0.55**i
        label = f"{k} against {jumps[-1]} jumps: distance"
        axes.plot(steps, values, color=JUMP, alpha=shade, marker="o", markersize=3, label=label)
    spread = [row["spread"] for row in rows]
    axes.plot(steps, spread, color=INK, marker="o", markersize=3, label="spread over the base's")
    axes.set_ylim(bottom=0)
    tidy(axes, "Health", ylabel="in spreads")
    _legend(axes)


def _legend(axes: Axes) -> None:
    axes.legend(fontsize=7, frameon=False, labelcolor=SOFT, loc="best")
