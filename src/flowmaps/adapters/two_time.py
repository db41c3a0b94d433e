# The extra may not be installed.
# pyright: basic, reportMissingImports=false, reportPrivateImportUsage=false
"""Giving a denoiser of diffusers its second time: a `FlowMapModel` around it, or the one that its class has of its own."""

import copy
from typing import Any

import accelerate
from torch import nn

from ..errors import AdapterError
from .carried import FlowMapModel, install
from .denoiser import traits


def around(model: nn.Module, horizon: float, embedders: list[str] | None = None) -> FlowMapModel:
    """This model as a `FlowMapModel`. Its modules are used, not copied.

    Args:
        model: A denoiser of diffusers.
        horizon: The length of [0, 1] in the units of its timesteps.
        embedders: Names of the modules that embed the time, where they are not found.

    Raises:
        AdapterError: If nothing in it embeds a time.
    """
    names = embedders or list(traits(model).embedders) or None
    try:
        with accelerate.init_empty_weights():
            shell = FlowMapModel(type(model).__name__, _config(model), horizon, names)
        shell.backbone = model
        added = install(model, names)
    except ValueError as error:
        raise AdapterError(str(error)) from error
    parameter = next(model.parameters())
    for each in added:
        each.jump.to(parameter)
    return shell


def _config(model: Any) -> dict[str, Any]:
    """What made a model, without diffusers' own notes."""
    return {key: value for key, value in model.config.items() if not key.startswith("_")}


def with_own_second_time(model: Any) -> nn.Module | None:
    """A copy of a one-time model whose class has a second time that its config leaves off; None if it has none.

    The new embedder is zero where the class adds it (the map starts as the model), and a copy of the first time's
    where it averages the two (the map starts as the model on the diagonal).
    """
    name = type(model).__name__
    switch = OWN.get(name)
    if switch is None:
        return None
    flag, first, second, averaged = switch
    config = _config(model)
    twin = type(model).from_config({**config, flag: True})
    absent, _ = twin.load_state_dict(model.state_dict(), strict=False)
    if any(not key.startswith(second) for key in absent):
        raise AdapterError(
            f"{name} with {flag}=True lacks the weights {sorted(absent)} of the model without"
        )
    embedder = twin.get_submodule(second)
    if averaged:
        embedder.load_state_dict(copy.deepcopy(twin.get_submodule(first).state_dict()))
    else:
        for parameter in embedder.get_submodule("linear_2").parameters():
            nn.init.zeros_(parameter)
    return twin.to(next(model.parameters())).train(model.training)


OWN: dict[str, tuple[str, str, str, bool]] = {
    "Flux3Transformer2DModel": ("flow_map", "timestep_embedder", "target_timestep_embedder", False),
    "HunyuanVideo15Transformer3DModel": (
        "use_meanflow",
        "time_embed.timestep_embedder",
        "time_embed.timestep_embedder_r",
        False,
    ),
    "HunyuanImageTransformer2DModel": (
        "use_meanflow",
        "time_guidance_embed.timestep_embedder",
        "time_guidance_embed.timestep_embedder_r",
        True,
    ),
}
"""Classes of diffusers whose config switches a second time on: the switch, both embedders, and whether they are averaged."""
