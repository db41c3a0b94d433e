# budget: five ways to restore share one setting and are compared line by line
r"""Restoration: what data can have been seen as $y = A x + \sigma n$? Draws of the posterior, or its best point.

| method | exact for | costs per draw | needs |
|---|---|---|---|
| `PiGDM` with the Jacobian | Gaussian data | a few backward passes per step | the velocity |
| `NoisePosterior` | any law, if the map is exact | a jump per proposal | the map |
| `Denoise` | any law, A = identity | one posterior jump | the velocity |
| `PlugAndPlay` | nothing: a sharp, consistent picture | a jump per step | the map |
| `NoiseMAP` | Gaussian data: the posterior mean | a backward pass per iteration | the map |

A Gaussian world tells them apart: its posterior is known.
"""

import itertools
import math
from dataclasses import dataclass
from typing import Any, Literal, Protocol, final

import torch
from torch import Generator, Tensor

from ..core.flow_map import FlowMap
from ..core.shape import Time, as_time
from ..core.solver import HEUN, Solver
from ..errors import ControlError
from ..learn.weights import AtData
from ..sample import solve
from .budget import Budget, Result
from .conditions import ONE_JUMP, prior_scale, spread
from .mcmc import MALA, Move, Slice, Target
from .operators import Measurement, Operator, conjugate_gradient
from .posterior import posterior_map


class Restorer(Protocol):
    """A way to restore: noise (N, *D) and as many measurements to restored data (N, *D)."""

    def __call__(
        self,
        flow_map: FlowMap,
        seen: Measurement,
        noise: Tensor,
        generator: Generator,
        **cond: Any,
    ) -> Tensor: ...


@final
@dataclass(frozen=True)
class PiGDM:
    r"""The probability flow guided by a Gaussian approximation of $p(x_0|x_t)$ (PiGDM, Song et al. 2023).

    With D and C the mean and covariance of $x_0$ given $x_t$, the guided mean is
    $D + C A^\top(\sigma_y^2 + A C A^\top)^{-1}(y - A D)$, by conjugate gradients; the velocity follows from it. What stands for C:

    * "jacobian": $C = (\sigma_t^2/\alpha_t)\,\partial D/\partial x$, the exact covariance of an exact denoiser, by backward passes
      (one per CG iteration). For Gaussian data the noise is then carried to the posterior itself, mean and covariance;
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

    def __call__(
        self,
        flow_map: FlowMap,
        seen: Measurement,
        noise: Tensor,
        generator: Generator,
        **cond: Any,
    ) -> Tensor:
        path = flow_map.interpolant

        def guided(x: Tensor, t: Tensor, **cond: Any) -> Tensor:
            time = as_time(t, x)
            v = flow_map.velocity(x, time, **cond)
            x_0, eps = path.endpoints(v, x, time, "velocity")
            shift = self.shift(flow_map, seen, x, time.clamp(max=self.latest), **cond)
            c = path.at(time, x)
            # the point stays: a shift of its clean part is taken from its noise
            clean = c.sigma == 0
            pull = torch.where(clean, 0.0, c.alpha / torch.where(clean, 1.0, c.sigma))
            return c.dalpha * (x_0 + shift) + c.dsigma * (eps - pull * shift)

        times = torch.linspace(1, 0, self.steps + 1, dtype=torch.float64)
        return solve(guided, noise, times, path, self.solver, **cond)

    def shift(
        self, flow_map: FlowMap, seen: Measurement, x: Tensor, t: Tensor, **cond: Any
    ) -> Tensor:
        """By how much the measurement moves the denoised mean at `x` (B, *D) and times (B,)."""
        c = flow_map.interpolant.at(t, x)
        with torch.enable_grad():
            point = x.detach().requires_grad_()
            mean = flow_map.denoise(point, t, **cond)

        def covariance(w: Tensor) -> Tensor:
            slope = torch.autograd.grad(mean, point, w, retain_graph=True)[0]
            return c.sigma.square() / c.alpha * slope

        spread = c.sigma.square() * self.scale**2
        spread = spread / (c.sigma.square() + c.alpha.square() * self.scale**2)

        def inner(w: Tensor) -> Tensor:
            lifted = seen.back(w, x)
            if self.covariance == "zero":
                return seen.sigma**2 * w
            through = covariance(lifted) if self.covariance == "jacobian" else spread * lifted
            return seen.sigma**2 * w + seen.operator(through)

        wanted = seen.misfit(mean.detach())
        return covariance(seen.back(conjugate_gradient(inner, wanted, self.iterations), x))


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

    def __call__(
        self,
        flow_map: FlowMap,
        seen: Measurement,
        noise: Tensor,
        generator: Generator,
        **cond: Any,
    ) -> Tensor:
        path = flow_map.interpolant
        times = torch.linspace(1, 0, self.steps + 1, dtype=torch.float64).tolist()
        x = x_0 = noise
        for s, t in itertools.pairwise(times):
            source, target = as_time(s, x), as_time((1 - self.reach) * s, x)
            a, b = path.at(source, x), path.at(as_time(t, x), x)
            ahead = denoised(flow_map, x, source, target, **cond)
            spread = a.sigma.square() + a.alpha.square() * self.scale**2
            x_0 = self._fit(seen, ahead, a.sigma.square() * self.scale**2 / spread)
            fresh = torch.randn(x.shape, generator=generator, dtype=x.dtype).to(x.device)
            x = b.alpha * x_0 + b.sigma * fresh
        return x_0

    def _fit(self, seen: Measurement, x: Tensor, spread: Tensor) -> Tensor:
        def inner(w: Tensor) -> Tensor:
            return seen.sigma**2 * w + seen.operator(spread * seen.back(w, x))

        w = conjugate_gradient(inner, seen.misfit(x), self.iterations)
        return x + spread * seen.back(w, x)


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

    def __call__(
        self,
        flow_map: FlowMap,
        seen: Measurement,
        noise: Tensor,
        generator: Generator,
        **cond: Any,
    ) -> Tensor:
        full = prior_scale(flow_map.interpolant)
        z = (noise / full).detach().clone().requires_grad_()
        search = torch.optim.LBFGS(
            [z],
            max_iter=self.iterations,
            history_size=20,
            tolerance_grad=1e-9,
            tolerance_change=1e-12,
            line_search_fn="strong_wolfe",
        )

        def loss() -> Tensor:
            value = 0.5 * z.square().sum() - seen(flow_map(full * z, 1.0, 0.0, **cond)).sum()
            z.grad = torch.autograd.grad(value, z)[0]
            return value

        with torch.enable_grad():
            search.step(loss)  # pyright: ignore[reportArgumentType]
        return flow_map(full * z.detach(), 1.0, 0.0, **cond)


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

    def __call__(
        self,
        flow_map: FlowMap,
        seen: Measurement,
        noise: Tensor,
        generator: Generator,
        **cond: Any,
    ) -> Tensor:
        move: Move = self.move or MALA(0.3)
        target = Target(flow_map, seen, ONE_JUMP, cond)
        state = target(noise / target.scale, gradient=move.gradient)
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

    def __call__(
        self,
        flow_map: FlowMap,
        seen: Measurement,
        noise: Tensor,
        generator: Generator,
        **cond: Any,
    ) -> Tensor:
        probe = torch.randn(noise.shape, generator=Generator().manual_seed(0)).to(noise)
        if not torch.allclose(seen.operator(probe), probe):
            raise ControlError(
                "Denoise needs the identity as operator; masks and blurs go to PiGDM or NoisePosterior"
            )
        path = flow_map.interpolant
        level = torch.tensor(-math.log(seen.sigma), dtype=noise.dtype, device=noise.device)
        c = path.time_at(level).clamp(0, 1)
        x = path.alpha(c) * seen.y.to(noise)
        draw = posterior_map(flow_map, steps=self.steps)
        return draw(noise, 1.0, 0.0, context=x, context_time=as_time(c, x), **cond)


@final
@dataclass(frozen=True, eq=False, kw_only=True)
class Restored(Result):
    r"""What `restore` found: in `x` the draws (N, B, *D).

    Attributes:
        residual: $|y-Ax|^2/(m\sigma^2)$ of every draw (N, B): about 1 if the noise is as claimed, below it the noise was fitted.
    """

    residual: Tensor

    @property
    def mean(self) -> Tensor:
        """The mean over draws (B, *D): the least-squares restoration."""
        return self.x.mean(0)

    @property
    def std(self) -> Tensor:
        """The deviation over draws (B, *D): where not to trust it."""
        return self.x.std(0, unbiased=len(self.x) > 1)


def restore(
    flow_map: FlowMap,
    y: Tensor,
    operator: Operator,
    sigma: float,
    *,
    shape: tuple[int, ...],
    method: Restorer | None = None,
    draws: int = 1,
    generator: Generator,
    **cond: Any,
) -> Restored:
    """Data that can have been measured as `y`, under the law of a flow map.

    Args:
        flow_map: Any flow map.
        y: Measurements (B, *M).
        operator: The linear measurement: `Mask`, `Blur`, `Downsample`, `Matrix`, or any linear function torch can differentiate.
        sigma: Deviation of the measurement's noise; never less than the true one.
        shape: Of one datum, (*D).
        method: How; `PiGDM()` by default.
        draws: Draws per measurement, from independent noises.
        generator: CPU generator; it advances.
        cond: Conditioning, tensors with a leading B.

    Raises:
        ControlError: If the operator is not linear or does not fit, or sigma is not positive.
    """
    seen = Measurement(y, operator, sigma)
    like_one = torch.zeros(len(y), *shape, dtype=y.dtype, device=y.device)
    seen.check(like_one)
    noise = flow_map.interpolant.prior((draws * len(y), *shape), generator).to(like_one)
    given = {
        key: value.repeat(draws, *[1] * (value.ndim - 1)) if isinstance(value, Tensor) else value
        for key, value in spread(cond, len(y)).items()
    }
    with torch.no_grad(), Budget() as budget:
        watched = budget.watch(flow_map)
        found = (method or PiGDM())(watched, seen.repeat(draws), noise, generator, **given)
    x = found.reshape(draws, len(y), *shape)
    residual = seen.repeat(draws).residual(found).reshape(draws, len(y))
    return Restored(x=x, cost=budget.cost, residual=residual)


def coverage(
    draws: Tensor, truth: Tensor, levels: tuple[float, ...] = (0.68, 0.95)
) -> dict[float, float]:
    """How often the truth lies in the central interval of the draws.

    By ranks: calibrated draws put it in each of N + 1 gaps equally often, so they cover a level as often as it says at any N.

    Draws are (N, B, *D), what was drawn first is (B, *D).
    """
    width = 1 / (len(draws) + 1)
    low = (draws < truth).double().sum(0) * width

    def covered(level: float) -> float:
        top, bottom = (low + width).clamp(max=(1 + level) / 2), low.clamp(min=(1 - level) / 2)
        return float((top - bottom).clamp(min=0).mean() / width)

    return {level: covered(level) for level in levels}
