r"""Markov chains in noise space: samples of the tilt $p(x)e^{\beta r(x)}$ without weights, score or time steps.

The law of $X(z,1,0)$ with $z \sim N(0,I)\,e^{\beta r(X(z,1,0))}$ is the tilt of what the map draws: the Jacobians cancel, whatever
they are. So every chain here is exact for the map's own law, and for data's as far as the map is right. Moves keep the prior
by construction, which makes their acceptance independent of dimension.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, Protocol, Self, final

import torch
from torch import Generator, Tensor

from ..core.flow_map import FlowMap
from ..core.shape import like
from ..errors import ControlError
from ..sample.sample import sample
from .budget import Budget, Result
from .conditions import ONE_JUMP, normal, pick, prior_scale, spread, uniform
from .rewards import Reward, slope


class State(NamedTuple):
    """Chains: unit noise (B, *D), its sample (B, *D), the sample's reward (B,) and, for MALA, the gradient in noise."""

    z: Tensor
    x: Tensor
    r: Tensor
    gradient: Tensor | None = None

    def at(self, rows: Tensor) -> "State":
        """Some of the chains, in any order."""
        g = self.gradient
        return State(self.z[rows], self.x[rows], self.r[rows], None if g is None else g[rows])


@final
class Target:
    """What chains look at: noise to sample and reward, through a watched map and reward.

    Args:
        flow_map: Watched map.
        reward: Watched reward.
        times: Grid from 1 to 0 by which a noise is decoded.
        cond: Conditions, one row per chain.
    """

    def __init__(
        self, flow_map: FlowMap, reward: Reward, times: Tensor, cond: dict[str, Any]
    ) -> None:
        self.flow_map, self.reward, self.times, self.cond = flow_map, reward, times, cond
        self.scale = prior_scale(flow_map.interpolant)

    def decode(self, z: Tensor, rows: Tensor | None = None) -> Tensor:
        cond = self.cond if rows is None else pick(self.cond, rows)
        return sample(self.flow_map, self.scale * z, self.times, **cond)

    def __call__(self, z: Tensor, rows: Tensor | None = None, gradient: bool = False) -> State:
        if not gradient:
            with torch.no_grad():
                x = self.decode(z, rows)
                return State(z, x, self.reward(x))
        kept: list[Tensor] = []

        def value(point: Tensor) -> Tensor:
            kept.append(self.decode(point, rows))
            return self.reward(kept[-1])

        r, g = slope(value, z)
        return State(z, kept[-1].detach(), r, g)


class Move(Protocol):
    r"""A Markov kernel that keeps $N(z)e^{\beta r}$: new states and the share of proposals that each chain took (B,)."""

    gradient: bool

    def __call__(
        self, target: Target, state: State, beta: float, generator: Generator
    ) -> tuple[State, Tensor]: ...

    def tuned(self, acceptance: float) -> "Move":
        """The move with steps nearer to the acceptance that suits it."""
        ...


@dataclass(frozen=True)
class _Stepping:
    step: float

    def __post_init__(self) -> None:
        if not 0 < self.step <= 1:
            raise ControlError(f"a step in noise space lies in (0, 1]; got {self.step}")

    def _resized(self, acceptance: float, wanted: float) -> Self:
        step = self.step * math.exp(max(-1.0, min(1.0, 2 * (acceptance - wanted))))
        return replace(self, step=min(max(step, 1e-4), 1.0))


@final
@dataclass(frozen=True)
class PCN(_Stepping):
    r"""Preconditioned Crank-Nicolson: $z' = \sqrt{1-\delta^2}z+\delta n$, taken with $\min(1, e^{\beta(r'-r)})$.

    For black boxes; one forward and one reward. (Cotter et al. 2013, arXiv:1202.0709.)

    Attributes:
        step: $\delta$; 1 proposes independent noise.
    """

    step: float = 0.5
    gradient = False

    def __call__(
        self, target: Target, state: State, beta: float, generator: Generator
    ) -> tuple[State, Tensor]:
        keep = math.sqrt(1 - self.step**2)
        new = target(keep * state.z + self.step * normal(state.z, generator))
        return _choose(state, new, beta * (new.r - state.r), generator)

    def tuned(self, acceptance: float) -> "PCN":
        return self._resized(acceptance, 0.35)


@final
@dataclass(frozen=True)
class MALA(_Stepping):
    r"""Langevin proposals: $z' = \rho z + (1-\rho)\beta\nabla r(z) + \delta n$, $\rho = \sqrt{1-\delta^2}$, Metropolis-corrected.

    pCN whose mean follows the gradient of the reward through the map, by at most the length of the noise (truncated as by
    Roberts & Tweedie 1996, sec. 1.4.2: between modes maps are steep). One backward more than pCN.
    """

    step: float = 0.5
    gradient = True

    def __call__(
        self, target: Target, state: State, beta: float, generator: Generator
    ) -> tuple[State, Tensor]:
        rho = math.sqrt(1 - self.step**2)

        def mean(at: State) -> Tensor:
            assert at.gradient is not None
            drift = (1 - rho) * beta * at.gradient
            longest = self.step * drift[0].numel() ** 0.5
            short = longest / drift.flatten(1).norm(dim=1).clamp(min=longest)
            return rho * at.z + like(short, drift) * drift

        new = target(mean(state) + self.step * normal(state.z, generator), gradient=True)
        back, forth = (state.z - mean(new)) / self.step, (new.z - mean(state)) / self.step
        ratio = beta * (new.r - state.r) - 0.5 * _square(new.z) + 0.5 * _square(state.z)
        return _choose(state, new, ratio - 0.5 * _square(back) + 0.5 * _square(forth), generator)

    def tuned(self, acceptance: float) -> "MALA":
        return self._resized(acceptance, 0.57)


@final
@dataclass(frozen=True)
class Slice:
    """Elliptical slice sampling (Murray et al. 2010, arXiv:1001.0175): no step size, and every chain moves.

    An ellipse through the state and a fresh noise is shrunk until a point on it beats the slice: about three forwards for each.
    """

    gradient = False

    def __call__(
        self, target: Target, state: State, beta: float, generator: Generator
    ) -> tuple[State, Tensor]:
        nu, level = normal(state.z, generator), beta * state.r + uniform(state.r, generator).log()
        angle = 2 * math.pi * uniform(state.r, generator)
        low, high = angle - 2 * math.pi, angle.clone()
        open_rows, tries = torch.arange(len(state.r), device=state.r.device), torch.ones_like(angle)
        while len(open_rows):
            a = like(angle[open_rows], nu[open_rows]).to(state.z.dtype)
            new = target(state.z[open_rows] * a.cos() + nu[open_rows] * a.sin(), open_rows)
            # where the bracket has shrunk to rounding the state itself is the answer
            inside = (beta * new.r > level[open_rows]) | ((high - low)[open_rows] < 1e-12)
            done = open_rows[inside]
            state = _written(state, done, new.at(inside))
            open_rows = open_rows[~inside]
            a = angle[open_rows]
            low[open_rows] = torch.where(a < 0, a, low[open_rows])
            high[open_rows] = torch.where(a < 0, high[open_rows], a)
            fresh = uniform(state.r, generator)[open_rows]
            angle[open_rows] = low[open_rows] + fresh * (high - low)[open_rows]
            tries[open_rows] += 1
        return state, 1 / tries

    def tuned(self, acceptance: float) -> "Slice":
        return self


MOVES: dict[str, Callable[[], Move]] = {"pcn": PCN, "slice": Slice, "mala": MALA}
"""The moves by name."""


@final
@dataclass(frozen=True, eq=False)
class Chain(Result):
    """Markov chains of the tilt; `x` (B, *D) are their last states.

    Attributes:
        noise: The last states in noise space (B, *D), at the scale of the prior.
        draws: States that were kept on the way (K, B, *D).
        trace: Rewards at every iteration (n, B).
        acceptance: Share of proposals taken.
    """

    noise: Tensor = torch.empty(0)
    draws: Tensor = torch.empty(0)
    trace: Tensor = torch.empty(0)
    acceptance: float = 0.0

    @property
    def r_hat(self) -> float:
        """Split potential scale reduction of the rewards over the chains' second half: 1 when they agree."""
        return r_hat(self.trace[len(self.trace) // 2 :])

    @property
    def ess(self) -> float:
        """Effective number of independent rewards in the second half, all chains together."""
        return effective(self.trace[len(self.trace) // 2 :])

    @property
    def degenerate(self) -> str:
        """What is wrong, in a sentence; empty when nothing was seen."""
        if self.acceptance < 0.02:
            return f"{self.acceptance:.1%} of the moves were taken: smaller steps, warmer temperatures first, or slice"
        if not self.r_hat < 1.1:
            return (
                f"chains disagree (R-hat {self.r_hat:.2f}): run longer, or start from tempered_smc"
            )
        return ""


def noise_mcmc(
    flow_map: FlowMap,
    reward: Reward,
    noise: Tensor,
    *,
    n: int = 100,
    move: Move | None = None,
    beta: float = 1.0,
    warm: Sequence[float] = (),
    keep: int = 0,
    times: Tensor = ONE_JUMP,
    generator: Generator,
    **cond: Any,
) -> Chain:
    r"""Chains of $p(x)e^{\beta r(x)}$ in the noise of a flow map, one per row of `noise`.

    Args:
        flow_map: Any flow map; a map of one jump makes an iteration one forward.
        reward: Any reward; MALA needs its gradient.
        noise: Where chains start (B, *D): draws of the prior.
        n: Iterations at the full temperature.
        move: `PCN()` by default.
        beta: Strength of the tilt.
        warm: Shares of `beta`, such as (.1, .3), held for n/5 iterations each before: the way to separate modes.
        keep: Every so many iterations of the second half the states are kept in `draws`; 0 keeps none.
        times: Grid from noise to data by which noise is decoded.
        generator: CPU generator; it advances.
        cond: Conditions, with a leading 1 or B.

    Raises:
        ControlError: For a reward that cannot be used, or settings without meaning.
    """
    if n < 4 or len(noise) < 1 or keep < 0:
        raise ControlError(
            f"chains need n >= 4, a row of noise and keep >= 0; got {n}, {len(noise)}, {keep}"
        )
    move = move or PCN()
    with Budget() as budget:
        target = Target(
            budget.watch(flow_map), budget.score(reward), times, spread(cond, len(noise))
        )
        state = target(noise / target.scale, gradient=move.gradient)
        for share in warm:
            for _ in range(max(1, n // 5)):
                state = move(target, state, share * beta, generator)[0]
        trace, taken, draws = list[Tensor](), list[Tensor](), list[Tensor]()
        for i in range(n):
            state, accepted = move(target, state, beta, generator)
            trace.append(state.r)
            taken.append(accepted)
            if keep and i >= n // 2 and i % keep == 0:
                draws.append(state.x)
    return Chain(
        *(state.x, budget.cost, state.r),
        noise=target.scale * state.z,
        draws=torch.stack(draws) if draws else state.x[None][:0],
        trace=torch.stack(trace),
        acceptance=float(torch.stack(taken).mean()),
    )


def r_hat(trace: Tensor) -> float:
    """Split R-hat (Gelman et al., BDA 3, section 11.4) of traces (n, B): every chain is cut in two."""
    half = len(trace) // 2
    parts = torch.cat([trace[:half], trace[half : 2 * half]], 1).double()
    if half < 2:
        return math.inf
    within, between = parts.var(0).mean(), half * parts.mean(0).var()
    if float(within) == 0:
        return 1.0 if float(between) == 0 else math.inf
    return float((((half - 1) * within + between) / half / within).sqrt())


def effective(trace: Tensor) -> float:
    """Effective number of independent values in traces (n, B): autocorrelations summed in pairs while positive (Geyer 1992)."""
    n, chains = trace.shape
    centred = (trace - trace.mean()).double()
    variance = float(centred.square().mean())
    if variance == 0:
        return float(chains)
    spectrum = torch.fft.rfft(centred, n=2 * n, dim=0)
    correlation = torch.fft.irfft(spectrum.abs().square(), dim=0)[:n].mean(1) / n / variance
    pairs = correlation[: n // 2 * 2].reshape(-1, 2).sum(1)
    positive = int((pairs > 0).int().cumprod(0).sum())
    return n * chains / max(1.0, 2 * float(pairs[:positive].sum()) - 1)


def _choose(
    old: State, new: State, log_ratio: Tensor, generator: Generator
) -> tuple[State, Tensor]:
    # two forbidden states (-inf both) differ by NaN: any of them may be left for the other
    taken = uniform(old.r, generator).log() < log_ratio.nan_to_num(nan=0.0, neginf=-torch.inf)
    return _written(old, taken, new.at(taken)), taken.double()


def _written(old: State, rows: Tensor, new: State) -> State:
    z, x, r = old.z.clone(), old.x.clone(), old.r.clone()
    z[rows], x[rows], r[rows] = new.z, new.x, new.r
    gradient = None if old.gradient is None else old.gradient.clone()
    if gradient is not None and new.gradient is not None:
        gradient[rows] = new.gradient
    return State(z, x, r, gradient)


def _square(z: Tensor) -> Tensor:
    return z.flatten(1).square().sum(1)
