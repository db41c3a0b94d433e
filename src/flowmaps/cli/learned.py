"""Restorers that are learned (`flowmaps restore --method vfm|cosign --prior RUN`): made, learned by the loop, opened again."""

import copy
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .options import UsageError
from .words import first_process, nearest, say

if TYPE_CHECKING:
    from torch import Generator, Tensor

    from ..control.operators import Operator
    from ..core.flow_map import FlowMap
    from ..learn.objective import Recipe
    from .draw import Model
    from .restore import Options

LEARNED = ("vfm", "cosign")


def restorer(options: "Options", model: "Model", operator: "Operator") -> "FlowMap":
    """The map that restores: learned first if that was asked for, else opened.

    Raises:
        UsageError: If there is no such run, or it learned another kind of measurement.
    """
    from ..train import checkpoint

    if options.prior is None:
        raise UsageError(
            f"{options.method} is learned before: give --prior RUN, and --learn to learn it now"
        )
    if options.learn:
        _learn(options, model, operator)
    about = checkpoint.read(options.prior)[0].get("restorer")
    wanted = _kind(options)
    if about is None or any(about.get(key) != value for key, value in wanted.items()):
        raise UsageError(
            f"{options.prior} learned {about or 'no restorer'}, and {wanted} is asked for: give the same options, or another "
            "--prior with --learn"
        )
    student = _student(options.method, model, about["net"], joint=bool(about["recipe"]))
    return checkpoint.load(options.prior, device=model.device, flow_map=student).flow_map


def _kind(options: "Options") -> dict[str, Any]:
    """What a learned restorer is good for."""
    names = ("method", "damage", "by", "sigma")
    return {name: getattr(options, name) for name in names}


def _student(method: str, model: "Model", net: dict[str, Any], *, joint: bool) -> "FlowMap":
    """The map with an untrained network beside it."""
    import torch

    from ..control.amortised import Adapted, Branched, GaussianNoise
    from ..nets import build

    base = copy.deepcopy(model.flow_map).requires_grad_(joint)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        beside = build(net)
    return Adapted(base, GaussianNoise(beside)) if method == "vfm" else Branched(base, beside)


def _net(options: "Options", model: "Model") -> dict[str, Any]:
    """What the network beside the map looks like: it sees three samples, or four with the point, side by side."""
    from ..nets import NETS, describe_net

    if options.net not in NETS:
        raise UsageError(
            f"no network is called {options.net!r}{nearest(options.net, NETS)}; there are {', '.join(NETS)}"
        )
    told = set(model.about["data"].get("conditions", ())) - {"label"}
    if told or model.local:
        raise UsageError(
            f"{model.saved.path} is no map from classes or nothing to data: a restorer cannot be learned beside it; take pigdm"
        )
    channels, *rest = model.saved.shape
    shape = ((3 if options.method == "vfm" else 4) * channels, *rest)
    return describe_net(options.net, shape, classes=len(model.saved.classes))


def _recipe(options: "Options", model: "Model", operator: "Operator") -> "Recipe":
    from .. import recipes
    from ..control.amortised import cosign, vfm

    path = model.flow_map.interpolant
    other = None
    if options.recipe is not None:
        other = replace(recipes.get(options.recipe), interpolant=path)
    if other is not None and other.needs_teacher:
        raise UsageError(
            f"{options.recipe} learns from a teacher, which knows no measurement: take a recipe of data alone, such as psd"
        )
    if options.method == "vfm":
        return vfm(operator, recipe=other, path=path)
    return cosign(recipe=other, path=path)


def _learn(options: "Options", model: "Model", operator: "Operator") -> None:
    """Learn the restorer into `--prior`, or go on with it."""
    from ..control.operators import Mask
    from ..data.measured import Measured
    from ..train import fit
    from ..train.hooks import Progress
    from .draw import data_of

    assert options.prior is not None  # looked at by `restorer`
    if options.run.flip:
        raise UsageError("measurements are not mirrored with their data: leave out --run.flip")
    net = _net(options, model)
    masks = _masks(options, operator) if isinstance(operator, Mask) else None
    plain = _whole if isinstance(operator, Mask) else operator
    recipe = _recipe(options, model, plain)
    conditions = ["label"] * bool(model.saved.classes) + ["back", "seen", "sigma"]
    about: dict[str, Any] = {
        "recipe": {"name": recipe.name, "set": {}, "value": ""},
        "data": model.about["data"] | {"conditions": conditions},
        "restorer": _kind(options) | {"net": net, "recipe": options.recipe},
        "start": str(options.checkpoint),
    }
    about["config"] = {"restorer": about["restorer"], "run": options.run.model_dump(mode="json")}
    say(f"learning {options.method} beside {options.checkpoint}; {options.prior}")
    state = fit(
        recipe,
        _student(options.method, model, net, joint=options.recipe is not None),
        Measured(data_of(model, options.data), options.sigma, plain, masks),
        options.run,
        out=options.prior,
        resume=(Path(options.prior) / "config.json").exists(),
        hooks=[Progress(options.method)] if first_process() else [],
        about=about,
    )
    if state.progress(options.run) < 1:
        raise UsageError(
            f"stopped at step {state.step:,}; everything is saved, and the same command goes on"
        )


def _masks(options: "Options", operator: "Operator") -> "Callable[[int, Generator], Tensor]":
    """The masks of a kind of damage: pixels at random are others for every row, a square is always the same."""
    import torch

    keep = getattr(operator, "keep")  # noqa: B009
    lost = 0.5 if options.by is None else options.by

    def masks(n: int, generator: "Generator") -> "Tensor":
        if options.damage == "box":
            return keep.expand(n, *keep.shape)
        return (torch.rand(n, *keep.shape, generator=generator) >= lost).float()

    return masks


def _whole(x: "Tensor") -> "Tensor":
    return x
