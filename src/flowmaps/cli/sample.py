"""Draw samples from a trained model: a picture, or an array. The same seed gives the same bytes.

Examples:
  flowmaps sample runs/map                                    64 samples in one jump -> samples.png
  flowmaps sample runs/map --steps 4 -n 16 --class 3          four jumps, one class (number or name)
  flowmaps sample runs/map --seed 7 --out more.npy            float32 (N, *shape); or .safetensors, with labels
  flowmaps sample runs/map --solver heun --steps 32           walk the map's own velocity instead of jumping
  flowmaps sample runs/guided --scale 2.5                     for maps that take the guidance scale as an input
  flowmaps sample runs/map --solver heun --steps 16 --scale 2 --autoguide runs/small --interval 0.2 0.8

Sample i depends on the seed and on i only: -n 8 gives the first eight of -n 64. Times run from 1 (noise) to 0 (data).
"""

import io
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, final

from tyro.conf import Positional, arg

from .options import UsageError, parse, to_json
from .words import say

if TYPE_CHECKING:
    from .draw import Drawn, Model


@final
@dataclass
class Options:
    """Options of `flowmaps sample`."""

    checkpoint: Annotated[Positional[Path], arg(metavar="CKPT")]
    """Folder of a run (its newest checkpoint) or of a checkpoint."""
    steps: int = 1
    """Jumps of the flow map, or steps of the solver."""
    n: Annotated[int, arg(name="number", aliases=["-n"])] = 64
    """How many samples."""
    only: Annotated[str | None, arg(name="class", metavar="CLASS")] = None
    """Number or name of a class; by default all classes in turn."""
    seed: int = 0
    """Of the noise."""
    out: Annotated[Path, arg(metavar="FILE")] = Path("samples.png")
    """Where to: .png, .npy or .safetensors."""
    scale: Annotated[float | None, arg(metavar="FLOAT")] = None
    """Guidance scale; 1 guides nothing."""
    autoguide: Annotated[Path | None, arg(metavar="CKPT")] = None
    """Guide away from this weaker model instead of from no class: a smaller or younger run (--solver)."""
    interval: Annotated[tuple[float, float] | None, arg(metavar="LOW HIGH")] = None
    """Times between which guidance acts (--solver)."""
    solver: Annotated[str | None, arg(metavar="NAME")] = None
    """Walk along the velocity with euler, midpoint, heun, rk4, dopri5, ddim, dpm++2m or unipc."""
    grid: Literal["uniform", "shifted", "karras", "log_snr"] = "uniform"
    """Where the steps lie between noise and data."""
    ema: str = "0"
    """Moving average of the weights (0, 1, 2), or raw for the weights themselves."""
    batch: int = 64
    """Samples at a time."""
    json: bool = False
    """Print what was done as json."""


def main(argv: list[str]) -> int:
    """Draw, write, say where."""
    options = parse(Options, argv, name="sample", about=f"{__doc__}")
    if options.out.suffix not in (".png", ".npy", ".safetensors"):
        raise UsageError(f"--out ends in .png, .npy or .safetensors; got {options.out}")
    if min(options.n, options.batch) < 1:
        raise UsageError(f"-n and --batch are at least 1; got {options.n} and {options.batch}")
    from .draw import Way, draw, open_model

    way = Way(options.steps, options.solver, options.grid)
    model = open_model(options.checkpoint, options.ema)
    if model.local and options.solver is None:
        say(
            f"note: {model.recipe} learns a velocity and cannot jump; each step is one of Euler's. "
            "Better: --solver heun --steps 32"
        )
    drawn = draw(
        model,
        way,
        options.n,
        seed=options.seed,
        only=None if options.only is None else model.class_number(options.only),
        scale=options.scale,
        weak=options.autoguide and open_model(options.autoguide, options.ema),
        interval=options.interval,
        batch=options.batch,
    )
    from ..report.style import write_atomically

    write_atomically(options.out, encoded(options.out.suffix, drawn, model, options.only is None))
    if options.json:
        settings = {"n": options.n, "seed": options.seed, "sampler": str(way), "nfe": drawn.nfe}
        to_json({"out": str(options.out), **settings, "seconds": round(drawn.seconds, 4)})
    else:
        calls = f"{drawn.nfe:.3g} network call{'s' * (drawn.nfe > 1)}"
        print(f"{options.out}  ({options.n} samples, {way}: {calls} each, {drawn.seconds:.3g} s)")
    return 0


def encoded(suffix: str, drawn: "Drawn", model: "Model", in_turn: bool) -> bytes:
    """The bytes of a file of samples.

    Raises:
        UsageError: If the samples cannot be drawn.
    """
    if suffix == ".npy":
        import numpy as np

        buffer = io.BytesIO()
        np.save(buffer, drawn.x.numpy())
        return buffer.getvalue()
    if suffix == ".safetensors":
        from safetensors.torch import save

        labels = {} if drawn.labels is None else {"labels": drawn.labels.contiguous()}
        return save({"samples": drawn.x.contiguous(), **labels})
    return _picture(drawn, model, in_turn)


def _picture(drawn: "Drawn", model: "Model", in_turn: bool) -> bytes:
    from ..report.images import image_grid
    from ..report.previews import scatter
    from ..report.style import png_bytes

    shape = model.saved.shape
    if shape == (2,):
        return png_bytes(scatter({f"{len(drawn.x):,} samples": drawn.x}))
    if len(shape) != 3 or shape[0] not in (1, 3):
        raise UsageError(f"samples of shape {shape} are no picture: use --out samples.npy")
    kinds = len(model.saved.classes)
    # a column per class, where the rows come out even
    columns = kinds if in_turn and kinds and len(drawn.x) % kinds == 0 else None
    return png_bytes(image_grid(drawn.x, columns=columns))
