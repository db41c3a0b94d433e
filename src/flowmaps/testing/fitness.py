"""What a network lets one do: forward-mode derivatives, finite steps, gradients through a derivative; against reverse mode."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..adapters.forward_mode import differentiable
from ..core.autodiff import Derivative, along_source
from ..core.flow_map import FlowMap


class Fitness(NamedTuple):
    """Relative errors against reverse mode, which differentiates a vector-Jacobian product by its vector.

    Attributes:
        jvp: Of the exact derivative along the source.
        finite: Of a finite difference with half-width 1e-4 of time.
        gradient: Of the gradient by the weights through the exact derivative. Both sides have norms of elementary
            operations: reverse mode thrice shares the fault of torch's layer norm.
    """

    jvp: float
    finite: float
    gradient: float


def fitness(
    flow_map: FlowMap, x: Tensor, cond: dict[str, Any], generator: torch.Generator
) -> Fitness:
    """Measure a map at one batch of points (B, *D) of float64, times away from the ends."""
    s = 0.45 + 0.4 * torch.rand(len(x), generator=generator, dtype=x.dtype)
    t = s - 0.3
    dx, weight = (torch.randn(x.shape, generator=generator, dtype=x.dtype) for _ in range(2))

    def fn(x: Tensor, s: Tensor, t: Tensor) -> Tensor:
        return flow_map.mean_velocity(x, s, t, **cond)

    def gradient(slope: Tensor) -> Tensor:
        weights = [p for p in flow_map.parameters() if p.requires_grad]
        (slope * weight).sum().backward()
        found = [p.grad.flatten() for p in weights if p.grad is not None]
        flow_map.zero_grad(set_to_none=True)
        return torch.cat(found)

    exact = along_source(fn, x, s, t, dx)[1]
    finite = along_source(fn, x, s, t, dx, derivative=Derivative("finite", 1e-4))[1]
    through = along_source(fn, x, s, t, dx, through=True)[1]
    with differentiable(flow_map):
        truth = _reverse(fn, x, s, t, dx)
        return Fitness(
            _error(exact, truth), _error(finite, truth), _error(gradient(through), gradient(truth))
        )


def _reverse(fn: Callable[..., Tensor], x: Tensor, s: Tensor, t: Tensor, dx: Tensor) -> Tensor:
    """The derivative along (dx, 1, 0)."""
    x, s = x.clone().requires_grad_(), s.clone().requires_grad_()
    out = fn(x, s, t)
    probe = torch.zeros_like(out, requires_grad=True)
    pulled = torch.autograd.grad(out, (x, s), probe, create_graph=True)
    return torch.autograd.grad(pulled, probe, (dx, torch.ones_like(s)), create_graph=True)[0]


def _error(value: Tensor, truth: Tensor) -> float:
    return float((value - truth).detach().norm() / truth.detach().norm())
