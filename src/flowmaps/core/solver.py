r"""Solvers of $dx/dt = b_t(x)$, as data: each states its order, and a test measures it.

A solver carries points along a grid of times. Runge-Kutta methods work on the velocity; the multistep methods of
diffusion (DPM-Solver++, UniPC) work on the denoiser $D$ in log-SNR time $\lambda$, where the equation is linear but
for $D$ and the linear part is exact: $x_t = (\sigma_t/\sigma_s) x_s + \sigma_t\int_{\lambda_s}^{\lambda_t} e^\lambda D\,d\lambda$.
"""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol, final

import torch
from torch import Tensor

from .interpolant import Interpolant
from .shape import like
from .velocity import Velocity


class Solver(Protocol):
    """A one-pass integrator of a velocity field along a grid of times.

    Attributes:
        name: What reports call it.
        order: Claimed order: the error at a fixed time is O(h^order).
    """

    @property
    def name(self) -> str: ...
    @property
    def order(self) -> int: ...

    def evaluations(self, steps: int) -> int | None:
        """Network calls for `steps` steps, or None when they depend on the problem."""
        ...

    def integrate(
        self, velocity: Velocity, x: Tensor, times: Tensor, path: Interpolant, **cond: Any
    ) -> Iterator[Tensor]:
        """Carry `x` (B, *D) at `times[0]` through `times[1:]`, yielding the point at each of them.

        `times` is (K+1,) or, with a grid for every sample, (K+1, B).
        """
        ...


@final
@dataclass(frozen=True)
class RungeKutta:
    """An explicit Runge-Kutta method: its Butcher tableau (a, b, c)."""

    name: str
    order: int
    a: tuple[tuple[float, ...], ...]
    b: tuple[float, ...]
    c: tuple[float, ...]

    def evaluations(self, steps: int) -> int:
        return steps * len(self.b)

    def integrate(
        self, velocity: Velocity, x: Tensor, times: Tensor, path: Interpolant, **cond: Any
    ) -> Iterator[Tensor]:
        field = _bounded(velocity, path)
        for s, t in itertools.pairwise(times):
            x = x + like(t - s, x) * self.slope(field, x, s, t, **cond)
            yield x

    def slope(self, velocity: Velocity, x: Tensor, s: Tensor, t: Tensor, **cond: Any) -> Tensor:
        """The mean velocity of one step: the step is `x + (t - s) * slope`."""
        k: list[Tensor] = []
        for row, node in zip(self.a, self.c, strict=True):
            point = x + like(t - s, x) * _combine(row, k) if row else x
            k.append(velocity(point, s + node * (t - s), **cond))
        return _combine(self.b, k)


def _bounded(velocity: Velocity, path: Interpolant) -> Velocity:
    """The field, never asked below `path.t_min`, where the VP path's velocity is infinite."""

    def bounded(x: Tensor, t: Tensor, **cond: Any) -> Tensor:
        return velocity(x, t.clamp(min=path.t_min), **cond)

    return bounded if path.t_min else velocity


def _combine(weights: tuple[float, ...], k: list[Tensor]) -> Tensor:
    terms = [w * k_i for w, k_i in zip(weights, k, strict=True) if w]
    return sum(terms[1:], start=terms[0])


EULER = RungeKutta("euler", 1, ((),), (1.0,), (0.0,))
MIDPOINT = RungeKutta("midpoint", 2, ((), (0.5,)), (0.0, 1.0), (0.0, 0.5))
HEUN = RungeKutta("heun", 2, ((), (1.0,)), (0.5, 0.5), (0.0, 1.0))
RK4 = RungeKutta(
    "rk4",
    4,
    ((), (0.5,), (0.0, 0.5), (0.0, 0.0, 1.0)),
    (1 / 6, 1 / 3, 1 / 3, 1 / 6),
    (0.0, 0.5, 0.5, 1.0),
)


@final
@dataclass(frozen=True)
class DormandPrince:
    """The adaptive fifth-order method of Dormand and Prince, by torchdiffeq, to a tolerance instead of a step count.

    Grid intervals are integrated one after the other; inside an interval the solver chooses its own steps, the same for
    the whole batch (the error norm is taken over the batch).
    """

    rtol: float = 1e-6
    atol: float = 1e-8
    name: str = "dopri5"
    order: int = 5

    def evaluations(self, steps: int) -> None:
        return None

    def integrate(
        self, velocity: Velocity, x: Tensor, times: Tensor, path: Interpolant, **cond: Any
    ) -> Iterator[Tensor]:
        from torchdiffeq import odeint  # pyright: ignore[reportMissingTypeStubs]

        bounded = _bounded(velocity, path)
        for s, t in itertools.pairwise(times):
            gap = t - s

            def field(tau: Tensor, point: Tensor, s: Tensor = s, gap: Tensor = gap) -> Tensor:
                # one clock tau in [0, 1] for rows whose intervals differ
                return like(gap, point) * bounded(point, s + gap * tau.to(s.dtype), **cond)

            clock = torch.tensor([0.0, 1.0], dtype=x.dtype, device=x.device)
            x = odeint(field, x, clock, rtol=self.rtol, atol=self.atol, method="dopri5")[-1]  # pyright: ignore
            yield x


@final
@dataclass(frozen=True)
class DDIM:
    """The exact step with a constant denoiser (Song et al. 2021, arXiv:2010.02502, eta = 0): Euler in log-SNR time."""

    name: str = "ddim"
    order: int = 1

    def evaluations(self, steps: int) -> int:
        return steps

    def integrate(
        self, velocity: Velocity, x: Tensor, times: Tensor, path: Interpolant, **cond: Any
    ) -> Iterator[Tensor]:
        for s, t in itertools.pairwise(times):
            x_0, eps = path.endpoints(velocity(x, s, **cond), x, s, "velocity")
            c = path.at(t, x)
            x = c.alpha * x_0 + c.sigma * eps
            yield x


@final
@dataclass(frozen=True)
class DPMSolverPP:
    r"""DPM-Solver++(2M) (Lu et al. 2022, arXiv:2211.01095, algorithm 2): one call per step, second order.

    $x_t = (\sigma_t/\sigma_s)x + (\alpha_t-\alpha_s\sigma_t/\sigma_s)\tilde D$ with
    $\tilde D = D_i + \frac{1}{2r}(D_i-D_{i-1})$, $r = h_{i-1}/h_i$, $h$ the log-SNR steps. The first step and a last
    step into clean data ($\lambda = \infty$) are first order, as in the paper.
    """

    name: str = "dpm++2m"
    order: int = 2

    def evaluations(self, steps: int) -> int:
        return steps

    def integrate(
        self, velocity: Velocity, x: Tensor, times: Tensor, path: Interpolant, **cond: Any
    ) -> Iterator[Tensor]:
        past: Tensor | None = None
        before = torch.zeros_like(times[0])
        for s, t in itertools.pairwise(times):
            x_0, eps = path.endpoints(velocity(x, s, **cond), x, s, "velocity")
            h = path.log_snr(t) - path.log_snr(s)
            best = x_0 if past is None else x_0 + like(_ratio(h, before) / 2, x) * (x_0 - past)
            x, past, before = _jump(path, x, best, eps, s, t), x_0, h
            yield x


@final
@dataclass(frozen=True)
class UniPC:
    r"""UniPC-2 in the data-prediction form (Zhao et al. 2023, arXiv:2302.04867), one call per step.

    UniP-2 predicts as `DPMSolverPP`; UniC then redoes the step with $D$ interpolated through its past, present and
    predicted values, weighted by the exact moments of $e^\lambda$. The call at the predicted point is the call that
    the next step needs anyway, so the corrector is free and raises the order to 3 (theorem 3.1). The last point has
    no later call and stays uncorrected.
    """

    name: str = "unipc"
    order: int = 3

    def evaluations(self, steps: int) -> int:
        return steps

    def integrate(
        self, velocity: Velocity, x: Tensor, times: Tensor, path: Interpolant, **cond: Any
    ) -> Iterator[Tensor]:
        def denoise(point: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
            return path.endpoints(velocity(point, t, **cond), point, t, "velocity")

        x_0, eps = denoise(x, times[0])
        change, before = torch.zeros_like(x), torch.zeros_like(times[0])
        for i, (s, t) in enumerate(itertools.pairwise(times)):
            h = path.log_snr(t) - path.log_snr(s)
            reach = _ratio(h, before)
            point = _jump(path, x, x_0 + like(reach / 2, x) * change, eps, s, t)
            if i == len(times) - 2:
                yield point
                return
            ahead, next_eps = denoise(point, t)
            past, coming = _corrector_weights(h, reach)
            best = x_0 - like(past, x) * change + like(coming, x) * (ahead - x_0)
            x = _jump(path, x, best, eps, s, t)
            change, x_0, eps, before = ahead - x_0, ahead, next_eps, h
            yield x


def _corrector_weights(h: Tensor, reach: Tensor) -> tuple[Tensor, Tensor]:
    r"""Weights of $D_{-1}-D_0$ (node $-1/$reach) and $D_1-D_0$ (node 1) in the step's mean of $D$.

    They integrate the interpolating parabola against the normalised weight $e^{h(\tau-1)}$, whose moments are
    $m_k = 1/(1-e^{-h}) - (k/h)\,m_{k-1}$, $m_0 = 1$. Without a past value the weights are (0, 1/2).
    """
    usable = (reach > 0) & torch.isfinite(h)
    node = -1 / torch.where(usable, reach, 1.0)
    short = h.abs() < 0.05  # there the moments cancel; their series are exact to h^4 / 3e4 < 3e-10
    step = torch.where(usable & ~short, h, 1.0)
    m1 = -1 / torch.expm1(-step) - 1 / step
    m2 = -1 / torch.expm1(-step) - 2 / step * m1
    m1 = torch.where(short, 1 / 2 + h / 12 - h**3 / 720, m1)
    m2 = torch.where(short, 1 / 3 + h / 12 + h**2 / 360 - h**3 / 720, m2)
    past = (m2 - m1) / (node * (node - 1))
    coming = (m2 - node * m1) / (1 - node)
    alone = torch.where(
        h == -torch.inf, 0.0, 0.5
    )  # out of clean data D has no weight but its first
    return torch.where(usable, past, 0.0), torch.where(usable, coming, alone)


def _ratio(h: Tensor, before: Tensor) -> Tensor:
    """H / h_before; 0 where the last step came from pure noise or this one ends in clean data (both infinite in log-SNR)."""
    usable = torch.isfinite(h) & torch.isfinite(before) & (before != 0)
    return torch.where(usable, h / torch.where(usable, before, 1.0), 0.0)


def _jump(path: Interpolant, x: Tensor, x_0: Tensor, eps: Tensor, s: Tensor, t: Tensor) -> Tensor:
    """The exact step with a constant denoiser (DDIM); `eps` is the noise at (x, s), needed where that point is clean data."""
    a, b = path.at(s, x), path.at(t, x)
    clean = a.sigma == 0
    ratio = b.sigma / torch.where(clean, 1.0, a.sigma)
    return torch.where(
        clean, b.alpha * x_0 + b.sigma * eps, ratio * x + (b.alpha - a.alpha * ratio) * x_0
    )


SOLVERS: dict[str, Solver] = {
    solver.name: solver
    for solver in (EULER, MIDPOINT, HEUN, RK4, DormandPrince(), DDIM(), DPMSolverPP(), UniPC())
}
"""The solvers by name, as the command line knows them."""
