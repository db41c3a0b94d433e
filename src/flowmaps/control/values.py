r"""Estimates of the value $V_t(x) = \log E[e^{\beta r(x_0)} | x_t=x]$: how much reward can be expected from a point on the way.

A steered map (`flowmaps.control.steer`) leans by the gradient of one of them, and `smc` weighs by any of them. Only some are right:

| value | estimate of V | exact for |
|---|---|---|
| `Exact` | closed form, no gradient | quadratic rewards, any data law |
| `Posterior` | log-mean-exp over posterior draws | any reward, as draws grow |
| `Diamond` | the same, over plain jumps with weights | any reward, few dimensions |
| `Damped` | r(D) over 1 + curvature x posterior variance | Gaussian data, quadratic reward |
| `Tweedie` | r(D), D the denoised mean | Gaussian data, linear reward |
| `LookAhead` | r(X(x, t, 0)), ramped by alpha | nothing: an optimiser, sharp at every t |
"""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, Protocol, final

import torch
from torch import Tensor

from ..core.flow_map import FlowMap
from ..core.shape import like
from ..errors import ControlError
from .budget import Scored
from .conditions import normal
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


class _ByAutograd(ABC):
    @abstractmethod
    def __call__(
        self, flow_map: FlowMap, reward: Reward, x: Tensor, t: Tensor, **cond: Any
    ) -> Tensor: ...

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
            return _toward(flow_map, x, t, weight, drawn)


@final
@dataclass(frozen=True)
class Diamond:
    r"""The value by posterior draws that plain jumps make: weighted diamonds (Holderrieth et al. 2026, arXiv:2602.05993).

    From x the noise is raised to a time w of `ratio` times less signal to noise and the map jumps down, $z = X(x_w,w,0)$. As
    draws of $p(x_0|x_t)$ they are worth $\log W = \log p_w(x_w) - |x_t-\alpha_tz|^2/2\sigma_t^2 + |\varepsilon|^2/2$, where
    $\log p_w(x_w)-\log p_w(x_t)$ is the trapezoid of the scores at both. No training, no backward pass, any black box: 2 n + 1
    forwards where `Posterior` integrates n walks. In many dimensions the weights collapse on one draw: a heuristic there.

    Attributes:
        draws: n.
        ratio: Above 1; near 1 the draws are one, from 5 on the trapezoid is right to a few hundredths.
        seed: Of the noises, which are the same at every time.
    """

    draws: int = 16
    ratio: float = 5.0
    seed: int = 0

    def __post_init__(self) -> None:
        if self.draws < 2 or not self.ratio > 1:
            raise ControlError(f"a diamond needs two draws or more and a ratio above 1; got {self}")

    def _draw(self, flow_map: FlowMap, x: Tensor, t: Tensor, **cond: Any) -> tuple[Tensor, Tensor]:
        """Draws (n B, *D) and their log-weights (n, B), up to a constant per row."""
        path, n = flow_map.interpolant, self.draws
        w = path.time_at(path.log_snr(t) - 0.5 * math.log(self.ratio)).clamp(max=LATEST)
        a, b = path.at(t, x), path.at(w, x)
        given = {key: value.repeat(n, *[1] * (value.ndim - 1)) for key, value in cond.items()}
        eps = normal(x.expand(n, *x.shape), torch.Generator().manual_seed(self.seed))
        keep = b.alpha / a.alpha
        fresh = (b.sigma.square() - (keep * a.sigma).square()).clamp(min=0).sqrt()
        raised = keep * x + fresh * eps
        flat, high = raised.flatten(0, 1), w.repeat(n)
        drawn = flow_map(flat, high, 0.0, **given)
        slopes = _score(flow_map, flat, high, **given).reshape(eps.shape)
        slopes = slopes + _score(flow_map, x, w, **cond)
        misfit = (x - a.alpha * drawn.reshape(eps.shape)) / a.sigma
        parts = slopes * (raised - x) - misfit.square() + eps.square()
        return drawn, 0.5 * parts.flatten(2).sum(2)

    def __call__(
        self, flow_map: FlowMap, reward: Reward, x: Tensor, t: Tensor, **cond: Any
    ) -> Tensor:
        drawn, log_w = self._draw(flow_map, x, t, **cond)
        r = reward(drawn).reshape(log_w.shape)
        return (log_w + r).logsumexp(0) - log_w.logsumexp(0)

    def gradient(
        self, flow_map: FlowMap, reward: Reward, x: Tensor, t: Tensor, **cond: Any
    ) -> Tensor:
        with torch.no_grad():
            drawn, log_w = self._draw(flow_map, x, t, **cond)
            r = reward(drawn).reshape(log_w.shape)
            weight = torch.softmax(log_w + r, 0) - torch.softmax(log_w, 0)
            return _toward(flow_map, x, t, weight, drawn.reshape(self.draws, *x.shape))


def _score(flow_map: FlowMap, x: Tensor, t: Tensor, **cond: Any) -> Tensor:
    v = flow_map.velocity(x, t, **cond)
    return flow_map.interpolant.convert(v, x, t, source="velocity", target="score")


def _toward(flow_map: FlowMap, x: Tensor, t: Tensor, weight: Tensor, drawn: Tensor) -> Tensor:
    r"""$\frac{\alpha}{\sigma^2}\sum_i w_i x_0^i$ (B, *D): the gradient of a value from the difference of two means."""
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
