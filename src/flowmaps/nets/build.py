"""Networks by name and size, as the command line and checkpoints know them."""

from collections.abc import Callable, Mapping
from typing import Any, Literal

from torch import Tensor, nn

from ..errors import RecipeError
from .dit import DiT
from .mlp import MLP
from .text import text_settings

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

MANY = 32  # more classes than that start far apart


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
    skip: Literal["auto", "yes", "no"] = "auto",
    null: Mapping[str, Tensor] | None = None,
) -> dict[str, Any]:
    """Complete settings of a named network for data of a given shape.

    Args:
        name: One of `NETS`.
        shape: Shape of one sample.
        classes: Number of classes, 0 for none.
        guided: Whether the guidance scale is an input.
        patch: Side of a patch of a dit.
        skip: Whether a dit's output has its input in it; "auto" where a patch has more numbers than a token.
        null: What stands for "nothing is told" by name (`flowmaps.data.nulls`): the network learns from it what a text is.

    Raises:
        RecipeError: If the name is unknown, or the network cannot be told what the data tell.
    """
    settings = named_net(name) | {"shape": list(shape), "classes": classes, "guided": guided}
    text = text_settings(null or {})
    if text is not None and settings["family"] != "DiT":
        raise RecipeError(
            f"{name} reads no text: take a dit, such as --net dit-small, or leave the captions out with --no-labels"
        )
    if settings["family"] == "DiT":
        settings |= {} if text is None else {"text": text}
        settings["patch"] = patch or _patch(shape)
        size = shape[0] * settings["patch"] ** (len(shape) - 1)
        carried = size > settings["width"] if skip == "auto" else skip == "yes"
        settings |= {"skip": True} if carried else {}
        settings |= {"spread": 1.0} if classes > MANY else {}
    return settings


def _patch(shape: tuple[int, ...]) -> int:
    """The side of a patch: 4, or 2 of small images; of a sequence the shortest that makes at most 128 tokens."""
    if len(shape) != 2:
        return 2 if min(shape[1:], default=0) < 16 else 4
    return next(p for p in range(1, shape[1] + 1) if shape[1] % p == 0 and shape[1] // p <= 128)
