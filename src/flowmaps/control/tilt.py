r"""Flow map trajectory tilting: particles on the path $p_te^{\beta_tr(X(x,t,0))}$ from noise to the tilt (FMTT, arXiv:2511.22688).

The reward of the look-ahead does not change along the ODE, so the work of a jump is $(\beta_t-\beta_s)r(X(x,t,0))$: exact for
jumps of any length, without Laplacian or Jacobian. What may be added are motions that keep the law of time t, and here they are:

* `langevin`: $\varepsilon(\nabla\log p_t+\nabla r_t)dt+\sqrt{2\varepsilon}dW$, free of weights, with a Metropolis test. Look-aheads
  are steep between modes, and Euler steps without the test miss log Z there by more than they gain;
* `extra`: a drift $\chi\nabla r_t$, which costs the weight $\chi(\Delta r_t+\nabla r_t\cdot(\nabla\log p_t+\nabla r_t))$. A public
  implementation leaves that term out; on the Gaussian of tests/control/test_tilt.py log Z is then off by .09 (.27 with its chi).
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple, final

import torch
from torch import Generator, Tensor

from ..core.flow_map import FlowMap
from ..core.shape import like
from ..errors import ControlError
from .budget import Budget
from .conditions import normal, pick, spread, uniform
from .rewards import Reward, slope
from .smc import Particles, Weighted


class _Point(NamedTuple):
    """Particles at a time: where, the reward ahead, the gradient of r_t, and the score of p_t."""

    x: Tensor
    r: Tensor
    g: Tensor
    score: Tensor


@final
@dataclass(frozen=True, eq=False)
class _Path:
    """The law p_t e^{r_t} at one time t > 0."""

    flow_map: FlowMap
    reward: Reward
    t: Tensor
    strength: float
    cond: dict[str, Any]

    def ahead(self, x: Tensor) -> Tensor:
        return self.reward(self.flow_map(x, self.t, 0.0, **self.cond))

    def at(self, x: Tensor) -> _Point:
        r, g = slope(self.ahead, x)
        time = self.t.expand(len(x)).clone()
        with torch.no_grad():
            v = self.flow_map.velocity(x, time, **self.cond)
        score = self.flow_map.interpolant.convert(v, x, time, source="velocity", target="score")
        return _Point(x, r, self.strength * g, score)

    def langevin(self, here: _Point, rate: Tensor, generator: Generator) -> _Point:
        r"""A step of length `rate` (), and its Metropolis test.

        $\log p_t(y)-\log p_t(x)$ is the trapezoid of the scores, right to third order in the step.
        """

        def drift(p: _Point) -> Tensor:
            lean = rate * (p.score + p.g)
            longest = (2 * rate * p.x[0].numel()).sqrt()
            return lean * like(longest / lean.flatten(1).norm(dim=1).clamp(min=longest), lean)

        y = here.x + drift(here) + (2 * rate).sqrt() * normal(here.x, generator)
        there = self.at(y)
        back, forth = here.x - y - drift(there), y - here.x - drift(here)
        climb = 0.5 * (_dot(here.score, y - here.x) + _dot(there.score, y - here.x))
        ratio = climb + self.strength * (there.r - here.r)
        ratio = ratio + (_dot(forth, forth) - _dot(back, back)) / (4 * rate)
        taken = uniform(ratio, generator).log() < ratio
        return _Point(
            *(torch.where(like(taken, b), b, a) for a, b in zip(here, there, strict=True))
        )

    def moved(
        self, point: _Point, extra: Tensor, langevin: Tensor, probes: int, generator: Generator
    ) -> tuple[_Point, Tensor]:
        """Both motions by their lengths (), and the log-weight (B,) that the first one costs."""
        owed = torch.zeros_like(point.r)
        if extra > 0:
            owed = extra * self.work(point, probes, generator)
            point = self.at(point.x + extra * point.g)
        if langevin > 0:
            rate = torch.minimum(langevin, 0.5 * self.flow_map.interpolant.sigma(self.t).square())
            point = self.langevin(point, rate, generator)
        return point, owed

    def work(self, here: _Point, probes: int, generator: Generator) -> Tensor:
        """Laplacian of r_t plus its gradient times that of log p_t + r_t (B,): what a drift along the gradient costs."""
        curved = sum(_laplacian(self.ahead, here.x, generator) for _ in range(probes)) / probes
        return self.strength * curved + _dot(here.g, here.score + here.g)


def fmtt(
    flow_map: FlowMap,
    reward: Reward,
    noise: Tensor,
    times: Tensor,
    *,
    beta: float = 1.0,
    langevin: float = 1.0,
    extra: float = 0.0,
    probes: int = 1,
    resample_below: float = 0.5,
    generator: Generator,
    **cond: Any,
) -> Weighted:
    r"""Weighted particles of $p(x)e^{\beta r(x)}$ along the ODE, with a differentiable reward seen through the map.

    A step jumps to t, weighs, and moves at t. Without motions (`langevin=0, extra=0`) there is no bias on any grid, and no gain:
    it is importance sampling of the map's endpoints. With them the bias falls with the grid. Cost per step 2F; with motions F + B
    and one velocity at every point that is looked at, and for `extra` two F + B per probe.

    Args:
        flow_map: Any flow map.
        reward: Differentiable, unless there are no motions.
        noise: Draws of the prior (N, *D), one per particle.
        times: Grid from 1 to 0.
        beta: Strength of the tilt; the path is $\beta_t = \alpha_t\beta$.
        langevin: $\varepsilon_t$ in units of $\sigma_t\dot\sigma_t$ (t on the linear path), at most $\sigma_t^2/2$ per step.
        extra: $\chi_t$ in the same units, with its weights; for rewards that are smooth through the map.
        probes: Rademacher probes of the Laplacian that `extra` needs.
        resample_below: Share of effective particles under which they are resampled.
        generator: CPU generator; it advances.
        cond: Conditions, with a leading 1 or N.

    Raises:
        ControlError: For a reward that cannot be used, a grid that does not end at 0, or when no particle is left.
    """
    if float(times[-1]) != 0 or min(langevin, extra) < 0 or probes < 1:
        raise ControlError(
            f"the grid ends at 0, langevin and extra are at least 0, probes at least 1; got {float(times[-1]):g}, "
            f"{langevin}, {extra}, {probes}"
        )
    wide = times.to(noise.device, torch.float64 if noise.dtype == torch.float64 else torch.float32)
    cond, x = spread(cond, len(noise)), noise
    with Budget() as budget:
        model, score = budget.watch(flow_map), budget.score(reward)
        path, particles = model.interpolant, Particles(len(noise), noise.device)
        strength = beta * path.alpha(wide)
        r = torch.zeros(len(x), device=x.device)
        for i, t in enumerate(wide[1:]):
            with torch.no_grad():
                x = model(x, wide[i], t, **cond)
            here = _Path(model, score, t, float(strength[i + 1]), cond)
            point = here.at(x) if t > 0 and langevin + extra > 0 else None
            with torch.no_grad():
                r = point.r if point else here.ahead(x) if t > 0 else score(x)
            particles.weigh(float(strength[i + 1] - strength[i]) * r.double())
            if point:
                unit = (wide[i] - t) * path.sigma(t) * path.dsigma(t)
                point, owed = here.moved(point, extra * unit, langevin * unit, probes, generator)
                x = point.x
                if extra:
                    particles.weigh(owed)
            if t > 0 and particles.history[-1] < resample_below:
                rows = particles.resample(generator)
                x, cond = x[rows], pick(cond, rows)
    return particles.result(x, budget, r.detach())


def _laplacian(value: Callable[[Tensor], Tensor], x: Tensor, generator: Generator) -> Tensor:
    """Hutchinson's estimate (B,) of the Laplacian of a value, row by row: eta . H eta with signs eta."""
    eta = normal(x, generator).sign()
    with torch.enable_grad():
        point = x.detach().requires_grad_(True)
        (g,) = torch.autograd.grad(value(point).sum(), point, create_graph=True)
        if not g.requires_grad:  # a reward that is linear through a linear map
            return torch.zeros(len(x), device=x.device, dtype=x.dtype)
        (h,) = torch.autograd.grad((g * eta).sum(), point)
    return _dot(h, eta)


def _dot(a: Tensor, b: Tensor) -> Tensor:
    return (a * b).flatten(1).sum(1)
