"""Learn a flow map (or a flow-matching model to distil it from), and keep it in a folder.

Examples:
  flowmaps train flow_matching --data digits --out runs/teacher --run.steps 4000
  flowmaps train lmd --set.through target --teacher runs/teacher --out runs/map
  flowmaps train mean_flow --data ./photos --size 32 --net dit-small --set.diagonal 0.5
  flowmaps train lsd --data toy:checkerboard --net mlp-small --run.seconds 60
  flowmaps train --config run.yaml --run.lr 3e-4 --print-config
  flowmaps train --resume runs/map                  go on after Ctrl-C, a crash or a reboot
  torchrun --nproc-per-node 2 -m flowmaps.cli.main train mean_flow --out runs/two

data: digits, fashion-mnist, toy:{moons,checkerboard,rings,mixture}, hf:NAME, or a folder of images or IDX files.

Arguments of the recipe are set by --set.NAME VALUE, or all at once by --set '{"diagonal": 0.5}'.
"""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, final

import yaml
from pydantic import ValidationError
from tyro.conf import arg

from ..train.run import Config, GuidanceConfig
from .options import UsageError, explained, parse
from .settings import checked, take
from .words import first_process, nearest, say


@final
@dataclass
class Options:
    """Options of `flowmaps train`."""

    config: Annotated[Config, arg(name="")]
    out: Annotated[Path | None, arg(metavar="RUN")] = None
    """Folder of the run: checkpoints, previews, metrics. By default runs/RECIPE-DATA."""
    resume: Annotated[bool, arg(metavar="[RUN]")] = False
    """Go on from the newest checkpoint of RUN with its own configuration; `--resume RUN` needs no --out."""
    file: Annotated[Path | None, arg(name="config", metavar="FILE")] = None
    """A configuration (yaml or json) to start from; options on the command line win."""
    print_config: bool = False
    """Print the resolved configuration as yaml, and train nothing."""


def main(argv: list[str]) -> int:
    """Train; the exit status is 130 after Ctrl-C."""
    settings, argv = take(_named(argv))
    options = read(argv, settings)
    if options.print_config:
        print(yaml.safe_dump(options.config.model_dump(mode="json"), sort_keys=False), end="")
        return 0
    return _train(options.config, options.out or default_folder(options.config), options.resume)


def read(argv: list[str], settings: dict[str, Any]) -> Options:
    """Options from arguments and recipe settings: file or resumed run first, then what the command line says."""
    file, out = _value(argv, "--config"), _value(argv, "--out")
    start = _from_file(Path(file)) if file else Config()  # pyright: ignore[reportCallIssue]
    if "--resume" in argv:
        start = _from_run(out)
    guided = start.guidance is not None or any(a.startswith("--guidance.") for a in argv)
    # tyro cannot enter a group whose default is None: it is always there, and taken out again
    shown = start.model_copy(update={"guidance": start.guidance or GuidanceConfig()})  # pyright: ignore[reportCallIssue]
    options = parse(
        Options, argv, name="train", usage="[RECIPE]", about=f"{__doc__}", default=Options(shown)
    )
    update: dict[str, Any] = {"set": start.set | settings}
    if not guided:
        update["guidance"] = None
    options.config = options.config.model_copy(update=update)
    return options


def _train(config: Config, out: Path, resume: bool) -> int:
    from .. import recipes
    from ..nets import NETS
    from ..report.previews import Previews
    from ..train import machine, setup
    from ..train.hooks import Progress

    config = config.model_copy(update={"set": checked(config.recipe, config.set)})
    recipe = recipes.get(config.recipe, **config.set)
    if config.net not in NETS:
        raise UsageError(
            f"no network is called {config.net!r}{nearest(config.net, NETS)}; there are {', '.join(NETS)}"
        )
    say(f"machine: {machine.choose(config.run).reason}")
    say(
        f"{'resuming' if resume else 'training'} {recipe.name} on {config.data} with {config.net}; {out}"
    )
    hooks = [Progress(recipe.name), Previews(out)] if first_process() else []
    state = setup.train(config, out, resume=resume, hooks=hooks)
    if state.progress(config.run) < 1:
        say(
            f"stopped at step {state.step:,}; everything is saved. To go on:\n  flowmaps train --resume {out}"
        )
        return 130
    if first_process():
        print(_next(out, recipe.local, config))
    return 0


def _next(out: Path, local: bool, config: Config) -> str:
    """Where things are, and what to try."""
    lines = [f"{out}  (checkpoints, previews, metrics.jsonl; tensorboard --logdir {out})", "next:"]
    if local:
        same = ("data", "size", "net", "patch", "skip")  # a student has its teacher's network
        changed = [key for key in same if getattr(config, key) != Config.model_fields[key].default]
        flags = "".join(f" --{key} {getattr(config, key)}" for key in changed)
        student = out.with_name(f"{out.name}-map")
        lines += [
            f"  flowmaps sample {out} --solver heun --steps 32 --out samples.png",
            f"  flowmaps train lmd --set.through target --teacher {out}{flags} --out {student}",
        ]
    else:
        lines += [
            f"  flowmaps sample {out} --steps 1 --out samples.png",
            f"  flowmaps compare {out}",
            f"  flowmaps audit {out}",
        ]
    return "\n".join([*lines, f"  flowmaps cite {config.recipe}"])


def _named(argv: list[str]) -> list[str]:
    """`train RECIPE ...` as `--recipe RECIPE`, and `--resume RUN` as `--resume --out RUN`."""
    if argv and not argv[0].startswith("-"):
        argv = ["--recipe", *argv]
    if "--resume" in argv:
        after = argv.index("--resume") + 1
        if after < len(argv) and not argv[after].startswith("-"):
            argv = [*argv[:after], "--out", *argv[after:]]
    return argv


def _value(argv: list[str], flag: str) -> str | None:
    for i, word in enumerate(argv):
        if word.startswith(flag + "="):
            return word.partition("=")[2]
        if word == flag and i + 1 < len(argv):
            return argv[i + 1]
    return None


def _from_file(file: Path) -> Config:
    try:
        content = yaml.safe_load(file.read_text())
        return Config.model_validate(content or {})
    except OSError as error:
        raise UsageError(f"--config {file}: {error.strerror}") from error
    except yaml.YAMLError as error:
        raise UsageError(f"--config {file} is neither yaml nor json ({error})") from error
    except ValidationError as error:
        raise UsageError(f"--config {file}: {explained(error, Config)}") from error


def _from_run(folder: str | None) -> Config:
    from ..train.setup import config_of

    if folder is None:
        raise UsageError("--resume needs the folder of the run: flowmaps train --resume RUN")
    try:
        return config_of(folder)
    except ValidationError as error:
        raise UsageError(f"{folder}/config.json: {explained(error, Config)}") from error


def default_folder(config: Config) -> Path:
    """runs/RECIPE-DATA, with what a path may not hold replaced."""
    data = re.sub(r"[^A-Za-z0-9._-]+", "-", config.data.rstrip("/").rpartition("/")[2]).strip("-.")
    return Path("runs") / f"{config.recipe}-{data or 'data'}"
