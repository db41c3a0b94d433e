"""One jump of a flow map as a graph, for other programs: torch.export's, or ONNX for onnxruntime.

    write_graph(flow_map, "jump.onnx", shape=(1, 8, 8), cond={"label": ()})

The graph takes points x (B, *shape) and both times s, t (B,), float32, then the conditioning, and returns X(x, s, t); B is
free. One jump from 1 to 0 is a sample; a loop over a grid is a sampler.
"""

import contextlib
import logging
import os
import shutil
import warnings
from collections.abc import Generator, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any, final

import torch
from torch import Tensor, nn

from ..core.flow_map import FlowMap
from ..errors import AdapterError, MissingExtraError

FORMATS = {".onnx": "onnx", ".pt2": "pt2"}
"""Formats by the ending of a file."""

WHOLE = ("label", "class_labels")
"""Conditioning that counts: int64."""


@final
class _Jump(nn.Module):
    def __init__(self, flow_map: FlowMap) -> None:
        super().__init__()
        self.flow_map = flow_map

    def forward(self, x: Tensor, s: Tensor, t: Tensor, cond: dict[str, Tensor]) -> Tensor:
        return self.flow_map(x, s, t, **cond)


def write_graph(
    flow_map: FlowMap,
    file: str | Path,
    shape: tuple[int, ...],
    cond: Mapping[str, tuple[int, ...]] | None = None,
    *,
    format: str | None = None,
) -> float:
    """Write the jump of a map to a file, read it back, and compare it with PyTorch on a batch of another size.

    Args:
        flow_map: Any map with weights, in float32; its training mode is left.
        file: Where to; complete or absent.
        shape: Shape of a point, without the batch axis.
        cond: Conditioning by name: shapes without the batch axis. `label` and `class_labels` are whole numbers.
        format: "onnx" or "pt2"; by default as the file ends.

    Returns:
        The largest difference from PyTorch, relative to the largest value.

    Raises:
        AdapterError: If the format is unknown, the map cannot be traced, or what was written does not agree.
        MissingExtraError: If ONNX is asked for and onnx, onnxscript or onnxruntime is not installed.
    """
    place = Path(file)
    kind = format or FORMATS.get(place.suffix, "")
    if kind not in FORMATS.values():
        raise AdapterError(
            f"a graph is written as .onnx or .pt2; got {place.name}: rename it, or give the format"
        )
    if kind == "onnx":
        _wants("onnx", "onnxscript", "onnxruntime")
    jump, room = _Jump(flow_map).eval(), place.with_name(f".{place.name}.{os.getpid()}")
    room.mkdir(parents=True)
    try:
        graph = _traced(jump, _inputs(shape, cond or {}, 2))
        check = _onnx if kind == "onnx" else _pt2
        error = check(graph, jump, room / place.name, _inputs(shape, cond or {}, 3))
        if not error < 1e-3:
            raise AdapterError(
                f"the graph of {place.name} differs from PyTorch by {error:.1e}: nothing was written"
            )
        for each in sorted(
            room.iterdir(), reverse=True
        ):  # weights beyond 2 GB lie beside the graph
            each.replace(place.with_name(each.name))
    finally:
        shutil.rmtree(room, ignore_errors=True)
    return error


def _inputs(shape: tuple[int, ...], cond: Mapping[str, tuple[int, ...]], n: int) -> tuple[Any, ...]:
    generator = torch.Generator().manual_seed(n)
    x = torch.randn(n, *shape, generator=generator)
    times = torch.rand(2, n, generator=generator).sort(0, descending=True).values
    given = {
        name: torch.zeros(n, *each, dtype=torch.int64)
        if name in WHOLE
        else torch.rand(n, *each, generator=generator)
        for name, each in cond.items()
    }
    return x, times[0], times[1], given


def _traced(jump: _Jump, example: tuple[Any, ...]) -> torch.export.ExportedProgram:
    batch = {0: torch.export.Dim.DYNAMIC}
    shapes = (batch, batch, batch, dict.fromkeys(example[3], batch))
    try:
        with torch.no_grad():
            jump(*example)  # what is missing is said better by the map than by its tracer
            return torch.export.export(jump, example, dynamic_shapes=shapes, strict=False)
    except AdapterError:
        raise
    except Exception as error:  # torch.export raises of many kinds
        first = (str(error).splitlines() or [""])[0][:200]
        raise AdapterError(
            f"the map cannot be traced by torch.export ({type(error).__name__}: {first}): give every input that its network needs"
        ) from error


def _pt2(graph: Any, jump: _Jump, draft: Path, probe: tuple[Any, ...]) -> float:
    with draft.open("wb") as file:
        torch.export.save(graph, file)
    with draft.open("rb") as file:
        again = torch.export.load(file).module()
    with torch.no_grad():
        return _apart(again(*probe), jump(*probe))


def _onnx(graph: Any, jump: _Jump, draft: Path, probe: tuple[Any, ...]) -> float:
    import onnxruntime  # pyright: ignore[reportMissingImports]
    import onnxscript  # pyright: ignore[reportMissingImports]

    op: Any = onnxscript.opset18

    def hypot(a: Any, b: Any) -> Any:
        return op.Sqrt(op.Add(op.Mul(a, a), op.Mul(b, b)))

    names = ["x", "s", "t", *probe[3]]
    try:
        # torch 2.13 warns of its own tree utilities and of a torchvision that is not there
        with warnings.catch_warnings(), _quiet("torch.onnx"):
            warnings.simplefilter("ignore")
            made: Any = torch.onnx.export(
                graph,
                dynamo=True,
                input_names=names,
                output_names=["end"],
                custom_translation_table={torch.ops.prims.hypot.default: hypot},
                verbose=False,
            )
    except torch.onnx.OnnxExporterError as error:
        why = [line for line in str(error).splitlines() if "Error'>" in line] or [str(error)]
        raise AdapterError(
            f"torch cannot say this map in ONNX ({why[0][:200]}): try .pt2"
        ) from error
    made.save(str(draft))
    session: Any = onnxruntime.InferenceSession(str(draft), providers=["CPUExecutionProvider"])
    fed = dict(zip(names, (*probe[:3], *probe[3].values()), strict=True))
    taken = {each.name for each in session.get_inputs()}
    out = session.run(None, {name: value.numpy() for name, value in fed.items() if name in taken})
    with torch.no_grad():
        return _apart(torch.from_numpy(out[0]), jump(*probe))


@contextlib.contextmanager
def _quiet(name: str) -> Generator[None]:
    log = logging.getLogger(name)
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        yield
    finally:
        log.setLevel(level)


def _apart(mine: Tensor, theirs: Tensor) -> float:
    return float((mine - theirs).abs().max() / theirs.abs().max().clamp(min=1e-12))


def _wants(*packages: str) -> None:
    missing = [name for name in packages if find_spec(name) is None]
    if missing:
        raise MissingExtraError(
            f"writing ONNX needs the package {missing[0]}: pip install 'flowmaps[onnx]'"
        )
