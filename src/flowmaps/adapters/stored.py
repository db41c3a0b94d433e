# The extra may not be installed.
# pyright: basic, reportMissingImports=false, reportPrivateImportUsage=false
"""Maps of diffusers' models as json: what a checkpoint must know to rebuild one, weights apart."""

import json
from typing import Any

import diffusers
import torch
from torch import Tensor, nn

from ..core.flow_map import NetFlowMap
from ..core.interpolant import INTERPOLANTS, Interpolant
from ..core.parametrization import Average, Denoised
from ..errors import AdapterError
from . import carried
from .denoiser import Denoiser, OnPath
from .diffusers import add_lora, denoiser, read
from .schedule import Schedule, schedule

Json = dict[str, Any]


def describe(flow_map: NetFlowMap) -> Json:
    """The network of a map of `adapters.diffusers`: its model, scheduler, LoRA, constant arguments and path."""
    net = denoiser(flow_map)
    path = flow_map.interpolant if isinstance(flow_map.net, OnPath) else None
    return {
        "family": "diffusers",
        "model": _config(net.model),
        "scheduler": _config(net.schedule.scheduler),
        "prediction": _prediction(net.schedule),
        "constant": {name: _plain(value) for name, value in net.constant.items()},
        "lora": _lora(net.model),
        "path": None if path is None else {"name": path.name, **path.settings},
    }


def build(about: Json, *, local: bool = False) -> NetFlowMap:
    """A map from what `describe` said of one, with random weights.

    Raises:
        AdapterError: If this version of diffusers has no such class.
    """
    scheduler = _class(about["scheduler"]).from_config(dict(about["scheduler"]))
    kind = _class(about["model"])
    model: nn.Module = kind.from_config(dict(about["model"]))
    constant = {name: _tensors(value) for name, value in about["constant"].items()}
    net = Denoiser(model, schedule(scheduler, about["prediction"]), constant)
    flow_map = read(net, _path(about["path"]), local=local)
    if about["lora"] is not None:
        add_lora(flow_map, **about["lora"])
    return flow_map


def _class(config: Json) -> Any:
    name = config["_class_name"]
    found = getattr(diffusers, name, None) or getattr(carried, name, None)
    if found is None:
        raise AdapterError(
            f"the checkpoint holds a {name}, which diffusers {diffusers.__version__} does not have: install one that has"
        )
    return found


def _config(part: Any) -> Json:
    """As `save_pretrained` would write it, without the folder that it came from."""
    values = json.loads(part.to_json_string())
    return {key: value for key, value in values.items() if key != "_name_or_path"}


def _prediction(read_as: Schedule) -> str | None:
    """What the scheduler's own config does not say."""
    kind = read_as.parametrization
    if schedule(read_as.scheduler).parametrization == kind:
        return None
    if isinstance(kind, Denoised):
        return {"eps": "epsilon", "x0": "sample"}[kind.prediction]
    return "flow_prediction" if isinstance(kind, Average) else "v_prediction"


def _lora(model: Any) -> Json | None:
    found = getattr(model, "peft_config", None)
    if not found:
        return None
    config = next(iter(found.values()))
    return {
        "rank": config.r,
        "alpha": config.lora_alpha,
        "targets": sorted(config.target_modules),
    }


def _path(about: Json | None) -> Interpolant | None:
    if about is None:
        return None
    settings = dict(about)
    return INTERPOLANTS[settings.pop("name")](**settings)


def _plain(value: Any) -> Any:
    """Tensors and tuples as json."""
    if isinstance(value, Tensor):
        return {"tensor": value.tolist(), "dtype": str(value.dtype).removeprefix("torch.")}
    if isinstance(value, tuple | list):
        return {"tuple": [_plain(each) for each in value]}
    return value


def _tensors(value: Any) -> Any:
    """The inverse of `_plain`."""
    if isinstance(value, dict) and "tensor" in value:
        return torch.tensor(value["tensor"], dtype=getattr(torch, value["dtype"]))
    if isinstance(value, dict) and "tuple" in value:
        return tuple(_tensors(each) for each in value["tuple"])
    return value
