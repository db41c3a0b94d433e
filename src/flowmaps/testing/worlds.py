"""Small worlds of generic numbers (no symmetric means, no equal sizes), so that a swapped axis or sign shows."""

import torch
from torch import Tensor

from ..core.interpolant import Interpolant, linear
from ..core.oracle import Gaussian, Mixture, Product, Rotated


def gaussian(path: Interpolant | None = None, dtype: torch.dtype = torch.float64) -> Gaussian:
    """Three independent normal coordinates."""
    return Gaussian(
        torch.tensor([0.7, -1.1, 0.3], dtype=dtype),
        torch.tensor([0.5, 1.3, 0.8], dtype=dtype),
        path or linear(),
    )


def mixture(path: Interpolant | None = None, dtype: torch.dtype = torch.float64) -> Mixture:
    """Three Gaussians in the plane."""
    return Mixture(
        torch.tensor([0.5, 0.3, 0.2], dtype=dtype),
        torch.tensor([[1.2, -0.4], [-1.0, 0.9], [0.1, 1.7]], dtype=dtype),
        torch.tensor([[0.5, 0.7], [0.6, 0.45], [0.8, 0.55]], dtype=dtype),
        path or linear(),
    )


def product(path: Interpolant | None = None, dtype: torch.dtype = torch.float64) -> Product:
    """Two independent coordinates, each with two or three modes."""
    return Product(
        torch.tensor([[0.5, 0.2], [0.3, 0.45], [0.2, 0.35]], dtype=dtype),
        torch.tensor([[-1.3, 0.2], [0.9, 1.5], [1.6, -1.2]], dtype=dtype),
        torch.tensor([[0.45, 0.6], [0.5, 0.4], [0.35, 0.55]], dtype=dtype),
        path or linear(),
    )


def rotated(path: Interpolant | None = None, dtype: torch.dtype = torch.float64) -> Rotated:
    """`product`, turned by 0.6 radians: its coordinates depend on each other and the map stays exact."""
    return Rotated(product(path, dtype), rotation(0.6, dtype))


def rotation(angle: float, dtype: torch.dtype = torch.float64) -> Tensor:
    """The rotation of the plane by `angle` radians, (2, 2)."""
    turn = torch.tensor(angle, dtype=dtype)
    return torch.stack([turn.cos(), -turn.sin(), turn.sin(), turn.cos()]).reshape(2, 2)


def plane(path: Interpolant | None = None, dtype: torch.dtype = torch.float64) -> Gaussian:
    """Two independent normal coordinates."""
    return Gaussian(
        torch.tensor([0.3, -0.5], dtype=dtype),
        torch.tensor([0.5, 0.8], dtype=dtype),
        path or linear(),
    )
