r"""Weighted particles: the tilt $p(x)e^{\beta r(x)}$ by sequential Monte Carlo, with its normaliser and its degeneracy.

`tempered_smc` moves noises from the prior to the tilt through rising temperatures: no gradient, score or time grid, exact for
the map's own law. `smc` walks from noise to data, weighs every step by a potential and resamples (Feynman-Kac steering). Both
estimate Z without bias for fixed temperatures, whatever the potential; what the potential changes is the variance.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol, final

import torch
from torch import Generator, Tensor

from ..core.flow_map import FlowMap
from ..errors import ControlError
from ..sample.sample import sample_gamma
from .budget import Budget, Result
from .conditions import ONE_JUMP, pick, spread
from .mcmc import PCN, Move, Target
from .rewards import Reward, Scaled
from .values import LookAhead


@final
@dataclass(frozen=True, eq=False)
class Weighted(Result):
    r"""Particles with weights; averages of the tilt are weighted averages of `x`.

    Attributes:
        log_weights: Unnormalised (N,).
        log_z: Estimate of $\log E_{p}[e^{\beta r}]$.
        log_z_error: Its standard error, from this one run: the larger of two estimates. One adds 1/ESS - 1/N over the
            resamplings, right where moves forget; the other is by families of ancestors (Lee & Whiteley 2018, arXiv:1509.00394),
            right where nothing moves, and near 1 when few families are left.
        ess_history: Effective share of the particles at every step, before resampling.
        ancestors: The initial particle (N,) that each one descends from.
        acceptance: Share of moves taken, where there are moves.
    """

    log_weights: Tensor = torch.empty(0)
    log_z: float = 0.0
    log_z_error: float = math.inf
    ess_history: tuple[float, ...] = ()
    ancestors: Tensor = torch.empty(0, dtype=torch.long)
    acceptance: float | None = None

    @property
    def weights(self) -> Tensor:
        """Normalised (N,)."""
        return torch.softmax(self.log_weights, 0)

    @property
    def ess(self) -> float:
        """Effective number of particles at the end."""
        return ess(self.log_weights) * len(self.log_weights)

    @property
    def families(self) -> float:
        """Effective number of initial particles that are left: 1 / sum of their squared shares."""
        return 1 / max(float(_families(self.weights, self.ancestors).square().sum()), 1e-300)

    @property
    def degenerate(self) -> str:
        """What is wrong, in a sentence; empty when nothing was seen."""
        n, least = len(self.log_weights), min(self.ess_history, default=1.0)
        if least * n < 3 or least < 0.01:
            return (
                f"weights collapsed to {max(1.0, least * n):.1f} of {n} particles: smaller steps (more temperatures or times), "
                "more particles, or a weaker beta"
            )
        if self.families < 5 and not self.acceptance:
            return f"all of {n} particles descend from about {self.families:.1f}: modes can be missing; more particles"
        if self.acceptance is not None and self.acceptance < 0.02:
            return f"{self.acceptance:.1%} of the moves were taken, so copies stay copies: smaller steps"
        return ""

    def resample(self, n: int, generator: Generator) -> Tensor:
        """N draws (n, *D) with equal weights."""
        return self.x[systematic(self.log_weights, generator, n)]


def ess(log_weights: Tensor) -> float:
    r"""Effective share of particles, $(\sum w)^2 / (N\sum w^2)$, in (0, 1]."""
    log = log_weights.double()
    top = 2 * torch.logsumexp(log, 0) - torch.logsumexp(2 * log, 0)
    return float(top.exp()) / len(log)


def systematic(log_weights: Tensor, generator: Generator, n: int | None = None) -> Tensor:
    """Indices (n,) of a systematic resampling: particle i appears n w_i times, rounded up or down."""
    n = n or len(log_weights)
    ladder = torch.softmax(log_weights.double(), 0).cumsum(0)
    ladder = ladder / ladder[-1]
    u = torch.rand(1, generator=generator, dtype=torch.float64).to(ladder.device)
    rungs = (torch.arange(n, device=ladder.device) + u) / n
    # right: a particle without weight, whose rung has no height, is never stood upon
    return torch.searchsorted(ladder, rungs, right=True).clamp(max=len(log_weights) - 1)


class Particles:
    """The ledger of a run: weights since the last resampling, log Z so far, and who descends from whom."""

    def __init__(self, n: int, device: torch.device) -> None:
        if n < 2:
            raise ControlError(f"particles come in twos or more; got {n}")
        self.log_weights = torch.zeros(n, dtype=torch.float64, device=device)
        self.ancestors = torch.arange(n, device=device)
        self.log_z, self.resamplings, self.history = 0.0, 0, list[float]()
        self.variance = 0.0

    def weigh(self, increment: Tensor) -> None:
        """Multiply the weights by exp(increment) (N,).

        Raises:
            ControlError: If no particle is left.
        """
        self.log_weights = self.log_weights + increment.detach().double()
        if not bool((self.log_weights > -torch.inf).any()):
            raise ControlError(
                f"the reward forbids all of {len(increment)} particles (-inf): soften it, or take more particles"
            )
        self.history.append(ess(self.log_weights))

    def resample(self, generator: Generator) -> Tensor:
        """Equal weights again; the indices (N,) of those who live on."""
        chosen = systematic(self.log_weights, generator)
        self.log_z += self._mean()
        self.variance += self._spread()
        self.resamplings += 1
        self.log_weights = torch.zeros_like(self.log_weights)
        self.ancestors = self.ancestors[chosen]
        return chosen

    def _mean(self) -> float:
        n = len(self.log_weights)
        return float(torch.logsumexp(self.log_weights, 0)) - math.log(n)

    def _spread(self) -> float:
        return (1 / ess(self.log_weights) - 1) / len(self.log_weights)

    def result(
        self, x: Tensor, budget: Budget, r: Tensor, accepted: float | None = None
    ) -> Weighted:
        n = len(self.log_weights)
        shares = _families(torch.softmax(self.log_weights, 0), self.ancestors)
        apart = 1 - float(shares.square().sum())
        by_families = 1 - (n / (n - 1)) ** (self.resamplings + 1) * apart
        variance = max(by_families, self.variance + self._spread())
        return Weighted(
            x,
            budget.cost,
            r,
            log_weights=self.log_weights,
            log_z=self.log_z + self._mean(),
            log_z_error=math.sqrt(variance),
            ess_history=tuple(self.history),
            ancestors=self.ancestors,
            acceptance=accepted,
        )


def _families(weights: Tensor, ancestors: Tensor) -> Tensor:
    return torch.zeros_like(weights).index_add(0, ancestors, weights)


@final
@dataclass(frozen=True)
class EvenESS:
    """Temperatures chosen on the way, so that every step keeps a given share of effective particles.

    Attributes:
        share: That share. Choosing by the particles biases Z by O(1/N).
        most: Steps after which the rest is done at once.
    """

    share: float = 0.9
    most: int = 100

    def __post_init__(self) -> None:
        if not 0 < self.share < 1:
            raise ControlError(f"a share of effective particles lies in (0, 1); got {self.share}")

    def next(self, done: float, step: int, log_weight: Tensor) -> float:
        """The next temperature (share of beta) after `done`, for rewards times beta (N,)."""
        if step + 1 >= self.most or ess((1 - done) * log_weight) >= self.share:
            return 1.0
        low, high = 0.0, 1 - done
        for _ in range(40):
            middle = (low + high) / 2
            low, high = (middle, high) if ess(middle * log_weight) >= self.share else (low, middle)
        return done + max(low, 1e-6)


def tempered_smc(
    flow_map: FlowMap,
    reward: Reward,
    noise: Tensor,
    *,
    beta: float = 1.0,
    temperatures: EvenESS | Sequence[float] | None = None,
    move: Move | None = None,
    moves: int = 4,
    tune: bool = True,
    times: Tensor = ONE_JUMP,
    generator: Generator,
    **cond: Any,
) -> Weighted:
    r"""Particles of $p(x)e^{\beta r(x)}$ by rising temperatures in noise space: the default exact sampler, for any reward.

    At every temperature particles are weighed by $e^{(\beta_{k+1}-\beta_k)r}$, resampled, and moved by a chain that keeps
    $N(z)e^{\beta_{k+1}r(X(z,1,0))}$. Weights are exact for any number of temperatures. Cost 1 + K x moves forwards per particle.

    Args:
        flow_map: Any flow map.
        reward: Any reward.
        noise: Draws of the prior (N, *D), one per particle.
        beta: Strength of the tilt.
        temperatures: Rising shares of beta that end in 1, or `EvenESS(.9)` (the default).
        move: `PCN()` by default.
        moves: How often it is applied at every temperature.
        tune: Whether its step follows the acceptance from one temperature to the next.
        times: Grid from noise to data by which noise is decoded.
        generator: CPU generator; it advances.
        cond: Conditions, with a leading 1 or N. With N different ones the law is that of the pair.

    Raises:
        ControlError: For a reward that cannot be used, settings without meaning, or when no particle is left.
    """
    plan = _plan(temperatures)
    move = move or PCN()
    with Budget() as budget:
        cond = spread(cond, len(noise))
        target = Target(budget.watch(flow_map), budget.score(reward), times, cond)
        particles = Particles(len(noise), noise.device)
        state = target(noise / target.scale, gradient=move.gradient)
        done, step, taken = 0.0, 0, list[float]()
        while done < 1:
            log_weight = beta * state.r.double()
            ahead = plan.next(done, step, log_weight) if isinstance(plan, EvenESS) else plan[step]
            particles.weigh((ahead - done) * log_weight)
            rows = particles.resample(generator)
            state, target.cond = state.at(rows), pick(target.cond, rows)
            accepted = 0.0
            for _ in range(moves):
                state, share = move(target, state, ahead * beta, generator)
                accepted += float(share.mean()) / moves
            move = move.tuned(accepted) if tune and moves else move
            done, step = ahead, step + 1
            taken.append(accepted)
    return particles.result(state.x, budget, state.r, sum(taken) / len(taken) if moves else None)


def _plan(temperatures: EvenESS | Sequence[float] | None) -> EvenESS | Sequence[float]:
    plan = EvenESS() if temperatures is None else temperatures
    if isinstance(plan, EvenESS):
        return plan
    steps = [b - a for a, b in zip((0.0, *plan), plan, strict=False)]
    if not plan or min(steps) <= 0 or plan[-1] != 1:
        raise ControlError(f"temperatures rise strictly from above 0 to 1; got {list(plan)}")
    return plan


class Kernel(Protocol):
    """A random step from s to t that keeps the marginals of the flow map."""

    def __call__(
        self, flow_map: FlowMap, x: Tensor, s: Tensor, t: Tensor, generator: Generator, **cond: Any
    ) -> Tensor:
        """From points (B, *D) at s to points at t < s, both ()."""
        ...


@final
@dataclass(frozen=True)
class Renoise:
    """CTM's gamma-sampling: jump past t and add noise back to it. 1 forgets all but the look-ahead (consistency sampling).

    Attributes:
        gamma: In (0, 1]; 0 would be deterministic, and particles that are copied would stay copies.
    """

    gamma: float = 1.0

    def __post_init__(self) -> None:
        if not 0 < self.gamma <= 1:
            raise ControlError(f"gamma lies in (0, 1]; got {self.gamma}")

    def __call__(
        self, flow_map: FlowMap, x: Tensor, s: Tensor, t: Tensor, generator: Generator, **cond: Any
    ) -> Tensor:
        step = torch.stack([s, t])
        return sample_gamma(flow_map, x, step, gamma=self.gamma, generator=generator, **cond)


class Potential(Protocol):
    """A positive function of points (B, *D) at times (B,), as its logarithm (B,); every `Value` of steer.py is one."""

    def __call__(
        self, flow_map: FlowMap, reward: Reward, x: Tensor, t: Tensor, **cond: Any
    ) -> Tensor: ...


def smc(
    flow_map: FlowMap,
    reward: Reward,
    noise: Tensor,
    times: Tensor,
    *,
    beta: float = 1.0,
    kernel: Kernel | None = None,
    potential: Potential | None = None,
    resample_below: float = 0.5,
    generator: Generator,
    **cond: Any,
) -> Weighted:
    r"""Feynman-Kac steering: random steps of the map, weighed by a potential $\psi_t$ that ends in $e^{\beta r}$.

    A step multiplies the weight by $\psi_t(x_t)/\psi_s(x_s)$, so the estimate of Z is unbiased for every potential
    (Singhal et al. 2025, arXiv:2501.06848). Self-normalised averages are biased by O(1/N) towards the base: report N.

    Args:
        flow_map: Any flow map.
        reward: Any reward; only values are taken of it.
        noise: Draws of the prior (N, *D), one per particle.
        times: Grid from 1 to 0.
        beta: Strength of the tilt.
        kernel: `Renoise(1)` by default.
        potential: `LookAhead(ramp=False)` by default.
        resample_below: Share of effective particles under which they are resampled.
        generator: CPU generator; it advances.
        cond: Conditions, with a leading 1 or N.

    Raises:
        ControlError: For a reward that cannot be used, a grid that does not end at 0, or when no particle is left.
    """
    if float(times[-1]) != 0 or not 0 <= resample_below <= 1:
        raise ControlError(
            f"weights are exact at t = 0 only, and shares lie in [0, 1]: end the grid at 0; got {float(times[-1]):g} and "
            f"resample_below={resample_below}"
        )
    kernel, look = kernel or Renoise(), potential or LookAhead(ramp=False)
    wide = times.to(noise.device, torch.float64 if noise.dtype == torch.float64 else torch.float32)
    with Budget() as budget, torch.no_grad():
        model, score = budget.watch(flow_map), Scaled(budget.score(reward), beta)
        particles = Particles(len(noise), noise.device)
        cond, x = spread(cond, len(noise)), noise
        held = torch.zeros(len(noise), dtype=torch.float64, device=noise.device)
        for i, t in enumerate(wide[1:]):
            x = kernel(model, x, wide[i], t, generator, **cond)
            now = score(x) if t == 0 else look(model, score, x, t.expand(len(x)).clone(), **cond)
            now = now.double()
            # a forbidden particle stays so: -inf minus -inf is no ratio
            particles.weigh(torch.where(held == -torch.inf, -torch.inf, now - held))
            held = now
            if t > 0 and particles.history[-1] < resample_below:
                rows = particles.resample(generator)
                x, held, cond = x[rows], held[rows], pick(cond, rows)
    return particles.result(x, budget, held / beta)
