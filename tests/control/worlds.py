"""The exact worlds of control: two modes in one dimension (M1), a Gaussian and a ring, with what their tilts are."""

import math

import numpy as np
import torch
from scipy.stats import rice
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


class Ring(FlowMap):
    """A ring of radius 2 and thickness .15 in the plane: exact velocity, and by symmetry an exact map.

    The direction of a point stays and its radius keeps its quantile, which at time t is Rice's; tables of radii hold that to 1e-5.
    """

    def __init__(self, radius: float = 2.0, thick: float = 0.15) -> None:
        super().__init__()
        self.interpolant, self.radius, self.thick = linear_path(), radius, thick
        self.grid = np.linspace(0, 8, 8001)
        self.tables: dict[tuple[float, float], Tensor] = {}

    def sample(self, n: int, generator: torch.Generator) -> Tensor:
        angle = 2 * torch.pi * torch.rand(n, generator=generator, dtype=D)
        centre = self.radius * torch.stack([angle.cos(), angle.sin()], 1)
        return centre + self.thick * torch.randn(n, 2, generator=generator, dtype=D)

    def table(self, s: float, t: float) -> Tensor:
        """Radii at t of the points whose radii at s are the grid."""
        if (s, t) not in self.tables:
            laws = []
            for time in (s, t):
                std = math.hypot((1 - time) * self.thick, time)
                laws.append(rice((1 - time) * self.radius / std, scale=std))
            inner = np.interp(laws[0].cdf(self.grid), laws[1].cdf(self.grid), self.grid)
            outer = np.interp(-laws[0].sf(self.grid), -laws[1].sf(self.grid), self.grid)
            low = laws[0].cdf(self.grid) < 0.5
            self.tables[s, t] = torch.from_numpy(np.where(low, inner, outer))
        return self.tables[s, t]

    def mean_velocity(self, x, s, t, **cond):
        length = x.norm(dim=1)
        if bool((s == t).all()):
            c = self.interpolant.at(s, length)
            square = (c.alpha * self.thick).square() + c.sigma.square()
            pull = c.alpha * self.radius * length / square
            centre = self.radius * torch.special.i1e(pull) / torch.special.i0e(pull) / length
            off = x * (1 - c.alpha * centre)[:, None] / square[:, None]
            x_0 = x * centre[:, None] + off * (c.alpha * self.thick**2)[:, None]
            return off * c.sigma[:, None] - x_0
        ends = self.table(float(s[0]), float(t[0]))
        place = length.clamp(max=7.999) * 1000
        low = place.detach().floor().long()
        end = ends[low] + (place - low) * (ends[low + 1] - ends[low])
        return x * ((end / length - 1) / (t - s))[:, None]


def curve(x: Tensor) -> Tensor:
    """A thin closed curve on the ring: -|r - 2 - .2 cos 3 theta|^2 / 2 (.06)^2."""
    angle = torch.atan2(x[:, 1], x[:, 0])
    return -0.5 * ((x.norm(dim=1) - 2 - 0.2 * torch.cos(3 * angle)) / 0.06).square()
