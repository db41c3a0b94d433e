"""Checkpoints: a folder of one safetensors file and one json, complete or absent, never half-written.

    RUN/config.json                 the resolved configuration
    RUN/metrics.jsonl               losses over time
    RUN/checkpoints/step-00001000/  state.safetensors + about.json
    RUN/previews/                   images

A checkpoint is written into a hidden folder beside its place, flushed to disk and renamed: a crash, a full disk or a kill at
any moment leaves the earlier checkpoints as they were.
"""

import contextlib
import json
import os
import re
import shutil
from dataclasses import dataclass
from functools import cached_property
from importlib import import_module
from pathlib import Path
from typing import Any, final

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from .. import __version__
from ..codec import Codec, open_codec
from ..core.flow_map import FlowMap, NetFlowMap
from ..core.interpolant import INTERPOLANTS, Interpolant
from ..core.parametrization import describe, restore
from ..errors import CheckpointError
from ..nets import build
from .state import State
from .state import under as _under

Json = dict[str, Any]

FORMAT = 1
"""Version of the folder's layout; a reader refuses a newer one."""
ADAPTERS = {"diffusers": "flowmaps.adapters.stored"}
"""Families of networks that are not ours: modules with `describe(flow_map) -> Json` and `build(Json, local=) -> NetFlowMap`."""
FOLDERS = {"model_index.json": "flowmaps.adapters.folder"}
"""Folders of other libraries by a file in them: modules with `read(folder) -> (NetFlowMap, Json)`."""

_KEYS = ("step", "seconds", "bytes", "recipe", "data", "averages")  # what every about.json has


def save(run_folder: Path, state: State, *, keep: int = 2) -> Path:
    """Write the state as `checkpoints/step-N`, then remove all but the newest `keep`.

    Raises:
        CheckpointError: If it cannot be written, such as on a full disk; earlier checkpoints are untouched.
    """
    folder = run_folder / "checkpoints"
    final_place = folder / f"step-{state.step:08d}"
    draft = folder / f".{final_place.name}.{os.getpid()}"
    try:
        draft.mkdir(parents=True, exist_ok=True)
        _write(draft, state)
        if final_place.exists():
            shutil.rmtree(final_place)
        draft.rename(final_place)
        _flush(folder)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(draft, ignore_errors=True)
        raise CheckpointError(
            f"the checkpoint of step {state.step} could not be written to {folder} ({error}); "
            f"{_survivors(folder)}; free some space and resume"
        ) from error
    for old in complete(folder)[:-keep]:
        shutil.rmtree(old, ignore_errors=True)
    return final_place


def _write(draft: Path, state: State) -> None:
    save_file(_apart(state.tensors()), draft / "state.safetensors")
    about = {
        "format": FORMAT,
        "flowmaps": __version__,
        "torch": torch.__version__,
        "step": state.step,
        "seconds": state.seconds,
        "bytes": (draft / "state.safetensors").stat().st_size,
        **state.about,
    }
    (draft / "about.json").write_text(json.dumps(about, indent=1))
    for file in ("state.safetensors", "about.json"):
        _flush(draft / file)


def _apart(named: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The tensors on the CPU, each with memory of its own: safetensors refuses tied weights."""
    apart: dict[str, torch.Tensor] = {}
    seen: set[int] = set()
    for key, value in named.items():
        tensor = value.detach().cpu().contiguous()
        place = tensor.untyped_storage().data_ptr()
        apart[key] = tensor.clone() if place in seen else tensor
        seen.add(place)
    return apart


def write_json(path: Path, value: Json) -> None:
    """Write json atomically."""
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    draft.write_text(json.dumps(value, indent=1))
    _flush(draft)
    draft.replace(path)


def _flush(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def complete(folder: Path) -> list[Path]:
    """The complete checkpoints of a folder, oldest first."""
    found = (path for path in folder.glob("step-*") if (path / "about.json").exists())
    return sorted(found, key=lambda path: (len(path.name), path.name))  # step-100000000 is newer


def _survivors(folder: Path) -> str:
    kept = complete(folder) if folder.exists() else []
    return f"the last complete one is {kept[-1]}" if kept else "there is no earlier one"


def locate(path: str | Path) -> Path:
    """The checkpoint meant by a path: a checkpoint folder itself, or the newest one of a run.

    Raises:
        CheckpointError: If there is none.
    """
    place = Path(path)
    if (place / "about.json").exists() or _foreign(place):
        return place
    for folder in (place / "checkpoints", place):
        found = complete(folder) if folder.is_dir() else []
        if found:
            return found[-1]
    reason = "it does not exist" if not place.exists() else "it holds no complete checkpoint"
    raise CheckpointError(
        f"no flowmaps checkpoint at {place}: {reason}; give the folder that `flowmaps train --out` wrote"
    )


def read(path: str | Path) -> tuple[Json, dict[str, torch.Tensor]]:
    """Manifest and tensors of a checkpoint, or of a folder of another library that is read as one.

    Raises:
        CheckpointError, AdapterError: If it is missing, truncated, foreign or written by a newer version.
    """
    place = locate(path)
    if (reader := _foreign(place)) is not None:
        return _borrowed(*import_module(reader).read(place))
    about = _manifest(place)
    weights = place / "state.safetensors"
    size = weights.stat().st_size if weights.exists() else 0
    if size != about["bytes"]:
        raise CheckpointError(
            f"{weights} is truncated or altered: it has {size} bytes and should have {about['bytes']}; {_earlier(place)}"
        )
    try:
        return about, load_file(weights)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{weights} cannot be read ({error}); {_earlier(place)}") from error


def _foreign(place: Path) -> str | None:
    """Who reads a folder that is none of ours."""
    return next((FOLDERS[name] for name in FOLDERS if (place / name).is_file()), None)


def _borrowed(flow_map: NetFlowMap, about: Json) -> tuple[Json, dict[str, torch.Tensor]]:
    """Manifest and tensors of a map that another library keeps: its weights are their own average."""
    about["flow_map"] = describe_map(flow_map, about["net"])
    tensors = {f"student.{name}": value for name, value in flow_map.state_dict().items()}
    return about, tensors | {f"ema.0.{k}": v.detach() for k, v in flow_map.named_parameters()}


def _earlier(place: Path) -> str:
    """What to do about a broken checkpoint."""
    before = [path for path in complete(place.parent) if path != place]
    if not before:
        return "the run has no other checkpoint"
    return (
        f"the run also has {before[-1].name}: delete {place.name}, and the run goes on from there"
    )


def _manifest(place: Path) -> Json:
    try:
        about = json.loads((place / "about.json").read_text())
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{place / 'about.json'} is not readable json ({error})") from error
    if (
        not isinstance(about, dict)
        or not isinstance(about.get("format"), int)
        or "flow_map" not in about
    ):
        raise CheckpointError(
            f"{place} was not written by flowmaps: its about.json has no 'format' and 'flow_map'; "
            "models of other libraries come in through flowmaps.NetVelocity"
        )
    if about["format"] > FORMAT:
        raise CheckpointError(
            f"{place} has checkpoint format {about['format']} (flowmaps {about.get('flowmaps')}), this is flowmaps "
            f"{__version__} with format {FORMAT}: upgrade flowmaps to read it"
        )
    lost = [key for key in _KEYS if key not in about]
    if lost:
        raise CheckpointError(
            f"{place / 'about.json'} was altered: it has no {', '.join(lost)}; {_earlier(place)}"
        )
    return about


def describe_map(flow_map: NetFlowMap, net: Json | None) -> Json:
    """A network flow map as json: how `build_map` rebuilds it. `net` is None for a network of the user's own."""
    path = flow_map.interpolant
    return {
        "net": net,
        "interpolant": {"name": path.name, **path.settings},
        "parametrization": describe(flow_map.parametrization),
        "local": flow_map.local,
        "to_data": flow_map.to_data,
    }


def build_map(about: Json | None, net: nn.Module | None = None) -> NetFlowMap:
    """An untrained flow map from its description; `net` where the description names none.

    Raises:
        CheckpointError: If the network is the user's own and none is given, or its class or path is not known here.
    """
    family = (about or {}).get("net") or {}
    if about is not None and net is None and family.get("family") in ADAPTERS:
        return import_module(ADAPTERS[family["family"]]).build(family, local=about["local"])
    if about is None or about["interpolant"]["name"] not in INTERPOLANTS:
        raise CheckpointError(
            "this checkpoint holds a FlowMap class or an interpolant of your own, which `load` cannot build; "
            "pass an untrained one as flow_map=, or continue it with flowmaps.train.fit(..., resume=True)"
        )
    if net is None and about["net"] is None:
        raise CheckpointError(
            "this checkpoint holds a network of your own: pass one of the same shape as net="
        )
    settings = dict(about["interpolant"])
    path: Interpolant = INTERPOLANTS[settings.pop("name")](**settings)
    parametrization = restore(about["parametrization"], path)
    network = build(about["net"]) if net is None else net
    kind = {"local": about["local"], "to_data": about.get("to_data", False)}
    return NetFlowMap(network, path, parametrization, **kind)


def codec_of(about: Json) -> Codec | None:
    """The codec of the data that a manifest describes, if there is one."""
    data = about["data"]
    return open_codec(data["codec"], tuple(data.get("decoded", ()))) if data.get("codec") else None


@final
@dataclass(frozen=True)
class Checkpoint:
    """A trained flow map and what it was trained on.

    Attributes:
        flow_map: The map, in evaluation mode, without gradients.
        about: Recipe, data, classes, step, seconds, versions.
        path: The folder that it came from.
    """

    flow_map: FlowMap
    about: Json
    path: Path

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one sample."""
        return tuple(self.about["data"]["shape"])

    @cached_property
    def codec(self) -> Codec | None:
        """What turned data into the points that the map draws; None if it draws data.

        Raises:
            DataError: If it cannot be opened here.
        """
        return codec_of(self.about)

    @property
    def rate(self) -> int | None:
        """Samples per second, if the map was trained on sound."""
        return self.about["data"].get("rate")

    def decode(self, x: torch.Tensor) -> torch.Tensor:
        """Samples (B, *shape) of the map as data, such as clips (B, channels, samples); without a codec as they are."""
        return x if self.codec is None else self.codec.decode(x)

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes that the map is conditioned on; empty if it is not."""
        return tuple(self.about["data"]["classes"])


def load(
    path: str | Path,
    *,
    ema: int | None = 0,
    device: str = "cpu",
    net: nn.Module | None = None,
    flow_map: FlowMap | None = None,
) -> Checkpoint:
    """The flow map of a run or of one of its checkpoints.

    Args:
        path: Folder of a run (its newest checkpoint) or of a checkpoint.
        ema: Which moving average (0 is the first half-life of the run), or None for the raw weights.
        device: Where to put it.
        net: The network, if it is one of your own and not one of `flowmaps.nets`.
        flow_map: The map, if its class is one of your own: an untrained one, which is filled.

    Raises:
        CheckpointError: If the checkpoint is missing, truncated, foreign, newer, or has no such average.
    """
    about, tensors = read(path)
    averaged = {} if ema is None else _under(tensors, f"ema.{ema}")
    if ema is not None and not averaged:
        raise CheckpointError(
            f"{path} has no moving average number {ema}; it has {len(about['averages'])}, of half-lives "
            f"{about['averages']} (ema=None gives the raw weights)"
        )
    flow_map = flow_map or build_map(about["flow_map"], net)
    try:
        flow_map.load_state_dict(_under(tensors, "student"))
        with torch.no_grad():
            named = dict(flow_map.named_parameters())
            for name, value in averaged.items():  # neither buffers nor frozen weights are averaged
                named[name].copy_(value)
    except (RuntimeError, KeyError) as error:
        fit = "the network that was given" if net is not None else "its own description"
        raise CheckpointError(f"the weights of {path} do not fit {fit} ({error})") from error
    return Checkpoint(flow_map.to(device).eval().requires_grad_(False), about, locate(path))


def resume(path: str | Path, state: State) -> None:
    """Put a checkpoint into a state that was built from the same configuration.

    Raises:
        CheckpointError: As `read`, or if it belongs to another configuration.
    """
    about, tensors = read(path)
    for key in ("recipe", "flow_map", "data", "averages"):
        if _plain(about[key]) != _plain(state.about[key]):
            raise CheckpointError(
                f"{path} was made with another {key}: {about[key]}, this run has {state.about[key]}; "
                "resume with the configuration of the run (its config.json)"
            )
    refreshed = about.get("refreshed", False)
    try:
        state.load_tensors(tensors, refreshed=refreshed)
    except (RuntimeError, KeyError, ValueError) as error:
        raise CheckpointError(
            f"the weights of {path} do not fit this run's network ({error}); build the network of the run"
        ) from error
    state.step, state.seconds, state.about["refreshed"] = about["step"], about["seconds"], refreshed


def _plain(value: Any) -> str:  # noqa: ANN401
    """A value as json, without the addresses of functions in a printed recipe."""
    return re.sub(r" at 0x[0-9a-f]+", "", json.dumps(value))


def claim(folder: Path, *, resuming: bool) -> None:
    """Make sure that a run may write to a folder: an empty one, or its own when it resumes.

    A run that was killed before its first checkpoint resumes at its start.

    Raises:
        CheckpointError: If the folder holds another run, cannot be made, or there is nothing to resume.
    """
    found = bool(complete(folder / "checkpoints")) or (folder / "config.json").exists()
    if resuming and not found:
        raise CheckpointError(f"nothing to resume in {folder}: it holds no run")
    if not resuming and found:
        raise CheckpointError(
            f"{folder} already holds a run; resume it with --resume, or choose another --out (nothing was overwritten)"
        )
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        said = f"{folder} cannot be made a folder ({error}); choose another --out"
        raise CheckpointError(said) from error
    for draft in (folder / "checkpoints").glob(".step-*"):  # left by a killed process
        with contextlib.suppress(OSError):
            shutil.rmtree(draft)
