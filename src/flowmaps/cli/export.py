"""One jump of a map as a graph for other programs: ONNX, or torch.export's. Checked against PyTorch before it is kept.

Examples:
  flowmaps export runs/map --out jump.onnx                    X(x, s, t): points, both times (B,), and the class if it has one
  flowmaps export runs/map --out jump.pt2                     the same for torch.export.load
  flowmaps export map --out jump.onnx --cond encoder_hidden_states=77x768
                                                              a folder of diffusers: conditioning by name and shape

The batch is free. From s = 1 (noise) to t = 0 (data) one jump is a sample.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, final

from tyro.conf import Positional, arg

from .options import UsageError, parse, to_json

if TYPE_CHECKING:
    from ..core.flow_map import FlowMap


@final
@dataclass
class Options:
    """Options of `flowmaps export`."""

    model: Annotated[Positional[Path], arg(metavar="MAP")]
    """Folder of a run or checkpoint of flowmaps, or of a map in diffusers' layout."""
    out: Annotated[Path, arg(metavar="FILE")]
    """Where to: .onnx or .pt2."""
    format: Literal["onnx", "pt2"] | None = None
    """By default as the file ends."""
    cond: Annotated[list[str], arg(metavar="NAME=SHAPE")] = field(default_factory=list[str])
    """Inputs beside points, times and class, such as encoder_hidden_states=77x768; without shape a number per row."""
    shape: str | None = None
    """Shape of a point, such as 4x32x32, where the folder does not say it."""
    ema: str = "0"
    """Moving average of the weights (0, 1, 2), or raw for the weights themselves."""
    json: bool = False
    """Print what was done as json."""


def main(argv: list[str]) -> int:
    """Load, trace, compare, write."""
    options = parse(Options, argv, name="export", about=f"{__doc__}")
    from ..adapters.graph import write_graph

    flow_map, shape, cond = _opened(options)
    for text in options.cond:
        name, _, size = text.partition("=")
        cond[name] = _shape(size)
    error = write_graph(flow_map, options.out, shape, cond, format=options.format)
    size = options.out.stat().st_size
    inputs = {"x": shape, "s": (), "t": (), **cond}
    if options.json:
        to_json({"out": str(options.out), "bytes": size, "inputs": inputs, "error": error})
    else:
        said = ", ".join(f"{name} ({', '.join(map(str, ('B', *s)))})" for name, s in inputs.items())
        print(f"{options.out}  ({size / 1e6:.1f} MB; {said}; {error:.0e} from PyTorch)")
    return 0


def _opened(options: Options) -> tuple["FlowMap", tuple[int, ...], dict[str, tuple[int, ...]]]:
    """The map, the shape of a point, and its conditioning as far as the folder says it."""
    if (options.model / "model_index.json").is_file():
        from ..adapters.export import load, shape_of

        given = load(options.model)
        shape = _shape(options.shape) if options.shape else shape_of(options.model, given)
        return given, shape, {}
    from .draw import open_model

    saved = open_model(options.model, options.ema).saved
    shape = _shape(options.shape) if options.shape else saved.shape
    return saved.flow_map, shape, {"label": ()} if saved.classes else {}


def _shape(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split("x")) if text else ()
    except ValueError as error:
        raise UsageError(f"a shape is written as 77x768; got {text!r}") from error
