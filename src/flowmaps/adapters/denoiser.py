"""Any diffusers denoiser as a network of flowmaps: rules that hold for all of them, and a table of the few exceptions."""

import inspect
from collections.abc import Iterable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor, nn

from ..core.flow_map import NetFlowMap
from ..core.interpolant import Interpolant, matched
from ..core.shape import like
from ..errors import AdapterError
from .forward_mode import differentiable, dual
from .schedule import Schedule

SECOND = ("r_timestep", "timestep_r", "target_timestep")
"""What classes of diffusers call their second time."""

ADDED = ("text_embeds", "time_ids", "resolution", "aspect_ratio", "image_embeds", "hint")
"""Conditioning that travels in `added_cond_kwargs` (SDXL, PixArt)."""


@final
@dataclass(frozen=True)
class Traits:
    """Where a class departs from the rules.

    Attributes:
        unit: It multiplies its times by 1000 itself.
        frames: It takes one time per frame; points are (B, frames, ...).
        embedders: Names of what embeds the time, where that is no `TimestepEmbedding`.
    """

    unit: bool = False
    frames: bool = False
    embedders: tuple[str, ...] = ()


_UNIT = (
    "ChromaTransformer2DModel",
    "FluxTransformer2DModel",
    "Flux2Transformer2DModel",
    "Flux3Transformer2DModel",
    "LongCatImageTransformer2DModel",
    "OvisImageTransformer2DModel",
    "QwenImageTransformer2DModel",
)
TRAITS: dict[str, Traits] = {
    **{name: Traits(unit=True) for name in _UNIT},
    "AnyFlowTransformer3DModel": Traits(frames=True),
    "StableAudioDiTModel": Traits(embedders=("timestep_proj",)),
}


def core_of(model: nn.Module) -> nn.Module:
    """The class that diffusers knows: a wrapped model's backbone."""
    return getattr(model, "backbone", model)


def classes_of(model: nn.Module) -> int | None:
    """How many classes a model is told by `class_labels`; the number itself stands for "no class" where it knows one."""
    core = core_of(model)
    config: Mapping[str, Any] = getattr(core, "config", {})
    if "class_labels" not in inspect.signature(core.forward).parameters:
        return None
    of_unets = config.get("num_class_embeds") if "class_embed_type" in config else None
    return of_unets if "class_embed_type" in config else config.get("num_embeds_ada_norm")


def shape_of(model: nn.Module) -> tuple[int, ...] | None:
    """Shape of one point of a model of images or their latents, if its config says it."""
    core = core_of(model)
    config: Mapping[str, Any] = getattr(core, "config", {})
    side, channels = config.get("sample_size"), config.get("in_channels")
    if "2D" not in type(core).__name__ or side is None or channels is None:
        return None
    height, width = (side, side) if isinstance(side, int) else side
    return channels, height, width


def traits(model: nn.Module) -> Traits:
    """The exceptions of a model's class."""
    return TRAITS.get(type(core_of(model)).__name__, Traits())


def second_time(model: nn.Module) -> str | None:
    """The argument by which a model takes its second time, or None."""
    config: Mapping[str, Any] = getattr(model, "config", {})
    if not config.get("flow_map", config.get("use_meanflow", True)):
        return None
    return next(
        (name for name in SECOND if name in inspect.signature(model.forward).parameters), None
    )


@final
class Denoiser(nn.Module):
    """`model(x, s, t, **cond)`: conditioning by name, times in the model's units, dtypes cast here and nowhere else.

    Args:
        model: A denoiser of diffusers; its first argument is the point.
        schedule: What its scheduler says.
        constant: Arguments that are the same for every row and have no batch axis, such as Flux's `img_ids`.

    Raises:
        AdapterError: If the model has no timestep, or, when called, lacks an argument or does not know one.
    """

    def __init__(
        self, model: nn.Module, schedule: Schedule, constant: Mapping[str, Any] | None = None
    ) -> None:
        super().__init__()
        self.model, self.schedule, self.constant = model, schedule, dict(constant or {})
        parameters = list(inspect.signature(core_of(model).forward).parameters.values())
        self.names = {p.name for p in parameters[1:]}
        self.required = {p.name for p in parameters[1:] if p.default is p.empty} - {
            *SECOND,
            "timestep",
        }
        if "timestep" not in self.names:
            raise AdapterError(
                f"{type(model).__name__} is no denoiser that flowmaps knows: it lacks an argument `timestep`"
            )
        self.second = second_time(model)
        self.scale = getattr(core_of(model), "config", {}).get("timestep_scale", 1.0)
        self.model.eval()

    def train(self, mode: bool = True) -> "Denoiser":
        """Gradients as ever, but the model's own dropout (of labels, in DiT) rests: recipes draw all that is random."""
        super().train(mode)
        self.model.eval()
        return self

    def forward(self, x: Tensor, s: Tensor, t: Tensor, **cond: Any) -> Tensor:
        dtype: Any = self.model.dtype  # diffusers' own rule: some weights may be kept wider
        constant = {name: _there(value, x.device) for name, value in self.constant.items()}
        given = self._arguments({**constant, **cond}, dtype)
        source = self.schedule.timestep(s)
        # clean data is told the first timestep: no other was trained there
        first = source.clamp(min=self.schedule.first)
        given["timestep"] = self._time(first, x, dtype)
        if self.second is not None:
            given[self.second] = self._time(self.schedule.timestep(t) + (first - source), x, dtype)
        try:
            with differentiable(self.model) if dual(x, s, t) else nullcontext():
                out = self.model(x.to(dtype), **given, return_dict=False)[0]
        except (TypeError, AttributeError, ValueError) as error:
            raise self._explained(error, given) from error
        return (
            out.chunk(2, 1)[0] if out.shape[1] == 2 * x.shape[1] else out
        )  # half is a learned variance

    def _time(self, timestep: Tensor, x: Tensor, dtype: torch.dtype) -> Tensor:
        about = traits(self.model)
        value = timestep / 1000 if about.unit else timestep * self.scale
        value = value.to(torch.float64 if dtype == torch.float64 else torch.float32)
        return value[:, None].expand(-1, x.shape[1]) if about.frames else value

    def _arguments(self, cond: Mapping[str, Any], dtype: torch.dtype) -> dict[str, Any]:
        given = {key: _cast(value, dtype) for key, value in cond.items()}
        if "label" in given and "label" not in self.names:
            given["class_labels"] = given.pop("label")
        if "added_cond_kwargs" in self.names and any(key in given for key in ADDED):
            added = {key: given.pop(key) for key in ADDED if key in given}
            given["added_cond_kwargs"] = {**given.get("added_cond_kwargs", {}), **added}
        unknown, missing = set(given) - self.names, self.required - set(given)
        name = type(core_of(self.model)).__name__
        if unknown:
            raise AdapterError(
                f"{name} takes no conditioning {_list(unknown)}; it takes {_list(self._offered())}"
            )
        if missing:
            raise AdapterError(f"{name} needs the conditioning {_list(missing)}: pass it by name")
        return given

    def _offered(self) -> set[str]:
        return self.names - {*SECOND, "timestep", "return_dict"}

    def _explained(self, error: Exception, given: Mapping[str, Any]) -> Exception:
        absent = self._offered() - set(given)
        if isinstance(error, AdapterError) or not absent:
            return error
        return AdapterError(
            f"{type(core_of(self.model)).__name__} failed ({str(error).splitlines()[0][:120]}); "
            f"it was not given {_list(absent)}: pass by name what your checkpoint needs"
        )


def _cast(value: Any, dtype: torch.dtype) -> Any:
    return value.to(dtype) if isinstance(value, Tensor) and value.is_floating_point() else value


def _there(value: Any, device: torch.device) -> Any:
    """Tensors, alone or in a tuple, on a device."""
    if isinstance(value, tuple):
        return tuple(_there(each, device) for each in value)
    return value.to(device) if isinstance(value, Tensor) else value


def _list(names: Iterable[str]) -> str:
    return ", ".join(sorted(names))


@final
class OnPath(nn.Module):
    """A map of its own path as a network that predicts the velocity of another, at matched SNR.

    The arithmetic is `RematchedVelocity`'s with a second time, so a student that starts as its teacher is its teacher there.
    Where the new path is noisier than the end of the old one, the point is taken for that end, and what the denoiser says of
    the data is kept: the noise is what is left of the point, so that a jump from pure noise to t = 0 is $x_0$ itself.

    Args:
        flow_map: The model on the path that it was trained on.
        path: The path that it is to live on.
    """

    def __init__(self, flow_map: NetFlowMap, path: Interpolant) -> None:
        super().__init__()
        self.own, self.path = flow_map, path

    @property
    def end(self) -> float:
        """The time at which the model's own path ends: it takes all later points for that end. 1 if it reaches pure noise."""
        last = self.own.interpolant.log_snr(torch.ones((), dtype=torch.float64))
        return float(self.path.time_at(last))

    def forward(self, x: Tensor, s: Tensor, t: Tensor, **cond: Any) -> Tensor:
        old = self.own.interpolant
        s_old, k = matched(s, x, old, self.path)
        t_old, _ = matched(t, x, old, self.path)
        point = x / k
        out = self.own.output(point, s_old, t_old, **cond)
        v = self.own.parametrization.mean_velocity(out, point, s_old, s_old)
        x_0, eps = old.endpoints(v, point, s_old, "velocity")
        c = self.path.at(s, x)
        beyond = self.path.log_snr(s) < old.log_snr(torch.ones_like(s))
        left = (x - c.alpha * x_0) / torch.where(like(beyond, x), c.sigma, 1.0)
        eps = torch.where(like(beyond, x), left, eps)
        return c.dalpha * x_0 + c.dsigma * eps
