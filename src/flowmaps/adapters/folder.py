# The extra may not be installed.
# pyright: basic, reportMissingImports=false, reportPrivateImportUsage=false
"""A folder of diffusers read as a checkpoint of ours, so that every command takes one: a map, or a model that is walked."""

from pathlib import Path
from typing import Any

from ..core.flow_map import NetFlowMap
from .denoiser import classes_of, second_time, shape_of
from .diffusers import denoiser, velocity
from .export import as_map
from .export import shape_of as stated_shape
from .load import COMPONENTS, component, index_of, opened, plain
from .prompts import Piped, reads_text
from .stored import describe
from .vae import VaeCodec

Json = dict[str, Any]


def read(folder: Path) -> tuple[NetFlowMap, Json]:
    """The map, and its manifest as far as a folder tells it: what made its network, its data, its pipeline.

    Raises:
        AdapterError: If the folder is broken, or does not say what shape its points have.
    """
    model, scheduler = opened(folder)
    one_time = second_time(model) is None
    flow_map = velocity(model, scheduler=scheduler) if one_time else as_map(model, scheduler)
    name = type(model).__name__
    return flow_map, {
        "net": describe(flow_map),
        "recipe": {"name": name, "set": {}, "value": str(folder)},
        "data": _told(folder, flow_map),
        "pipeline": str(folder),
        "averages": [0.0],
        "step": 0,
        "seconds": 0.0,
    }


def _told(folder: Path, flow_map: NetFlowMap) -> Json:
    """What a checkpoint says of its data, as far as a folder knows it: shape, classes by number, autoencoder, texts."""
    model = denoiser(flow_map).model
    codec = None if component(folder, "vae") is None else VaeCodec(folder)
    shape = codec.shape if codec else shape_of(model) or stated_shape(folder, flow_map)
    pictured = codec.data_shape if codec else shape
    classes = [str(k) for k in range(classes_of(model) or 0)]
    about: Json = {"name": "", "shape": list(shape), "classes": classes, "size": pictured[-1]}
    about["conditions"] = ["label"] if classes else []
    if codec is not None:
        about |= {"codec": codec.name, "decoded": list(pictured)}
    if reads_text(folder):
        reader = Piped(str(folder), tuple(sorted(denoiser(flow_map).names)), pictured[-1])
        about |= {"text": reader.settings, "examples": [""], "conditions": list(reader([""]))}
    return about


def around(folder: str | Path, flow_map: NetFlowMap) -> Any:
    """The pipeline of a folder, for `export.save`: a map's with this map in it, since the folder's own code is not run.

    Args:
        folder: What `save_pretrained` or `export.save` wrote.
        flow_map: A map of `adapters.diffusers`.

    Returns:
        A pipeline of diffusers, the folder itself where it is one, or None where a plain pipeline travels in it.
    """
    index, net = index_of(str(folder)), denoiser(flow_map)
    if isinstance(index.get("_class_name"), str):
        return folder
    with plain(folder) as (place, kind):
        if kind is None:
            return None
        part = next(each for each in COMPONENTS if each in index)  # `read` found it
        made = kind.from_pretrained(place, **{part: net.model, "scheduler": net.schedule.scheduler})
    made.register_to_config(_name_or_path=str(folder))
    return made
