# The extra may not be installed.
# pyright: basic, reportMissingImports=false, reportPrivateImportUsage=false
"""Any model of Hugging Face diffusers: as a velocity (a teacher), and as a flow map that starts as that velocity.

    teacher = velocity("path/of/a/pipeline")
    student = flow_map(teacher)

Both are `NetFlowMap`s, so samplers, solvers, recipes, metrics and controls take them. Points are what the denoiser sees
(latents, for latent models); conditioning is given by the denoiser's own argument names. Needs `flowmaps[diffusers]`.
"""

import copy
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from typing import Any

import torch
from torch import nn

from ..core.flow_map import NetFlowMap
from ..core.interpolant import Interpolant
from ..core.parametrization import Average, Denoised
from ..errors import AdapterError, MissingExtraError

for name in ("accelerate", "diffusers", "peft", "transformers"):
    if find_spec(name) is None:  # looked for, not imported: that takes seconds
        raise MissingExtraError(
            f"the adapter of diffusers needs the package {name}: pip install 'flowmaps[diffusers]'"
        )

from .carried import FlowMapModel
from .denoiser import Denoiser, OnPath, core_of, second_time, traits
from .guided import Guided
from .load import opened
from .schedule import Schedule, schedule
from .two_time import OWN, around, with_own_second_time

__all__ = [
    "FlowMapModel",
    "Guided",
    "Schedule",
    "add_lora",
    "denoiser",
    "flow_map",
    "schedule",
    "velocity",
]


def velocity(
    source: Any,
    *,
    scheduler: Any = None,
    prediction: str | None = None,
    path: Interpolant | None = None,
    constant: Mapping[str, Any] | None = None,
    dtype: torch.dtype | None = None,
) -> NetFlowMap:
    """A denoiser of diffusers as a velocity: a local flow map, whose jumps are DDIM steps (Euler steps for flows).

    Args:
        source: A pipeline, a folder that `save_pretrained` wrote, a name on the hub, or a model with `scheduler`.
        scheduler: Says on which path the model was trained; by default the pipeline's.
        prediction: "epsilon", "v_prediction", "sample" or "flow_prediction"; by default as the scheduler says.
        path: The path that the result lives on, through matched SNR; by default the model's own, read off the scheduler.
        constant: Arguments of the model without a batch axis, such as Flux's `img_ids` and `txt_ids`.
        dtype: What its weights are cast to.

    Raises:
        AdapterError: If something is missing; the sentence says what, and how to give it.
    """
    model, scheduler = opened(source, scheduler, dtype)
    return read(Denoiser(model, schedule(scheduler, prediction), constant), path, local=True)


def flow_map(
    source: Any,
    *,
    embedders: Sequence[str] | None = None,
    path: Interpolant | None = None,
    **options: Any,
) -> NetFlowMap:
    """A denoiser of diffusers with a second time: a flow map that starts as the model's velocity, exactly.

    A class that has a second time of its own keeps it (AnyFlow, Flux3, HunyuanImage, HunyuanVideo15); every other is wrapped
    as `FlowMapModel`. Given a `velocity`, its model is copied and the teacher stays as it is; a model that was loaded for
    this call, or is given as such, is used itself.

    Args:
        source: As in `velocity`, or what `velocity` returned.
        embedders: Names of the modules that embed the time, for models in which they are not found.
        path: As in `velocity`; by default that of the source.
        options: The other arguments of `velocity`, when the source is not one already.

    Raises:
        AdapterError: As `velocity`, or if nothing in the model embeds a time.
    """
    if isinstance(source, NetFlowMap):
        old = denoiser(source)
        path = source.interpolant if path is None else path
        old = Denoiser(copy.deepcopy(old.model), old.schedule, old.constant)
    else:
        old = denoiser(velocity(source, **options))
    model = _two_time(old, list(embedders) if embedders else None)
    return read(Denoiser(model, old.schedule, old.constant), path, local=False)


def floored(teacher: NetFlowMap, floor: float) -> NetFlowMap:
    r"""The same velocity with what it takes for pure noise moved to the last timestep where $\alpha \ge$ `floor`.

    Only a prediction of noise needs it: $x_0 = (x - \sigma\hat\varepsilon)/\alpha$ divides its error by $\alpha$, 0.006 at the
    end of DDPM's linear schedule. Where $\alpha \ge$ `floor` nothing changes; the scheduler has the timesteps that are left.
    """
    old = denoiser(teacher)
    own, scheduler = old.schedule, old.schedule.scheduler
    predicts_noise = (
        isinstance(own.parametrization, Denoised) and own.parametrization.prediction == "eps"
    )
    if not predicts_noise or float(scheduler.alphas_cumprod[-1].sqrt()) >= floor:
        return teacher
    left = int((scheduler.alphas_cumprod.sqrt() >= floor).sum())
    betas = [float(beta) for beta in scheduler.betas[:left]]
    shorter = type(scheduler).from_config(
        scheduler.config, num_train_timesteps=left, trained_betas=betas
    )
    path = teacher.interpolant
    return read(
        Denoiser(old.model, schedule(shorter, "epsilon"), old.constant),
        None if path == own.path else path,
        local=teacher.local,
    )


def denoiser(flow_map: NetFlowMap) -> Denoiser:
    """The denoiser inside a map of this module: `.model` is diffusers' own, `.schedule` what its scheduler says."""
    net = flow_map.net.own.net if isinstance(flow_map.net, OnPath) else flow_map.net
    if not isinstance(net, Denoiser):
        raise AdapterError(f"this flow map holds no model of diffusers, but {type(net).__name__}")
    return net


def add_lora(
    flow_map: NetFlowMap,
    rank: int = 16,
    targets: Sequence[str] = ("to_q", "to_k", "to_v", "to_out.0"),
    *,
    alpha: float | None = None,
) -> NetFlowMap:
    """Freeze the model but for LoRA of its attention and the embedding of the second time; returns the same map.

    `denoiser(flow_map).model.save_lora_adapter(folder)` writes both to one standard file.

    Raises:
        AdapterError: If the model has no module among the targets.
    """
    from peft import LoraConfig

    model: Any = denoiser(flow_map).model
    own = OWN.get(type(model).__name__)
    trained = ["jump"] if isinstance(model, FlowMapModel) else own and [own[2].rpartition(".")[2]]
    config = LoraConfig(
        r=rank, lora_alpha=int(alpha or rank), target_modules=list(targets), modules_to_save=trained
    )
    try:
        model.add_adapter(config)
    except ValueError as error:
        raise AdapterError(
            f"{type(core_of(model)).__name__} has no module among targets={list(targets)}: name some of its linear layers"
        ) from error
    return flow_map


def _two_time(old: Denoiser, embedders: list[str] | None) -> nn.Module:
    model = old.model
    if second_time(model) is not None:
        return model
    if type(model).__name__ in OWN:
        twin = with_own_second_time(model)
        assert twin is not None
        return twin
    unit = old.schedule.horizon / 1000 if traits(model).unit else old.schedule.horizon * old.scale
    return around(model, unit, embedders)


def read(net: Denoiser, path: Interpolant | None, *, local: bool) -> NetFlowMap:
    """A denoiser as a map: on its own path as its scheduler reads it, on another through matched SNR."""
    own = net.schedule
    if path is None or path == own.path:
        return NetFlowMap(net, own.path, own.parametrization, local=local)
    inner = NetFlowMap(net, own.path, own.parametrization, local=local)
    return NetFlowMap(OnPath(inner, path), path, Average(), local=local)
