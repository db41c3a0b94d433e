"""Change the class of real data and keep the rest, or walk from one datum to another in noise space.

Examples:
  flowmaps edit runs/map --to 3                             real data become threes -> edit.png, edit.json
  flowmaps edit runs/map --class Coat --to Dress -n 8
  flowmaps edit runs/map --to 3 --times 0.3,0.6,0.9         where the condition changes: later times change more
  flowmaps edit runs/map --to 3 --noised                    SDEdit: noise the data instead of inverting them
  flowmaps edit runs/map --between --frames 9               great circles between the noises of pairs of data

The way up is the map's jump (--method ode for maps that were trained downwards only). Unless --plain, only the difference of the
two ways down is added, so that what the inversion loses is not lost in the edit. --method bdia --steps 4 loses nothing.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, final

from tyro.conf import Positional, arg

from .options import UsageError, parse

if TYPE_CHECKING:
    from ..control.invert import Inverter
    from .draw import Model
    from .real import Examples


@final
@dataclass
class Options:
    """Options of `flowmaps edit`."""

    checkpoint: Annotated[Positional[Path], arg(metavar="CKPT")]
    """Folder of a run (its newest checkpoint) or of a checkpoint."""
    to: Annotated[str | None, arg(metavar="CLASS")] = None
    """Number or name of the class to edit to."""
    only: Annotated[str | None, arg(name="class", metavar="CLASS")] = None
    """Edit data of this class; by default of all that are not the target."""
    times: Annotated[str, arg(metavar="T,T,...")] = "0.4,0.55,0.7,0.85,1"
    """Times in (0, 1] at which the condition changes, one column each."""
    noised: bool = False
    """Noise the data to the time instead of inverting them."""
    plain: bool = False
    """The end of the second way itself, without the residual."""
    between: bool = False
    """Interpolate between pairs of data instead."""
    frames: int = 9
    """Frames of --between."""
    method: Literal["jump", "corrected", "ode", "fixed", "bdia"] = "jump"
    """How to go up."""
    steps: int = 1
    """Jumps or steps up."""
    jumps: int | None = None
    """Jumps of every way down, 1 by default; bdia comes down by its own steps."""
    n: Annotated[int, arg(name="number", aliases=["-n"])] = 10
    """How many data, one row each."""
    data: Annotated[str | None, arg(metavar="DATA")] = None
    """Name or path of the data; by default the test part of what the model was trained on."""
    seed: int = 0
    """Which data."""
    out: Annotated[Path, arg(metavar="FILE")] = Path("edit.png")
    """Where to; the numbers go beside it as .json."""
    ema: str = "0"
    """Moving average of the weights (0, 1, 2), or raw for the weights themselves."""
    json: bool = False
    """Print the numbers as json."""


def main(argv: list[str]) -> int:
    """Edit, draw, say."""
    options = parse(Options, argv, name="edit", about=f"{__doc__}")
    if min(options.n, options.steps, 1 if options.jumps is None else options.jumps) < 1:
        raise UsageError(
            f"-n, --steps and --jumps are at least 1; got {options.n}, {options.steps}, {options.jumps}"
        )
    if options.between == (options.to is not None):
        raise UsageError("say what to edit to, --to CLASS, or interpolate with --between; not both")
    from ..control.invert import WAYS
    from ..report.images import ladder
    from .draw import open_model
    from .real import check_drawable, leave

    method = WAYS[options.method](options.steps)
    model = open_model(options.checkpoint, options.ema)
    check_drawable(model.saved.shape)
    show = _between if options.between else _edited
    columns, report = show(model, options, method)
    report = {"checkpoint": str(model.saved.path), "n": options.n} | report
    leave(options.out, ladder(columns), report, as_json=options.json)
    if not options.json:
        print(f"{options.out}  ({report['what']})")
    return 0


def _edited(
    model: "Model", options: Options, method: "Inverter"
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The ladder of an edit over its times, and what it changed."""
    from torch import Generator

    from ..control.edit import edit, sdedit
    from .real import rounded

    times = _times(options.times)
    target = model.class_number(str(options.to))
    real = _others(model, options, target)
    flow_map, to, columns = model.flow_map, real.labelled(target), {"data": real.x}
    rows: list[dict[str, float]] = []
    for time in times:
        if options.noised:
            generator = Generator().manual_seed(options.seed)
            found = sdedit(
                flow_map, real.x, time=time, jumps=options.jumps or 1, generator=generator, **to
            )
        else:
            found = edit(
                *(flow_map, real.x, real.cond, to),
                time=time,
                residual=not options.plain,
                method=method,
                jumps=options.jumps,
            )
        columns[f"t = {time:g}"] = found.x
        change = (found.x - real.x).square().mean().sqrt() / real.x.std()
        rows.append({"time": time, "change": rounded(float(change)), "forward": found.cost.forward})
    name = model.saved.classes[target]
    kind = "noised" if options.noised else str(method)
    least, most = rows[0]["change"], rows[-1]["change"]
    what = f"to {name} by {kind}: change {least:.2f} at t = {times[0]:g}, {most:.2f} at {times[-1]:g}, in data deviations"
    return columns, {"what": what, "to": name, "by": kind, "rows": rows}


def _others(model: "Model", options: Options, target: int) -> "Examples":
    """Data of the class that was asked for, or of all but the target."""
    from .real import Examples, examples

    if options.only is not None:
        return examples(model, options.n, seed=options.seed, only=options.only, name=options.data)
    many = examples(model, 4 * options.n, seed=options.seed, name=options.data)
    if "label" not in many.cond:
        raise UsageError(f"{model.saved.path} was trained without classes: interpolate --between")
    keep = (many.cond["label"] != target).nonzero()[: options.n, 0]
    return Examples(many.x[keep], {"label": many.cond["label"][keep]}, many.data)


def _between(
    model: "Model", options: Options, method: "Inverter"
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The frames between pairs of data, and how even their steps are."""
    from ..control.edit import interpolate
    from .real import examples, rounded

    real = examples(model, 2 * options.n, seed=options.seed, only=options.only, name=options.data)
    (first, second), n = real.x.split(options.n), options.n
    ends = [{key: value[i : i + n] for key, value in real.cond.items()} for i in (0, n)]
    found = interpolate(
        *(model.flow_map, first, second, options.frames),
        method=method,
        jumps=options.jumps or 1,
        source=ends[0],
        target=ends[1],
    )
    steps = found.x.diff(dim=0).flatten(2).norm(dim=2).mean(1)
    straight = (second - first).flatten(1).norm(dim=1).mean()
    columns = {"from": first, **{f"{i + 1}": x for i, x in enumerate(found.x)}, "to": second}
    length = float(steps.sum() / straight)
    report = {
        "what": f"{options.frames} frames by {method}: the way is {length:.2f} times the straight line",
        "length": rounded(length),
        "largest_step": rounded(float(steps.max() / steps.mean())),
        "cost": found.cost.as_dict(),
    }
    return columns, report


def _times(text: str) -> list[float]:
    try:
        times = [float(part) for part in text.split(",")]
    except ValueError:
        times = []
    if not times or not all(0 < time <= 1 for time in times):
        raise UsageError(f"--times takes numbers in (0, 1] such as 0.4,0.7,1; got {text!r}")
    return times
