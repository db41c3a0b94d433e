# The extra may not be installed.
# pyright: basic, reportMissingImports=false, reportPrivateImportUsage=false
"""A second time for any denoiser of diffusers: an embedding of the jump, zero until it is trained, beside the first time's."""

import copy
import re
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Any, final

import accelerate
import diffusers
import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.loaders.peft import PeftAdapterMixin
from diffusers.models.embeddings import TimestepEmbedding
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ..errors import AdapterError
from ..nets.embed import Frequencies
from .denoiser import traits

_OF_TIME = re.compile(r"^(\w+_)?(t|time|timestep|time_step)_(?!.*_r$)\w+$")


@final
class Jump(nn.Module):
    """Embeds the jump s - t, (B,) to (B, width): zero at zero always, and everywhere before training.

    Its frequencies end at 16 radians per unit of time, for derivatives with respect to the times (`flowmaps.nets.embed`).
    """

    def __init__(self, width: int, features: int = 64) -> None:
        super().__init__()
        self.frequencies = Frequencies(features)
        self.first, self.last = nn.Linear(features, width), nn.Linear(width, width, bias=False)
        nn.init.zeros_(self.last.weight)

    def forward(self, gap: Tensor) -> Tensor:
        return self.last(self._hidden(gap) - self._hidden(torch.zeros_like(gap)))

    def _hidden(self, gap: Tensor) -> Tensor:
        # sines in the precision of the times; only then the weights', which may be half
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

    Args:
        backbone_class: Name of the denoiser's class in diffusers.
        backbone_config: Its config.
        horizon: The length of [0, 1] in the units of `timestep`.
        embedders: Names of the modules that embed the time; by default all `TimestepEmbedding`s that are called so.

    Raises:
        AdapterError: If diffusers has no such class, or nothing in it embeds a time.
    """

    _supports_gradient_checkpointing = True

    @register_to_config
    def __init__(
        self,
        backbone_class: str,
        backbone_config: dict[str, Any],
        horizon: float = 1000.0,
        embedders: list[str] | None = None,
    ) -> None:
        super().__init__()
        kind = getattr(diffusers, backbone_class, None)
        if kind is None:
            raise AdapterError(
                f"diffusers {diffusers.__version__} has no class {backbone_class}: install one that has"
            )
        self.backbone: nn.Module = kind.from_config(backbone_config)
        _install(self.backbone, embedders)

    @classmethod
    def around(
        cls, model: nn.Module, horizon: float, embedders: list[str] | None = None
    ) -> "FlowMapModel":
        """This model with a second time. Its modules are used, not copied."""
        names = embedders or list(traits(model).embedders) or None
        config = _config(model)
        with accelerate.init_empty_weights():
            shell = cls(type(model).__name__, config, horizon, names)
        shell.backbone = model
        parameter = next(model.parameters())
        for added in _install(model, names):
            added.jump.to(parameter)
        return shell

    def forward(
        self,
        sample: Tensor,
        timestep: Tensor,
        r_timestep: Tensor | None = None,
        return_dict: bool = True,
        **cond: Any,
    ) -> Any:
        """The backbone's output; without `r_timestep` it is the backbone itself."""
        gap = None
        if r_timestep is not None:
            wide = torch.promote_types(timestep.dtype, torch.float32)
            gap = (timestep.to(wide) - r_timestep.to(wide)) / self.config["horizon"]
            gap = gap.to(sample.device).reshape(-1).expand(len(sample)).contiguous()
        with self._told(gap):
            return self.backbone(sample, timestep=timestep, return_dict=return_dict, **cond)

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
        return [module for module in self.backbone.modules() if isinstance(module, TwoTime)]

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


def _install(model: nn.Module, names: list[str] | None) -> list[TwoTime]:
    found = {
        name: module
        for name, module in model.named_modules()
        if (name in names if names else isinstance(module, TimestepEmbedding) and _of_time(name))
    }
    if not found or (names and len(found) < len(names)):
        raise AdapterError(
            f"{type(model).__name__} has no module {', '.join(names) if names else 'TimestepEmbedding of a time'} to which a "
            "second time could be added: name what embeds its time with embedders=[...], as in model.named_modules()"
        )
    installed: list[TwoTime] = []
    for name, module in found.items():
        parent, _, leaf = name.rpartition(".")
        installed.append(TwoTime(module, _width(module)))
        setattr(model.get_submodule(parent), leaf, installed[-1])
    return installed


def _config(model: Any) -> dict[str, Any]:
    """What made a model, without diffusers' own notes."""
    return {key: value for key, value in model.config.items() if not key.startswith("_")}


def _of_time(name: str) -> bool:
    leaf = name.rpartition(".")[2]
    return bool(_OF_TIME.match(leaf)) and "guidance" not in leaf


def _width(module: nn.Module) -> int:
    """What a time's embedding has features: the last linear layer's."""
    return [m for m in module.modules() if isinstance(m, nn.Linear)][-1].out_features


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
