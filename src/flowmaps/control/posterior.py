r"""Posterior maps: flow maps of $p(x_0 | x_c)$, the clean data that a noisy point can come from.

A posterior map is a `FlowMap` with two more conditions, `context` $x_c$ (B, *D) and `context_time` c (B,). Its path is
$\bar x_s = \alpha_s x_0 + \sigma_s\bar\varepsilon$ with $x_0 \sim p(x_0|x_c)$ and fresh noise, so noise at s = 1 becomes an
independent draw of the posterior, and context at c = 1 is the ordinary flow map.

No training is needed: $\bar x_s$ and $x_c$ are two independent Gaussian views of one $x_0$, hence one view of higher precision,
and an ordinary denoiser of it is the posterior's (GLASS; Holderrieth et al. 2026, Diamond Maps, arXiv:2602.05993; Meta Flow Maps,
arXiv:2601.14430). To learn the map that this field has in one jump, add `contexts` to the conditions of any recipe.
"""

from typing import Any, NamedTuple, final

import torch
from torch import Generator, Tensor

from ..core.flow_map import FlowMap, SolvedFlowMap
from ..core.interpolant import Interpolant
from ..core.shape import Time, as_time
from ..core.solver import HEUN, Solver
from ..core.velocity import Velocity
from ..errors import ShapeError


class View(NamedTuple):
    """A noisy view of clean data: the point (B, *D) of a path at times (B,)."""

    x: Tensor
    t: Tensor


def fuse(path: Interpolant, first: View, second: View) -> View:
    r"""Two views of one $x_0$ with independent noises, as the one view that tells as much: signal-to-noise ratios add.

    $\mathrm{snr}^* = \alpha_s^2/\sigma_s^2+\alpha_c^2/\sigma_c^2$ and
    $x^* = \alpha^*(\alpha_s\bar x/\sigma_s^2 + \alpha_c x_c/\sigma_c^2)/\mathrm{snr}^*$, written so that clean data and pure noise
    divide by nothing. Where both are pure noise the first is returned. Two clean views at once are undefined.
    """
    a, b = path.at(first.t, first.x), path.at(second.t, first.x)
    square = (a.alpha * b.sigma).square() + (b.alpha * a.sigma).square()
    blind = square == 0
    mean = a.alpha * b.sigma.square() * first.x + b.alpha * a.sigma.square() * second.x
    joint = _joint_time(path, first.t, second.t)
    x = path.at(joint, first.x).alpha * mean / torch.where(blind, 1.0, square)
    return View(torch.where(blind, first.x, x), joint)


def _joint_time(path: Interpolant, s: Tensor, c: Tensor) -> Tensor:
    """The time on `path` whose signal-to-noise ratio is the sum of those at s and c."""
    alpha, sigma = path.alpha, path.sigma
    root = torch.hypot(alpha(s) * sigma(c), alpha(c) * sigma(s))
    time = path.time_at(root.log() - sigma(s).log() - sigma(c).log())
    return time.clamp(0, 1)


@final
class Glass:
    r"""The exact velocity of a posterior map, from an ordinary velocity: the GLASS identity.

    With D the denoised mean of the fused view, $\bar b_s = \dot\alpha_s D + \dot\sigma_s (\bar x_s-\alpha_s D)/\sigma_s$. Near data
    the noise is read from the prediction at the fused view instead, and nothing is divided by $\sigma_s$. One call per call.

    Args:
        velocity: Field of the unconditional path: a teacher, or a flow map's own `velocity`.
        path: Its path.
    """

    def __init__(self, velocity: Velocity, path: Interpolant) -> None:
        self.velocity, self.path = velocity, path

    def __call__(
        self, x: Tensor, t: Time, *, context: Tensor, context_time: Tensor, **cond: Any
    ) -> Tensor:
        """Velocity (B, *D) at points `x` (B, *D) of times `t`, given contexts (B, *D) of times (B,)."""
        s, c = as_time(t, x), as_time(context_time, x)
        if context.shape != x.shape:
            raise ShapeError(
                f"a context has the shape of its point, {tuple(x.shape)}; got {tuple(context.shape)}"
            )
        view = fuse(self.path, View(x, s), View(context, c))
        time = view.t.clamp(min=self.path.t_min)
        v = self.velocity(view.x, time, **cond)
        x_0, eps = self.path.endpoints(v, view.x, time, "velocity")
        a, b = self.path.at(s, x), self.path.at(c, x)
        noisy = a.alpha * b.sigma <= torch.maximum(b.alpha * a.sigma, a.sigma * b.sigma)
        far = (x - a.alpha * x_0) / torch.where(noisy, a.sigma, 1.0)
        # n E* = b E_c + a E, the noises of the fused view and of its two parts
        signal = torch.where(noisy, 1.0, a.alpha * b.sigma)
        root = torch.hypot(a.alpha * b.sigma, b.alpha * a.sigma)
        rest = b.alpha * a.sigma * (context - b.alpha * x_0) / torch.where(noisy, 1.0, b.sigma)
        near = (root * eps - rest) / signal
        return a.dalpha * x_0 + a.dsigma * torch.where(noisy, far, near)


def posterior_map(flow_map: FlowMap, *, steps: int = 16, solver: Solver = HEUN) -> SolvedFlowMap:
    r"""The posterior map that an ordinary flow map or diffusion model contains, by integration of its GLASS velocity.

    Each jump costs `steps` solver steps. Exact where the velocity and the integration are: on a map with guidance folded in, it is
    the posterior under the guided law.

    Example:
        >>> from flowmaps.core import interpolant, oracle
        >>> world = oracle.Gaussian(torch.zeros(1), torch.ones(1), interpolant.linear())
        >>> draw = posterior_map(world.flow_map)
        >>> draw(torch.zeros(1, 1), 1.0, 0.0, context=torch.ones(1, 1), context_time=torch.tensor([0.5]))
        tensor([[1.0000]])
    """
    return SolvedFlowMap(
        Glass(flow_map.velocity, flow_map.interpolant), flow_map.interpolant, solver, steps
    )


def posterior_draws(
    posterior: FlowMap, x: Tensor, t: Time, n: int, *, generator: Generator, **cond: Any
) -> Tensor:
    """Independent draws of $p(x_0 | x_t = x)$, (n, B, *D): one jump of a posterior map each."""
    noise = posterior.interpolant.prior((n * len(x), *x.shape[1:]), generator).to(x)
    time = as_time(t, x)
    given = {key: value.repeat(n, *[1] * (value.ndim - 1)) for key, value in cond.items()}
    context = x.repeat(n, *[1] * (x.ndim - 1))
    draws = posterior(noise, 1.0, 0.0, context=context, context_time=time.repeat(n), **given)
    return draws.reshape(n, *x.shape)


def transition(
    posterior: FlowMap,
    x: Tensor,
    s: Time,
    t: Time,
    *,
    rho: float | None = None,
    generator: Generator,
    **cond: Any,
) -> Tensor:
    r"""A random step from $x_s$ to $x_t$ that keeps the marginals, by one draw of the posterior map.

    $x_t = \gamma x_s + (\alpha_t-\gamma\alpha_s)x_0 + \sigma_t\sqrt{1-\rho^2}\,n$ with $\gamma = \rho\sigma_t/\sigma_s$
    (arXiv:2602.05993). `rho` is the correlation of the two noises: 0 re-noises a posterior draw, and None means DDPM's,
    $\rho = \alpha_s\sigma_t/(\alpha_t\sigma_s)$, whose steps compose to the same Markov chain whatever the grid.
    """
    path = posterior.interpolant
    a, b = path.at(as_time(s, x), x), path.at(as_time(t, x), x)
    own = a.alpha * b.sigma / (b.alpha * a.sigma)
    share = own if rho is None else torch.full_like(own, rho)
    x_0 = posterior_draws(posterior, x, s, 1, generator=generator, **cond)[0]
    gamma = share * b.sigma / a.sigma
    noise = torch.randn(x.shape, generator=generator, dtype=x.dtype).to(x.device)
    fresh = (1 - share.square()).clamp(min=0).sqrt() * b.sigma
    return gamma * x + (b.alpha - gamma * a.alpha) * x_0 + fresh * noise


def contexts(
    path: Interpolant, x_0: Tensor, generator: Generator, *, unconditional: float = 0.1
) -> dict[str, Tensor]:
    r"""The two conditions that make any recipe learn a posterior map; they join the others in `Recipe.draw`.

    Pairs (x_0, x_c) are drawn together, so regression on the recipe's own path, with fresh noise, has the velocity of the posterior
    as its minimiser. Times c = 1 - U^2 favour noise, and a share of them is 1 (arXiv:2601.14430). A recipe with a teacher
    takes `Glass(teacher.velocity, path)` as the velocity.

    Args:
        path: The recipe's path.
        x_0: Data (B, *D), in the order that `draw` is given.
        generator: CPU generator; it advances.
        unconditional: Share of contexts at c = 1, which teach the ordinary flow map.
    """
    u = torch.rand(2, len(x_0), generator=generator)
    c = (
        torch.where(u[1] < unconditional, 1.0, 1 - u[0].square())
        .clamp(min=path.t_min)
        .to(x_0.dtype)
    )
    eps = torch.randn(x_0.shape, generator=generator, dtype=x_0.dtype)
    return {"context": path.sample(x_0, eps, c)[0], "context_time": c}
