"""The exact worlds of control: two modes in one dimension (M1) and a Gaussian, with what their tilts are."""

import torch
from torch import Tensor

from flowmaps.control.rewards import linear, pull
from flowmaps.core.flow_map import FlowMap
from flowmaps.core.interpolant import linear as linear_path
from flowmaps.core.oracle import Gaussian, Product

D = torch.float64


def column(*values: float) -> Tensor:
    return torch.tensor(values, dtype=D)[:, None]


M1 = Product(column(0.5, 0.5), column(-2.0, 2.0), column(0.4, 0.4), linear_path())


class Table(FlowMap):
    """M1's map; its jump from noise to data read off a table (to 1e-6), as bisection costs a hundred times more."""

    def __init__(self) -> None:
        super().__init__()
        self.interpolant, self.exact = M1.interpolant, M1.flow_map
        self.grid = torch.linspace(-8, 8, 20001, dtype=D)
        self.ends = self.exact(self.grid[:, None], 1.0, 0.0)[:, 0]

    def mean_velocity(self, x, s, t, **cond):
        if not bool(((s == 1) & (t == 0)).all()):
            return self.exact.mean_velocity(x, s, t)
        place = (x.clamp(-7.999, 7.999) + 8) / (self.grid[1] - self.grid[0])
        low = place.detach().floor().long()
        share = place - low
        return x - ((1 - share) * self.ends[low] + share * self.ends[low + 1])


M = Table()
TILT = linear(torch.tensor([0.6], dtype=D))
RIGHT, MEAN, STD, LOG_Z = 0.9168, 2.096, 0.4, 0.6225
"""Of M1 tilted by .6 x: mass, mean and std of the right mode, and log Z (closed_form_checks.py)."""

GAUSS = Gaussian(torch.tensor([0.4], dtype=D), torch.tensor([1.7], dtype=D), linear_path())
PULL = pull(torch.tensor([2.0], dtype=D), 0.5)
G_MEAN, G_VAR, G_LOG_Z = 1.3456, 1.1820, -0.7088
"""Of the Gaussian under -.25 (x - 2)^2."""


def noise(n: int, seed: int = 0, d: int = 1) -> Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=D)


def modes(x: Tensor, weights: Tensor | None = None) -> tuple[float, float, float]:
    """Mass, mean and std of the right mode."""
    flat = x[:, 0]
    w = torch.full_like(flat, 1 / len(flat)) if weights is None else weights
    right = flat > 0
    mass = w[right].sum()
    mean = (w * flat)[right].sum() / mass
    return float(mass), float(mean), float(((w * (flat - mean) ** 2)[right].sum() / mass).sqrt())


def moments(x: Tensor, weights: Tensor | None = None) -> tuple[float, float]:
    w = torch.full((len(x),), 1 / len(x), dtype=D) if weights is None else weights
    mean = (w * x[:, 0]).sum()
    return float(mean), float((w * (x[:, 0] - mean) ** 2).sum())
