"""The page of `flowmaps demo`: what one sees, in pictures, with the numbers behind it."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ..core.solver import SOLVERS
from ..report.audit import Audit, audit, audit_figure
from ..report.compare import compare_figure
from ..report.figures import article_figures, loss_curve
from ..report.images import ladder, trajectory_strip
from ..report.page import Grid, Picture, Section, write_page
from ..report.style import save_png, write_atomically
from . import demo_settings as settings
from .draw import Way, data_of

if TYPE_CHECKING:
    from PIL.Image import Image

    from .demo import Measured

TITLE = "A flow map of handwritten digits"


def write(out: Path, report: dict[str, Any], measured: "Measured") -> Path:
    """Write report.json, the pictures and report.html; the path of the page."""
    found = _audit(measured)
    write_atomically(out / "report.json", json.dumps(report, indent=1).encode())
    write_atomically(out / "audit.json", json.dumps(found.to_json(), indent=1).encode())
    pictures = _pictures(out, measured, found)
    for name, picture in pictures.items():
        save_png(picture, out / f"{name}.png")
    shown = {name: (out / f"{name}.png").read_bytes() for name in pictures}
    return write_page(
        out / "report.html", TITLE, lead(report), _sections(report, shown, found, measured)
    )


def _pictures(out: Path, measured: "Measured", found: Audit) -> dict[str, Any]:
    article = article_figures()
    return {
        "tangents_and_jumps": article["plane"],
        "time_and_space": article["line"],
        "trajectory": _trajectory(measured),
        "samples": _ladder(measured),
        "compare": compare_figure(measured.rows),
        "loss_baseline": loss_curve(losses(out / "baseline")),
        "loss_flow_map": loss_curve(losses(out / "flow_map")),
        "audit": audit_figure(found),
    }


def lead(report: dict[str, Any]) -> str:
    """What was found, in two sentences."""
    rows = report["rows"]
    one = next(row for row in rows if row["model"] == "flow_map")
    walk = max((row for row in rows if row["model"] == "flow_matching"), key=lambda r: r["nfe"])
    return (
        f"One network call of the flow map draws digits at a Frechet distance of {one['frechet']:.3f}; the diffusion model that "
        f"it was distilled from reaches {walk['frechet']:.3f} with {walk['nfe']}. {report['samples']:,} digits took "
        f"{one['seconds']:.2f} s instead of {walk['seconds']:.1f} s: {walk['seconds'] / one['seconds']:.0f} times faster."
    )


Shown = dict[str, bytes]
"""The pictures' files by name."""


def _sections(
    report: dict[str, Any], shown: Shown, found: Audit, measured: "Measured"
) -> list[Section]:
    return [
        _seen(shown),
        _explained(shown),
        _trajectory_section(shown),
        _measured(report, shown),
        _audited(shown, found),
        _trained(report, shown, measured),
        _where(report),
    ]


def _seen(shown: Shown) -> Section:
    longest = max(settings.BASELINE_STEPS)
    caption = (
        f"The same ten noises, one for each digit: by 1, 2 and 4 jumps of the flow map, and by {longest} Heun steps of the "
        f"baseline ({2 * longest} network calls)."
    )
    return Section("What one sees", [Picture(shown["samples"], caption)])


def _explained(shown: Shown) -> Section:
    return Section(
        "Tangents against jumps",
        [
            "A diffusion model knows the direction at every point of a trajectory, so it walks: each step follows a tangent, "
            "and few steps leave the curve. A flow map knows where the curve goes, so it jumps to any point of it at once.",
            Picture(
                shown["tangents_and_jumps"],
                "Exact trajectories in the plane from noise to data (grey). Left, Euler's method in three steps and how far "
                "it misses (dashed); right, the flow map's jumps to the same times, each a single call from the start.",
            ),
            Picture(
                shown["time_and_space"],
                "The same on a line, with time from noise (left) to data (right); the shade is the density of points.",
            ),
        ],
    )


def _trajectory_section(shown: Shown) -> Section:
    caption = (
        "Top: one noise on its way, walked by the baseline. Middle: where the tangent at each place would end, which is the "
        "average of all pictures of this digit that could still come, hence the blur. Bottom: the flow map's jump from that "
        "place to the end: the picture is there from the first column on."
    )
    return Section("One trajectory", [Picture(shown["trajectory"], caption)])


def _measured(report: dict[str, Any], shown: Shown) -> Section:
    caption = (
        "Blue is the flow map, orange the baseline, against the number of network calls per sample. The dotted line carries "
        "the baseline's longest walk to the left."
    )
    return Section("Measured", [_grid(report), Picture(shown["compare"], caption)])


def _audited(shown: Shown, found: Audit) -> Section:
    caption = (
        "What every flow map must satisfy, measured on points of the path for all sources and targets of a jump. Residuals "
        "are relative; pale and blue cells hold to a tenth or better."
    )
    stricter = (
        "The first three conditions compare derivatives, which is stricter than comparing samples."
    )
    return Section("Is the map right?", [Picture(shown["audit"], caption), stricter, found.verdict])


def _trained(report: dict[str, Any], shown: Shown, measured: "Measured") -> Section:
    train, steps = (
        report["train_seconds"],
        (measured.baseline.about["step"], measured.model.about["step"]),
    )
    return Section(
        "How it was trained",
        [
            f"Both trainings together took {train['total']:.0f} s: {train['flow_matching']:.0f} s for the baseline "
            f"({measured.baseline.recipe}, {steps[0]:,} steps) and {train['flow_map']:.0f} s for the flow map "
            f"({measured.model.recipe}, {steps[1]:,} steps), which starts at the baseline's weights.",
            Picture(shown["loss_baseline"], "The baseline's loss.", 640),
            Picture(shown["loss_flow_map"], "The flow map's loss: the residual of its rule.", 640),
        ],
    )


def _where(report: dict[str, Any]) -> Section:
    rows = [
        [name, str(value)]
        for part in ("machine", "versions")
        for name, value in report[part].items()
    ]
    return Section("Where this was measured", [Grid(["what", "value"], rows)])


def _grid(report: dict[str, Any]) -> Grid:
    rows = report["rows"]
    cells = [
        [
            row["model"].replace("_", " "),
            row["recipe"],
            row["sampler"],
            *(row[name] for name in ("nfe", "frechet", "accuracy", "seconds")),
        ]
        for row in rows
    ]
    strong = frozenset(i for i, row in enumerate(rows) if row["model"] == "flow_map")
    return Grid(
        ["model", "recipe", "sampler", "network calls", "Frechet", "accuracy", "seconds"],
        cells,
        f"{report['samples']:,} samples, as many of each digit, from the same noise. Frechet: distance in pixels to all "
        f"digits, smaller is better. Accuracy: share in which a support vector machine fitted on the real digits sees the digit "
        "that was asked for.",
        strong,
    )


def _ladder(measured: "Measured") -> "Image":
    count = min(10, len(measured.noise))  # every digit once
    x = measured.noise[:count]
    rows = {name: value[:count] for name, value in measured.cond.items()}
    jumps = {
        f"{k} jump{'s' * (k > 1)}": Way(k)(measured.model.flow_map, x, **rows).cpu()
        for k in (1, 2, 4)
    }
    longest = Way(max(settings.BASELINE_STEPS), settings.SOLVER)
    walk = longest(measured.baseline.flow_map, x, **rows).cpu()
    return ladder({"noise": x.cpu(), **jumps, f"{longest.steps} steps": walk}, across=2, scale=9)


def _trajectory(measured: "Measured") -> "Image":
    return trajectory_strip(
        measured.model.flow_map,
        measured.noise[:1],
        local=measured.baseline.flow_map,
        solver=SOLVERS[settings.SOLVER],
        cond={name: value[:1] for name, value in measured.cond.items()},
    )


def _audit(measured: "Measured") -> Audit:
    model, data = measured.model, data_of(measured.model)
    generator = torch.Generator().manual_seed(0)
    x_0, labels = data.batch(torch.arange(len(data)))
    cond = {} if labels is None or not model.saved.classes else {"label": labels.to(model.device)}
    return audit(
        model.flow_map,
        x_0.to(model.device),
        generator,
        velocity=measured.baseline.flow_map.velocity,
        cond=cond,
    )


def losses(folder: Path) -> list[dict[str, float]]:
    """The rows of metrics.jsonl, flat: step, and the losses by name."""
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    # the total of a single term is that term
    skipped = {"total"} if rows and len(rows[0]["loss"]) == 2 else set[str]()
    return [
        {"step": row["step"]}
        | {f"loss/{name}": value for name, value in row["loss"].items() if name not in skipped}
        for row in rows
    ]
