"""Is this map right? Checks what every flow map must satisfy, over all sources and targets of a jump.

Examples:
  flowmaps audit runs/map                      picture and json go to runs/map/audit
  flowmaps audit runs/map --teacher runs/teacher
  flowmaps audit runs/map --json > audit.json

tangent        the velocity of the map is the teacher's (only with a teacher: --teacher, or the one of the run)
lagrangian     moving the target moves the endpoint with the flow
eulerian       moving the source along its trajectory does not move the endpoint
compositional  two jumps land where one does
round_trip     there and back again (most recipes do not train jumps towards noise)
Residuals are relative: 0.01 is one per cent. The network's own derivatives are checked against finite differences.
Hazards of the network are named, with what to do: layer norm in a derivative, operations and attention kernels without
forward mode, steep time embeddings, derivatives that bfloat16 spoils, dropout, batch statistics, a mean velocity with a
jump at s = t.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, final

from tyro.conf import Positional, arg

from .options import parse, to_json
from .words import say, table

if TYPE_CHECKING:
    from ..core.flow_map import FlowMap
    from ..report.audit import Audit
    from .draw import Model


@final
@dataclass
class Options:
    """Options of `flowmaps audit`."""

    checkpoint: Annotated[Positional[Path], arg(metavar="CKPT")]
    """Folder of a run (its newest checkpoint) or of a checkpoint."""
    out: Annotated[Path | None, arg(metavar="DIR")] = None
    """Where audit.png and audit.json go; by default the folder `audit` of the run."""
    teacher: Annotated[Path | None, arg(metavar="CKPT")] = None
    """Whose velocity is the reference; by default the run's teacher, if it had one."""
    data: Annotated[str | None, arg(metavar="DATA")] = None
    """Name or path of the data; by default what the model was trained on."""
    bins: int = 8
    """Bins of time along each side of the triangle."""
    per_cell: int = 32
    """Points per cell."""
    seed: int = 0
    """Of points and times."""
    ema: str = "0"
    """Moving average of the weights (0, 1, 2), or raw for the weights themselves."""
    json: bool = False
    """Print the audit as json."""


def main(argv: list[str]) -> int:
    """Audit, write, say what was found."""
    options = parse(Options, argv, name="audit", about=f"{__doc__}")
    import torch

    from ..report.audit import audit, audit_figure
    from ..report.style import save_png, write_atomically
    from .draw import data_of, open_model

    model = open_model(options.checkpoint, options.ema)
    data = data_of(model, options.data)
    generator = torch.Generator().manual_seed(options.seed)
    rows = torch.randperm(len(data), generator=generator)[:4096]
    x_0, cond = data.batch(rows)[0], model.told_of(data, rows)
    teacher = _teacher(options.teacher, model)
    found = audit(
        model.flow_map,
        x_0.to(model.device),
        generator,
        bins=options.bins,
        per_cell=options.per_cell,
        velocity=None if teacher is None else teacher.velocity,
        cond=cond,
    )
    out = options.out or options.checkpoint / "audit"
    save_png(audit_figure(found), out / "audit.png")
    write_atomically(out / "audit.json", json.dumps(found.to_json(), indent=1).encode())
    if options.json:
        to_json(found.to_json())
    else:
        _print(found, out)
    return 0


def _teacher(path: Path | None, model: "Model") -> "FlowMap | None":
    """The map whose velocity is the reference."""
    from ..core.flow_map import rematch
    from ..errors import CheckpointError
    from .draw import open_model

    given = path or (model.about.get("config") or {}).get("teacher")
    if given is None:
        return None
    try:
        return rematch(open_model(given).flow_map, model.flow_map.interpolant)
    except CheckpointError as error:
        if path is not None:
            raise
        say(f"note: without the tangent condition, since the run's teacher is gone ({error})")
        return None


def _print(found: "Audit", out: Path) -> None:
    rows = [
        [
            name,
            *(
                "-" if s[part] is None else f"{s[part]:.3g}"
                for part in ("median", "short", "long", "worst")
            ),
        ]
        for name, s in found.summary.items()
    ]
    print(table(["condition", "median", "short jumps", "long jumps", "worst cell"], rows))
    if found.jvp is not None:
        print(
            f"derivatives against finite differences: {found.jvp.source:.1e} along the source, "
            f"{found.jvp.target:.1e} along the target"
        )
    for sentence in found.verdict:
        print(f"* {sentence}")
    print(f"{out / 'audit.png'}  {out / 'audit.json'}")
