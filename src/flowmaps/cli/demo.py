"""Learn a flow map of real images and see that it is right: trains, samples, measures, and writes a page about it.

Examples:
  flowmaps demo --out demo                 a few minutes on two cores; then open demo/report.html
  flowmaps demo --seconds 10 -n 1000       a quick look
  flowmaps demo --again                    train anew instead of using what lies in --out

First a baseline, flow matching on scikit-learn's digits, which is walked with 1 to 64 Heun steps; then a flow map, distilled
from it, which jumps 1 to 8 times. Both draw the same number of samples of every digit from the same noise.
"""

import json
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, final

from tyro.conf import arg

from ..errors import CheckpointError
from ..train.run import Config
from . import demo_settings as settings
from .options import UsageError, parse
from .words import say, table

if TYPE_CHECKING:
    from torch import Tensor

    from ..report.compare import Row
    from .draw import Model
    from .scores import Judge


@final
@dataclass
class Options:
    """Options of `flowmaps demo`."""

    out: Annotated[Path, arg(metavar="DIR")] = Path("demo")
    """Where the page, the pictures, report.json and the two runs go."""
    seconds: Annotated[float | None, arg(metavar="FLOAT")] = None
    """Training time of each model; by default 50 and 98 seconds."""
    n: Annotated[int, arg(name="number", aliases=["-n"])] = settings.SAMPLES
    """Samples that every row is measured on, all digits in turn."""
    again: bool = False
    """Train anew even if the runs in --out are finished."""
    json: bool = False
    """Print report.json instead of the table."""


def main(argv: list[str]) -> int:
    """Train, sample, measure, write."""
    options = parse(Options, argv, name="demo", about=f"{__doc__}")
    if options.n < 10 or (options.seconds is not None and options.seconds <= 0):
        raise UsageError(f"the demo needs at least 10 samples and some time; got {options}")
    from .demo_page import write

    again = options.again
    for name, config in configurations(options.out, options.seconds).items():
        folder = options.out / name
        if not again and _progress(folder, config) >= 1:
            say(f"{folder} is trained already; --again trains it anew")
            continue
        if not _train(folder, config, again):
            say("stopped; everything is saved: give the same command again to go on")
            return 130
        again = again or name == "baseline"  # a map of an older baseline is none of this one
    report, pictured = measure(options.out, options.n)
    say("drawing the page ...")
    page = write(options.out, report, pictured)
    if options.json:
        print(json.dumps(report, indent=1))
    else:
        print(text_table(report["rows"]))
        print(f"\n{page}")
    return 0


def configurations(out: Path, seconds: float | None) -> dict[str, Config]:
    """The two runs by the name of their folder, the map's teacher being the baseline."""
    teacher = {"teacher": str(out / "baseline")}
    plans = {
        "baseline": settings.BASELINE,
        "flow_map": settings.FLOW_MAP.model_copy(update=teacher),
    }
    if seconds is None:
        return plans
    return {
        name: plan.model_copy(update={"run": plan.run.model_copy(update={"seconds": seconds})})
        for name, plan in plans.items()
    }


def _train(folder: Path, config: Config, again: bool) -> bool:
    """Train a run, or go on with it; False after Ctrl-C."""
    from ..report.previews import Previews
    from ..train import machine, setup
    from ..train.hooks import Progress

    resume = not again and _progress(folder, config) >= 0
    if folder.exists() and not resume:
        if not (folder / "config.json").exists() and any(folder.iterdir()):
            raise CheckpointError(f"{folder} is not a run of the demo: choose another --out")
        shutil.rmtree(folder)  # an earlier demo with other settings
    say(f"{folder.name}: {config.recipe}, {machine.choose(config.run).reason}")
    watchers = [Progress(folder.name), Previews(folder)]
    state = setup.train(config, folder, resume=resume, hooks=watchers)
    return state.progress(config.run) >= 1


def _progress(folder: Path, config: Config) -> float:
    """How much of this very run is done, in [0, 1]; -1 if there is none."""
    from ..train import checkpoint, setup

    try:
        if setup.config_of(folder) != config:
            return -1.0
        about, _ = checkpoint.read(folder)
    except (CheckpointError, ValueError):
        return -1.0
    return max(about["step"] / config.run.steps, about["seconds"] / (config.run.seconds or 1e9))


@final
@dataclass(frozen=True)
class Measured:
    """What the pictures are drawn from."""

    model: "Model"
    baseline: "Model"
    rows: "list[Row]"
    noise: "Tensor"
    cond: "dict[str, Tensor]"


def measure(out: Path, n: int) -> tuple[dict[str, Any], Measured]:
    """The contents of report.json, and what the pictures need."""
    from .compare import conditions
    from .draw import data_of, open_model
    from .scores import judge

    baseline, model = open_model(out / "baseline"), open_model(out / "flow_map")
    data = data_of(model)
    noise, cond, labels = conditions(model, data, n, 0, {})
    scores = judge(data)
    rows: list[Row] = []
    plan: tuple[tuple[Literal["flow_map", "solved"], Model, str | None, tuple[int, ...]], ...] = (
        ("flow_map", model, None, settings.FLOW_MAP_STEPS),
        ("solved", baseline, settings.SOLVER, settings.BASELINE_STEPS),
    )
    for kind, drawn, solver, steps in plan:
        say(f"sampling {n:,} digits with the {'flow map' if solver is None else 'baseline'} ...")
        _row(
            kind, drawn, solver, 1, scores, noise[:100], {k: v[:100] for k, v in cond.items()}, None
        )  # allocates
        rows += [_row(kind, drawn, solver, k, scores, noise, cond, labels) for k in steps]
    report = {
        "data": f"digits: {len(data):,} scans of {'x'.join(map(str, data.shape[1:]))} pixels (scikit-learn)",
        "samples": n,
        "rows": [_flat(row, model, baseline) for row in rows],
        "train_seconds": {
            "flow_matching": round(baseline.about["seconds"], 1),
            "flow_map": round(model.about["seconds"], 1),
            "total": round(baseline.about["seconds"] + model.about["seconds"], 1),
        },
        "machine": machine_facts(model.device),
        "versions": versions(),
    }
    return report, Measured(model, baseline, rows, noise, cond)


def _row(
    kind: Literal["flow_map", "solved"],
    model: "Model",
    solver: str | None,
    steps: int,
    scores: "Judge",
    noise: "Tensor",
    cond: "dict[str, Tensor]",
    labels: "Tensor | None",
) -> "Row":
    """One way to sample, timed and scored."""
    import torch

    from ..report.compare import Row
    from .draw import Way

    way, size = Way(steps, solver), settings.BATCH
    began = time.perf_counter()
    parts = [
        way(model.flow_map, x, **{key: value[i : i + size] for key, value in cond.items()})
        for i, x in zip(range(0, len(noise), size), noise.split(size), strict=True)
    ]
    x = torch.cat(parts).cpu()
    seconds = time.perf_counter() - began
    return Row(kind, solver or "jump", steps, way.nfe or 0, seconds, scores.quick(x, labels))


def _flat(row: "Row", model: "Model", baseline: "Model") -> dict[str, Any]:
    jumps = row.model == "flow_map"
    return {
        "model": "flow_map" if jumps else "flow_matching",
        "recipe": (model if jumps else baseline).recipe,
        "sampler": f"{row.steps} {row.sampler}{' step' * (not jumps)}{'s' * (row.steps > 1)}",
        "nfe": int(row.nfe),
        "frechet": round(row.quality["frechet"], 5),
        "accuracy": round(row.quality["accuracy"], 5),
        "seconds": round(row.seconds, 5),
    }


def machine_facts(device: str) -> dict[str, Any]:
    """Where the numbers come from."""
    import os
    import platform

    import torch

    info = Path("/proc/cpuinfo")
    names = (
        [line for line in info.read_text().splitlines() if line.startswith("model name")]
        if info.exists()
        else []
    )
    return {
        "processor": names[0].partition(":")[2].strip() if names else platform.processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "device": device,
        "system": platform.platform(),
    }


def versions() -> dict[str, str]:
    """Of everything that a number may depend on."""
    import platform
    from importlib.metadata import version

    names = ("flowmaps", "torch", "numpy", "scipy", "scikit-learn")
    return {"python": platform.python_version()} | {name: version(name) for name in names}


def text_table(rows: list[dict[str, Any]]) -> str:
    """The rows of report.json for the terminal."""

    def cells(row: dict[str, Any]) -> list[str]:
        texts = (row["model"], row["recipe"], row["sampler"], str(row["nfe"]))
        return [*texts, *(f"{row[name]:.3f}" for name in ("frechet", "accuracy", "seconds"))]

    head = ["model", "recipe", "sampler", "NFE", "frechet", "accuracy", "seconds"]
    return table(head, [cells(row) for row in rows])
