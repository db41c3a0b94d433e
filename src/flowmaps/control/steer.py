r"""Look-ahead steering: a flow map whose velocity leans towards a reward.

The tilt $p^*\propto p_0e^{\beta r}$ has the velocity $b^*_t = b_t - k_t\nabla V_t$ with the kick
$k_t = \sigma_t\dot\sigma_t-\dot\alpha_t\sigma_t^2/\alpha_t$ (on the linear path t/(1-t)) and the value
$V_t(x) = \log E[e^{\beta r(x_0)} | x_t=x]$, of which there are several estimates (`flowmaps.control.values`): few are right.

For samples of the tilt itself use weights (`smc`, `tilt`) or chains (`mcmc`).
"""

import itertools
from typing import Any, Literal, final

import torch
from torch import Generator, Tensor

from ..core.flow_map import FlowMap
from ..core.interpolant import Interpolant
from ..core.shape import like
from ..errors import ControlError
from ..sample.sample import sample
from .budget import Budget, Result
from .conditions import normal, spread
from .rewards import Reward, Scaled, slope
from .values import (
    LATEST,
    Damped,
    Diamond,
    Exact,
    LookAhead,
    Posterior,
    Tweedie,
    Value,
    look_ahead,
    tilted_denoiser,
)

__all__ = [
    "Damped",
    "Diamond",
    "Exact",
    "LookAhead",
    "Posterior",
    "Steered",
    "Tweedie",
    "Value",
    "fmrg",
    "kick",
    "look_ahead",
    "sample_sde",
    "steer",
    "tilted_denoiser",
]


def kick(path: Interpolant, t: Tensor, x: Tensor) -> Tensor:
    r"""$\sigma\dot\sigma-\dot\alpha\sigma^2/\alpha$ at times (B,), shaped for `x`: what a gradient of V is worth as a velocity."""
    c = path.at(t, x)
    return c.sigma * c.dsigma - c.dalpha * c.sigma.square() / c.alpha


@final
class Steered(FlowMap):
    r"""A flow map that leans: $u(x,s,t) - k_s\nabla V_s(x)$. Its velocity is that of the tilt, as far as the value is right.

    It keeps the type, so it can be sampled, inverted or distilled. Jumps lean by the gradient at their source: an Euler step of
    the lean, so take several (`steer`).

    Args:
        flow_map: Any flow map. One with guidance folded in is tilted from its guided law.
        reward: On clean samples.
        value: The estimator of V.
        beta: Strength of the tilt.
        interval: Source times (low, high) at which the lean acts.
    """

    def __init__(
        self,
        flow_map: FlowMap,
        reward: Reward,
        *,
        value: Value | None = None,
        beta: float = 1.0,
        interval: tuple[float, float] = (0.0, 1.0),
    ) -> None:
        super().__init__()
        if not 0 <= interval[0] < interval[1] <= 1:
            raise ControlError(f"an interval of times is 0 <= low < high <= 1; got {interval}")
        self.flow_map, self.reward, self.beta, self.interval = flow_map, reward, beta, interval
        self.value: Value = value or LookAhead()
        self.interpolant = flow_map.interpolant

    def watched(self, budget: Budget) -> "Steered":
        """The same, counted."""
        inner, reward = budget.watch(self.flow_map), budget.score(self.reward)
        return Steered(inner, reward, value=self.value, beta=self.beta, interval=self.interval)

    def mean_velocity(self, x: Tensor, s: Tensor, t: Tensor, **cond: Any) -> Tensor:
        u = self.flow_map.mean_velocity(x, s, t, **cond)
        low, high = self.interval
        acts = (s >= low) & (s <= high) & (s > self.interpolant.t_min)
        if not bool(acts.any()):
            return u
        time = torch.where(acts, s, 0.5 * (max(low, 0.1) + high)).clamp(max=LATEST)
        reward = Scaled(self.reward, self.beta)
        gradient = self.value.gradient(self.flow_map, reward, x, time, **cond)
        lean = kick(self.interpolant, time, x) * gradient
        return u - torch.where(like(acts, x), lean, 0.0)


def steer(
    flow_map: FlowMap,
    reward: Reward,
    x: Tensor,
    times: Tensor,
    *,
    value: Value | None = None,
    beta: float = 1.0,
    interval: tuple[float, float] = (0.0, 1.0),
    churn: float = 0.0,
    generator: Generator | None = None,
    **cond: Any,
) -> Result:
    r"""Sample towards a reward: jumps that lean on the gradient of a value estimate.

    Args:
        flow_map: Any flow map.
        reward: Any reward; black boxes with `Posterior`, quadratic ones with `Exact`.
        x: Noise (B, *D) at `times[0]`.
        times: Grid, decreasing.
        value: `LookAhead()` by default.
        beta: Strength of the tilt.
        interval: Source times (low, high) at which steering acts.
        churn: Above 0 the stochastic process with the same marginals: `churn` times the memoryless noise, with the score of
            the steered velocity, which forgives errors of earlier steps. Euler steps of the velocity then, not jumps.
        generator: CPU generator for that.
        cond: Conditions, with a leading 1 or B.
    """
    if churn and generator is None:
        raise ControlError("churn draws noise: give a generator")
    cond = spread(cond, len(x))
    with Budget() as budget:
        steered = Steered(flow_map, reward, value=value, beta=beta, interval=interval)
        watched = steered.watched(budget)
        if churn and generator is not None:
            x = sample_sde(watched, x, times, churn=churn, generator=generator, **cond)
        else:
            with torch.no_grad():
                x = sample(watched, x, times, **cond)
        r = watched.reward(x)
    return Result(x, budget.cost, r.detach())


def sample_sde(
    flow_map: FlowMap,
    x: Tensor,
    times: Tensor,
    *,
    churn: float = 1.0,
    cap: float = 50.0,
    generator: Generator,
    **cond: Any,
) -> Tensor:
    r"""Euler-Maruyama of $dx = (b - g\,\nabla\log p)\,dt + \sqrt{2g}\,dW$, g = `churn` x kick: the marginals of the flow map's ODE.

    The score comes from the map's own velocity, so a steered map stays exact for any churn; 1 is the memoryless process.
    g is at most `cap` times $\sigma\dot\sigma$, and half of $\sigma^2$ per step. One velocity per step.
    """
    path = flow_map.interpolant
    with torch.no_grad():
        for s, t in itertools.pairwise(times.to(x)):
            source = s.clamp(max=LATEST).expand(len(x))
            c, h = path.at(source, x), s - t
            v = flow_map.velocity(x, source, **cond)
            eps = path.convert(v, x, source, source="velocity", target="eps")
            g = torch.minimum(churn * kick(path, source, x), cap * c.sigma * c.dsigma)
            g = torch.minimum(g * h, 0.5 * c.sigma.square()) if t > 0 else 0 * g
            # the score is -eps / sigma
            x = x - h * v - g * eps / c.sigma + (2 * g).sqrt() * normal(x, generator)
    return x


def fmrg(
    flow_map: FlowMap,
    reward: Reward,
    x: Tensor,
    times: Tensor,
    *,
    beta: float = 1.0,
    through: Literal["map", "endpoint"] = "map",
    interval: tuple[float, float] = (0.0, 1.0),
    normalise: bool = False,
    inner: int = 5,
    rate: float = 0.1,
    **cond: Any,
) -> Result:
    r"""Flow map reward guidance (arXiv:2604.27147): greedy deterministic control. It maximises, it does not sample the tilt.

    `through="map"`: jump to t, then $x \leftarrow x + h\beta\nabla r(X(x,t,0))$; 2F + B per step.
    `through="endpoint"`: look ahead, climb the reward there by `inner` gradient steps, and move x by the share of the gain that
    belongs to t; 2F per step and no backward pass through the network, for rewards whose gradient in samples can be trusted.

    Args:
        flow_map: Any flow map.
        reward: Differentiable.
        x: Noise (B, *D) at `times[0]`.
        times: Grid, decreasing.
        beta: Strength; for a Gaussian law of std s and a linear reward the mean moves by (pi/2) beta s.
        through: Where the gradient is taken.
        interval: Source times (low, high) at which it acts.
        normalise: Gradients of the length of the mean velocity, row by row, before beta. Nothing is exact then.
        inner: Gradient steps at the endpoint.
        rate: Their size, times beta.
        cond: Conditions, with a leading 1 or B.
    """
    cond = spread(cond, len(x))
    with Budget() as budget:
        model, score = budget.watch(flow_map), budget.score(reward)
        path = model.interpolant
        wide = times.to(x.device, torch.float64 if x.dtype == torch.float64 else torch.float32)
        for s, t in itertools.pairwise(wide[:, None].repeat(1, len(x))):
            with torch.no_grad():
                y = model(x, s, t, **cond)
                ahead = model(x, s, 0.0, **cond) if through == "endpoint" else y
            acts = interval[0] <= float(s[0]) <= interval[1]
            if acts and through == "map":
                g = slope(lambda z: score(look_ahead(model, z, t, **cond)), y)[1]  # noqa: B023
                g = _sized(g, (y - x) / like(t - s, x)) if normalise else g
                y = y + like(s - t, x) * beta * g
            elif acts:
                gain = _climbed(score, ahead, beta * rate, inner) - ahead
                y = y + path.at(t, x).alpha * gain * path.at(s, x).sigma / path.sigma(
                    torch.ones_like(s[0])
                )
            x = y
        r = score(x)
    return Result(x, budget.cost, r.detach())


def _climbed(reward: Reward, x: Tensor, rate: float, steps: int) -> Tensor:
    for _ in range(steps):
        x = x + rate * slope(reward, x)[1]
    return x


def _sized(g: Tensor, v: Tensor) -> Tensor:
    length = like(v.flatten(1).norm(dim=1) / g.flatten(1).norm(dim=1).clamp(min=1e-12), g)
    return g * length
