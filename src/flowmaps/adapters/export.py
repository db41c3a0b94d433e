# The extra may not be installed.
# pyright: basic, reportMissingImports=false, reportPrivateImportUsage=false
"""A flow map as a folder of diffusers, and back.

    save(student, "map", pipeline="path/of/the/teacher")     # samples with diffusers alone
    student = load("map")                                    # or a published map in diffusers' layout

A step of the folder's scheduler is a jump of the map, exactly: DDIM without noise on a table of alphas, Euler in the noise level
for EDM's, Euler on the straight path. Where diffusers has a pipeline it is used unchanged, and the model looks its second time
up in the scheduler; elsewhere a pipeline travels in the folder (`adapters.carried`).
"""

import contextlib
import copy
import json
import os
import shutil
import warnings
from collections.abc import Generator, Mapping
from pathlib import Path
from typing import Any

import diffusers
import torch
from torch import Tensor, nn

from ..core.flow_map import NetFlowMap
from ..core.interpolant import INTERPOLANTS, Interpolant
from ..errors import AdapterError
from .card import Results, card
from .carried import (
    FlowMapModel,
    FlowMapPipeline,
    following,
)
from .denoiser import Denoiser, OnPath, second_time, traits
from .diffusers import denoiser, read
from .load import COMPONENTS, opened
from .schedule import schedule, walking

DRIVEN = (
    "AnyFlowTransformer3DModel",
    "HunyuanImageTransformer2DModel",
    "HunyuanVideo15Transformer3DModel",
)
"""Classes whose own pipelines tell them the second time."""


def save(
    student: NetFlowMap,
    folder: str | Path,
    *,
    pipeline: Any = None,
    results: Results = (),
    shape: tuple[int, ...] | None = None,
    notes: str = "",
    overwrite: bool = False,
) -> Path:
    """Write a map of `adapters.diffusers` as a folder that diffusers loads and samples by itself.

    LoRA is merged into the weights of what is written; the student stays as it is.

    Args:
        student: What `flow_map` or `add_lora` returned, trained.
        folder: Where to; complete or absent.
        pipeline: The teacher's pipeline or its folder: autoencoder, text encoders and the way to sample come from it.
            By default the folder holds model and scheduler, and samples are what the model sees.
        results: Rows of the table on the model card.
        shape: Shape of a sample, for a folder without `pipeline`.
        notes: A paragraph for the model card.
        overwrite: Replace a folder that is there.

    Raises:
        AdapterError: If the folder is in the way, the map is local, or diffusers' pipeline cannot drive the model's second time.
    """
    place, net = Path(folder), denoiser(student)
    if student.local:
        raise AdapterError(
            "a velocity has one time and no jumps to save: flow_map(teacher) gives it a second, and training its jumps"
        )
    if place.exists() and not overwrite and (not place.is_dir() or any(place.iterdir())):
        raise AdapterError(f"{place} is in the way: choose another folder, or pass overwrite=True")
    given = _opened_pipeline(pipeline)
    made = _pipeline(student, given, shape)
    base = None if given is None else given.config.get("_name_or_path")
    text = card(
        title=f"Flow map: {place.resolve().name}",
        usage=_usage(made, place),
        results=results,
        base=base,
        notes=notes,
    )
    with _draft(place) as draft:
        made.save_pretrained(draft)
        (draft / "README.md").write_text(text, encoding="utf-8")
    for part in (net.model, *made.components.values()):
        if isinstance(part, FlowMapModel):
            part.follow(None)
    return place


def load(
    source: str | Path,
    *,
    constant: Mapping[str, Any] | None = None,
    prediction: str | None = None,
    dtype: torch.dtype | None = None,
) -> NetFlowMap:
    """A flow map from a folder in diffusers' layout: what `save` wrote, or a published one whose class has a second time.

    Args:
        source: The folder, or a name on the hub.
        constant: As in `velocity`: arguments of the model without a batch axis.
        prediction: As in `velocity`.
        dtype: What its weights are cast to.

    Raises:
        AdapterError: If the folder is broken, or its model has one time only.
    """
    model, scheduler = opened(source, None, dtype)
    if second_time(model) is None:
        raise AdapterError(
            f"{source} holds a {type(model).__name__}, which knows one time only: velocity(...) reads it as a teacher, "
            "flow_map(...) gives it a second time to train"
        )
    return as_map(model, scheduler, constant=constant, prediction=prediction)


def as_map(
    model: Any,
    scheduler: Any,
    *,
    constant: Mapping[str, Any] | None = None,
    prediction: str | None = None,
) -> NetFlowMap:
    """The flow map of a model with a second time, on the path that `save` noted in it or its scheduler implies; as in `load`."""
    about = model.config.get("path") if isinstance(model, FlowMapModel) else None
    net = Denoiser(model, schedule(scheduler, prediction), constant)
    return read(net, None if about is None else _path(about), local=False)


def start(student: NetFlowMap, noise: Tensor, steps: int) -> tuple[Tensor, Tensor]:
    """Where the saved folder's walk of `steps` begins and which times it visits, on the student's own path.

    `sample(student, *start(student, noise, steps), **cond)` are the samples that diffusers draws from the folder.

    Args:
        student: A map of `adapters.diffusers`.
        noise: Standard normal (B, *D); the folder's `latents`.
        steps: Jumps.

    Returns:
        Points (B, *D) and times (steps + 1,), float64. On a table of alphas they begin at its last timestep, where the straight
        path has not yet reached 1; times are exact where `steps` divides the number of timesteps.
    """
    read_as = denoiser(student).schedule
    times, path = walking(read_as).grid(steps), student.interpolant
    if isinstance(student.net, OnPath):
        times = path.time_at(read_as.path.log_snr(times)).clamp(0, 1)
    return noise * path.scale(times[0]).to(noise), times


def shape_of(folder: str | Path, student: NetFlowMap) -> tuple[int, ...]:
    """Shape of a point, as the folder or the model's config says it.

    Raises:
        AdapterError: If neither does.
    """
    index = Path(folder) / "model_index.json"
    said = json.loads(index.read_text(encoding="utf-8")).get("shape") if index.is_file() else None
    config: Any = getattr(denoiser(student).model, "config", {})
    channels, size = config.get("in_channels"), config.get("sample_size")
    if said is None and (not isinstance(channels, int) or size is None):
        raise AdapterError(f"{folder} does not say what the shape of a point is: give it as shape")
    return tuple(said or (channels, *((size, size) if isinstance(size, int) else size)))


def push_to_hub(
    folder: str | Path, name: str, *, private: bool = False, token: str | None = None
) -> str:
    """Upload a folder that `save` wrote as `name` ("user/map"); returns its address.

    Raises:
        AdapterError: If the folder was not written by `save`, or the hub refuses.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, LocalTokenNotFoundError

    if not (Path(folder) / "model_index.json").is_file():
        raise AdapterError(f"{folder} has no model_index.json: give a folder that save(...) wrote")
    api = HfApi(token=token)
    try:
        where = api.create_repo(name, private=private, exist_ok=True)
        api.upload_folder(
            repo_id=where.repo_id,
            folder_path=str(folder),
            commit_message="Flow map, written by flowmaps",
        )
    except (HfHubHTTPError, LocalTokenNotFoundError, OSError) as error:
        raise AdapterError(
            f"{name} could not be pushed ({(str(error).splitlines() or [''])[0][:160]}): log in with `hf auth login` or pass token="
        ) from error
    return str(where)


def _opened_pipeline(pipeline: Any) -> Any:
    if not isinstance(pipeline, str | Path):
        return pipeline
    try:
        return diffusers.DiffusionPipeline.from_pretrained(str(pipeline))
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        first = (str(error).splitlines() or [""])[0][:160]
        raise AdapterError(
            f"{pipeline} cannot be loaded as a pipeline ({first}): give the folder that pipeline.save_pretrained wrote"
        ) from error


def _pipeline(student: NetFlowMap, given: Any, shape: tuple[int, ...] | None) -> Any:
    """What is saved: the given pipeline with the map in it, or one that travels in the folder."""
    net = denoiser(student)
    model = _merged(net.model)
    name, scheduler = type(model).__name__, walking(net.schedule).scheduler
    if isinstance(model, FlowMapModel):
        path = student.interpolant if isinstance(student.net, OnPath) else None
        about = None if path is None else {"name": path.name, **path.settings}
        model.register_to_config(path=about)
    if given is None:
        about = traits(model)
        unit = (1 / 1000 if about.unit else 1.0) * net.scale
        return FlowMapPipeline(model, scheduler, str(net.second), unit, about.frames, shape)
    if not isinstance(model, FlowMapModel) and name not in DRIVEN:
        raise AdapterError(
            f"diffusers' {type(given).__name__} tells {name} one time only: save it without pipeline="
        )
    if type(given.scheduler).__name__ == "FlowMatchEulerDiscreteScheduler":
        scheduler = given.scheduler  # the same step, and what the pipeline asks of it beside
    kind = following(type(given)) if isinstance(model, FlowMapModel) else type(given)
    part = next((each for each in COMPONENTS if getattr(given, each, None) is not None), None)
    if part is None:
        raise AdapterError(
            f"{type(given).__name__} has no denoiser called {' or '.join(COMPONENTS)}"
        )
    parts, options = kind._get_signature_keys(kind)
    settings = {key: given.config[key] for key in options if key in given.config}
    named = {key: getattr(given, key, None) for key in parts}
    return kind(**{**settings, **named, part: model, "scheduler": scheduler})


def _merged(model: Any) -> Any:
    """The model with its LoRA in its weights and the trained second time in its place; itself if it has no LoRA."""
    if not getattr(model, "peft_config", None):
        return model
    from peft.tuners.tuners_utils import BaseTunerLayer
    from peft.utils import ModulesToSaveWrapper

    twin = copy.deepcopy(model)
    for name, module in list(twin.named_modules()):
        if isinstance(module, ModulesToSaveWrapper):
            plain: nn.Module = module.modules_to_save[module.active_adapters[0]]
        elif isinstance(module, BaseTunerLayer):
            module.merge()
            plain = module.get_base_layer()
        else:
            continue
        parent, _, leaf = name.rpartition(".")
        setattr(twin.get_submodule(parent), leaf, plain)
    del twin.peft_config
    twin._hf_peft_config_loaded = False
    return twin


def _usage(made: Any, place: Path) -> str:
    name = place.resolve().name
    if isinstance(made, FlowMapPipeline):
        latents = "" if made.config["shape"] else ", latents=noise"
        call = f"samples = pipeline(num_inference_steps=1{latents}).samples  # conditioning by the model's own argument names"
    else:
        call = "result = pipeline(num_inference_steps=1)  # prompt=, guidance_scale=1: guidance is in the map already"
    carried = type(made).__name__.startswith("FlowMap")
    trust = ", trust_remote_code=True" if carried else ""
    return (
        "from diffusers import DiffusionPipeline\n\n"
        f'pipeline = DiffusionPipeline.from_pretrained("{name}"{trust})\n{call}'
    )


def _path(about: Mapping[str, Any]) -> Interpolant:
    settings = dict(about)
    name = settings.pop("name", None)
    if name not in INTERPOLANTS:
        raise AdapterError(
            f"the map lives on a path called {name!r}, which this flowmaps does not know: upgrade it"
        )
    return INTERPOLANTS[name](**settings)


@contextlib.contextmanager
def _draft(place: Path) -> Generator[Path]:
    """A hidden folder beside `place` that takes its place when the block ends well."""
    draft = place.with_name(f".{place.name}.{os.getpid()}")
    draft.mkdir(parents=True)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # diffusers' own, of its own doing
            yield draft
        if place.exists():
            shutil.rmtree(place)
        draft.rename(place)
    except OSError as error:
        raise AdapterError(f"{place} cannot be written ({error})") from error
    finally:
        shutil.rmtree(draft, ignore_errors=True)
