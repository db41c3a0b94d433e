"""New data for a trained few-step map, which stays one: its jumps learn with its velocity, and it rehearses what it knew.

Regression on new data alone moves the velocity u(x, s, s) and leaves the jumps behind. So the recipe is one for whole maps from
data alone (by default `default`, whose jumps follow the velocity of the data) that starts at the old weights; a share of every
batch are samples that the old map drew, told what it was told then.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, final

import torch
from torch import Generator, Tensor

from ..core.flow_map import FlowMap, NetFlowMap
from ..data import Conditioned, Data, Sampler, nulls
from ..data import load as load_data
from ..data.batches import seeded
from ..data.captions import Captioned, in_turn, texts
from ..data.encoded import encoded
from ..data.text import encoder
from ..errors import CheckpointError, DataError, RecipeError
from ..learn.objective import Recipe
from ..recipes import get
from ..sample import generate, uniform
from . import checkpoint
from .hooks import Hook
from .run import ChangeConfig, Config
from .setup import Prepared, make_guidance
from .state import State

POOL = 2048
"""Samples of the old map that are rehearsed, at least."""


@final
@dataclass(frozen=True, eq=False)
class Rehearsed:
    """New data and, after their last row, samples of the old map; told by the same names (`Conditioned`).

    Args:
        new: The new data.
        labels: The map's number of each class of the new data; None if the map knows no classes.
        old: Samples of the old map (M, *shape).
        told: What they were told, by name.
        null: What stands for "nothing is told".
        classes: Names of all classes that the map knows in the end.
    """

    new: Data
    labels: Tensor | None
    old: Tensor
    told: dict[str, Tensor]
    null: dict[str, Tensor]
    classes: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        return self.new.name

    @property
    def shape(self) -> tuple[int, ...]:
        return self.new.shape

    def __len__(self) -> int:
        return len(self.new) + len(self.old)

    def batch(self, index: Tensor) -> tuple[Tensor, None]:
        """As `Data.batch`, without labels, which are among the conditions."""
        fresh, rows = self._split(index)
        x = self.old[rows]
        if bool(fresh.any()):
            x[fresh] = self.new.batch(index[fresh])[0]
        return x, None

    def conditions(self, index: Tensor) -> dict[str, Tensor]:
        """As `Conditioned.conditions`."""
        fresh, rows = self._split(index)
        found = {name: values[rows] for name, values in self.told.items()}
        if found and bool(fresh.any()):
            for name, values in self._of_new(index[fresh]).items():
                found[name][fresh] = values.to(found[name].dtype)
        return found

    def _split(self, index: Tensor) -> tuple[Tensor, Tensor]:
        """Which rows are new, and the rows of the old among the others."""
        return index < len(self.new), (index - len(self.new)).clamp(min=0)

    def _of_new(self, index: Tensor) -> dict[str, Tensor]:
        if isinstance(self.new, Conditioned):
            return self.new.conditions(index)
        known = self.new.batch(index)[1]
        assert self.labels is not None  # a map that is told nothing has no conditions at all
        return {"label": self.labels[torch.zeros_like(index) if known is None else known]}

    def order(self, batch: int, keep: float, seed: int) -> Callable[[int], Tensor]:
        """Rows of a step: a share `keep` of old ones, dealt among the others, since terms take their rows in order."""
        count = min(round(keep * batch), batch - 1)
        fresh = Sampler(len(self.new), batch - count, seed)
        old = Sampler(len(self.old), count, seed + 1) if count else None

        def rows(step: int) -> Tensor:
            found = [fresh.at(step)] + ([old.at(step) + len(self.new)] if old else [])
            return torch.cat(found)[torch.randperm(batch, generator=seeded("order", seed, step))]

        return rows


def prepare(config: Config) -> Prepared:
    """Build everything that a configuration with a `change` names.

    Raises:
        CheckpointError: If there is no such map, or it is a model of velocities.
        DataError: If the new data do not fit what the map draws and is told.
        RecipeError: If the recipe needs a teacher.
    """
    if config.init is None:
        raise CheckpointError("a map is needed: flowmaps finetune MAP --data NEW")
    saved = checkpoint.load(config.init)
    told = saved.about["data"]
    if saved.about["flow_map"]["local"]:
        distil = f"distill --teacher {config.init}"
        teach = distil if "pipeline" in saved.about else f"train flow_matching --init {config.init}"
        raise CheckpointError(
            f"{config.init} is a model of velocities, not a few-step map: flowmaps {teach}"
        )
    change = config.change or ChangeConfig()  # pyright: ignore[reportCallIssue]
    new = _new_data(config, saved)
    classes, labels = _classes(saved, new)
    flow_map, net = _started(saved, len(classes))
    pool = max(POOL, round(len(new) * change.keep / (1 - change.keep)))
    old, asked = rehearse(saved.flow_map, told, saved.shape, pool, change.steps, config.run.seed)
    null = _null(new, asked, len(classes))
    data = Rehearsed(new, labels, old, asked, null, classes)
    recipe = _recipe(config, saved, flow_map, null)
    about = {
        "flow_map": checkpoint.describe_map(flow_map, net),
        "recipe": {"name": recipe.name, "set": config.set, "value": repr(recipe)},
        "data": told
        | {"name": config.data, "classes": list(classes), "conditions": list(asked)}
        | texts(new),
        "config": config.model_dump(mode="json"),
        "start": config.init,
    }
    if saved.about.get("pipeline"):
        about["pipeline"] = saved.about["pipeline"]
    return Prepared(recipe, flow_map, data, None, about)


def learn(
    parts: Prepared,
    config: Config,
    out: str | Path | None = None,
    *,
    resume: bool = False,
    hooks: Sequence[Hook] = (),
) -> State:
    """`fit` what `prepare` made, with the share of old rows that the configuration asks for.

    Raises:
        CheckpointError, TrainingError: As `fit`.
    """
    change = config.change or ChangeConfig()  # pyright: ignore[reportCallIssue]
    assert isinstance(parts.data, Rehearsed)
    order = parts.data.order(config.run.batch, change.keep, config.run.seed)
    return parts.fit(config.run, out=out, resume=resume, hooks=hooks, order=order)


@torch.no_grad()
def rehearse(
    flow_map: FlowMap,
    about: dict[str, Any],
    shape: tuple[int, ...],
    count: int,
    steps: int,
    seed: int,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Samples of a map (count, *shape), of all that it can be told in turn, and what each was told.

    Args:
        flow_map: The map.
        about: The part `data` of its checkpoint's description.
        shape: Of one sample.
        count: How many.
        steps: Jumps of each.
        seed: Of the noise.
    """
    noise = flow_map.interpolant.prior((count, *shape), Generator().manual_seed(seed))
    told = in_turn(about, torch.arange(count))
    found = [
        generate(flow_map, noise[rows], uniform(steps), **{k: v[rows] for k, v in told.items()})
        for rows in torch.arange(count).split(256)
    ]
    return torch.cat(found), told


def _new_data(config: Config, saved: checkpoint.Checkpoint) -> Data:
    told = saved.about["data"]
    data = load_data(config.data, size=config.size or told.get("size"))
    if told.get("text"):
        if not isinstance(data, Captioned):
            raise DataError(
                f"{config.init} is told captions, and {config.data} has none: write them into metadata.jsonl"
            )
        data = data.read_by(encoder(told["text"]))
    data = encoded(data, told.get("codec"))
    if data.shape != saved.shape:
        raise DataError(
            f"{config.data} has samples of shape {data.shape}, the map draws {saved.shape}: give data that fit, or --size"
        )
    return data


def _classes(saved: checkpoint.Checkpoint, new: Data) -> tuple[tuple[str, ...], Tensor | None]:
    """All classes in the end, and the number of each of the new data's; data without classes are one, of their own name."""
    known = saved.classes
    if not known:
        return (), None
    names = new.classes or (new.name,)
    every = (*known, *(name for name in names if name not in known))
    family = saved.about["flow_map"]["net"] or {}
    if len(every) > len(known) and family.get("family") in checkpoint.ADAPTERS:
        raise DataError(
            f"the map knows the classes {', '.join(known[:8])}..., and its network can learn no other; got {', '.join(names[:8])}"
        )
    return every, torch.tensor([every.index(name) for name in names])


def _started(saved: checkpoint.Checkpoint, classes: int) -> tuple[NetFlowMap, dict[str, Any]]:
    """The map at its averaged weights, with room for new classes, which begin as "no class"."""
    about = saved.about["flow_map"]
    net = dict(about["net"] or {})
    if not net:
        raise CheckpointError(
            f"{saved.path} holds a network of your own: fine-tune it with flowmaps.train.fit on train.finetune.Rehearsed data"
        )
    weights = saved.flow_map.state_dict()
    if classes > len(saved.classes):
        net["classes"] = classes
        for key, value in weights.items():
            if key.endswith("label.weight") and len(value) == len(saved.classes) + 1:
                fresh = value[-1:].expand(classes - len(saved.classes), -1)
                weights[key] = torch.cat([value[:-1], fresh, value[-1:]])
    flow_map = checkpoint.build_map(about | {"net": net})
    flow_map.load_state_dict(weights)
    return flow_map, net


def _null(new: Data, asked: dict[str, Tensor], classes: int) -> dict[str, Tensor]:
    if "label" in asked:
        return {"label": torch.tensor(classes)}
    return dict(nulls(new)) if asked else {}


def _recipe(
    config: Config, saved: checkpoint.Checkpoint, flow_map: NetFlowMap, null: dict[str, Tensor]
) -> Recipe:
    recipe = get(config.recipe, **config.set)
    if recipe.needs_teacher:
        raise RecipeError(
            f"recipe {recipe.name!r} learns from a teacher, and none knows the new data: choose one of data alone, such as "
            "default, mean_flow or lsd"
        )
    recipe = replace(
        recipe, interpolant=flow_map.interpolant, parametrization=flow_map.parametrization
    )
    guided = config.guidance or (saved.about.get("config") or {}).get("guidance")
    if guided is None or not null:
        return recipe
    settings = (
        guided if config.guidance else type(config).model_validate({"guidance": guided}).guidance
    )
    assert settings is not None
    return replace(recipe, guidance=make_guidance(settings, null))
