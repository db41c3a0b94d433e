# budget: the estimators of value and the samplers that lean on them are read side by side
r"""Look-ahead steering: a flow map whose velocity leans towards a reward, and the estimators of how far it should lean.

The tilt $p^*\propto p_0e^{\beta r}$ has the velocity $b^*_t = b_t - k_t\nabla V_t$ with the kick
$k_t = \sigma_t\dot\sigma_t-\dot\alpha_t\sigma_t^2/\alpha_t$ (on the linear path t/(1-t)) and the value
$V_t(x) = \log E[e^{\beta r(x_0)} | x_t=x]$. Everything below is an estimate of $\nabla V_t$, and only some are right:

| value | estimate of V | exact for |
|---|---|---|
| `Exact` | closed form, no gradient | quadratic rewards, any data law |
| `Posterior` | log-mean-exp over posterior draws | any reward, as draws grow |
| `Damped` | r(D) over 1 + curvature x posterior variance | Gaussian data, quadratic reward |
| `Tweedie` | r(D), D the denoised mean | Gaussian data, linear reward |
| `LookAhead` | r(X(x, t, 0)), ramped by alpha | nothing: an optimiser, sharp at every t |

For samples of the tilt itself use weights (`smc`, `tilt`) or chains (`mcmc`).
"""

import itertools
from dataclasses import dataclass
from typing import Any, Literal, Protocol, final

import torch
from torch import Generator, Tensor

from ..core.flow_map import FlowMap
from ..core.interpolant import Interpolant
from ..core.shape import like
from ..errors import ControlError
from ..sample.sample import sample
from .budget import Budget, Result, Scored
from .conditions import normal, spread
from .posterior import posterior_draws, posterior_map
from .rewards import Quadratic, Reward, Scaled, slope

LATEST = 1 - 1e-3
"""Steering at t = 1 would multiply an infinite kick by a vanishing gradient: it is evaluated here instead."""


class Value(Protocol):
    """An estimate of V_t at points (B, *D) of times (B,), for a reward that includes beta."""

    def __call__(
        self, flow_map: FlowMap, reward: Reward, x: Tensor, t: Tensor, **cond: Any
    ) -> Tensor:
        """V (B,), differentiable in x."""
        ...

    def gradient(
        self, flow_map: FlowMap, reward: Reward, x: Tensor, t: Tensor, **cond: Any
    ) -> Tensor:
        """Its gradient in x (B, *D)."""
        ...


class _ByAutograd:
    def __call__(
        self, flow_map: FlowMap, reward: Reward, x: Tensor, t: Tensor, **cond: Any
    ) -> Tensor:
        raise NotImplementedError

    def gradient(
        self, flow_map: FlowMap, reward: Reward, x: Tensor, t: Tensor, **cond: Any
    ) -> Tensor:
        return slope(lambda y: self(flow_map, reward, y, t, **cond), x)[1]


@final
@dataclass(frozen=True)
class Tweedie(_ByAutograd):
    """r(D_t(x)) at the denoised mean: F + B. Misses what the posterior spreads (Jensen), and shows the reward blurred samples."""

    def __call__(
        self, flow_map: FlowMap, reward: Reward, x: Tensor, t: Tensor, **cond: Any
    ) -> Tensor:
        return reward(flow_map.denoise(x, t, **cond))


@final
@dataclass(frozen=True)
class LookAhead(_ByAutograd):
    r"""$\alpha_t r(X(x,t,0))$ through the map: F + B. The reward sees a sharp sample at every t, of one future of many.

    Attributes:
        jumps: Equal jumps from t to 0.
        ramp: The factor alpha_t (FMTT, arXiv:2511.22688). Without it the kick of a steered map diverges towards noise; as the
            potential of `smc` it may be left out.
    """

    jumps: int = 1
    ramp: bool = True

    def __call__(
        self, flow_map: FlowMap, reward: Reward, x: Tensor, t: Tensor, **cond: Any
    ) -> Tensor:
        r = reward(look_ahead(flow_map, x, t, self.jumps, **cond))
        return flow_map.interpolant.alpha(t).to(r) * r if self.ramp else r


@final
@dataclass(frozen=True)
class Damped(_ByAutograd):
    r"""$r(D_t(x)) / (1+\Lambda C_t)$: Tweedie with the magnitude of a Gaussian posterior (arXiv:2606.02884). F + B.

    Attributes:
        curvature: $\Lambda$ of beta times the reward.
        spread: Standard deviation of the data; $C_t = \sigma_t^2 s^2/(\alpha_t^2s^2+\sigma_t^2)$.
    """

    curvature: float
    spread: float

    def __call__(
        self, flow_map: FlowMap, reward: Reward, x: Tensor, t: Tensor, **cond: Any
    ) -> Tensor:
        path, square = flow_map.interpolant, self.spread**2
        noise = path.sigma(t).square()
        variance = noise * square / (path.alpha(t).square() * square + noise)
        r = reward(flow_map.denoise(x, t, **cond))
        return r / (1 + self.curvature * variance).to(r)


@final
@dataclass(frozen=True, eq=False)
class Posterior:
    r"""$\log\frac1n\sum_i e^{r(x_0^i)}$ over posterior draws (Meta Flow Maps, arXiv:2601.14430): right as n grows, low by O(1/n).

    Draws come from a posterior map, one jump each, or from the GLASS velocity of the map itself in `steps` steps. Their noises
    are the same at every time, and others for every row.

    Attributes:
        draws: n; mode masses need 16 or more.
        posterior: A learned posterior map; None integrates.
        steps: Heun steps of that integration (two forwards each).
        through: Differentiate through the draws. If not, $\nabla V = \frac{\alpha}{\sigma^2}(\sum_iW_ix_0^i-\bar x_0)$ with the
            softmax W of the rewards: no gradient of anything, so any black box.
        seed: Of the noises.
    """

    draws: int = 16
    posterior: FlowMap | None = None
    steps: int = 8
    through: bool = False
    seed: int = 0

    def _draw(self, flow_map: FlowMap, x: Tensor, t: Tensor, **cond: Any) -> Tensor:
        source = self.posterior or posterior_map(flow_map, steps=self.steps)
        generator = torch.Generator().manual_seed(self.seed)
        return posterior_draws(source, x, t, self.draws, generator=generator, **cond)

    def __call__(
        self, flow_map: FlowMap, reward: Reward, x: Tensor, t: Tensor, **cond: Any
    ) -> Tensor:
        drawn = self._draw(flow_map, x, t, **cond)
        r = reward(drawn.flatten(0, 1)).reshape(self.draws, len(x))
        return r.logsumexp(0) - torch.tensor(float(self.draws)).log()

    def gradient(
        self, flow_map: FlowMap, reward: Reward, x: Tensor, t: Tensor, **cond: Any
    ) -> Tensor:
        if self.through:
            return slope(lambda y: self(flow_map, reward, y, t, **cond), x)[1]
        with torch.no_grad():
            drawn = self._draw(flow_map, x, t, **cond)
            r = reward(drawn.flatten(0, 1)).reshape(self.draws, len(x))
            weight = torch.softmax(r, 0) - 1 / self.draws
            c = flow_map.interpolant.at(t, x)
            shift = (weight.reshape(*weight.shape, *[1] * (x.ndim - 1)).to(x) * drawn).sum(0)
            return c.alpha / c.sigma.square() * shift


@final
@dataclass(frozen=True)
class Exact:
    r"""The closed form for quadratic rewards (`linear`, `pull`) on any data law: two forwards, no gradient, no reward call.

    Completing the square: with $\mathrm{snr}^* = \alpha^2/\sigma^2+\Lambda$ and $S = (\alpha x/\sigma^2+a)/\mathrm{snr}^*$ the
    tilted denoiser is the denoiser at the time $t^*$ of that ratio, $D^* = D_{t^*}(\alpha_{t^*}S)$, and
    $\nabla V = \frac{\alpha}{\sigma^2}(D^*-D)$.
    """

    def __call__(
        self, flow_map: FlowMap, reward: Reward, x: Tensor, t: Tensor, **cond: Any
    ) -> Tensor:
        raise ControlError(
            "Exact knows the gradient of the value, not the value: use LookAhead or Posterior as a potential"
        )

    def gradient(
        self, flow_map: FlowMap, reward: Reward, x: Tensor, t: Tensor, **cond: Any
    ) -> Tensor:
        c = flow_map.interpolant.at(t, x)
        tilted = tilted_denoiser(flow_map, reward, x, t, **cond)
        return c.alpha / c.sigma.square() * (tilted - flow_map.denoise(x, t, **cond))


def tilted_denoiser(flow_map: FlowMap, reward: Reward, x: Tensor, t: Tensor, **cond: Any) -> Tensor:
    r"""$E^*[x_0 | x_t = x]$ (B, *D) under the tilt by a quadratic reward: one call of the plain denoiser, elsewhere."""
    path, exact = flow_map.interpolant, _quadratic(reward)
    c, noise = path.at(t, x), path.sigma(t).square()
    snr = path.alpha(t).square() / noise + exact.curvature
    if bool((snr <= 0).any()):
        raise ControlError(
            f"curvature {exact.curvature:g} outweighs the data at t = {float(t[snr <= 0][0]):.3g}: there is no such tilt"
        )
    time = path.time_at(0.5 * snr.log()).clamp(0, 1)
    point = (c.alpha / like(noise, x) * x + exact.slope.to(x)) / like(snr, x)
    return flow_map.denoise(path.at(time, x).alpha * point, time, **cond)


def _quadratic(reward: Reward, factor: float = 1.0) -> Quadratic:
    match reward:
        case Quadratic():
            return Quadratic(
                factor * reward.slope, factor * reward.curvature, factor * reward.constant
            )
        case Scaled():
            return _quadratic(reward.reward, factor * reward.factor)
        case Scored():
            return _quadratic(reward.reward, factor)
        case _:
            raise ControlError(
                f"Exact steers by linear(a) or pull(centre, curvature); got {type(reward).__name__}: use Posterior or LookAhead"
            )


def look_ahead(flow_map: FlowMap, x: Tensor, t: Tensor, jumps: int = 1, **cond: Any) -> Tensor:
    """X(x, t, 0) in equal jumps (B, *D): the sample that a point is on the way to."""
    for i in range(jumps):
        x = flow_map(x, t * (jumps - i) / jumps, t * (jumps - i - 1) / jumps, **cond)
    return x


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
