r"""Worlds where everything is known: data laws with exact velocities, posteriors and flow maps.

They prove losses right (`tests/`), serve as teachers, and show in the docs what a method should find. The three facts
behind them (methods.md 6):

* Gaussian data: $X(x,s,t) = \alpha_t\mu + \Lambda_t\Lambda_s^{-1}(x-\alpha_s\mu)$, $\Lambda_t^2 = \alpha_t^2 C+\sigma_t^2$;
* mixtures: the velocity is the responsibility-weighted mean of the components' Gaussian velocities;
* one dimension: the probability flow preserves quantiles, $X(x,s,t) = P_t^{-1}(P_s(x))$, for any law; products and
  rotations carry that to any dimension, because isotropic noise commutes with both.
"""

import math
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, final

import torch
from torch import Generator, Tensor

from .flow_map import FlowMap, SolvedFlowMap
from .interpolant import Interpolant
from .shape import like
from .solver import RK4


class Endpoints(NamedTuple):
    """Clean data and noise, each (..., *D)."""

    x_0: Tensor
    eps: Tensor


class World(Protocol):
    """A data law on a path, with all that follows from it in closed form.

    Shapes: points (B, D), times (B,). Everything follows the dtype of its arguments; float64 is meant.
    """

    @property
    def interpolant(self) -> Interpolant: ...

    def sample(self, n: int, generator: Generator) -> Tensor:
        """N draws of clean data (n, D)."""
        ...

    def velocity(self, x: Tensor, t: Tensor, **cond: Any) -> Tensor:
        """The exact velocity $b_t(x)$ (B, D)."""
        ...

    def posterior(self, x: Tensor, t: Tensor, n: int, generator: Generator) -> Endpoints:
        r"""N exact draws of $(x_0, \varepsilon)$ given $x_t = x$, each (n, B, D)."""
        ...

    @property
    def flow_map(self) -> FlowMap:
        """The flow map: exact where a closed form exists, else RK4 in the dtype of its input."""
        ...


@final
class ExactFlowMap(FlowMap):
    """A closed-form map: an endpoint function X(x, s, t) and the velocity that it takes at s = t."""

    def __init__(self, world: "Gaussian | Product | Rotated") -> None:
        super().__init__()
        self.world = world
        self.interpolant = world.interpolant

    def mean_velocity(self, x: Tensor, s: Tensor, t: Tensor, **cond: Any) -> Tensor:
        same = s == t
        if bool(same.all()):
            return self.world.velocity(x, s)
        target = torch.where(same, 0.5 * s + 0.125, t)  # another time: both branches are computed
        u = (self.world.endpoint(x, s, target) - x) / like(torch.where(same, 1.0, target - s), x)
        return torch.where(like(same, x), self.world.velocity(x, s), u)


@final
@dataclass(frozen=True, eq=False)
class Gaussian:
    r"""$x_0 \sim N(\mu, \mathrm{diag}(std^2))$, both (D,); rotate it with `Rotated` for a full covariance.

    Example:
        >>> from flowmaps.core.interpolant import linear
        >>> world = Gaussian(torch.tensor([0.7, -1.0]), torch.tensor([0.5, 1.3]), linear())
        >>> world.flow_map(torch.zeros(1, 2), 1.0, 0.0)
        tensor([[ 0.7000, -1.0000]])
    """

    mean: Tensor
    std: Tensor
    interpolant: Interpolant

    @property
    def flow_map(self) -> ExactFlowMap:
        return ExactFlowMap(self)

    def sample(self, n: int, generator: Generator) -> Tensor:
        noise = torch.randn(n, len(self.mean), generator=generator, dtype=self.mean.dtype)
        return self.mean + self.std * noise

    def marginal(self, t: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of $x_t$, each broadcastable to `x`."""
        c = self.interpolant.at(t, x)
        return c.alpha * self.mean, torch.sqrt(
            c.alpha.square() * self.std.square() + c.sigma.square()
        )

    def velocity(self, x: Tensor, t: Tensor, **cond: Any) -> Tensor:
        c = self.interpolant.at(t, x)
        mean, std = self.marginal(t, x)
        rate = (c.alpha * c.dalpha * self.std.square() + c.sigma * c.dsigma) / std.square()
        return c.dalpha * self.mean + rate * (x - mean)

    def endpoint(self, x: Tensor, s: Tensor, t: Tensor) -> Tensor:
        """X(x, s, t): whiten at s, colour at t."""
        (mean_s, std_s), (mean_t, std_t) = self.marginal(s, x), self.marginal(t, x)
        return mean_t + std_t / std_s * (x - mean_s)

    def log_prob(self, x: Tensor, t: Tensor) -> Tensor:
        r"""$\log p_t(x)$ (B,)."""
        mean, std = self.marginal(t, x)
        return torch.distributions.Normal(mean, std).log_prob(x).sum(-1)

    def posterior(self, x: Tensor, t: Tensor, n: int, generator: Generator) -> Endpoints:
        c = self.interpolant.at(t, x)
        mean_t, std_t = self.marginal(t, x)
        mean = self.mean + c.alpha * self.std.square() / std_t.square() * (x - mean_t)
        noise = torch.randn(n, *x.shape, generator=generator, dtype=x.dtype)
        return _endpoints(c.alpha, c.sigma, x, mean + self.std * c.sigma / std_t * noise)

    def velocity_variance(self, t: Tensor, x: Tensor) -> Tensor:
        r"""$\mathrm{Var}[\dot x_t | x_t]$ per coordinate: $c^2(\dot\alpha\sigma-\alpha\dot\sigma)^2/(\alpha^2c^2+\sigma^2)$.

        Summed over coordinates it is the floor that no flow-matching loss goes below.
        """
        c = self.interpolant.at(t, x)
        std = self.marginal(t, x)[1]
        return (self.std * (c.dalpha * c.sigma - c.alpha * c.dsigma) / std).square()


@final
@dataclass(frozen=True, eq=False)
class Mixture:
    r"""$x_0 \sim \sum_k w_k N(m_k, \mathrm{diag}(std_k^2))$; weights (K,), means and stds (K, D).

    The velocity is exact in any dimension. The map has no closed form: `flow_map` integrates with RK4 (`steps`).
    """

    weights: Tensor
    means: Tensor
    stds: Tensor
    interpolant: Interpolant
    steps: int = 200

    @property
    def flow_map(self) -> SolvedFlowMap:
        return SolvedFlowMap(self.velocity, self.interpolant, RK4, self.steps)

    def sample(self, n: int, generator: Generator) -> Tensor:
        k = torch.multinomial(self.weights, n, replacement=True, generator=generator)
        noise = torch.randn(n, self.means.shape[1], generator=generator, dtype=self.means.dtype)
        return self.means[k] + self.stds[k] * noise

    def components(self, t: Tensor, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Responsibilities (B, K, 1), means (B, K, D) and stds (B, K, D) of the components of $p_t$ at `x`."""
        c = self.interpolant.at(t, x[:, None])
        means = c.alpha * self.means
        stds = torch.sqrt(c.alpha.square() * self.stds.square() + c.sigma.square())
        score = -0.5 * ((x[:, None] - means) / stds).square() - stds.log()
        return torch.softmax(self.weights.log() + score.sum(-1), 1)[..., None], means, stds

    def velocity(self, x: Tensor, t: Tensor, **cond: Any) -> Tensor:
        c = self.interpolant.at(t, x[:, None])
        share, means, stds = self.components(t, x)
        rate = (c.alpha * c.dalpha * self.stds.square() + c.sigma * c.dsigma) / stds.square()
        return (share * (c.dalpha * self.means + rate * (x[:, None] - means))).sum(1)

    def log_prob(self, x: Tensor, t: Tensor) -> Tensor:
        r"""$\log p_t(x)$ (B,)."""
        _, means, stds = self.components(t, x)
        each = torch.distributions.Normal(means, stds).log_prob(x[:, None]).sum(-1)
        return torch.logsumexp(self.weights.log() + each, 1)

    def posterior(self, x: Tensor, t: Tensor, n: int, generator: Generator) -> Endpoints:
        c = self.interpolant.at(t, x)
        share, means, stds = self.components(t, x)
        k = torch.multinomial(share[..., 0], n, replacement=True, generator=generator).T  # (n, B)
        rows = torch.arange(len(x))
        m, std, std_t = self.means[k], self.stds[k], stds[rows, k]
        mean = m + c.alpha * std.square() / std_t.square() * (x - means[rows, k])
        noise = torch.randn(n, *x.shape, generator=generator, dtype=x.dtype)
        return _endpoints(c.alpha, c.sigma, x, mean + std * c.sigma / std_t * noise)


@final
@dataclass(frozen=True, eq=False)
class Product:
    """Independent coordinates, each a 1-D Gaussian mixture: weights, means and stds, all (K, D).

    The flow map is exact: coordinate by coordinate it preserves quantiles.
    """

    weights: Tensor
    means: Tensor
    stds: Tensor
    interpolant: Interpolant

    @property
    def flow_map(self) -> ExactFlowMap:
        return ExactFlowMap(self)

    def _coordinates(self, t: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        """Means and stds of the components of $p_t$, (B, K, D)."""
        c = self.interpolant.at(t, x[:, None])
        return c.alpha * self.means, torch.sqrt(
            c.alpha.square() * self.stds.square() + c.sigma.square()
        )

    def sample(self, n: int, generator: Generator) -> Tensor:
        k = torch.multinomial(
            self.weights.T.contiguous(), n, replacement=True, generator=generator
        ).T
        noise = torch.randn(n, self.means.shape[1], generator=generator, dtype=self.means.dtype)
        return self.means.gather(0, k) + self.stds.gather(0, k) * noise

    def density(self, x: Tensor, t: Tensor) -> Tensor:
        """Marginal density of every coordinate of $x_t$ (B, D)."""
        means, stds = self._coordinates(t, x)
        return (
            self.weights * torch.distributions.Normal(means, stds).log_prob(x[:, None]).exp()
        ).sum(1)

    def tail(self, x: Tensor, t: Tensor, side: Tensor) -> Tensor:
        r"""$P(x_t \le x)$ where `side` is -1 and $P(x_t > x)$ where it is +1, per coordinate: small tails keep digits."""
        means, stds = self._coordinates(t, x)
        z = side[:, None] * (x[:, None] - means) / (stds * math.sqrt(2))
        return (self.weights * 0.5 * torch.special.erfc(z)).sum(1)

    def velocity(self, x: Tensor, t: Tensor, **cond: Any) -> Tensor:
        c = self.interpolant.at(t, x[:, None])
        means, stds = self._coordinates(t, x)
        score = -0.5 * ((x[:, None] - means) / stds).square() - stds.log()
        share = torch.softmax(self.weights.log() + score, 1)
        rate = (c.alpha * c.dalpha * self.stds.square() + c.sigma * c.dsigma) / stds.square()
        return (share * (c.dalpha * self.means + rate * (x[:, None] - means))).sum(1)

    def endpoint(self, x: Tensor, s: Tensor, t: Tensor) -> Tensor:
        """X(x, s, t) = P_t^{-1}(P_s(x)): bisection for the value, one Newton step for value and derivatives.

        The Newton step is written so that forward- and reverse-mode AD through it give the implicit derivative.
        """
        with torch.no_grad():
            side = torch.where(self.tail(x, s, torch.ones_like(x)) < 0.5, 1.0, -1.0).to(x.dtype)
            root = self._bisect(self.tail(x, s, side), t, side, x)
            slope = -side * self.density(root, t)
        return root - (self.tail(root, t, side) - self.tail(x, s, side)) / slope

    def _bisect(self, value: Tensor, t: Tensor, side: Tensor, x: Tensor) -> Tensor:
        means, stds = self._coordinates(t, x)
        low, high = (means - 40 * stds).amin(1), (means + 40 * stds).amax(1)
        for _ in range(
            60
        ):  # 2^-60 of any bracket is at float64 resolution, and a Newton step follows
            middle = (low + high) / 2
            right = (
                self.tail(middle, t, side) - value
            ) * side > 0  # the root lies above the middle
            low, high = torch.where(right, middle, low), torch.where(right, high, middle)
        return (low + high) / 2

    def posterior(self, x: Tensor, t: Tensor, n: int, generator: Generator) -> Endpoints:
        c = self.interpolant.at(t, x)
        means, stds = self._coordinates(t, x)
        score = -0.5 * ((x[:, None] - means) / stds).square() - stds.log()
        share = torch.softmax(self.weights.log() + score, 1).movedim(1, 2)  # (B, D, K)
        k = torch.multinomial(share.flatten(0, 1), n, replacement=True, generator=generator).T
        k = k.reshape(n, *x.shape)
        rows, columns = torch.arange(len(x))[:, None], torch.arange(x.shape[1])
        m, std, std_t = self.means[k, columns], self.stds[k, columns], stds[rows, k, columns]
        mean = m + c.alpha * std.square() / std_t.square() * (x - means[rows, k, columns])
        noise = torch.randn(n, *x.shape, generator=generator, dtype=x.dtype)
        return _endpoints(c.alpha, c.sigma, x, mean + std * c.sigma / std_t * noise)


@final
@dataclass(frozen=True, eq=False)
class Rotated:
    r"""Another world turned by an orthogonal matrix (D, D): $x_0 = R\,y_0$. Isotropic noise does not notice."""

    world: Gaussian | Product
    rotation: Tensor

    @property
    def interpolant(self) -> Interpolant:
        return self.world.interpolant

    @property
    def flow_map(self) -> ExactFlowMap:
        return ExactFlowMap(self)

    def sample(self, n: int, generator: Generator) -> Tensor:
        return self.world.sample(n, generator) @ self.rotation.T

    def velocity(self, x: Tensor, t: Tensor, **cond: Any) -> Tensor:
        return self.world.velocity(x @ self.rotation, t) @ self.rotation.T

    def endpoint(self, x: Tensor, s: Tensor, t: Tensor) -> Tensor:
        return self.world.endpoint(x @ self.rotation, s, t) @ self.rotation.T

    def posterior(self, x: Tensor, t: Tensor, n: int, generator: Generator) -> Endpoints:
        draws = self.world.posterior(x @ self.rotation, t, n, generator)
        return Endpoints(draws.x_0 @ self.rotation.T, draws.eps @ self.rotation.T)


@final
@dataclass(frozen=True, eq=False)
class Checkerboard:
    r"""The uniform law on the dark squares of a board: a non-Gaussian world with an exact velocity.

    A mixture of uniform boxes. Given its box, $x_0$ has independent truncated-normal coordinates with mean
    $x/\alpha$ and standard deviation $\sigma/\alpha$, so $D_t(x)$ is a ratio of error functions.

    Attributes:
        interpolant: The path (needs $\alpha_t > 0$ for t < 1).
        cells: Squares per side.
        half: Half the width of the board; squares have side 2 half / cells.
        steps: RK4 steps of `flow_map`.
    """

    interpolant: Interpolant
    cells: int = 4
    half: float = 2.0
    steps: int = 400

    @property
    def flow_map(self) -> SolvedFlowMap:
        return SolvedFlowMap(self.velocity, self.interpolant, RK4, self.steps)

    def corners(self, x: Tensor) -> tuple[Tensor, float]:
        """Lower corners of the dark squares (K, 2) and their side."""
        side = 2 * self.half / self.cells
        index = torch.arange(self.cells, dtype=x.dtype, device=x.device)
        grid = torch.cartesian_prod(index, index)
        return grid[grid.sum(1) % 2 == 0] * side - self.half, side

    def sample(self, n: int, generator: Generator) -> Tensor:
        low, side = self.corners(torch.zeros(()))
        k = torch.randint(len(low), (n,), generator=generator)
        return low[k] + side * torch.rand(n, 2, generator=generator)

    def _boxes(self, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """Log-weights of the boxes (B, K), up to a constant per row, and the posterior means of $x_0$ (B, K, 2)."""
        low, side = self.corners(x)
        c = self.interpolant.at(t, x[:, None])
        narrow = c.alpha * side < 1e-3 * c.sigma  # boxes narrower than the noise by far
        centre = x[:, None] / torch.where(narrow, 1.0, c.alpha)
        scale = c.sigma / torch.where(narrow, 1.0, c.alpha)
        a, b = (low - centre) / scale, (low + side - centre) / scale
        # by symmetry work in the left tail, where differences of the normal CDF keep their digits
        a, b, flip = (
            torch.where(a > 0, -b, a),
            torch.where(a > 0, -a, b),
            torch.where(a > 0, -1.0, 1.0),
        )
        log_a, log_b = torch.special.log_ndtr(a), torch.special.log_ndtr(b)
        log_mass = log_b + torch.log(-torch.expm1((log_a - log_b).clamp(max=-1e-12)))
        norm = -0.5 * math.log(2 * math.pi)
        pull_a, pull_b = (torch.exp(norm - 0.5 * z.square() - log_mass) for z in (a, b))
        mean = centre + scale * flip * (pull_a - pull_b)
        # in a narrow box the normal density is a line: its moments, without the cancellation (relative error 1e-9)
        width, middle = c.alpha * side / c.sigma, low + side / 2
        z = (c.alpha * middle - x[:, None]) / c.sigma
        log_line = -0.5 * z.square() + (z.square() - 1) * width.square() / 24
        mass = torch.where(narrow, log_line, log_mass).sum(-1)
        return mass, torch.where(narrow, middle - side * width * z / 12, mean)

    def velocity(self, x: Tensor, t: Tensor, **cond: Any) -> Tensor:
        # at t = 0 the posterior is a point and the noise 0/0; 1e-6 is the same field to 1e-6.
        # float64, because next to the data the exponents are squares of 1e6
        time, point = t.double().clamp(min=max(self.interpolant.t_min, 1e-6)), x.double()
        weight, means = self._boxes(point, time)
        x_0 = (torch.softmax(weight, 1)[..., None] * means).sum(1)
        v = self.interpolant.convert(x_0, point, time, source="x0", target="velocity")
        return v.to(x.dtype)

    def posterior(self, x: Tensor, t: Tensor, n: int, generator: Generator) -> Endpoints:
        low, side = self.corners(x)
        c = self.interpolant.at(t, x)
        weight = torch.softmax(self._boxes(x, t)[0], 1)
        k = torch.multinomial(weight, n, replacement=True, generator=generator).T
        centre, scale = x / c.alpha, c.sigma / c.alpha
        a, b = (low[k] - centre) / scale, (low[k] + side - centre) / scale
        p_a, p_b = torch.special.ndtr(a), torch.special.ndtr(b)
        mix = p_a + (p_b - p_a) * torch.rand(n, *x.shape, generator=generator, dtype=x.dtype)
        x_0 = (centre + scale * torch.special.ndtri(mix)).clamp(low[k], low[k] + side)
        return _endpoints(c.alpha, c.sigma, x, x_0)


def _endpoints(alpha: Tensor, sigma: Tensor, x: Tensor, x_0: Tensor) -> Endpoints:
    return Endpoints(x_0, (x - alpha * x_0) / sigma)
