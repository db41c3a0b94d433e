"""Make a few-step flow map of a diffusers pipeline: its denoiser teaches, a copy of it with a second time learns.

Examples:
  flowmaps distill --teacher ./ddpm --data ./photos --out runs/map
  flowmaps distill --teacher ./ddpm --data none --recipe free_flow --out runs/map        from noise alone
  flowmaps distill --teacher ./sd --data ./photos --prompts prompts.txt --lora 16 --guidance.scale 4 --out runs/map
  flowmaps distill --resume runs/map                     go on after Ctrl-C, a crash or a reboot
  flowmaps sample runs/map --steps 1 --out samples.png

Pictures go through the pipeline's own autoencoder once; latents and embeddings of prompts are kept in the run's folder.
At the end runs/map/distilled is a folder of diffusers. Needs the extra: pip install 'flowmaps[diffusers]'.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, final

from tyro.conf import arg

from ..train.run import Config, GuidanceConfig, Run, StudentConfig
from .options import UsageError, parse
from .settings import checked, take
from .train import default_folder
from .words import first_process, say


def _run() -> Run:
    # derivatives inside other people's modules are not what compilers are tested on
    return Run(lr=1e-4, batch=64, compile="no", ema=(0.05,))  # pyright: ignore[reportCallIssue]


@final
@dataclass
class Options:
    """Options of `flowmaps distill`."""

    teacher: Annotated[str | None, arg(metavar="PIPELINE")] = None
    """Folder that pipeline.save_pretrained wrote, or its name on the hub."""
    data: str = "none"
    """Name or folder of the data; none learns from noise and the teacher alone."""
    recipe: str | None = None
    """By default push_forward with data, ayf_lmd if guided, free_flow without data; arguments by --set.NAME VALUE."""
    init: Annotated[str | None, arg(metavar="MAP")] = None
    """Start at a map of the same pipeline, a run or its folder, such as one that another recipe made; by default at the teacher."""
    out: Annotated[Path | None, arg(metavar="RUN")] = None
    """Folder of the run; by default runs/RECIPE-DATA."""
    resume: Annotated[bool, arg(metavar="[RUN]")] = False
    """Go on from the newest checkpoint of RUN with its own configuration."""
    size: int | None = None
    """Side of the images in pixels; by default what the pipeline was made for."""
    student: Annotated[StudentConfig, arg(name="")] = field(default_factory=lambda: StudentConfig())  # pyright: ignore[reportCallIssue]
    """How the student is made."""
    guidance: GuidanceConfig = field(default_factory=lambda: GuidanceConfig())  # pyright: ignore[reportCallIssue]
    """Classifier-free guidance of the teacher, folded into the map."""
    run: Run = field(default_factory=_run)
    """How long and how."""


def main(argv: list[str]) -> int:
    """Distil; the exit status is 130 after Ctrl-C."""
    settings, argv = take(named(argv))
    guided = any(word.startswith("--guidance.") for word in argv)
    options = parse(Options, argv, name="distill", about=f"{__doc__}")
    if options.resume:
        if options.out is None:
            raise UsageError("--resume needs the folder of the run: flowmaps distill --resume RUN")
        from ..train.setup import config_of

        return _distill(config_of(options.out), options.out, resume=True)
    config = _config(options, settings, guided=guided)
    return _distill(config, options.out or default_folder(config), resume=False)


def _config(options: Options, settings: dict[str, Any], *, guided: bool) -> Config:
    if options.teacher is None:
        raise UsageError("--teacher is missing: the folder of a diffusers pipeline")
    # the law of guided samples is not that of the data, which push_forward compares them with
    guided_law = guided and options.guidance.scale != 1
    with_data = "ayf_lmd" if guided_law else "push_forward"
    recipe = options.recipe or ("free_flow" if options.data == "none" else with_data)
    return Config(  # pyright: ignore[reportCallIssue]
        recipe=recipe,
        set=checked(recipe, settings),
        data=options.data,
        size=options.size,
        teacher=options.teacher,
        init=options.init,
        student=options.student,
        guidance=options.guidance if guided else None,
        run=options.run,
    )


def _distill(config: Config, out: Path, *, resume: bool) -> int:
    from ..report.few_steps import few_steps
    from ..report.previews import Previews
    from ..train import machine
    from ..train.distil import distil
    from ..train.hooks import Progress

    say(f"machine: {machine.choose(config.run).reason}")
    say(f"{'resuming' if resume else 'distilling'} {config.teacher} by {config.recipe}; {out}")
    hooks = [Progress(config.recipe), Previews(out)] if first_process() else []
    state = distil(config, out, resume=resume, hooks=hooks, measure=few_steps)
    if state.progress(config.run) < 1:
        say(
            f"stopped at step {state.step:,}; everything is saved. To go on:\n  flowmaps distill --resume {out}"
        )
        return 130
    if first_process():
        lines = [f"{out}  (checkpoints, previews, metrics.jsonl)", f"{out}/distilled  (diffusers)"]
        steps = [f"  flowmaps sample {out} --steps {k} --out samples.png" for k in (1, 4)]
        print("\n".join([*lines, "next:", *steps, f"  flowmaps cite {config.recipe}"]))
    return 0


def named(argv: list[str]) -> list[str]:
    """`--resume RUN` as `--resume --out RUN`."""
    if "--resume" in argv:
        after = argv.index("--resume") + 1
        if after < len(argv) and not argv[after].startswith("-"):
            return [*argv[:after], "--out", *argv[after:]]
    return argv
