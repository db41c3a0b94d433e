"""The page of `flowmaps demo`: what one sees, in pictures, with the numbers behind it."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ..core.solver import SOLVERS
from ..data.captions import Captioned
from ..data.sounds import in_a_row, sound_bytes
from ..report.audit import Audit, audit, audit_figure
from ..report.compare import compare_figure
from ..report.figures import article_figures, loss_curve
from ..report.images import ladder, told_grid, trajectory_strip
from ..report.page import Grid, Picture, Section, Sound, write_page
from ..report.sounds import as_images
from ..report.style import save_png, write_atomically
from .draw import Way, data_of

if TYPE_CHECKING:
    from PIL.Image import Image

    from .demo import Measured
    from .demo_settings import Demo


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
        out / "report.html",
        measured.demo.title,
        lead(report, measured.demo),
        _sections(report, shown, found, measured, out),
    )


def _pictures(out: Path, measured: "Measured", found: Audit) -> dict[str, Any]:
    article = article_figures()
    return {
        "tangents_and_jumps": article["plane"],
        "time_and_space": article["line"],
        "trajectory": _trajectory(measured),
        "samples": samples_picture(measured),
        "compare": compare_figure(measured.rows),
        "loss_baseline": loss_curve(losses(out / "baseline")),
        "loss_flow_map": loss_curve(losses(out / "flow_map")),
        "audit": audit_figure(found),
    }


def lead(report: dict[str, Any], demo: "Demo") -> str:
    """What was found, in two sentences."""
    rows, (name, word) = report["rows"], next(iter(demo.scores.items()))
    one = next(row for row in rows if row["model"] == "flow_map")
    walk = max((row for row in rows if row["model"] == "flow_matching"), key=lambda r: r["nfe"])
    return (
        f"One network call of the flow map draws {demo.things} at {word} of {one[name]:.3f}; flow matching, "
        f"which is walked, reaches {walk[name]:.3f} with {walk['nfe']}. {report['samples']:,} {demo.things} took "
        f"{one['seconds']:.2f} s instead of {walk['seconds']:.1f} s: {walk['seconds'] / one['seconds']:.0f} times faster."
    )


Shown = dict[str, bytes]
"""The pictures' files by name."""


def _sections(
    report: dict[str, Any], shown: Shown, found: Audit, measured: "Measured", out: Path
) -> list[Section]:
    clips = [] if measured.model.saved.rate is None else [heard(measured, out)]
    return [
        _seen(shown, measured),
        *clips,
        _explained(shown),
        _trajectory_section(shown),
        _measured(report, shown, measured.demo),
        _audited(shown, found),
        _trained(report, shown, measured),
        _where(report),
    ]


def _seen(shown: Shown, measured: "Measured") -> Section:
    demo = measured.demo
    longest = max(demo.baseline_steps)
    calls = max(row.nfe for row in measured.rows if row.model == "solved")
    caption = (
        f"The same noises, by 1, 2 and 4 jumps of the flow map, and by {longest} {demo.solver.capitalize()} steps of the "
        f"baseline ({calls:,.0f} network calls)."
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
        "average of all pictures that could still come, hence the blur. Bottom: the flow map's jump from that "
        "place to the end: the picture is there from the first column on."
    )
    return Section("One trajectory", [Picture(shown["trajectory"], caption)])


def _measured(report: dict[str, Any], shown: Shown, demo: "Demo") -> Section:
    caption = (
        "Blue is the flow map, orange the baseline, against the number of network calls per sample. The dotted line carries "
        "the baseline's longest walk to the left."
    )
    one, own = report["one_sample"], report["own_walk"]
    name = next(iter(demo.scores))
    text = (
        f"One sample takes {1000 * one['jump']:.0f} ms by a jump and {1000 * one['walk']:.0f} ms by the longest walk of the same "
        f"network, the model being loaded. Walked, the flow map's own velocity has a {name} of {own[name]:.3f}."
    )
    return Section("Measured", [_grid(report, demo), Picture(shown["compare"], caption), text])


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
    how = (
        "which starts at the baseline's weights"
        if _taught(measured)
        else "which learns from the data alone"
    )
    return Section(
        "How it was trained",
        [
            f"Both trainings together took {train['total']:.0f} s: {train['flow_matching']:.0f} s for the baseline "
            f"({measured.baseline.recipe}, {steps[0]:,} steps) and {train['flow_map']:.0f} s for the flow map "
            f"({measured.model.recipe}, {steps[1]:,} steps), {how}.",
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


def _grid(report: dict[str, Any], demo: "Demo") -> Grid:
    rows = report["rows"]
    cells = [
        [
            row["model"].replace("_", " "),
            row["recipe"],
            row["sampler"],
            *(row[name] for name in ("nfe", *demo.scores, "seconds")),
        ]
        for row in rows
    ]
    strong = frozenset(i for i, row in enumerate(rows) if row["model"] == "flow_map")
    heads = [name.replace("_", " ").capitalize() for name in demo.scores]
    return Grid(
        ["model", "recipe", "sampler", "network calls", *heads, "seconds"],
        cells,
        f"{report['samples']:,} {demo.things} of each kind that is asked for, from the same noise. {demo.legend}",
        strong,
    )


def _shown(measured: "Measured") -> tuple[list[int], torch.Tensor, dict[str, torch.Tensor]]:
    """Numbers, noises and conditions of the samples in the pictures."""
    shown = [i for i in measured.demo.shown if i < len(measured.noise)]
    return shown, measured.noise[shown], {k: value[shown] for k, value in measured.cond.items()}


def samples_picture(measured: "Measured") -> "Image":
    """The same noises by jumps and by the longest walk; under prompts, each beside its own."""
    demo = measured.demo
    longest = Way(max(demo.baseline_steps), demo.solver)
    ways = {f"{k} jump{'s' * (k > 1)}": (measured.model, Way(k)) for k in (1, 2, 4)}
    ways[f"{longest.steps} steps"] = (measured.baseline, longest)
    shown, x, rows = _shown(measured)
    drawn = {name: way(model.flow_map, x, **rows).cpu() for name, (model, way) in ways.items()}
    saved = measured.model.saved
    if saved.rate is not None:
        seen = {
            name: as_images(saved.decode(z)) for name, z in ({"noise": x.cpu()} | drawn).items()
        }
        return ladder(seen, across=2)
    if not demo.judged:
        return ladder({"noise": x.cpu(), **drawn}, across=2, scale=9)
    data = data_of(measured.model, next(iter(demo.judged.values())))
    assert isinstance(data, Captioned)
    pictures = torch.stack(list(drawn.values()), 1)
    told = zip(data.captions(torch.tensor(shown)), pictures, strict=True)
    return told_grid(list(told), heads=list(drawn))


def _trajectory(measured: "Measured") -> "Image":
    return trajectory_strip(
        measured.model.flow_map,
        measured.noise[:1],
        local=measured.baseline.flow_map,
        solver=SOLVERS[measured.demo.solver],
        cond={name: value[:1] for name, value in measured.cond.items()},
        see=lambda x: as_images(measured.model.saved.decode(x.cpu())),
    )


def heard(measured: "Measured", out: Path) -> Section:
    """Clips by one jump and by the longest walk, beside what the data sound like; left as files as well."""
    demo, saved = measured.demo, measured.model.saved
    assert saved.rate is not None
    longest = Way(max(demo.baseline_steps), demo.solver)
    shown, x, rows = _shown(measured)
    real = data_of(measured.model).batch(torch.tensor(shown))[0]
    ways = {
        "1 jump": Way(1)(measured.model.flow_map, x, **rows).cpu(),
        f"{longest.steps} steps": longest(measured.baseline.flow_map, x, **rows).cpu(),
        "data": real,
    }
    rowed = {
        name: sound_bytes(in_a_row(saved.decode(z), saved.rate), saved.rate)
        for name, z in ways.items()
    }
    for name, wav in rowed.items():
        write_atomically(out / f"{name.replace(' ', '_')}.wav", wav)
    names = ", ".join(saved.classes[i % len(saved.classes)] for i in shown)
    return Section("What one hears", [Sound(rowed, f"One after the other: {names}.")])


def _audit(measured: "Measured") -> Audit:
    model, data = measured.model, data_of(measured.model)
    generator = torch.Generator().manual_seed(0)
    rows = torch.arange(min(len(data), 2000))
    x_0, cond = data.batch(rows)[0], model.told_of(data, rows)
    return audit(
        model.flow_map,
        x_0.to(model.device),
        generator,
        velocity=measured.baseline.flow_map.velocity if _taught(measured) else None,
        cond=cond,
    )


def _taught(measured: "Measured") -> bool:
    """Whether the baseline was the map's teacher."""
    return measured.model.about["config"]["teacher"] is not None


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
