"""Learn a flow map of real images and see that it is right: trains, samples, measures, and writes a page about it.

Examples:
  flowmaps demo --out demo                 a few minutes on two cores; then open demo/report.html
  flowmaps demo --seconds 10 -n 1000       a quick look
  flowmaps demo --again                    train anew instead of using what lies in --out
  flowmaps demo prompts --out demo-prompts    a quarter of an hour: scenes of shapes by their captions
  flowmaps demo sound --out demo-sound        a quarter of an hour: instruments by their names

First a baseline, flow matching on scikit-learn's digits, which is walked with 1 to 64 Heun steps; then a flow map, distilled
from it, which jumps 1 to 8 times. Both draw the same number of samples of every digit from the same noise. The demo of prompts
does the same with captions, and reads from the pixels whether what they ask for is there; the map of the demo of sound learns
from the data alone.
"""

import json
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, final

from tyro.conf import Positional, arg

from ..errors import CheckpointError
from ..train.run import Config
from .demo_settings import DEMOS, Demo
from .options import UsageError, parse
from .words import say, table

if TYPE_CHECKING:
    from torch import Tensor

    from ..report.compare import Row
    from .draw import Model, Way
    from .scores import Judge, Reader


@final
@dataclass
class Options:
    """Options of `flowmaps demo`."""

    name: Annotated[Positional[str], arg(metavar="[digits|prompts|sound]")] = "digits"
    """What is drawn."""
    out: Annotated[Path, arg(metavar="DIR")] = Path("demo")
    """Where the page, the pictures, report.json and the two runs go."""
    seconds: Annotated[float | None, arg(metavar="FLOAT")] = None
    """Training time of each model; by default 45 and 104 seconds for digits, 7 and 5 minutes for prompts, 5 and 6 for sound."""
    n: Annotated[int | None, arg(name="number", aliases=["-n"], metavar="INT")] = None
    """Samples that every row is measured on: 5,000 digits, all in turn, 300 prompts of two kinds, or 264 clips."""
    again: bool = False
    """Train anew even if the runs in --out are finished."""
    json: bool = False
    """Print report.json instead of the table."""


def main(argv: list[str]) -> int:
    """Train, sample, measure, write."""
    options = parse(Options, argv, name="demo", about=f"{__doc__}")
    if options.name not in DEMOS:
        raise UsageError(f"there is a demo of {' and of '.join(DEMOS)}; got {options.name!r}")
    demo = DEMOS[options.name]
    count = demo.samples if options.n is None else options.n
    if count < 10 or (options.seconds is not None and options.seconds <= 0):
        raise UsageError(f"the demo needs at least 10 samples and some time; got {options}")
    from .demo_page import write

    again = options.again
    for name, config in configurations(demo, options.out, options.seconds).items():
        folder = options.out / name
        if not again and _progress(folder, config) >= 1:
            say(f"{folder} is trained already; --again trains it anew")
            continue
        if not _train(folder, config, again):
            say("stopped; everything is saved: give the same command again to go on")
            return 130
        again = again or name == "baseline"  # a map of an older baseline is none of this one
    report, pictured = measure(demo, options.out, count)
    say("drawing the page ...")
    page = write(options.out, report, pictured)
    if options.json:
        print(json.dumps(report, indent=1))
    else:
        print(text_table(report["rows"], list(demo.scores)))
        print(f"\n{page}")
    return 0


def configurations(demo: Demo, out: Path, seconds: float | None) -> dict[str, Config]:
    """The two runs by the name of their folder; the baseline is the map's teacher if its recipe wants one."""
    from ..recipes import get

    taught = get(demo.flow_map.recipe).needs_teacher
    teacher = {"teacher": str(out / "baseline") if taught else None}
    plans = {
        "baseline": demo.baseline,
        "flow_map": demo.flow_map.model_copy(update=teacher),
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

    demo: Demo
    model: "Model"
    baseline: "Model"
    rows: "list[Row]"
    noise: "Tensor"
    cond: "dict[str, Tensor]"


@final
@dataclass(frozen=True)
class Asked:
    """Samples that one data set asks for: their noise, what they are told, and who judges them."""

    suffix: str
    noise: "Tensor"
    cond: "dict[str, Tensor]"
    labels: "Tensor | None"
    scores: "Judge | Reader"


def measure(demo: Demo, out: Path, n: int) -> tuple[dict[str, Any], Measured]:
    """The contents of report.json, and what the pictures need."""
    from .compare import conditions
    from .draw import Way, data_of, open_model
    from .scores import judge

    baseline, model = open_model(out / "baseline"), open_model(out / "flow_map")
    scale = (model.about["config"]["guidance"] or {}).get("scale", 1.0)
    if scale > 1:  # walked as the map was taught
        baseline = _led(baseline, scale)
    asked: list[Asked] = []
    for suffix, name in (demo.judged or {"": None}).items():
        data = data_of(model, name)
        judges = judge(data, _features(demo))
        asked.append(Asked(suffix, *conditions(model, data, n, 0, {}), judges))
    longest = Way(max(demo.baseline_steps), demo.solver)
    say(f"sampling {n:,} {demo.things} by jumps and by walks ...")
    rows = [
        _row("flow_map", model, Way(k), demo, asked, first=k == demo.flow_map_steps[0])
        for k in demo.flow_map_steps
    ]
    rows += [
        _row(
            "solved", baseline, Way(k, demo.solver), demo, asked, first=k == demo.baseline_steps[0]
        )
        for k in demo.baseline_steps
    ]
    if scale > 1:
        rows = [replace(row, nfe=2 * row.nfe) if row.model == "solved" else row for row in rows]
    own = _row("flow_map", model, longest, demo, asked)
    report = {
        "data": demo.about.format(n=len(data_of(model))),
        "samples": n,
        "guidance": scale,
        "rows": [_flat(row, model, baseline) for row in rows],
        "own_walk": _flat(own, model, baseline),
        "one_sample": one_sample(model, longest),
        "train_seconds": {
            "flow_matching": round(baseline.about["seconds"], 1),
            "flow_map": round(model.about["seconds"], 1),
            "total": round(baseline.about["seconds"] + model.about["seconds"], 1),
        },
        "machine": machine_facts(model.device),
        "versions": versions(),
    }
    return report, Measured(demo, model, baseline, rows, asked[0].noise, asked[0].cond)


def _led(model: "Model", scale: float) -> "Model":
    """A model whose velocity is guided: two network calls each."""
    from .draw import Way

    led, _ = model.guide(scale, Way(1, "heun"))
    return replace(model, saved=replace(model.saved, flow_map=led))


def _features(demo: Demo) -> Path | None:
    """Where the classifier of the demo lies.

    Raises:
        UsageError: If it is not there.
    """
    if demo.features is None:
        return None
    found = Path(__file__).parents[3] / demo.features
    if not found.exists():
        raise UsageError(
            f"this demo measures with {demo.features} of the repository; there is no {found}: run it in a clone"
        )
    return found


def _row(
    kind: Literal["flow_map", "solved"],
    model: "Model",
    way: "Way",
    demo: Demo,
    asked: list[Asked],
    *,
    first: bool = False,
) -> "Row":
    """One way to sample, timed and scored; the first one allocates memory before it is timed."""
    from ..report.compare import Row

    quality: dict[str, float] = {}
    seconds = 0.0
    for each in asked:
        if first:
            _draw(model, way, each, demo.batch, count=min(100, demo.batch))
        began = time.perf_counter()
        x = _draw(model, way, each, demo.batch)
        seconds += time.perf_counter() - began
        found = each.scores.quick(x, each.labels)
        quality |= {name + each.suffix: value for name, value in found.items()}
    kept = {name: quality[name] for name in demo.scores}
    return Row(kind, way.solver or "jump", way.steps, way.nfe or 0, seconds, kept)


def _draw(
    model: "Model", way: "Way", asked: Asked, batch: int, count: int | None = None
) -> "Tensor":
    import torch

    cond = {name: value[:count].split(batch) for name, value in asked.cond.items()}
    parts = [
        way(model.flow_map, x, **{name: value[i] for name, value in cond.items()})
        for i, x in enumerate(asked.noise[:count].split(batch))
    ]
    return model.saved.decode(torch.cat(parts)).cpu()


def one_sample(model: "Model", walk: "Way") -> dict[str, float]:
    """Median seconds from what is asked for to one sample, the model being loaded: by a jump, and by a walk."""
    from statistics import median

    import torch

    from .draw import Way

    def once(way: "Way") -> float:
        began = time.perf_counter()
        told = {name: value.to(model.device) for name, value in model.told(torch.arange(1)).items()}
        model.saved.decode(way(model.flow_map, model.noise(0, 0, 1), **told)).cpu()
        return time.perf_counter() - began

    once(Way(1))
    found = {
        "jump": median(once(Way(1)) for _ in range(20)),
        "walk": median(once(walk) for _ in range(3)),
    }
    return {name: round(value, 5) for name, value in found.items()}


def _flat(row: "Row", model: "Model", baseline: "Model") -> dict[str, Any]:
    map_drew, walked = row.model == "flow_map", row.sampler != "jump"
    return {
        "model": "flow_map" if map_drew else "flow_matching",
        "recipe": (model if map_drew else baseline).recipe,
        "sampler": f"{row.steps} {row.sampler}{' step' * walked}{'s' * (row.steps > 1)}",
        "nfe": int(row.nfe),
        **{name: round(value, 5) for name, value in row.quality.items()},
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


def text_table(rows: list[dict[str, Any]], scores: Sequence[str]) -> str:
    """The rows of report.json for the terminal."""

    def cells(row: dict[str, Any]) -> list[str]:
        texts = (row["model"], row["recipe"], row["sampler"], str(row["nfe"]))
        return [*texts, *(f"{row[name]:.3f}" for name in (*scores, "seconds"))]

    head = ["model", "recipe", "sampler", "NFE", *scores, "seconds"]
    return table(head, [cells(row) for row in rows])
