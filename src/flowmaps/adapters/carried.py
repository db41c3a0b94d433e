# budget: one file, because it travels in the folders of saved maps. The extra may not be installed.
# pyright: basic, reportMissingImports=false, reportPrivateImportUsage=false
"""A flow map for diffusers, in one file: it imports torch and diffusers only, and travels in the folders of saved maps.

`FlowMapModel` is any denoiser of diffusers with a second time. Inside a pipeline that knows of one time only it looks the
second up: the next timestep of the pipeline's scheduler. `FlowMapPipeline` samples where diffusers has no pipeline for a model;
`FlowMap<Name>` of this module is diffusers' own pipeline <Name> whose denoiser follows its scheduler.

    pipeline = DiffusionPipeline.from_pretrained(folder, trust_remote_code=True)

Written by flowmaps (Apache-2.0).
"""

import functools
import inspect
import json
import math
import re
import shutil
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, final

import diffusers
import torch
from diffusers.configuration_utils import ConfigMixin, FrozenDict, register_to_config
from diffusers.loaders.peft import PeftAdapterMixin
from diffusers.models.embeddings import TimestepEmbedding
from diffusers.models.modeling_utils import ModelMixin
from diffusers.utils import BaseOutput
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

FILE = "flow_map"
"""What this file is called in a folder."""

_OF_TIME = re.compile(r"^(\w+_)?(t|time|timestep|time_step)_(?!.*_r$)\w+$")


@final
class Jump(nn.Module):
    """Embeds the jump s - t, (B,) to (B, width): zero at zero always, and everywhere before training.

    Its frequencies end at 16 radians per unit of time, for derivatives with respect to the times.
    """

    def __init__(self, width: int, features: int = 64) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(features, width), nn.Linear(width, width, bias=False)
        nn.init.zeros_(self.last.weight)

    def forward(self, gap: Tensor) -> Tensor:
        return self.last(self._hidden(gap) - self._hidden(torch.zeros_like(gap)))

    def frequencies(self, gap: Tensor) -> Tensor:
        """Sines and cosines (B, features), in the precision of the times."""
        half = self.first.in_features // 2
        # not a buffer: it would be rounded with weights that are cast to half precision
        phase = gap[:, None] * 2 ** torch.linspace(-1, 4, half, dtype=gap.dtype, device=gap.device)
        return torch.cat([phase.sin(), phase.cos()], -1)

    def _hidden(self, gap: Tensor) -> Tensor:
        # only now the weights' precision, which may be half
        return nn.functional.silu(self.first(self.frequencies(gap).to(self.first.weight.dtype)))


@final
class TwoTime(nn.Module):
    """An embedding of the first time, plus that of the jump while one is set."""

    def __init__(self, base: nn.Module, width: int) -> None:
        super().__init__()
        self.base, self.jump = base, Jump(width)
        self.gap: Tensor | None = None

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        out = self.base(*args, **kwargs)
        return out if self.gap is None else out + self.jump(self.gap).to(out.dtype)


class FlowMapModel(ModelMixin, ConfigMixin, PeftAdapterMixin):
    """A denoiser of diffusers with a second time, `r_timestep`; saved as one config and one safetensors file.

    Its `config` shows the denoiser's entries too, and what it lacks itself is looked for in the denoiser: pipelines of
    diffusers take it in the denoiser's place.

    Args:
        backbone_class: Name of the denoiser's class in diffusers.
        backbone_config: Its config.
        horizon: The length of [0, 1] in the units of `timestep`.
        embedders: Names of the modules that embed the time; by default all `TimestepEmbedding`s that are called so.
        path: Name and settings of the path on which the map was trained; None is that of its scheduler.

    Raises:
        ValueError: If diffusers has no such class, or nothing in it embeds a time.
    """

    _supports_gradient_checkpointing = True

    @register_to_config
    def __init__(
        self,
        backbone_class: str,
        backbone_config: dict[str, Any],
        horizon: float = 1000.0,
        embedders: list[str] | None = None,
        path: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        kind = getattr(diffusers, backbone_class, None)
        if kind is None:
            raise ValueError(
                f"diffusers {diffusers.__version__} has no class {backbone_class}: install one that has"
            )
        self.backbone: nn.Module = kind.from_config(backbone_config)
        self._followed: Callable[[], Any] | None = None
        install(self.backbone, embedders)

    @property
    def config(self) -> Any:
        own = self._internal_dict
        return FrozenDict({**own["backbone_config"], **own})

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            backbone = self.__dict__.get("_modules", {}).get("backbone")
            if backbone is None:
                raise
            return getattr(backbone, name)

    def forward(
        self,
        sample: Tensor | None = None,
        timestep: Any = None,
        r_timestep: Tensor | None = None,
        return_dict: bool = True,
        **cond: Any,
    ) -> Any:
        """The backbone's output; without `r_timestep` that of the scheduler it follows, and else the backbone itself.

        Args:
            sample: Points (B, *D), under this name or the backbone's own.
            timestep: Source timesteps, () or (B,).
            r_timestep: Target timesteps, () or (B,).
            return_dict: As ever in diffusers.
            cond: What else the backbone takes.
        """
        if sample is None:
            sample = cond.pop(next(iter(inspect.signature(self.backbone.forward).parameters)))
        assert sample is not None
        gap = None
        if r_timestep is not None:
            wide = torch.promote_types(timestep.dtype, torch.float32)
            gap = (timestep.to(wide) - r_timestep.to(wide)) / self._internal_dict["horizon"]
        elif self._followed is not None:
            gap = self._to_next(timestep)
        if gap is not None:
            gap = gap.to(sample.device).reshape(-1).expand(sample.shape[0]).contiguous()
        with self._told(gap):
            return self.backbone(sample, timestep=timestep, return_dict=return_dict, **cond)

    def follow(self, pipeline: Any) -> None:
        """Where no second time is given, jump to the next timestep of this pipeline's scheduler; None ends it."""
        self._followed = None if pipeline is None else lambda: pipeline.scheduler

    def _to_next(self, timestep: Any) -> Tensor:
        assert self._followed is not None
        times, length = clock(self._followed())
        horizon = self._internal_dict["horizon"]
        times = times * (horizon / length if length else 1.0)  # some pipelines tell shares of 1
        told = float(torch.as_tensor(timestep).reshape(-1)[0])
        here = min(int((times - told).abs().argmin()), len(times) - 2)
        return ((times[here] - times[here + 1]) / horizon).float()

    def enable_gradient_checkpointing(
        self, gradient_checkpointing_func: Callable[..., Any] | None = None
    ) -> None:
        """As diffusers'; blocks that embed the time themselves (DiT) are replayed with the jump that they first saw."""
        run = gradient_checkpointing_func or (
            lambda f, *args: checkpoint(f, *args, use_reentrant=False)
        )

        def replayed(block: Callable[..., Any], *args: Any) -> Any:
            gap = next(module.gap for module in self._embedders())

            def told(*inner: Any) -> Any:
                with self._told(gap):
                    return block(*inner)

            return run(told, *args)

        super().enable_gradient_checkpointing(replayed)

    def _embedders(self) -> list[TwoTime]:
        # by name: diffusers runs this file once per component that it loads, and each time makes another class
        return [m for m in self.backbone.modules() if type(m).__name__ == TwoTime.__name__]  # pyright: ignore[reportReturnType]

    @contextmanager
    def _told(self, gap: Tensor | None) -> Generator[None]:
        embedders = self._embedders()
        before = [module.gap for module in embedders]
        for module in embedders:
            module.gap = gap
        try:
            yield
        finally:
            for module, old in zip(embedders, before, strict=True):
                module.gap = old


def install(model: nn.Module, names: list[str] | None) -> list[TwoTime]:
    """Put the jump beside what embeds the time in a model; by default what looks like it by class and name.

    Raises:
        ValueError: If there is nothing such.
    """
    found = {
        name: module
        for name, module in model.named_modules()
        if (name in names if names else isinstance(module, TimestepEmbedding) and _of_time(name))
    }
    if not found or (names and len(found) < len(names)):
        raise ValueError(
            f"{type(model).__name__} has no module {', '.join(names) if names else 'TimestepEmbedding of a time'} to which a "
            "second time could be added: name what embeds its time with embedders=[...], as in model.named_modules()"
        )
    installed: list[TwoTime] = []
    for name, module in found.items():
        parent, _, leaf = name.rpartition(".")
        installed.append(TwoTime(module, _width(module)))
        setattr(model.get_submodule(parent), leaf, installed[-1])
    return installed


def _of_time(name: str) -> bool:
    leaf = name.rpartition(".")[2]
    return bool(_OF_TIME.match(leaf)) and "guidance" not in leaf


def _width(module: nn.Module) -> int:
    """What a time's embedding has features: the last linear layer's."""
    return [m for m in module.modules() if isinstance(m, nn.Linear)][-1].out_features


def clock(scheduler: Any) -> tuple[Tensor, float | None]:
    """The timesteps that a scheduler walks (steps + 1,), float64, clean data last; and how many of them make up [0, 1].

    In a table of alphas clean data is the timestep before the first. EDM's schedulers tell logarithms or angles of the noise,
    which have no length.
    """
    config = scheduler.config
    if hasattr(scheduler, "alphas_cumprod"):
        clean = -1.0 if float(getattr(scheduler, "final_alpha_cumprod", 1.0)) == 1.0 else 0.0
        length: float | None = float(config["num_train_timesteps"])
    elif hasattr(scheduler, "precondition_noise"):
        clean, length = float(scheduler.precondition_noise(torch.zeros(1))), None
        if clean == -torch.inf:
            clean = float(scheduler.precondition_noise(torch.tensor([config["sigma_min"]])))
    else:
        clean, length = 0.0, float(config["num_train_timesteps"])
    times = torch.as_tensor(scheduler.timesteps).double().cpu()
    return torch.cat([times, times.new_tensor([clean])]), length


class FlowMapDDIMScheduler(diffusers.DDIMScheduler):
    """DDIM without noise whose step ends at the timestep it asks for next: the stock one's goes a whole number of times as far."""

    def step(
        self, model_output: Tensor, timestep: Any, sample: Tensor, *_: Any, **options: Any
    ) -> Any:
        times = clock(self)[0]
        here = int((times[:-1] - float(timestep)).abs().argmin())
        levels = [
            self.alphas_cumprod[int(n)] if n >= 0 else self.final_alpha_cumprod
            for n in times[here : here + 2]
        ]
        (a, sigma), (b, after) = [(level**0.5, (1 - level) ** 0.5) for level in levels]
        kind = self.config["prediction_type"]
        if kind == "v_prediction":
            x_0, eps = a * sample - sigma * model_output, a * model_output + sigma * sample
        elif kind == "sample":
            x_0, eps = model_output, (sample - a * model_output) / sigma
        else:
            x_0, eps = (sample - sigma * model_output) / a, model_output
        out = b * x_0 + after * eps
        return FlowMapStep(prev_sample=out) if options.get("return_dict", True) else (out,)


class FlowMapStep(BaseOutput):
    """What a step returns."""

    prev_sample: Tensor


class ExponentialEulerScheduler(diffusers.EDMEulerScheduler):
    """Its exponential levels begin at the noisiest for a single step too, where the stock one's begin at the cleanest."""

    def _compute_exponential_sigmas(self, ramp: Tensor, *_: Any) -> Tensor:
        high, low = (math.log(self.config[key]) for key in ("sigma_max", "sigma_min"))
        return torch.linspace(high, low, len(ramp)).exp()


class CosineEulerScheduler(ExponentialEulerScheduler):
    """Euler's method for models of `CosineDPMSolverMultistepScheduler`, whose own is stochastic: they are told the angle."""

    def precondition_noise(self, sigma: Any) -> Tensor:
        return torch.as_tensor(sigma).atan() / torch.pi * 2


class TrigFlowEulerScheduler(diffusers.EDMEulerScheduler):
    """Euler's method for TrigFlow's models, whose `SCMScheduler` is stochastic; noise in units of the data."""

    def precondition_noise(self, sigma: Any) -> Tensor:
        return torch.as_tensor(sigma).atan()


class _Carries(diffusers.DiffusionPipeline):
    """A pipeline that takes this file with it when it is saved."""

    def register_modules(self, **modules: Any) -> None:
        super().register_modules(**modules)
        for module in modules.values():
            if hasattr(type(module), "follow"):
                module.follow(self)

    def save_pretrained(self, save_directory: Any, *args: Any, **kwargs: Any) -> None:
        super().save_pretrained(save_directory, *args, **kwargs)
        folder = Path(save_directory)
        index = json.loads((folder / "model_index.json").read_text(encoding="utf-8"))
        index["_class_name"] = [FILE, type(self).__name__]
        shutil.copyfile(__file__, folder / f"{FILE}.py")
        for part, module in self.components.items():
            kind = type(module)
            if kind.__module__.split(".")[-1] in (FILE, _HERE):
                index[part] = [FILE, kind.__name__]
                shutil.copyfile(__file__, folder / part / f"{FILE}.py")
        text = json.dumps(index, indent=2) + "\n"
        (folder / "model_index.json").write_text(text, encoding="utf-8")

    @classmethod
    def _get_signature_types(cls) -> dict[str, Any]:
        """Any denoiser and any scheduler: nothing to warn of."""
        names = inspect.signature(cls.__init__).parameters
        return {name: (inspect.Signature.empty,) for name in names if name != "self"}


_HERE = __name__.rpartition(".")[2]


class FlowMapOutput(BaseOutput):
    """What `FlowMapPipeline` returns: `samples` (B, *D), clamped and decoded by nobody."""

    samples: Tensor


class FlowMapPipeline(_Carries):
    """Samples of a flow map: noise, and one call of the model per step.

    Args:
        flow_map: `FlowMapModel`, or a class of diffusers with a second time.
        scheduler: Walks its path: DDIM, `EDMEulerScheduler`, or a flow-matching Euler.
        second: The model's argument for the second time.
        unit: What the scheduler's timesteps are multiplied by for the model.
        frames: Whether it takes one time per frame; points are (B, frames, ...).
        shape: Shape of a sample.
    """

    def __init__(
        self,
        flow_map: Any,
        scheduler: Any,
        second: str = "r_timestep",
        unit: float = 1.0,
        frames: bool = False,
        shape: Any = None,
    ) -> None:
        super().__init__()
        self.register_modules(flow_map=flow_map, scheduler=scheduler)
        self.register_to_config(second=second, unit=unit, frames=frames, shape=shape)

    @torch.no_grad()
    def __call__(
        self,
        batch_size: int = 1,
        num_inference_steps: int = 1,
        generator: Any = None,
        latents: Tensor | None = None,
        return_dict: bool = True,
        **cond: Any,
    ) -> Any:
        """Draw samples.

        Args:
            batch_size: How many, if there are no `latents`.
            num_inference_steps: Jumps.
            generator: Of the noise, as everywhere in diffusers.
            latents: Standard normal noise (B, *D).
            return_dict: Whether to return a `FlowMapOutput`, else a tuple.
            cond: The model's conditioning by its own names; lists become tensors.
        """
        model, scheduler = self.flow_map, self.scheduler
        dtype, device = model.dtype, self._execution_device
        if latents is None:
            if self.config["shape"] is None:
                raise ValueError("this folder does not say what a sample's shape is: pass latents=")
            shape = (batch_size, *self.config["shape"])
            latents = randn_tensor(shape, generator=generator, device=device, dtype=dtype)
        cond = {k: torch.as_tensor(v) if isinstance(v, list | int) else v for k, v in cond.items()}
        scheduler.set_timesteps(num_inference_steps)
        start: Any = latents
        x = start.to(device) * getattr(scheduler, "init_noise_sigma", 1.0)
        times = clock(scheduler)[0]
        bar: Any = self.progress_bar
        for i, step in enumerate(bar(scheduler.timesteps)):
            told = (self._told(t, x) for t in (times[i], times[i + 1]))
            given = dict(zip(("timestep", self.config["second"]), told, strict=True))
            z = scheduler.scale_model_input(x, step).to(dtype)
            out = model(z, **given, **cond, return_dict=False)[0]
            if out.shape[1] == 2 * x.shape[1]:  # half is a learned variance
                out = out.chunk(2, 1)[0]
            x = scheduler.step(out, step, x, return_dict=False)[0]
        self.maybe_free_model_hooks()
        return FlowMapOutput(samples=x) if return_dict else (x,)

    def _told(self, time: Tensor, x: Tensor) -> Tensor:
        wide = torch.float64 if x.dtype == torch.float64 else torch.float32
        rows = (time * self.config["unit"]).to(device=x.device, dtype=wide).expand(len(x))
        return rows[:, None].expand(-1, x.shape[1]) if self.config["frames"] else rows


@functools.cache
def following(base: type) -> type:
    """A pipeline of diffusers as it stands, but that its `FlowMapModel` follows its scheduler and is saved with it."""
    return type(f"FlowMap{base.__name__}", (_Carries, base), {"__module__": __name__})


def __getattr__(name: str) -> Any:
    """`FlowMap<Name>` for every pipeline <Name> of diffusers."""
    base = name.removeprefix("FlowMap")
    if base == name or not base.endswith("Pipeline") or not hasattr(diffusers, base):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return following(getattr(diffusers, base))
