"""The one place where a time meets a sample."""

import torch
from torch import Tensor

from ..errors import ShapeError

Time = Tensor | float
"""A time in [0, 1] (0 = data, 1 = noise): a float, a tensor `()` or one value per row `(B,)`."""


def like(t: Tensor, x: Tensor) -> Tensor:
    """View a time so that it broadcasts against a sample.

    Args:
        t: Time, shape `()` or `(B,)`.
        x: Sample, shape `(B, *D)`.

    Returns:
        `t` with shape `()` or `(B, 1, ..., 1)`, one axis per axis of `x`.

    Raises:
        ShapeError: If `t` is neither a scalar nor one value per row of `x`.

    Example:
        >>> like(torch.zeros(5), torch.zeros(5, 3, 2)).shape
        torch.Size([5, 1, 1])
    """
    if t.ndim == 0:
        return t
    if t.ndim == 1 and t.shape[0] == x.shape[0]:
        return t.reshape(-1, *(1,) * (x.ndim - 1))
    raise _time_error(t, x)


def spread(row: Tensor | float, x: Tensor) -> Tensor:
    """One row, or a number, for every row of `x`: shape `(B, *row.shape)`, on the device of `x`.

    Example:
        >>> spread(torch.tensor([1, 2]), torch.zeros(3, 8)).shape
        torch.Size([3, 2])
    """
    one = torch.as_tensor(row, device=x.device)
    return one.expand(len(x), *one.shape).contiguous()


def as_time(t: Time, x: Tensor) -> Tensor:
    """One time per row of `x`: shape `(B,)`, on `x`'s device, float32 or wider.

    Networks and forward-mode AD want times that own their memory, so a scalar is copied, not expanded.

    Raises:
        ShapeError: If `t` is neither a scalar nor one value per row of `x`.
    """
    wide = (
        torch.float64 if x.dtype == torch.float64 else torch.float32
    )  # bf16 times lose the difference t - s
    tensor = t if isinstance(t, Tensor) else torch.tensor(t, dtype=wide, device=x.device)
    if tensor.dtype not in (torch.float32, torch.float64):
        tensor = tensor.to(wide)
    if tensor.ndim == 0:
        return tensor.repeat(x.shape[0])
    if tensor.ndim == 1 and tensor.shape[0] == x.shape[0]:
        return tensor
    raise _time_error(tensor, x)


def _time_error(t: Tensor, x: Tensor) -> ShapeError:
    return ShapeError(
        f"time must have shape () or ({x.shape[0]},) for x {tuple(x.shape)}; got {tuple(t.shape)}"
    )
