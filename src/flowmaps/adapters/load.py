# The extra may not be installed.
# pyright: basic, reportMissingImports=false, reportPrivateImportUsage=false
"""From what a user has in hand (a pipeline, a folder, a name on the hub, a model) to a denoiser and its scheduler."""

import json
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import diffusers
import torch
from torch import nn

from ..errors import AdapterError
from . import carried

COMPONENTS = ("unet", "transformer", "prior", "flow_map")
"""What pipelines call their denoiser."""


def opened(
    source: Any, scheduler: Any = None, dtype: torch.dtype | None = None
) -> tuple[nn.Module, Any]:
    """A denoiser and its scheduler; of a folder nothing else is loaded, neither autoencoder nor text encoder.

    Args:
        source: A pipeline, a folder that one saved, its name on the hub, or a model.
        scheduler: In place of the pipeline's own; a model alone needs one.
        dtype: What weights are loaded as.

    Raises:
        AdapterError: If something is missing, with what and how to give it.
    """
    if isinstance(source, str | Path):
        model, found = _from_folder(str(source), scheduler is None, dtype)
        dtype = None  # as loaded: some classes keep a few weights wider
    elif isinstance(source, nn.Module):
        model, found = source, None
    else:
        model, found = _component(source), getattr(source, "scheduler", None)
    scheduler = found if scheduler is None else scheduler
    if scheduler is None:
        raise AdapterError(
            f"{type(model).__name__} alone does not say on which path it was trained: pass scheduler=, the one of its pipeline"
        )
    return model if dtype is None else model.to(dtype), scheduler


def component(source: str | Path, name: str) -> Any:
    """A part of a pipeline's folder, such as its `vae`, or the model that a folder holds; None if the pipeline has none.

    Raises:
        AdapterError: If the folder is none of diffusers', or the part cannot be loaded.
    """
    index = index_of(str(source))
    if not any(key in index for key in COMPONENTS) and name not in index:
        return _load(str(source), None, index["_class_name"], None)
    kind = index.get(name, (None, None))[1]
    return None if kind is None else _load(str(source), name, kind, None)


@contextmanager
def plain(folder: str | Path) -> Generator[tuple[str, Any]]:
    """A folder and its class of diffusers, None if it has none, without the code that travels in the folder of a saved map.

    diffusers runs that code or refuses the folder whole, so of such a folder this is a view that lives while the context does:
    what is carried, the map and its scheduler, is left out, and the class is the one that the map's follows.
    """
    index = index_of(str(folder))
    name = index.get("_class_name", "")
    if isinstance(name, str):
        yield str(folder), getattr(diffusers, name, None)
        return
    kind = getattr(diffusers, name[1].removeprefix("FlowMap"), None)
    ours = {k for k, v in index.items() if isinstance(v, list) and carried.FILE in v}
    with TemporaryDirectory() as place:
        for each in Path(folder).iterdir():
            if each.is_dir() and each.name not in ours:
                (Path(place) / each.name).symlink_to(each.resolve())
        left = {k: v for k, v in index.items() if k not in ours}
        named = left | {"_class_name": getattr(kind, "__name__", name[1])}
        (Path(place) / "model_index.json").write_text(json.dumps(named), encoding="utf-8")
        yield place, kind


def _component(pipeline: Any) -> nn.Module:
    found = (getattr(pipeline, name, None) for name in COMPONENTS)
    model = next((m for m in found if isinstance(m, nn.Module)), None)
    if model is None:
        raise AdapterError(
            f"{type(pipeline).__name__} has no denoiser called {' or '.join(COMPONENTS)}: pass the model itself and scheduler="
        )
    return model


def _from_folder(
    source: str, wants_scheduler: bool, dtype: torch.dtype | None
) -> tuple[nn.Module, Any]:
    index = index_of(source)
    if "_class_name" in index and not any(name in index for name in COMPONENTS):
        return _load(source, None, index["_class_name"], dtype), None
    name = next((n for n in COMPONENTS if index.get(n, (None, None))[1] is not None), None)
    if name is None:
        raise AdapterError(
            f"{source} holds no {' or '.join(COMPONENTS)}: its model_index.json lists {sorted(index)}"
        )
    model = _load(source, name, index[name][1], dtype)
    kind = index.get("scheduler", (None, None))[1]
    if not wants_scheduler or kind is None:
        return model, None
    return model, _load(source, "scheduler", kind, None)


def index_of(source: str) -> dict[str, Any]:
    """`model_index.json` of a pipeline, or `config.json` of a model."""
    folder = Path(source)
    for name in ("model_index.json", "config.json"):
        if (folder / name).is_file():
            try:
                index = json.loads((folder / name).read_text(encoding="utf-8"))
            except (UnicodeDecodeError, json.JSONDecodeError) as error:
                raise AdapterError(
                    f"{folder / name} is not readable as JSON ({error}): save the folder again"
                ) from error
            if "_class_name" not in index and "recipe" in index:
                raise AdapterError(
                    f"{source} is a run of flowmaps, no folder of diffusers: `flowmaps train RECIPE --teacher {source}` learns "
                    "a map of it"
                )
            return index
    if folder.exists():
        raise AdapterError(
            f"{source} is no folder that diffusers saved: it has neither model_index.json (pipeline.save_pretrained) "
            "nor config.json (model.save_pretrained)"
        )
    try:
        found: Any = diffusers.DiffusionPipeline.load_config(source)
        return dict(found)
    except (OSError, ValueError) as error:
        raise AdapterError(
            f"{source} is neither a folder nor a pipeline that could be fetched from the hub: check the name, or give the "
            "folder that pipeline.save_pretrained wrote"
        ) from error


def _load(source: str, part: str | None, name: str, dtype: torch.dtype | None) -> Any:
    kind = getattr(diffusers, name, None) or getattr(carried, name, None)
    where = source if part is None else f"{source}/{part}"
    if kind is None:
        raise AdapterError(
            f"{where} is a {name}, which diffusers {diffusers.__version__} does not have: load it yourself and pass the model"
        )
    options: dict[str, Any] = {} if part is None else {"subfolder": part}
    if dtype is not None:
        options["torch_dtype"] = dtype
    try:
        return kind.from_pretrained(source, **options)
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        first = (str(error).splitlines() or [""])[0][:160]
        raise AdapterError(
            f"{where} cannot be loaded as {name} ({first}): save it again with save_pretrained"
        ) from error
