"""Networks by name and size, as the command line and checkpoints know them."""

from collections.abc import Callable
from typing import Any

from torch import nn

from ..errors import RecipeError
from .dit import DiT
from .mlp import MLP

SIZES: dict[str, tuple[Callable[..., nn.Module], dict[str, Any]]] = {
    "mlp-tiny": (MLP, {"width": 128, "depth": 2}),
    "mlp-small": (MLP, {"width": 256, "depth": 4}),
    "mlp-base": (MLP, {"width": 512, "depth": 4}),
    "mlp-large": (MLP, {"width": 768, "depth": 6}),
    "dit-tiny": (DiT, {"width": 96, "depth": 4, "heads": 2}),
    "dit-small": (DiT, {"width": 192, "depth": 6, "heads": 3}),
    "dit-base": (DiT, {"width": 256, "depth": 8, "heads": 4}),
    "dit-large": (DiT, {"width": 384, "depth": 12, "heads": 6}),
}
NETS: tuple[str, ...] = tuple(SIZES)
"""Names that `build` knows: a family and a size."""


def named_net(name: str) -> dict[str, Any]:
    """The settings behind a name, as a dictionary that `build` takes and checkpoints keep."""
    if name not in SIZES:
        raise RecipeError(f"net must be one of {', '.join(NETS)}; got {name!r}")
    family, settings = SIZES[name]
    return {"family": family.__name__, **settings}


def build(settings: dict[str, Any]) -> nn.Module:
    """A network from its settings: `{"family": "DiT" | "MLP", "shape": (C, H, W), ...}`."""
    values = dict(settings)
    family = {"MLP": MLP, "DiT": DiT}[values.pop("family")]
    return family(tuple(values.pop("shape")), **values)


def describe_net(
    name: str,
    shape: tuple[int, ...],
    *,
    classes: int = 0,
    guided: bool = False,
    patch: int | None = None,
) -> dict[str, Any]:
    """Complete settings of a named network for data of a given shape; `patch` is for a dit."""
    settings = named_net(name) | {"shape": list(shape), "classes": classes, "guided": guided}
    if settings["family"] == "DiT":
        settings["patch"] = patch or (2 if min(shape[1:], default=0) < 16 else 4)
    return settings
