"""From a configuration to a run: data, recipe, network, teacher, folder."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, final

import torch
from torch import Tensor, nn

from ..core.flow_map import FlowMap, NetFlowMap, rematch
from ..data import Data, nulls
from ..data import load as load_data
from ..data.captions import read_by, texts
from ..data.encoded import encoded, medium
from ..errors import CheckpointError, RecipeError
from ..learn.guidance import Guidance
from ..learn.objective import Recipe
from ..learn.times import Fixed, LogUniform
from ..nets import build, describe_net
from ..recipes import get
from . import checkpoint
from .hooks import Hook
from .loop import fit
from .run import Config, GuidanceConfig, Run
from .state import State


@final
@dataclass(frozen=True)
class Prepared:
    """What `fit` takes."""

    recipe: Recipe
    flow_map: NetFlowMap
    data: Data
    teacher: FlowMap | None
    about: dict[str, Any]

    def fit(self, run: Run, **more: Any) -> State:
        """`fit` with these parts; `more` are its other arguments."""
        parts = {"teacher": self.teacher, "about": self.about}
        return fit(self.recipe, self.flow_map, self.data, run, **parts, **more)


def prepare(config: Config) -> Prepared:
    """Build everything that a configuration names.

    Raises:
        RecipeError: For an unknown recipe or argument, a missing teacher, or guidance without labels.
        DataError: For data that is missing or broken.
        CheckpointError: For a teacher that cannot be read or does not fit.
    """
    if config.student is not None:
        from .distil import prepare as prepare_student

        return prepare_student(config)
    if config.change is not None:
        from .finetune import prepare as prepare_change

        return prepare_change(config)
    data = encoded(read_by(load_data(config.data, size=config.size), config.text), config.codec)
    null = nulls(data) if config.labels else {}
    classes = data.classes if "label" in null else ()
    recipe = get(config.recipe, **config.set)
    if config.guidance is not None:
        recipe = replace(recipe, guidance=make_guidance(config.guidance, null))
    guided = recipe.guidance is not None and recipe.guidance.conditioned
    net = describe_net(
        config.net,
        data.shape,
        classes=len(classes),
        guided=guided,
        patch=config.patch,
        skip=config.skip,
        null=null,
    )
    with torch.random.fork_rng(devices=[]):  # torch.nn.init draws from the global generator
        torch.default_generator.manual_seed(config.run.seed)
        flow_map = NetFlowMap(
            build(net),
            recipe.interpolant,
            recipe.parametrization,
            local=recipe.local,
            to_data=recipe.to_data,
        )
    taught = _teacher(recipe, config)
    teacher = None if taught is None else rematch(taught, recipe.interpolant)
    about = {
        "flow_map": checkpoint.describe_map(flow_map, net),
        "recipe": {"name": recipe.name, "set": config.set, "value": repr(recipe)},
        "data": {
            "name": config.data,
            "size": config.size,
            "shape": list(data.shape),
            "classes": list(classes),
            "conditions": list(null),
            **medium(data),
            **(texts(data) if "text" in null else {}),
        },
        "config": config.model_dump(mode="json"),
        "start": _start(flow_map, taught, config),
    }
    return Prepared(recipe, flow_map, data, teacher, about)


def make_guidance(config: GuidanceConfig, null: Mapping[str, Tensor]) -> Guidance:
    """Guidance from its configuration.

    Raises:
        RecipeError: If the data tell nothing of their rows.
    """
    law = LogUniform(config.scale, config.max_scale) if config.max_scale else Fixed(config.scale)
    return Guidance(null, law, config.dropout, config.low, config.high)


def _teacher(recipe: Recipe, config: Config) -> FlowMap | None:
    if not recipe.needs_teacher:
        return None
    if config.teacher is None:
        raise RecipeError(
            f"recipe {recipe.name!r} learns from a teacher: give --teacher FOLDER, a run of `flowmaps train flow_matching`"
        )
    return checkpoint.load(config.teacher).flow_map


def _start(flow_map: NetFlowMap, taught: FlowMap | None, config: Config) -> str | None:
    """Start the student where the configuration says, and tell where that is; None is a fresh start.

    A teacher on another path, or read in another way, teaches all the same, but its weights mean nothing to the student.
    """
    if config.init is not None:
        start_from(flow_map, checkpoint.load(config.init).flow_map, config.init)
    elif taught is not None and _meaning(taught) == _meaning(flow_map):
        assert config.teacher is not None  # _teacher loaded it from there
        start_from(flow_map, taught, config.teacher)
        return config.teacher
    return config.init


def _meaning(flow_map: nn.Module) -> tuple[Any, ...]:
    """What a network's output is: the path that it lives on and the parametrization that reads it."""
    parametrization = getattr(flow_map, "parametrization", None)
    return getattr(flow_map, "interpolant", None), parametrization


def start_from(student: nn.Module, source: nn.Module, name: str) -> None:
    """Copy the weights of `source`; what the student has beyond it (a guidance scale, a skip) stays zero at its anchor.

    Raises:
        CheckpointError: If the shapes differ, weights are missing, or the same weights would be another map.
    """
    (path, read), (own_path, own_read) = _meaning(source), _meaning(student)
    if (path, read) != (own_path, own_read):
        raise CheckpointError(
            f"the weights of {name} were trained on {path}, read as {type(read).__name__}; the student lives on {own_path}, "
            f"read as {type(own_read).__name__}, where they would be another map: start from a run of the same path and "
            "parametrization, or leave --init out"
        )
    own = student.state_dict()
    weights = _with_skip(source.state_dict(), own)
    missing = [key for key in own if key not in weights and ".scale." not in key]
    odd = [key for key in weights if key not in own or own[key].shape != weights[key].shape]
    if missing or odd:
        raise CheckpointError(
            f"the weights of {name} do not fit the student's network (first misfit: {(missing + odd)[0]}); "
            "use the same --net, or --init with a checkpoint that fits"
        )
    student.load_state_dict(weights, strict=False)


def _with_skip(weights: dict[str, Tensor], own: dict[str, Tensor]) -> dict[str, Tensor]:
    """Weights of a dit without a skip for one with: its gains, the second half of the last layer, begin at zero."""
    fitted = dict(weights)
    for key in ("net.last.weight", "net.last.bias"):
        if key in weights and key in own and len(own[key]) == 2 * len(weights[key]):
            fitted[key] = torch.cat([weights[key], torch.zeros_like(weights[key])])
    return fitted


def train(
    config: Config, out: str | Path | None, *, resume: bool = False, hooks: Sequence[Hook] = ()
) -> State:
    """Prepare and fit, keeping `config.json` beside the checkpoints.

    Raises:
        CheckpointError, DataError, RecipeError, TrainingError: As `prepare` and `fit`.
    """
    parts = prepare(config)
    if config.change is not None:
        from .finetune import learn

        return learn(parts, config, out, resume=resume, hooks=hooks)
    return parts.fit(config.run, out=out, resume=resume, hooks=hooks)


def config_of(folder: str | Path) -> Config:
    """The configuration of a run.

    Raises:
        CheckpointError: If the folder has none, or it is not json.
    """
    file = Path(folder) / "config.json"
    if not file.exists():
        raise CheckpointError(
            f"{folder} has no config.json: it is not the folder of a flowmaps run"
        )
    try:
        values = json.loads(file.read_text())
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{file} is not readable json ({error})") from error
    return Config.model_validate(values)
