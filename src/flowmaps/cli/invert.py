"""Carry real data back to noise and down again: does the map invert itself, and is the noise noise?

Examples:
  flowmaps invert runs/map                            one jump up, one jump down -> invert.png, invert.json
  flowmaps invert runs/map --steps 8                  eight and eight
  flowmaps invert runs/map --method ode --steps 32    integrate the map's velocity upwards (network never asked for t > s)
  flowmaps invert runs/map --method fixed             invert the downward jump itself by fixed point
  flowmaps invert runs/map --method bdia --steps 4    jumps both ways, two points kept: comes back exactly

The picture shows data, their noise, what comes back, and the difference. In the json: the relative round-trip error, and how
far the noise is from white (mean, variance - 1, excess kurtosis, correlation of neighbours: all 0 for true noise).
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal, final

from tyro.conf import Positional, arg

from .options import UsageError, parse


@final
@dataclass
class Options:
    """Options of `flowmaps invert`."""

    checkpoint: Annotated[Positional[Path], arg(metavar="CKPT")]
    """Folder of a run (its newest checkpoint) or of a checkpoint."""
    method: Literal["jump", "corrected", "ode", "fixed", "bdia"] = "jump"
    """The map's own jumps up, these with three corrections each, Heun steps along its velocity, the inverse of its jumps down, or
    jumps both ways, which come back exactly (--steps 4)."""
    steps: int = 1
    """Jumps or steps upwards."""
    back: int | None = None
    """Jumps back; by default as many as --steps."""
    n: Annotated[int, arg(name="number", aliases=["-n"])] = 64
    """How many data."""
    only: Annotated[str | None, arg(name="class", metavar="CLASS")] = None
    """Number or name of a class."""
    data: Annotated[str | None, arg(metavar="DATA")] = None
    """Name or path of the data; by default the test part of what the model was trained on."""
    seed: int = 0
    """Which data."""
    out: Annotated[Path, arg(metavar="FILE")] = Path("invert.png")
    """Where to; the numbers go beside it as .json."""
    ema: str = "0"
    """Moving average of the weights (0, 1, 2), or raw for the weights themselves."""
    json: bool = False
    """Print the numbers as json."""


def main(argv: list[str]) -> int:
    """Invert, come back, draw, say."""
    options = parse(Options, argv, name="invert", about=f"{__doc__}")
    if options.n < 2 or options.steps < 1 or (options.back or 1) < 1:
        raise UsageError(
            f"-n is at least 2, --steps and --back at least 1; got {options.n}, {options.steps}, {options.back}"
        )
    from ..control.invert import WAYS, invert, noise_statistics
    from ..report.images import ladder
    from .draw import open_model
    from .real import check_drawable, examples, leave, rounded

    method = WAYS[options.method](options.steps)
    model = open_model(options.checkpoint, options.ema)
    check_drawable(model.saved.shape)
    real = examples(model, options.n, seed=options.seed, only=options.only, name=options.data)
    found = invert(model.flow_map, real.x, method, back=options.back, **real.cond)
    scale = float(model.flow_map.interpolant.sigma(found.x.new_ones(())))
    shown = {
        "data": real.x,
        "noise": found.x / (2.5 * scale),
        "back": found.back,
        "difference": found.back - real.x,
    }
    picture = ladder({name: x[:10] for name, x in shown.items()})
    told = {key: rounded(value) for key, value in noise_statistics(found.x / scale).items()}
    error = found.error.double()
    report = {
        "checkpoint": str(model.saved.path),
        "method": str(method),
        "back": options.back or options.steps,
        "n": options.n,
        "round_trip": {
            "mean": rounded(float(error.mean())),
            "median": rounded(float(error.median())),
            "worst": rounded(float(error.max())),
        },
        "noise": told,
        "cost": found.cost.as_dict(),
    }
    leave(options.out, picture, report, as_json=options.json)
    if not options.json:
        print(
            f"{options.out}  ({options.n} data, {method}: round-trip error {float(error.mean()):.2%} on average, "
            f"{float(error.max()):.2%} at worst; size of the noise {told['size']:.3g}, 1 if white)"
        )
    return 0
