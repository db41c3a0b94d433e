"""The tiny network for peers in torch."""

from collections.abc import Callable
from typing import Any

import kit
import torch
from torch import Tensor, nn

torch.set_default_dtype(torch.float64)

CHANNELS = (4, 1, 1)


class Net(nn.Module):
    """`kit.forward` with trainable weights."""

    def __init__(self, values: kit.Arrays) -> None:
        super().__init__()
        self.f = nn.ParameterDict({key: torch.tensor(value) for key, value in values.items()})

    def forward(self, x: Tensor, s: Tensor, t: Tensor, label: Tensor | None = None) -> Tensor:
        """Output (B, *D) at points (B, *D), flattened inside, and times of any shape with B numbers."""
        f = dict(self.f.items())
        return kit.forward(f, x.flatten(1), s.flatten(), t.flatten(), torch, label).view_as(x)

    def result(self, loss: Tensor, logvar: "LogVar | None" = None) -> kit.Arrays:
        """Loss and gradients, as arrays to store."""
        assert loss.dtype == torch.float64
        weights = {f"grad.{key}": w for key, w in self.f.items()}
        if logvar is not None:
            weights |= {f"grad.logvar.{key}": w for key, w in logvar.f.items()}
        grads = torch.autograd.grad(loss, list(weights.values()), allow_unused=True)
        arrays = {"loss": loss.detach().numpy()}
        for (key, w), grad in zip(weights.items(), grads, strict=True):
            arrays[key] = (torch.zeros_like(w) if grad is None else grad).numpy()
        return arrays


class LogVar:
    """`kit.logvar` with trainable weights."""

    def __init__(self, values: kit.Arrays) -> None:
        self.f = {key: torch.tensor(value, requires_grad=True) for key, value in values.items()}

    def __call__(self, s: Tensor, t: Tensor) -> Tensor:
        return kit.logvar(self.f, s.flatten(), t.flatten(), torch)


def double() -> None:
    """What a peer casts to single or half precision, it now casts to double; the state of CUDA's generator is no matter."""
    torch.float32 = torch.float16 = torch.bfloat16 = torch.float64
    Tensor.float = Tensor.double
    torch.cuda.get_rng_state = lambda: None
    torch.cuda.set_rng_state = lambda state: None


def images(x: Any, shape: tuple[int, int, int] = (1, 2, 2)) -> Tensor:
    """(B, 4) as images (B, 1, 2, 2), or (B, 4, 1, 1) where channels matter."""
    return torch.tensor(x).reshape(-1, *shape)


def scripted(*values: Any) -> Callable[..., Tensor]:
    """A stand-in for a random function: gives these draws, in this order."""
    waiting = [torch.as_tensor(value) for value in values]
    return lambda *args, **kwargs: waiting.pop(0)
