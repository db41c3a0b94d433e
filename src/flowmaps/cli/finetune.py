"""Teach a few-step map new images without losing its few steps: its jumps learn with its velocity, and it rehearses what it knew.

Examples:
  flowmaps finetune runs/map --data ./photos --out runs/photos
  flowmaps finetune runs/map --data ./photos --change.keep 0.5 --run.steps 2000
  flowmaps finetune --resume runs/photos                 go on after Ctrl-C, a crash or a reboot
  flowmaps sample runs/photos --steps 1 --out samples.png

MAP is a run of flowmaps train or flowmaps distill, or a map's folder in diffusers' layout; of maps of diffusers RUN/distilled is
such a folder in the end. Classes of the new data that the map does not know are added to it; of a map that reads text the new data
need captions. At the end quality at 1, 2 and 4 steps is reported, before and after, on the new data and on what the old map
drew: RUN/finetune.json.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, final

from tyro.conf import Positional, arg

from ..train.run import ChangeConfig, Config, GuidanceConfig, Run
from .distill import named
from .options import UsageError, parse
from .settings import checked, take
from .train import default_folder
from .words import first_process, say, table


def _run() -> Run:
    return Run(lr=1e-3, steps=2000, batch=128, compile="no")  # pyright: ignore[reportCallIssue]


@final
@dataclass
class Options:
    """Options of `flowmaps finetune`."""

    map: Annotated[Positional[Path | None], arg(metavar="MAP")] = None
    """Folder of a run, or of a checkpoint."""
    data: str | None = None
    """Name or folder of the new data."""
    recipe: str = "default"
    """A recipe of data alone, in which the jumps learn with the velocity; its arguments by --set.NAME VALUE."""
    out: Annotated[Path | None, arg(metavar="RUN")] = None
    """Folder of the run; by default runs/RECIPE-DATA."""
    resume: Annotated[bool, arg(metavar="[RUN]")] = False
    """Go on from the newest checkpoint of RUN with its own configuration."""
    size: int | None = None
    """Side of the images in pixels; by default as the map's."""
    change: ChangeConfig = field(default_factory=lambda: ChangeConfig())  # pyright: ignore[reportCallIssue]
    """What is rehearsed."""
    run: Run = field(default_factory=_run)
    """How long and how."""


def main(argv: list[str]) -> int:
    """Fine-tune and report; the exit status is 130 after Ctrl-C."""
    settings, argv = take(named(argv))
    options = parse(Options, argv, name="finetune", about=f"{__doc__}")
    if options.resume:
        if options.out is None:
            raise UsageError("--resume needs the folder of the run: flowmaps finetune --resume RUN")
        from ..train.setup import config_of

        return _finetune(config_of(options.out), options.out, resume=True)
    if options.map is None or options.data is None:
        raise UsageError("a map and new data are needed: flowmaps finetune MAP --data NEW")
    config = _config(options, settings)
    return _finetune(config, options.out or default_folder(config), resume=False)


def _config(options: Options, settings: dict[str, Any]) -> Config:
    from ..train import checkpoint

    about = checkpoint.read(str(options.map))[0]
    old = (about.get("config") or {}).get("guidance")
    guidance = None if old is None else GuidanceConfig.model_validate(old)
    return Config(  # pyright: ignore[reportCallIssue]
        recipe=options.recipe,
        set=checked(options.recipe, settings),
        data=str(options.data),
        size=options.size,
        init=str(options.map),
        guidance=guidance,
        change=options.change,
        run=options.run,
    )


def _finetune(config: Config, out: Path, *, resume: bool) -> int:
    from ..report.change import change
    from ..report.previews import Previews
    from ..train import checkpoint, finetune
    from ..train.distil import save_changed
    from ..train.hooks import Progress

    say(
        f"{'resuming' if resume else 'teaching'} {config.init} {config.data} by {config.recipe}; {out}"
    )
    parts = finetune.prepare(config)
    hooks = [Progress(config.recipe), Previews(out)] if first_process() else []
    state = finetune.learn(parts, config, out, resume=resume, hooks=hooks)
    if state.progress(config.run) < 1:
        say(
            f"stopped at step {state.step:,}; everything is saved. To go on:\n  flowmaps finetune --resume {out}"
        )
        return 130
    if first_process():
        assert isinstance(parts.data, finetune.Rehearsed)
        old = checkpoint.load(str(config.init))
        new = checkpoint.load(out).flow_map
        rows = change(parts.data, old.flow_map, new, classes=len(old.classes))
        checkpoint.write_json(out / "finetune.json", {"frechet": rows})
        note = f"{config.init}, taught {config.data} by `{config.recipe}` of flowmaps, {state.step} steps. Frechet distances."
        save_changed(state, parts, out, rows, note)
        print(f"{out}  (checkpoints, previews, metrics.jsonl, finetune.json)")
        if (out / "distilled").exists():
            print(f"{out}/distilled  (diffusers)")
        print("Frechet distance:")
        cells = [
            [str(v) if k in ("data", "steps") else f"{v:.4g}" for k, v in row.items()]
            for row in rows
        ]
        print(table(list(rows[0]), cells))
    return 0
