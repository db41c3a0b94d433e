"""The flow map against the model that is walked step by step: quality, wall time and network calls, from the same noise.

Examples:
  flowmaps compare runs/map                                  against the map's own velocity
  flowmaps compare runs/map --baseline runs/teacher          against another model's
  flowmaps compare runs/map --steps 1,2,4 -n 1000 --json
  flowmaps compare runs/map --features classifier.safetensors --solver unipc

Writes compare.json, compare.png (scores and time against network calls) and samples.png (the same noises, side by side).
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, final

from tyro.conf import Positional, arg

from .options import UsageError, integers, parse, to_json
from .words import say, table

if TYPE_CHECKING:
    from torch import Tensor

    from ..core.flow_map import FlowMap
    from ..data import Data
    from ..report.compare import Row
    from .draw import Model, Way


@final
@dataclass
class Options:
    """Options of `flowmaps compare`."""

    checkpoint: Annotated[Positional[Path], arg(metavar="CKPT")]
    """Folder of a run (its newest checkpoint) or of a checkpoint."""
    baseline: Annotated[Path | None, arg(metavar="CKPT")] = None
    """The model that is walked; by default the flow map's own velocity."""
    steps: str = "1,2,4,8,16,32,64"
    """Numbers of steps, with commas."""
    solver: str = "heun"
    """How the baseline is walked: euler, midpoint, heun, rk4, dopri5, ddim, dpm++2m or unipc."""
    n: Annotated[int, arg(name="number", aliases=["-n"])] = 5000
    """How many samples, all classes in turn."""
    scale: Annotated[float | None, arg(metavar="FLOAT")] = None
    """Guidance scale, for maps that take it as an input."""
    features: Annotated[Path | None, arg(metavar="FILE")] = None
    """A classifier's safetensors whose features replace pixels."""
    data: Annotated[str | None, arg(metavar="DATA")] = None
    """Name or path of the data; by default what the model was trained on."""
    out: Annotated[Path | None, arg(metavar="DIR")] = None
    """Where the files go; by default the folder `compare` of the run."""
    seed: int = 0
    """Of the noise."""
    ema: str = "0"
    """Moving average of the weights (0, 1, 2), or raw for the weights themselves."""
    batch: int = 500
    """Samples at a time."""
    json: bool = False
    """Print the rows as json."""


def main(argv: list[str]) -> int:
    """Sample both at every number of steps, score, draw."""
    options = parse(Options, argv, name="compare", about=f"{__doc__}")
    steps = integers(options.steps, "--steps")
    if options.n < 10 or options.batch < 1:
        raise UsageError(
            f"scores need at least 10 samples; got -n {options.n}, --batch {options.batch}"
        )
    from ..core.flow_map import rematch
    from ..report.compare import compare, compare_figure
    from ..report.style import save_png, write_atomically
    from .draw import Way, data_of, open_model
    from .scores import judge

    way = Way(1, options.solver)
    model = open_model(options.checkpoint, options.ema)
    flow_map, extra = model.guide(options.scale, Way(1))
    other = None if options.baseline is None else open_model(options.baseline).flow_map
    data = data_of(model, options.data)
    noise, cond, labels = conditions(model, data, options.n, options.seed, extra)
    scores = judge(data, options.features)
    say(f"drawing {options.n:,} samples both ways at {len(steps)} numbers of steps ...")
    local = None if other is None else rematch(other, flow_map.interpolant)
    rows = compare(
        flow_map,
        noise,
        scores.some,
        steps=steps,
        solver=options.solver,
        cond=cond,
        batch=options.batch,
        quality=lambda x: scores.quick(model.saved.decode(x).cpu(), labels),
        local=local,
    )
    out = options.out or options.checkpoint / "compare"
    found = [row.to_json() for row in rows]
    write_atomically(out / "compare.json", json.dumps(found, indent=1).encode())
    save_png(compare_figure(rows), out / "compare.png")
    pictured = _picture(flow_map, local or flow_map, model, noise, cond, way, max(steps), out)
    if options.json:
        to_json(found)
        return 0
    print(comparison(rows))
    print("  ".join(str(path) for path in (out / "compare.json", out / "compare.png", *pictured)))
    return 0


def conditions(
    model: "Model", data: "Data", n: int, seed: int, extra: dict[str, float]
) -> "tuple[Tensor, dict[str, Tensor], Tensor | None]":
    """Noise of `n` samples, what they are told on the model's device, and their classes."""
    import torch

    noise, told = model.noise(seed, 0, n), model.told_as(data, n)
    cond = {name: torch.full((n,), value, device=noise.device) for name, value in extra.items()}
    cond |= {name: value.to(noise.device) for name, value in told.items()}
    return noise, cond, told.get("label")


def comparison(rows: "list[Row]") -> str:
    """The rows as a table of text."""
    names = {"flow_map": "flow map", "solved": "solved model"}
    scores = list(rows[0].quality)
    head = ["model", "sampler", "steps", "NFE", *scores, "seconds"]

    def cells(row: "Row") -> list[str]:
        values = [f"{row.quality[name]:.4f}" for name in scores]
        return [
            *(names[row.model], row.sampler, str(row.steps), f"{row.nfe:g}"),
            *values,
            f"{row.seconds:.3f}",
        ]

    return table(head, [cells(row) for row in rows])


def _picture(
    flow_map: "FlowMap",
    walked: "FlowMap",
    model: "Model",
    noise: "Tensor",
    cond: "dict[str, Tensor]",
    way: "Way",
    steps: int,
    out: Path,
) -> list[Path]:
    """The same noises by 1, 2 and 4 jumps and by the longest walk, if they can be drawn."""
    from ..report.images import ladder
    from ..report.previews import scatter
    from ..report.sounds import as_images
    from ..report.style import save_png
    from .draw import Way

    shape = model.saved.shape
    count = 2000 if shape == (2,) else 40
    x, rows = noise[:count], {name: value[:count] for name, value in cond.items()}
    shown = {f"{k} jump{'s' * (k > 1)}": Way(k)(flow_map, x, **rows).cpu() for k in (1, 2, 4)}
    walk = Way(steps, way.solver)
    shown[f"{steps} {way.solver} steps"] = walk(walked, x, **rows).cpu()
    if shape == (2,):
        return [save_png(scatter(shown), out / "samples.png")]
    if model.saved.codec is not None or model.saved.rate is not None:
        named = {name: as_images(model.saved.decode(z)) for name, z in shown.items()}
        return [save_png(ladder(named, across=5), out / "samples.png")]
    if len(shape) == 3 and shape[0] in (1, 3):
        return [save_png(ladder({"noise": x.cpu(), **shown}, across=5), out / "samples.png")]
    return []
