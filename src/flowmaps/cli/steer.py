"""Steer what a model draws towards a reward: what it drew before, what it draws now, and what that cost.

Examples:
  flowmaps steer runs/map --reward brightness                        exact: particles in noise space -> steer.png, steer.json
  flowmaps steer runs/map --reward symmetry --method best --of 64    the best of 64, previewed in one jump
  flowmaps steer runs/map --reward symmetry --method lean --steps 8  follow the gradient through the map
  flowmaps steer runs/map --reward class --to 3 --classifier c.safetensors
  flowmaps steer runs/map --reward mine.py:sharpness                 a function of your own: (B, *D) to (B,)

tempered  particles with weights in noise space: samples of p(x) exp(beta r(x)), any reward
chain     Markov chains in noise space: the same law
smc       particles from noise to data, weighed by look-ahead: the same law
fmtt      the same with the reward's gradient along the way
lean      jumps that lean on the gradient of the look-ahead: a higher reward, not that law
guide     flow map reward guidance: likewise
noise     climb the reward in the noise: likewise, one jump per step
best      the best of --of samples; search  tries noises around the best so far

beta is --strength over the standard deviation of the reward: 2 asks for about two standard deviations more.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, final

from tyro.conf import Positional, arg

from .options import UsageError, parse
from .reward import reward_named
from .words import say

if TYPE_CHECKING:
    from torch import Generator, Tensor

    from ..control.budget import Result
    from ..control.rewards import Reward
    from .draw import Model

WEIGHTED = ("tempered", "smc", "fmtt")


@final
@dataclass
class Options:
    """Options of `flowmaps steer`."""

    checkpoint: Annotated[Positional[Path], arg(metavar="CKPT")]
    """Folder of a run (its newest checkpoint) or of a checkpoint."""
    reward: str = "brightness"
    """brightness, symmetry, loudness, class (or class:NAME), or FILE.py:NAME of a function of yours."""
    to: Annotated[str | None, arg(metavar="CLASS")] = None
    """Class of --reward class."""
    classifier: Annotated[Path | None, arg(metavar="FILE")] = None
    """Its classifier, a safetensors file."""
    method: Literal[
        "tempered", "chain", "smc", "fmtt", "lean", "guide", "noise", "best", "search"
    ] = "tempered"
    """How, see above."""
    strength: float = 2.0
    """Strength of the tilt in standard deviations of the reward."""
    steps: int = 8
    """Jumps of smc, fmtt, lean and guide; iterations of chain and noise."""
    particles: int = 64
    """Particles of the methods with weights."""
    of: int = 16
    """Samples per winner of best; forwards per sample of search."""
    n: Annotated[int, arg(name="number", aliases=["-n"])] = 16
    """How many samples are shown."""
    only: Annotated[str | None, arg(name="class", metavar="CLASS")] = None
    """Condition: number or name of a class; by default all classes in turn."""
    seed: int = 0
    """Of the noise."""
    out: Annotated[Path, arg(metavar="FILE")] = Path("steer.png")
    """Where to; the numbers go beside it as .json."""
    ema: str = "0"
    """Moving average of the weights (0, 1, 2), or raw for the weights themselves."""
    json: bool = False
    """Print the numbers as json."""


def main(argv: list[str]) -> int:
    """Steer, draw, say."""
    options = parse(Options, argv, name="steer", about=f"{__doc__}")
    least = min(options.n, options.steps, options.of)
    if least < 1 or options.particles < 2 or not options.strength > 0:
        raise UsageError(
            "-n, --steps and --of are at least 1, --particles 2, --strength above 0; got "
            f"{options.n}, {options.steps}, {options.of}, {options.particles}, {options.strength}"
        )
    from ..report.images import ladder
    from .draw import open_model
    from .real import check_drawable, leave

    model = open_model(options.checkpoint, options.ema)
    check_drawable(model.saved.shape)
    reward = reward_of(options, model)
    columns, report = _steered(model, options, reward)
    across = max(1, round(options.n**0.5))
    picture = ladder({name: x.cpu() for name, x in columns.items()}, across=across)
    leave(options.out, picture, report, as_json=options.json)
    if report["degenerate"]:
        say(f"note: {report['degenerate']}")
    if not options.json:
        before, after = report["before"], report["after"]
        print(
            f"{options.out}  ({options.reward} by {options.method}: {before:.4g} -> {after:.4g}, "
            f"{report['per_sample']:.3g} forward equivalents per sample)"
        )
    return 0


def reward_of(options: Options, model: "Model") -> "Reward":
    """The reward by its name.

    Raises:
        UsageError: If there is no such reward.
    """
    if options.reward != "class":
        return reward_named(options.reward, model, options.classifier)
    if options.to is None or options.classifier is None:
        raise UsageError("--reward class needs --to CLASS and --classifier FILE")
    return reward_named(f"class:{options.to}", model, options.classifier)


def _steered(
    model: "Model", options: Options, reward: "Reward"
) -> tuple[dict[str, "Tensor"], dict[str, Any]]:
    """What is drawn before and after, and the numbers."""
    import torch

    from ..control.rewards import scored
    from ..control.smc import Weighted
    from ..sample import sample, uniform
    from .real import rounded

    particles = options.method in WEIGHTED
    group = options.of if options.method == "best" else 1
    count = max(options.particles, options.n) if particles else options.n * group
    only = None if options.only is None else model.class_number(options.only)
    noise, told = model.noise(options.seed, 0, count), model.told(torch.arange(count // group))
    if only is not None:
        told = {"label": torch.full((count // group,), only)}
    cond = {k: v.repeat_interleave(group, 0).to(model.device) for k, v in told.items()}
    with torch.no_grad():
        base = sample(model.flow_map, noise, uniform(1), **cond)
        before = scored(reward, base)
    spread = float(before.std()) if count > 1 else 0.0
    if not spread > 0:
        raise UsageError(
            f"the reward is {float(before[0]):.4g} for all of {count} samples: it asks for nothing here"
        )
    beta = options.strength / spread
    generator = torch.Generator().manual_seed(options.seed)
    found = _run(model, options, reward, noise, beta, generator, cond)
    x = found.resample(options.n, generator) if isinstance(found, Weighted) else found.x
    with torch.no_grad():
        after = scored(reward, x)
    stats = {
        "before": rounded(float(before.mean())),
        "before_std": rounded(spread),
        "after": rounded(float(after.mean())),
        "after_std": rounded(float(after.std())) if len(after) > 1 else 0.0,
        "degenerate": getattr(found, "degenerate", ""),
        "per_sample": rounded(found.cost.equivalents / (count if particles else options.n)),
        "cost": found.cost.as_dict(),
    }
    for name in ("log_z", "log_z_error", "ess", "families", "acceptance", "r_hat"):
        value = getattr(found, name, None)
        if isinstance(value, float):
            stats[name] = rounded(value)
    settings = {"checkpoint": str(model.saved.path), "reward": options.reward}
    settings |= {"method": options.method, "beta": rounded(beta), "n": options.n}
    shown = base[::group][: options.n]
    return {"before": shown, "after": x}, settings | stats


def _run(
    model: "Model",
    options: Options,
    reward: "Reward",
    noise: "Tensor",
    beta: float,
    generator: "Generator",
    cond: dict[str, Any],
) -> "Result":
    from ..control.mcmc import noise_mcmc
    from ..control.noise import optimize_noise
    from ..control.search import best_of_n, search_noise
    from ..control.smc import smc, tempered_smc
    from ..control.steer import fmrg, steer
    from ..control.tilt import fmtt
    from ..sample import uniform

    flow_map, times = model.flow_map, uniform(options.steps)
    draws: dict[str, Any] = {"generator": generator}
    always: dict[str, Any] = {"beta": beta, **cond}
    ways: dict[str, Callable[[], Result]] = {
        "tempered": lambda: tempered_smc(flow_map, reward, noise, **draws, **always),
        "chain": lambda: noise_mcmc(
            flow_map, reward, noise, n=max(options.steps, 4), **draws, **always
        ),
        "smc": lambda: smc(flow_map, reward, noise, times, **draws, **always),
        "fmtt": lambda: fmtt(flow_map, reward, noise, times, **draws, **always),
        "lean": lambda: steer(flow_map, reward, noise, times, **always),
        "guide": lambda: fmrg(flow_map, reward, noise, times, **always),
        "noise": lambda: optimize_noise(flow_map, reward, noise, steps=options.steps, **cond),
        "best": lambda: best_of_n(flow_map, reward, noise, options.of, **cond),
        "search": lambda: search_noise(
            flow_map, reward, noise, budget=max(options.of, 2), **draws, **cond
        ),
    }
    return ways[options.method]()
