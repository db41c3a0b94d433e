"""Attention and norms that can be differentiated in forward mode, for the call only: inference keeps the fused kernels.

torch's fused attention has no forward-mode derivative; its group norm has one that fails on some memory formats; the
gradient through its layer norm's is silently wrong (pytorch issue 196700). Within `differentiable` attention runs in its
math kernel and the two norms are means of elementary operations, whatever module calls them. Checkpointed blocks cannot be
replayed inside a forward-mode derivative, so checkpointing rests meanwhile; the trained pass outside keeps it.
"""

from collections.abc import Generator
from contextlib import contextmanager
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.overrides import TorchFunctionMode

from ..core.autodiff import forward_mode_attention


def dual(*tensors: Tensor) -> bool:
    """Whether a forward-mode derivative is being taken with respect to any of these."""
    return any(forward_ad.unpack_dual(tensor).tangent is not None for tensor in tensors)


@contextmanager
def differentiable(model: nn.Module) -> Generator[None]:
    """Within this block `model` may be differentiated in forward mode, and a gradient be taken through that."""
    saved = [m for m in model.modules() if getattr(m, "gradient_checkpointing", False) is True]
    for module in saved:
        module.gradient_checkpointing = False  # pyright: ignore[reportArgumentType]  # a plain flag of diffusers' blocks
    try:
        with forward_mode_attention(), _Elementary():
            yield
    finally:
        for module in saved:
            module.gradient_checkpointing = True  # pyright: ignore[reportArgumentType]


@final
class _Elementary(TorchFunctionMode):
    def __torch_function__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        if func is nn.functional.layer_norm:
            return layer_norm(*args, **(kwargs or {}))
        if func is nn.functional.group_norm:
            return group_norm(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))


def layer_norm(
    input: Tensor,
    normalized_shape: list[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Tensor:
    """`torch.nn.functional.layer_norm` in elementary operations; statistics are float32 or wider."""
    axes = tuple(range(-len(normalized_shape), 0))
    out = _standard(_wide(input), axes, eps).to(input.dtype)
    out = out if weight is None else out * weight
    return out if bias is None else out + bias


def group_norm(
    input: Tensor,
    num_groups: int,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Tensor:
    """`torch.nn.functional.group_norm` in elementary operations, for any memory format."""
    groups = _wide(input).reshape(len(input), num_groups, -1)
    out = _standard(groups, (-1,), eps).reshape(input.shape).to(input.dtype)
    shape = (1, -1, *(1,) * (input.ndim - 2))
    out = out if weight is None else out * weight.view(shape)
    return out if bias is None else out + bias.view(shape)


def _wide(x: Tensor) -> Tensor:
    return x.float() if x.dtype in (torch.bfloat16, torch.float16) else x


def _standard(x: Tensor, axes: tuple[int, ...], eps: float) -> Tensor:
    centred = x - x.mean(axes, keepdim=True)
    return centred * torch.rsqrt(centred.square().mean(axes, keepdim=True) + eps)
