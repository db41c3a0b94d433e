r"""Ways to restore data from a linear measurement: the methods of `restore`.

Each takes a `Problem`, noise (N, *D) and as many measurements, to restored data (N, *D).

| method | exact for | costs per draw | needs |
|---|---|---|---|
| `PiGDM` with the Jacobian | Gaussian data | a few backward passes per step | the velocity |
| `NoisePosterior` | any law, if the map is exact | a jump per proposal | the map |
| `Denoise` | any law, A = identity | one posterior jump | the velocity |
| `PlugAndPlay` | nothing: a sharp, consistent picture | a jump per step | the map |
| `PnPCM` | nothing: the same in fewer steps | a jump per step | the map |
| `NoiseMAP` | Gaussian data: the posterior mean | a backward pass per iteration | the map |
"""

import itertools
import math
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, final

import torch
from torch import Generator, Tensor

from ..core.flow_map import FlowMap
from ..core.shape import Time, as_time, like
from ..core.solver import HEUN, Solver
from ..errors import ControlError
from ..learn.weights import AtData
from ..sample import solve
from .conditions import ONE_JUMP, normal, prior_scale
from .mcmc import MALA, Move, Slice, Target
from .operators import Measurement, conjugate_gradient
from .posterior import posterior_map


@final
@dataclass(frozen=True, eq=False)
class Problem:
    """What a method is given, one row per draw.

    Attributes:
        flow_map: The law of the data.
        seen: Measurements (N, *M).
        noise: Draws of the prior (N, *D) to start from.
        generator: CPU generator; it advances.
        cond: Conditions, tensors with a leading N.
    """

    flow_map: FlowMap
    seen: Measurement
    noise: Tensor
    generator: Generator
    cond: dict[str, Any] = field(default_factory=dict[str, Any])

    def spread(self, t: Tensor, scale: float) -> Tensor:
        r"""$\sigma_t^2s^2/(\sigma_t^2+\alpha_t^2s^2)$: the variance of data of deviation s, seen at times (N,), shaped for x."""
        c = self.flow_map.interpolant.at(t, self.noise)
        return c.sigma.square() * scale**2 / (c.sigma.square() + c.alpha.square() * scale**2)


class Restorer(Protocol):
    """A way to restore."""

    def __call__(self, problem: Problem) -> Tensor:
        """Restored data (N, *D)."""
        ...


@final
@dataclass(frozen=True)
class PiGDM:
    r"""The probability flow guided by a Gaussian approximation of $p(x_0|x_t)$ (PiGDM, Song et al. 2023).

    With D and C the mean and covariance of $x_0$ given $x_t$, the guided mean is
    $D + C A^\top(\sigma_y^2 + A C A^\top)^{-1}(y - A D)$, by conjugate gradients; the velocity follows from it. What stands for C:

    * "jacobian": $C = (\sigma_t^2/\alpha_t)\,\partial D/\partial x$, the exact covariance of an exact denoiser, by backward passes
      (one per CG iteration). For Gaussian data the noise is then carried to the posterior itself, mean and covariance. No
      covariance moves $A D$ beyond y; a network's Jacobian, which is none exactly, may: its shift is shortened to what fits best;
    * "isotropic": $r_t^2 I$, $r_t^2 = \sigma_t^2 s^2/(\sigma_t^2+\alpha_t^2 s^2)$, inside the inverse, the Jacobian outside: PiGDM;
    * "zero": 0 inside the inverse (DPS): over-confident, its covariance is wrong even for Gaussian data.

    Attributes:
        steps: Steps of the solver.
        covariance: See above.
        iterations: CG iterations at most.
        scale: Deviation s of the data, for "isotropic".
        latest: Above this time C is taken at it: at t = 1 it is 0/0, and close by a network's Jacobian is mostly error.
        solver: Method of integration.
    """

    steps: int = 32
    covariance: Literal["jacobian", "isotropic", "zero"] = "jacobian"
    iterations: int = 5
    scale: float = 1.0
    latest: float = 0.98
    solver: Solver = HEUN

    def __post_init__(self) -> None:
        if min(self.steps, self.iterations) < 1 or not 0 < self.latest < 1 or self.scale <= 0:
            raise ControlError(
                f"PiGDM needs steps and iterations of at least 1, 0 < latest < 1 and scale > 0; got {self}"
            )

    def __call__(self, problem: Problem) -> Tensor:
        path = problem.flow_map.interpolant

        def guided(x: Tensor, t: Tensor, **cond: Any) -> Tensor:
            time = as_time(t, x)
            v = problem.flow_map.velocity(x, time, **cond)
            x_0, eps = path.endpoints(v, x, time, "velocity")
            shift = self.shift(problem, x, time.clamp(max=self.latest))
            c = path.at(time, x)
            # the point stays: a shift of its clean part is taken from its noise
            clean = c.sigma == 0
            pull = torch.where(clean, 0.0, c.alpha / torch.where(clean, 1.0, c.sigma))
            return c.dalpha * (x_0 + shift) + c.dsigma * (eps - pull * shift)

        times = torch.linspace(1, 0, self.steps + 1, dtype=torch.float64)
        return solve(guided, problem.noise, times, path, self.solver, **problem.cond)

    def shift(self, problem: Problem, x: Tensor, t: Tensor) -> Tensor:
        """By how much the measurement moves the denoised mean at `x` (N, *D) and times (N,)."""
        flow_map, seen, c = problem.flow_map, problem.seen, problem.flow_map.interpolant.at(t, x)
        with torch.enable_grad():
            point = x.detach().requires_grad_()
            mean = flow_map.denoise(point, t, **problem.cond)

        def covariance(w: Tensor) -> Tensor:
            slope = torch.autograd.grad(mean, point, w, retain_graph=True)[0]
            return c.sigma.square() / c.alpha * slope

        spread = problem.spread(t, self.scale)

        def inner(w: Tensor) -> Tensor:
            lifted = seen.back(w, x)
            if self.covariance == "zero":
                return seen.sigma**2 * w
            through = covariance(lifted) if self.covariance == "jacobian" else spread * lifted
            return seen.sigma**2 * w + seen.operator(through)

        wanted = seen.misfit(mean.detach())
        shift = covariance(seen.back(conjugate_gradient(inner, wanted, self.iterations), x))
        if self.covariance != "jacobian":
            return shift
        return _fitting(shift, seen.operator(shift), wanted)


def _fitting(shift: Tensor, moved: Tensor, wanted: Tensor) -> Tensor:
    """The part in [0, 1] of a shift that brings what it has `moved` nearest to what is `wanted`: of a right shift all."""
    along, square = (wanted * moved).flatten(1).sum(1), moved.flatten(1).square().sum(1)
    part = (along / torch.where(square > 0, square, 1.0)).clamp(0, 1)
    return like(torch.where(square > 0, part, 1.0), shift) * shift


def denoised(flow_map: FlowMap, x: Tensor, s: Time, t: Time, **cond: Any) -> Tensor:
    r"""The denoisers of a flow map (arXiv:2606.19802): clean data whose straight way to `x` has the jump's mean velocity.

    On the linear path $x - s\,u(x, s, t)$: at t = s the mean, of least error and blurry; at t = 0 the jump's end, a sample.
    """
    source, target = as_time(s, x), as_time(t, x)
    u = flow_map.mean_velocity(x, source, target, **cond)
    return AtData(flow_map.interpolant)(u, x, source, target)


@final
@dataclass(frozen=True)
class PlugAndPlay:
    r"""Denoise with the map, fit the measurement, noise again (after Flow-map denoisers, arXiv:2606.19802).

    The denoisers are those of `denoised`: reach 0 takes the mean, 1 the end of the jump. What comes out is moved to
    $\arg\min |y-Ax|^2/\sigma_y^2 + |x-\hat x|^2/r_s^2$ and noised to the next time; with reach 1 that is consistency inpainting
    (RePaint with jumps). One call per step, no derivative of the network. The draws differ, but are not calibrated.
    Deviation: the exact proximal step instead of a gradient step of tuned length.

    Attributes:
        steps: Times of the grid.
        reach: 1 jumps to data, 0 takes the mean, between looks ahead by that share of the time.
        scale: Deviation s of the data in $r_t^2 = \sigma_t^2 s^2/(\sigma_t^2+\alpha_t^2 s^2)$.
        iterations: CG iterations of the proximal step at most.
    """

    steps: int = 32
    reach: float = 1.0
    scale: float = 1.0
    iterations: int = 30

    def __post_init__(self) -> None:
        if self.steps < 1 or not 0 <= self.reach <= 1 or self.scale <= 0 or self.iterations < 1:
            raise ControlError(
                f"PlugAndPlay needs steps and iterations of at least 1, 0 <= reach <= 1 and scale > 0; got {self}"
            )

    def __call__(self, problem: Problem) -> Tensor:
        flow_map, seen = problem.flow_map, problem.seen
        path, x, x_0 = flow_map.interpolant, problem.noise, problem.noise
        for s, t in itertools.pairwise(_grid(self.steps)):
            source, target = as_time(s, x), as_time((1 - self.reach) * s, x)
            ahead = denoised(flow_map, x, source, target, **problem.cond)
            x_0 = seen.nearest(ahead, problem.spread(source, self.scale), self.iterations)
            c = path.at(as_time(t, x), x)
            x = c.alpha * x_0 + c.sigma * normal(x, problem.generator)
        return x_0


@final
@dataclass(frozen=True)
class PnPCM:
    r"""Plug and play by ADMM with the jump as its denoiser (PnP-CM, Gulle et al. 2025, arXiv:2509.22736): for few steps.

    Every step fits the measurement near $z-w$, $x = \arg\min|y-Ax|^2/\sigma_y^2+|x-(z-w)|^2/r_s^2$, noises $x+w$ to time s,
    jumps to data, $z = X(\alpha_s(x+w)+\sigma_sn, s, 0)$, and adds to the dual what the two disagree about, $w\leftarrow w+x-z$.
    Deviations: no momentum, and the penalty follows the time, as in `PlugAndPlay`, instead of being tuned per task.

    Attributes:
        steps: Jumps, from times that fall evenly from `start`.
        start: Time of the first.
        scale: Deviation $\tau$ of the data in $r_s^2 = \sigma_s^2\tau^2/(\sigma_s^2+\alpha_s^2\tau^2)$.
        iterations: CG iterations of the fit at most.
    """

    steps: int = 4
    start: float = 0.8
    scale: float = 1.0
    iterations: int = 30

    def __post_init__(self) -> None:
        if min(self.steps, self.iterations) < 1 or not 0 < self.start <= 1 or self.scale <= 0:
            raise ControlError(
                f"PnPCM needs steps and iterations of at least 1, 0 < start <= 1 and scale > 0; got {self}"
            )

    def __call__(self, problem: Problem) -> Tensor:
        flow_map, fresh = problem.flow_map, problem.noise
        x = z = w = torch.zeros_like(fresh)
        for s in _grid(self.steps, self.start)[:-1]:
            time = as_time(s, fresh)
            c = flow_map.interpolant.at(time, fresh)
            x = problem.seen.nearest(z - w, problem.spread(time, self.scale), self.iterations)
            noisy = c.alpha * (x + w) + c.sigma * normal(fresh, problem.generator)
            z = flow_map(noisy, time, 0.0, **problem.cond)
            w = w + x - z
        last = problem.spread(as_time(self.start / self.steps, fresh), self.scale)
        return problem.seen.nearest(z - w, last, self.iterations)


def _grid(steps: int, start: float = 1.0) -> list[float]:
    return torch.linspace(start, 0, steps + 1, dtype=torch.float64).tolist()


@final
@dataclass(frozen=True)
class NoiseMAP:
    r"""The likeliest noise: $\min_z \tfrac12|z|^2 + |y-A X(z,1,0)|^2/2\sigma^2$, by L-BFGS through the jump (D-Flow).

    For Gaussian data it is the posterior mean. `iterations` gradients, at F + B each.
    """

    iterations: int = 50

    def __post_init__(self) -> None:
        if self.iterations < 1:
            raise ControlError(f"NoiseMAP needs iterations of at least 1; got {self.iterations}")

    def __call__(self, problem: Problem) -> Tensor:
        flow_map, full = problem.flow_map, prior_scale(problem.flow_map.interpolant)
        z = (problem.noise / full).detach().clone().requires_grad_()
        search = torch.optim.LBFGS(
            [z],
            max_iter=self.iterations,
            history_size=20,
            tolerance_grad=1e-9,
            tolerance_change=1e-12,
            line_search_fn="strong_wolfe",
        )

        def end(z: Tensor) -> Tensor:
            return flow_map(full * z, 1.0, 0.0, **problem.cond)

        def loss() -> Tensor:
            value = 0.5 * z.square().sum() - problem.seen(end(z)).sum()
            z.grad = torch.autograd.grad(value, z)[0]
            return value

        with torch.enable_grad():
            search.step(loss)  # pyright: ignore[reportArgumentType]
        return end(z.detach())


@final
@dataclass(frozen=True)
class NoisePosterior:
    r"""Draws of $N(z)\,e^{-|y-AX(z,1,0)|^2/2\sigma^2}$ by a Markov chain per draw: the posterior under the law of the map itself.

    Exact in long chains for any law, if the jump is. Stages of falling measurement noise come first and tune
    the step. Cost per iteration F + B with `MALA`, F with `PCN`; far from the answer chains need hundreds.

    Attributes:
        iterations: Moves at the true noise level, after a fifth of them to tune.
        warm: Shares of the log-likelihood of the stages before, a fifth of the iterations each.
        move: A kernel that keeps the prior and sees all rows at once: `MALA()` by default, or `PCN()`.
    """

    iterations: int = 100
    warm: tuple[float, ...] = (0.003, 0.02, 0.1, 0.4)
    move: Move | None = None

    def __post_init__(self) -> None:
        if self.iterations < 1 or isinstance(self.move, Slice):
            raise ControlError(
                "NoisePosterior needs iterations of at least 1 and a move that sees all rows, MALA or PCN: a slice looks at "
                f"some of them, and each has its own measurement; got {self}"
            )

    def __call__(self, problem: Problem) -> Tensor:
        move: Move = self.move or MALA(0.3)
        generator = problem.generator
        target = Target(problem.flow_map, problem.seen, ONE_JUMP, problem.cond)
        state = target(problem.noise / target.scale, gradient=move.gradient)
        for share in (*self.warm, 1.0):
            for _ in range(max(1, self.iterations // 5)):
                state, taken = move(target, state, share, generator)
                move = move.tuned(float(taken.mean()))
        for _ in range(self.iterations):
            state = move(target, state, 1.0, generator)[0]
        return state.x


@final
@dataclass(frozen=True)
class Denoise:
    """A = identity: the posterior of a noisy picture is a posterior map's, exact for any law (one GLASS walk of `steps`)."""

    steps: int = 16

    def __call__(self, problem: Problem) -> Tensor:
        seen, noise, path = problem.seen, problem.noise, problem.flow_map.interpolant
        probe = torch.randn(noise.shape, generator=Generator().manual_seed(0)).to(noise)
        if not torch.allclose(seen.operator(probe), probe):
            raise ControlError(
                "Denoise needs the identity as operator; masks and blurs go to PiGDM or NoisePosterior"
            )
        level = torch.tensor(-math.log(seen.sigma), dtype=noise.dtype, device=noise.device)
        c = path.time_at(level).clamp(0, 1)
        x = path.alpha(c) * seen.y.to(noise)
        draw = posterior_map(problem.flow_map, steps=self.steps)
        return draw(noise, 1.0, 0.0, context=x, context_time=as_time(c, x), **problem.cond)
