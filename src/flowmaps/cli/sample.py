"""Draw samples from a trained model: a picture, or an array. The same seed gives the same bytes.

Examples:
  flowmaps sample runs/map                                    64 samples in one jump -> samples.png
  flowmaps sample runs/map --steps 4 -n 16 --class 3          four jumps, one class (number or name)
  flowmaps sample runs/map --prompt "a small red circle above a blue square" -n 16 --out grid.png
  flowmaps sample runs/map --prompts lines.txt -n 8           a row of samples for every line, from the same noises
  flowmaps sample runs/map --seed 7 --out more.npy            float32 (N, *shape); or .safetensors, with labels
  flowmaps sample runs/map --solver heun --steps 32           walk the map's own velocity instead of jumping
  flowmaps sample runs/tones --class "loud bell c4" -n 1 --out bell.wav
  flowmaps sample runs/guided --scale 2.5                     for maps that take the guidance scale as an input
  flowmaps sample runs/map --solver heun --steps 16 --scale 2 --autoguide runs/small --interval 0.2 0.8

Sample i (of a prompt) depends on the seed and on i only: -n 8 gives the first eight of -n 64. Times run from 1 (noise) to 0.
"""

import io
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, final

from tyro.conf import Positional, arg

from .options import UsageError, parse, to_json
from .words import say

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from .draw import Drawn, Model

SOUND = (".wav", ".flac", ".ogg")


@final
@dataclass
class Options:
    """Options of `flowmaps sample`."""

    checkpoint: Annotated[Positional[Path], arg(metavar="CKPT")]
    """Folder of a run (its newest checkpoint) or of a checkpoint."""
    steps: int = 1
    """Jumps of the flow map, or steps of the solver."""
    n: Annotated[int | None, arg(name="number", aliases=["-n"], metavar="INT")] = None
    """How many samples, of every prompt if there are some; by default 64, or 8 of each of several prompts."""
    only: Annotated[str | None, arg(name="class", metavar="CLASS")] = None
    """Number or name of a class; by default all classes in turn."""
    prompt: Annotated[str | None, arg(metavar="TEXT")] = None
    """What a model that was trained with captions shall draw; by default captions that it remembers, in turn."""
    prompts: Annotated[Path | None, arg(metavar="FILE")] = None
    """Prompts, one per line."""
    negative: Annotated[str | None, arg(metavar="TEXT")] = None
    """Guide away from this prompt instead of from the empty one (--scale, --solver)."""
    seed: int = 0
    """Of the noise."""
    out: Annotated[Path, arg(metavar="FILE")] = Path("samples.png")
    """Where to: .png, .npy or .safetensors; sound also as .wav, .flac or .ogg, one clip after the other."""
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
    if options.out.suffix not in (".png", ".npy", ".safetensors", *SOUND):
        raise UsageError(
            f"--out ends in .png, .npy or .safetensors, or for sound in {', '.join(SOUND)}; got {options.out}"
        )
    prompts = _prompts(options)
    each = options.n if options.n is not None else 8 if len(prompts) > 1 else 64
    if min(each, options.batch) < 1:
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
        each * max(len(prompts), 1),
        seed=options.seed,
        told=_told(model, options.only, prompts, each),
        each=each if prompts else None,
        scale=options.scale,
        weak=options.autoguide and open_model(options.autoguide, options.ema),
        interval=options.interval,
        negative=options.negative,
        batch=options.batch,
    )
    from ..report.style import write_atomically

    in_turn = options.only is None
    write_atomically(options.out, encoded(options.out.suffix, drawn, model, in_turn, prompts))
    if options.json:
        settings = {
            "n": each,
            "prompts": prompts,
            "seed": options.seed,
            "sampler": str(way),
            "nfe": drawn.nfe,
        }
        to_json({"out": str(options.out), **settings, "seconds": round(drawn.seconds, 4)})
    else:
        calls = f"{drawn.nfe:.3g} network call{'s' * (drawn.nfe > 1)}"
        print(
            f"{options.out}  ({len(drawn.x)} samples, {way}: {calls} each, {drawn.seconds:.3g} s)"
        )
    return 0


def _prompts(options: Options) -> list[str]:
    """The prompts of the command line and of the file."""
    if options.prompts is None:
        # bytes that are no UTF-8 come from a shell as lone surrogates, which nobody can print
        return [] if options.prompt is None else [options.prompt.encode(errors="replace").decode()]
    if options.prompt is not None:
        raise UsageError("give --prompt or --prompts, not both")
    try:
        lines = options.prompts.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(
            f"--prompts is a text file in UTF-8; got {options.prompts} ({error})"
        ) from error
    found = [line.strip() for line in lines if line.strip()]
    if not found:
        raise UsageError(f"--prompts is a file with a prompt per line; {options.prompts} has none")
    return found


def _told(
    model: "Model", only: str | None, prompts: list[str], each: int
) -> "dict[str, Tensor] | None":
    """What the samples are told, `each` of every prompt; None if nothing is asked for."""
    import torch

    if only is not None and prompts:
        raise UsageError("give --class or a prompt, not both")
    if only is not None:
        return {"label": torch.full((each,), model.class_number(only))}
    if not prompts:
        return None
    return {k: v.repeat_interleave(each, 0) for k, v in model.read(prompts).items()}


def encoded(
    suffix: str, drawn: "Drawn", model: "Model", in_turn: bool, prompts: "Sequence[str]" = ()
) -> bytes:
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
    if suffix in SOUND:
        from ..data.sounds import in_a_row, sound_bytes

        if model.saved.rate is None:
            raise UsageError(f"samples of {model.saved.path} are no sound: use --out samples.png")
        return sound_bytes(in_a_row(drawn.x, model.saved.rate), model.saved.rate, suffix)
    return _picture(drawn, model, in_turn, prompts)


def _picture(drawn: "Drawn", model: "Model", in_turn: bool, prompts: "Sequence[str]") -> bytes:
    from ..report.images import image_grid, told_grid
    from ..report.previews import scatter
    from ..report.sounds import as_images
    from ..report.style import png_bytes

    shape = tuple(drawn.x.shape[1:])
    if shape == (2,):
        return png_bytes(scatter({f"{len(drawn.x):,} samples": drawn.x}))
    if model.saved.rate is None and (len(shape) != 3 or shape[0] not in (1, 3)):
        raise UsageError(f"samples of shape {shape} are no picture: use --out samples.npy")
    if len(prompts) > 1:
        return png_bytes(told_grid(list(zip(prompts, drawn.x.chunk(len(prompts)), strict=True))))
    kinds = len(model.saved.classes)
    # a column per class, where the rows come out even
    columns = kinds if in_turn and kinds and len(drawn.x) % kinds == 0 else None
    return png_bytes(image_grid(as_images(drawn.x), columns=columns))
