r"""Sampling: a loop over a decreasing grid of times. There is one loop in the package, and it is `trajectory`.

A flow map jumps from time to time. A diffusion model, which is the flow map's diagonal, is integrated by a solver (`solve`)
or walked with fresh noise: DDPM and DDIM are one family in `eta`, EDM's churn re-noises before a solver step, and a flow map
re-noises after a jump (`sample_gamma`: consistency sampling at gamma = 1).
"""

import itertools
import zlib
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Generator, Tensor

from ..core.flow_map import FlowMap
from ..core.interpolant import Interpolant
from ..core.solver import HEUN, Solver
from ..core.velocity import Velocity


class Step(NamedTuple):
    """One step of a trajectory: from time `s` to time `t`, where the point is `x` (B, *D)."""

    s: Tensor
    t: Tensor
    x: Tensor


def trajectory(flow_map: FlowMap, x: Tensor, times: Tensor, **cond: Any) -> Iterator[Step]:
    """The jumps of `flow_map` along a grid, one at a time: iterate for previews, videos and callbacks.

    Args:
        flow_map: Any flow map.
        x: Points (B, *D) at `times[0]`; noise from `flow_map.interpolant.prior` when that is 1.
        times: Grid (K+1,), decreasing for generation, increasing for inversion.
        cond: Conditioning, tensors with a leading B.
    """
    # one transfer for the whole grid; every time owns its memory, which forward-mode AD asks for
    wide = torch.float64 if x.dtype == torch.float64 else torch.float32
    rows = times.to(device=x.device, dtype=wide)[:, None].repeat(1, len(x))
    for s, t in itertools.pairwise(rows):
        x = flow_map(x, s, t, **cond)
        yield Step(s, t, x)


def sample(flow_map: FlowMap, x: Tensor, times: Tensor, **cond: Any) -> Tensor:
    """Carry `x` (B, *D) from `times[0]` to `times[-1]`, one network call per interval. Differentiable; arguments as `trajectory`.

    Example:
        >>> from flowmaps.core import interpolant, oracle
        >>> world = oracle.Gaussian(torch.zeros(2), torch.ones(2), interpolant.linear())
        >>> sample(world.flow_map, torch.ones(3, 2), torch.tensor([1.0, 0.0])).shape
        torch.Size([3, 2])
    """
    for step in trajectory(flow_map, x, times, **cond):
        x = step.x
    return x


def generate(flow_map: FlowMap, x: Tensor, times: Tensor, **cond: Any) -> Tensor:
    """From noise to data in as many calls as the grid has intervals, by the steps that the map has learned.

    Jumps (`sample`); and for a map that knows the way to clean data only, consistency sampling (`sample_gamma` with gamma = 1). The
    noise that this adds to a row is drawn from the row itself, so a sample depends on its own noise `x` (B, *D) and no other.
    """
    if not flow_map.to_data or len(times) == 2:
        return sample(flow_map, x, times, **cond)
    own = [Generator().manual_seed(zlib.crc32(row.numpy().tobytes())) for row in x.detach().cpu()]
    return sample_gamma(flow_map, x, times, gamma=1.0, generator=own, **cond)


def solve(
    velocity: Velocity,
    x: Tensor,
    times: Tensor,
    path: Interpolant,
    solver: Solver = HEUN,
    **cond: Any,
) -> Tensor:
    """Integrate a velocity field along a grid with a solver: the long walk that a flow map replaces. (B, *D) to (B, *D)."""
    wide = torch.float64 if x.dtype == torch.float64 else torch.float32
    *_, end = solver.integrate(velocity, x, times.to(device=x.device, dtype=wide), path, **cond)
    return end


def sample_eta(
    flow_map: FlowMap, x: Tensor, times: Tensor, *, eta: float, generator: Generator, **cond: Any
) -> Tensor:
    r"""The eta family: DDIM at 0, DDPM's ancestral sampling at 1 (Song et al. 2021, arXiv:2010.02502, eq. 12 and 16).

    $x_t = \alpha_t\hat x + \sqrt{\sigma_t^2-\eta^2\tilde\sigma^2}\,\hat\varepsilon + \eta\tilde\sigma z$ with
    $\tilde\sigma^2 = \sigma_t^2\,(1-\alpha_s^2\sigma_t^2/(\alpha_t^2\sigma_s^2))$, the posterior variance. One call per step.
    """
    path = flow_map.interpolant
    for s, t in zip(times[:-1].to(x), times[1:].to(x), strict=True):
        v = flow_map.velocity(x, s, **cond)
        x_0, eps = path.endpoints(v, x, s.expand(len(x)), "velocity")
        a, b = path.at(s, x), path.at(t, x)
        posterior = b.sigma.square() * (1 - (a.alpha * b.sigma / (b.alpha * a.sigma)).square())
        noise = torch.randn(x.shape, generator=generator, dtype=x.dtype).to(x.device)
        rest = (b.sigma.square() - eta**2 * posterior).clamp(min=0).sqrt()
        x = b.alpha * x_0 + rest * eps + eta * posterior.clamp(min=0).sqrt() * noise
    return x


def sample_gamma(
    flow_map: FlowMap,
    x: Tensor,
    times: Tensor,
    *,
    gamma: float,
    generator: Generator | Sequence[Generator],
    **cond: Any,
) -> Tensor:
    r"""Jump past every grid time and re-noise back to it: gamma = 0 is the ODE, gamma = 1 consistency sampling.

    With $\rho = \sigma/\alpha$, a step to t jumps to w with $\rho_w = \sqrt{1-\gamma^2}\rho_t$ and adds the noise that leads from
    w to t (Kim et al. 2024, CTM, arXiv:2310.02279, algorithm 3). One call per step. There may be a generator for every row.
    """
    path = flow_map.interpolant

    def fresh() -> Tensor:
        if isinstance(generator, Generator):
            return torch.randn(x.shape, generator=generator, dtype=x.dtype)
        return torch.stack(
            [torch.randn(x.shape[1:], generator=g, dtype=x.dtype) for g in generator]
        )

    for s, t in zip(times[:-1].to(x), times[1:].to(x), strict=True):
        ratio = (1 - gamma**2) ** 0.5 * path.sigma(t) / path.alpha(t)
        w = path.time_at(-torch.log(ratio)).clamp(0, 1)
        z = fresh().to(x.device)
        # `renoise` from w to t, whose spread is gamma sigma_t: exactly none at gamma = 0
        x = path.alpha(t) / path.alpha(w) * flow_map(x, s, w, **cond) + gamma * path.sigma(t) * z
    return x


def sample_churn(
    flow_map: FlowMap,
    x: Tensor,
    times: Tensor,
    *,
    churn: float = 40.0,
    noise: float = 1.003,
    generator: Generator,
    solver: Solver = HEUN,
    **cond: Any,
) -> Tensor:
    r"""EDM's stochastic sampler (Karras et al. 2022, arXiv:2206.00364, algorithm 2) on any path.

    Before every step the noise-to-signal ratio is raised by $1+\gamma$, $\gamma = \min(churn/steps, \sqrt2-1)$, with noise of
    standard deviation `noise`; then `solver` goes to the next time.
    """
    path = flow_map.interpolant
    gamma = min(churn / (len(times) - 1), 2**0.5 - 1)
    for s, t in zip(times[:-1].to(x), times[1:].to(x), strict=True):
        up = path.time_at(
            path.log_snr(s) - torch.log1p(torch.as_tensor(gamma, dtype=x.dtype))
        ).clamp(max=1.0)
        x = renoise(path, x, s, up, generator, noise)
        x = solve(flow_map.velocity, x, torch.stack([up, t]), path, solver, **cond)
    return x


def renoise(
    path: Interpolant, x: Tensor, w: Tensor, t: Tensor, generator: Generator, noise: float = 1.0
) -> Tensor:
    r"""From $x_w$ up to $x_t$: $x_t = (\alpha_t/\alpha_w)x_w + \sqrt{\sigma_t^2-(\alpha_t/\alpha_w)^2\sigma_w^2}\,z$."""
    a, b = path.at(w, x), path.at(t, x)
    # pure noise (alpha_w = 0, so t = w = 1) stays as it is
    ratio = torch.where(a.alpha == 0, 1.0, b.alpha / a.alpha)
    spread = (b.sigma.square() - (ratio * a.sigma).square()).clamp(min=0).sqrt()
    z = torch.randn(x.shape, generator=generator, dtype=x.dtype).to(x.device)
    return ratio * x + noise * spread * z
