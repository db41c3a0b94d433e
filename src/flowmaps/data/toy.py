"""Four point clouds in the plane, roughly of mean 0 and variance 1 per axis.

Each is a function of a number of points and a generator, and gives float32 (n, 2).
"""

from __future__ import annotations

import math

import torch
from torch import Generator, Tensor


def moons(n: int, generator: Generator) -> Tensor:
    """Two interleaving half circles of radius 1.4, with noise of standard deviation 0.07."""
    angle = math.pi * torch.rand(n, generator=generator)
    lower = _choice(2, n, generator).float()
    arc = torch.stack([angle.cos(), angle.sin()], -1) * (1 - 2 * lower)[:, None]
    shift = torch.tensor([1.0, 0.5]) * lower[:, None] - torch.tensor([0.5, 0.25])
    return 1.4 * (arc + shift) + 0.07 * torch.randn(n, 2, generator=generator)


def checkerboard(n: int, generator: Generator) -> Tensor:
    """Uniform on the eight dark unit squares of a 4 x 4 board over [-2, 2] x [-2, 2]."""
    column, pair = _choice(4, n, generator), _choice(2, n, generator)
    corner = torch.stack([column, 2 * pair + column % 2], -1) - 2
    return corner + torch.rand(n, 2, generator=generator)


def rings(n: int, generator: Generator) -> Tensor:
    """Three concentric circles of radii 0.5, 1.25 and 2, equally heavy, with noise 0.05."""
    radius = torch.tensor([0.5, 1.25, 2.0])[_choice(3, n, generator)]
    angle = 2 * math.pi * torch.rand(n, generator=generator)
    circle = radius[:, None] * torch.stack([angle.cos(), angle.sin()], -1)
    return circle + 0.05 * torch.randn(n, 2, generator=generator)


def mixture(n: int, generator: Generator) -> Tensor:
    """Eight round Gaussians of standard deviation 0.1, evenly on a circle of radius sqrt(2)."""
    angle = _choice(8, n, generator) * (math.pi / 4)
    centre = math.sqrt(2) * torch.stack([angle.cos(), angle.sin()], -1)
    return centre + 0.1 * torch.randn(n, 2, generator=generator)


def _choice(k: int, n: int, generator: Generator) -> Tensor:
    return torch.randint(k, (n,), generator=generator)
