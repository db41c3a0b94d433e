"""Walk a trained model from noise to data and keep the trajectories, so that a map can be regressed on them.

Examples:
  flowmaps pairs --teacher runs/teacher -n 20000 --times 9 --out pairs/digits
  flowmaps train cmt --set.stored true --data pairs:pairs/digits --init runs/teacher --out runs/map
  flowmaps pairs --teacher runs/teacher -n 20000 --out pairs/reflow       noise and sample alone
  flowmaps train reflow --set.stored true --data pairs:pairs/reflow --out runs/straight

Data "digits+pairs:FOLDER" give both: terms on data see the digits, terms on trajectories the folder.
"""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal, final

from tyro.conf import arg

from .options import UsageError, parse, to_json


@final
@dataclass
class Options:
    """Options of `flowmaps pairs`."""

    teacher: Annotated[Path, arg(metavar="RUN")]
    """Folder of a run or of a checkpoint."""
    out: Annotated[Path, arg(metavar="DIR")]
    """Folder to write into."""
    n: Annotated[int, arg(name="number", aliases=["-n"])] = 10_000
    """How many trajectories."""
    times: int = 2
    """Points kept of each, noise and sample included."""
    steps: int = 32
    """Steps of the solver."""
    solver: str = "heun"
    """euler, midpoint, heun, rk4, dopri5, ddim, dpm++2m or unipc."""
    grid: Literal["uniform", "shifted", "karras", "log_snr"] = "uniform"
    """Where the steps lie between noise and data."""
    scale: Annotated[float | None, arg(metavar="FLOAT")] = None
    """Guidance scale of a teacher that was trained with dropped labels."""
    seed: int = 0
    """Of the noise."""
    ema: str = "0"
    """Moving average of the weights (0, 1, 2), or raw."""
    batch: int = 256
    """Trajectories at a time."""
    json: bool = False
    """Print what was done as json."""


def main(argv: list[str]) -> int:
    """Walk, write, say where."""
    options = parse(Options, argv, name="pairs", about=f"{__doc__}")
    if min(options.n, options.batch) < 1:
        raise UsageError(f"-n and --batch are at least 1; got {options.n} and {options.batch}")
    from ..core.solver import SOLVERS
    from ..train.pairs import make_pairs
    from .draw import Way, open_model

    way = Way(options.steps, options.solver, options.grid)
    model = open_model(options.teacher, options.ema)
    if model.guided:
        raise UsageError("a teacher that takes the guidance scale as an input is not walked yet")
    guided, _ = model.guide(options.scale, way)
    began = time.perf_counter()
    made = make_pairs(
        model.flow_map,
        options.n,
        model.saved.shape,
        times=options.times,
        steps=options.steps,
        solver=SOLVERS[options.solver],
        spacing=options.grid,
        classes=model.saved.classes,
        field=guided.velocity,
        seed=options.seed,
        batch=options.batch,
    )
    file, seconds = made.write(options.out), time.perf_counter() - began
    if options.json:
        to_json({"out": str(file), "n": len(made), "nfe": way.nfe, "seconds": round(seconds, 3)})
    else:
        calls = "adaptive" if way.nfe is None else f"{way.nfe} network calls each"
        print(f"{file}  ({made.name}, {calls}, {seconds:.3g} s)")
    return 0
