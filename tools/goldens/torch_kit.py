"""The tiny network for peers in torch."""

from collections.abc import Callable
from typing import Any

import kit
import torch
from torch import Tensor, nn

torch.set_default_dtype(torch.float64)


class Net(nn.Module):
    """`kit.forward` with trainable weights."""

    def __init__(self, values: kit.Arrays) -> None:
        super().__init__()
        self.f = nn.ParameterDict({key: torch.tensor(value) for key, value in values.items()})

    def forward(self, x: Tensor, s: Tensor, t: Tensor) -> Tensor:
        """Output (B, *D) at points (B, *D), flattened inside, and times of any shape with B numbers."""
        return kit.forward(dict(self.f), x.flatten(1), s.flatten(), t.flatten(), torch).view_as(x)

    def result(self, loss: Tensor) -> kit.Arrays:
        """Loss and gradients, as arrays to store."""
        grads = torch.autograd.grad(loss, list(self.f.values()), allow_unused=True)
        arrays = {"loss": loss.detach().numpy()}
        for key, grad in zip(self.f, grads, strict=True):
            arrays[f"grad.{key}"] = (
                torch.zeros_like(self.f[key]) if grad is None else grad
            ).numpy()
        return arrays


def images(x: Any) -> Tensor:
    """(B, 4) as (B, 1, 2, 2)."""
    return torch.tensor(x).reshape(-1, 1, 2, 2)


def scripted(*values: Any) -> Callable[..., Tensor]:
    """A stand-in for a random function: gives these draws, in this order."""
    waiting = [torch.as_tensor(value) for value in values]
    return lambda *args, **kwargs: waiting.pop(0)
