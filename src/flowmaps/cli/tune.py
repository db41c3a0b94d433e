"""Fine-tune a flow map towards a reward, and see what that costs while it happens.

Examples:
  flowmaps tune runs/map --reward brightness --out runs/bright              a black box is enough: forward-process RL
  flowmaps tune runs/map --reward symmetry --method tilt --strength 1.5     the law p(x) exp(beta r(x)), and no more
  flowmaps tune runs/map --reward mine.py:sharpness --method backprop       through one jump, anchored to the base
  flowmaps tune runs/map --reward class:3 --classifier c.safetensors --held brightness,symmetry
  flowmaps tune --resume runs/bright                                        go on after Ctrl-C, a crash or a reboot

nft       samples better than others of their condition attract, worse ones repel; each step tilts more (--set.beta, --set.kl)
tilt      samples with weights, in --set.rounds rounds: stops at the tilt by itself
backprop  follows the reward's gradient; --set.output anchors samples, --set.velocity the field (needs the data)

The reward counts in its deviations among samples of one condition: tilt and backprop ask for --strength of them. RUN holds
checkpoints that sample, compare, steer and audit take, samples.png (before, after), and tuning.png with tuning.json: reward,
rewards held out, divergence from the base, and whether 1, 2 and 4 jumps agree.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, final

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from tyro.conf import arg

from ..train.run import Run
from .options import UsageError, explained, parse
from .settings import take, typed
from .words import first_process, say

if TYPE_CHECKING:
    from torch import Tensor

    from ..control.rewards import Reward
    from ..control.tune_watch import Examiner
    from ..core.flow_map import FlowMap
    from ..data import Data
    from ..learn.objective import Recipe
    from .draw import Model


WALKS = (8, 16, 32)
"""Euler steps that a model of velocities is looked at with."""


@final
class Config(BaseModel):
    """A tuning from end to end; kept in the run's config.json."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    checkpoint: str = ""
    """The base: folder of a run (its newest checkpoint) or of a checkpoint."""
    reward: str = "brightness"
    """brightness, symmetry, loudness, class:NAME, or FILE.py:NAME of a function of yours: (B, *D) to (B,)."""
    method: Literal["nft", "tilt", "backprop"] = "nft"
    """How, see above."""
    set: dict[str, Any] = Field(default_factory=dict[str, Any])
    """Arguments of the method (flowmaps.control.tune), such as {"beta": 0.2}."""
    strength: float = Field(2.0, gt=0)
    """Of tilt and backprop, in deviations of the reward."""
    held: str = "brightness,symmetry"
    """Rewards that are looked at and not trained on, with commas between them."""
    classifier: str | None = None
    """Of class rewards, a safetensors file."""
    ema: str = "0"
    """Moving average of the base's weights (0, 1, 2), or raw."""
    data: str | None = None
    """Data of the same shape: their conditions are asked for; by default those of the base."""
    count: int = Field(200, ge=2)
    """Samples that are looked at."""
    run: Run = Run(
        steps=200,
        batch=64,
        lr=5e-5,
        warmup=10,
        ema=(0.1,),
        compile="no",
        log_every=10,
        preview_every=20,
        save_every=50,
    )  # pyright: ignore[reportCallIssue]  # every field has a default
    """How long and how."""


@final
@dataclass
class Options:
    """Options of `flowmaps tune`."""

    config: Annotated[Config, arg(name="")]
    out: Annotated[Path | None, arg(metavar="RUN")] = None
    """Folder of the run. By default the base's name, with -tuned after it."""
    resume: Annotated[bool, arg(metavar="[RUN]")] = False
    """Go on from the newest checkpoint of RUN with its own settings; `--resume RUN` needs no --out."""


def main(argv: list[str]) -> int:
    """Tune; the exit status is 130 after Ctrl-C."""
    settings, argv = take(_named(argv))
    options = _read(argv)
    config = options.config
    if not config.checkpoint:
        raise UsageError("tune which model? flowmaps tune RUN --reward brightness")
    base = Path(config.checkpoint)
    out = options.out or base.with_name(f"{base.name}-tuned")
    return _tune(config.model_copy(update={"set": config.set | settings}), out, options.resume)


def _named(argv: list[str]) -> list[str]:
    """`tune CKPT ...` as `--checkpoint CKPT`, and `--resume RUN` as `--resume --out RUN`."""
    if argv and not argv[0].startswith("-"):
        argv = ["--checkpoint", *argv]
    if "--resume" in argv:
        after = argv.index("--resume") + 1
        if after < len(argv) and not argv[after].startswith("-"):
            argv = [*argv[:after], "--out", *argv[after:]]
    return argv


def _read(argv: list[str]) -> Options:
    start = Config()  # pyright: ignore[reportCallIssue]
    if "--resume" in argv and "--help" not in argv:
        place = argv[argv.index("--out") + 1] if "--out" in argv[:-1] else None
        if place is None:
            raise UsageError("--resume needs the folder of the run: flowmaps tune --resume RUN")
        start = _from_run(Path(place))
    return parse(
        Options, argv, name="tune", usage="[CKPT]", about=f"{__doc__}", default=Options(start)
    )


def _from_run(folder: Path) -> Config:
    import json

    try:
        content = json.loads((folder / "config.json").read_text())
        return Config.model_validate(content["tune"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        if isinstance(error, ValidationError):
            raise UsageError(f"{folder}/config.json: {explained(error, Config)}") from error
        raise UsageError(f"{folder} is not the folder of a run of flowmaps tune") from error


def _tune(config: Config, out: Path, resume: bool) -> int:
    import copy

    from ..report.tuning import Curves
    from ..train import fit
    from ..train.hooks import Progress
    from .draw import data_of, open_model

    model = open_model(config.checkpoint, config.ema)
    if model.local and config.method != "nft":
        raise UsageError(
            f"{config.checkpoint} is a model of velocities, which needs many steps: tune it by nft with --set.jumps 16 "
            "--set.diagonal 1 --set.ends 0, or distil it first (flowmaps train lmd --teacher)"
        )
    data = data_of(model, config.data)
    examiner, drawn = _examiner(model, config, data)
    recipe = _recipe(config, model, examiner)
    say(f"tuning {config.checkpoint} to {config.reward} by {config.method}; {out}")
    student = copy.deepcopy(model.flow_map).requires_grad_(True)
    hooks = [Progress(config.method), Curves(out, examiner)] if first_process() else []
    state = fit(
        recipe,
        student,
        data,
        config.run,
        teacher=model.flow_map,
        out=out,
        resume=resume,
        hooks=hooks,
        about=_about(config, model, recipe),
    )
    if state.progress(config.run) < 1:
        say(
            f"stopped at step {state.step:,}; everything is saved. To go on:\n  flowmaps tune --resume {out}"
        )
        return 130
    if first_process():
        _leave(out, state.averaged(), examiner, drawn, config)
    return 0


def _examiner(model: "Model", config: Config, data: "Data") -> "tuple[Examiner, bool]":
    """Looks at samples that are told what the first rows of data are told; and whether pictures can be drawn of them."""
    from ..control.tune_watch import STEPS, Examiner
    from .reward import reward_named

    classifier = None if config.classifier is None else Path(config.classifier)
    names = dict.fromkeys([config.reward, *(name for name in config.held.split(",") if name)])
    rewards: dict[str, Reward] = {
        Path(name).name if ".py:" in name else name: reward_named(name, model, classifier)
        for name in names
    }
    cond: dict[str, Any] = model.told_as(data, config.count)
    noise = model.noise(config.run.seed, 0, config.count)
    steps = WALKS if model.local else STEPS
    examiner = Examiner(model.flow_map, rewards, noise, steps=steps, **cond)
    shape = model.saved.shape
    if not examiner.deviation > 0:
        raise UsageError(
            f"the reward {config.reward} is the same for all samples that are told the same: it asks for nothing here"
        )
    return examiner, len(shape) == 3 and shape[0] in (1, 3)


def _recipe(config: Config, model: "Model", examiner: "Examiner") -> "Recipe":
    """The method with its settings."""
    import inspect

    from ..control import tune
    from ..control.rewards import Scaled
    from .words import nearest

    factory = {"nft": tune.nft, "tilt": tune.tilt, "backprop": tune.backprop}[config.method]
    known = inspect.signature(factory).parameters
    for key in config.set:
        if key not in known or key in ("reward", "path"):
            raise UsageError(
                f"{config.method} has no argument {key!r}{nearest(key, list(known)[1:])}; it has {', '.join(list(known)[1:-1])}"
            )
    reward = next(iter(examiner.rewards.values()))
    if config.method != "nft":
        reward = Scaled(reward, config.strength / examiner.deviation)
    settings = typed(config.method, factory, config.set)
    recipe = factory(reward, path=model.flow_map.interpolant, **settings)
    return replace(recipe, local=model.local)


def _about(config: Config, model: "Model", recipe: "Recipe") -> dict[str, Any]:
    """What a checkpoint says of itself: the base's network and data, and how it was tuned."""
    value = config.model_dump(mode="json")
    before = model.about.get("config") or {}
    return {
        "flow_map": model.about["flow_map"],
        "recipe": {
            "name": recipe.name,
            "set": config.set | {"reward": config.reward, "strength": config.strength},
            "value": "",
        },
        # checkpoints of version 0.1 name classes only
        "data": {"conditions": ["label"] * bool(model.saved.classes)} | model.about["data"],
        "config": {"guidance": before.get("guidance"), "tune": value},
        "start": config.checkpoint,
    }


def _leave(out: Path, tuned: "FlowMap", examiner: "Examiner", drawn: bool, config: Config) -> None:
    """Samples before and after, and where everything is."""
    import json

    from ..report.images import ladder
    from ..report.style import save_png

    rows = json.loads((out / "tuning.json").read_text())["rows"]
    first, last = rows[0], rows[-1]
    name = next(iter(first["rewards"]))
    if drawn:
        few, *_, many = examiner.steps
        shown: dict[str, Tensor] = {
            f"before, {few} jump{'s' * (few > 1)}": examiner.drawn[:25].cpu()
        }
        for k in (few, many):
            shown[f"after, {k} jump{'s' * (k > 1)}"] = examiner.draw(tuned, k)[:25].cpu()
        save_png(ladder(shown, across=5), out / "samples.png")
    before, after = first["rewards"][name][0], last["rewards"][name][0]
    up = (after - before) / first["deviations"][name]
    print(
        f"{out}  ({name} by {config.method}: {before:.4g} -> {after:.4g}, {up:+.2f} deviations; "
        f"divergence {last['kl_reward']:.3g} to {last['kl_path']:.3g} nats; tuning.png, tuning.json"
        f"{', samples.png' * drawn})\nnext:\n  flowmaps sample {out} --steps 1 --out samples.png\n"
        f"  flowmaps compare {out}\n  flowmaps audit {out}"
    )
