r"""How an error becomes a loss: metrics of $\Delta$ = prediction - target, weights of time, tangent transforms, ramps.

A metric maps $\Delta$ (B, *D) to one loss per row (B,); a time weight multiplies it; a tangent transform acts before both,
on $g = u - \mathrm{target}$, which is where every trick on the learning direction belongs (methods.md 2.4).
"""

from dataclasses import dataclass
from typing import Literal, Protocol, final

import torch
from torch import Tensor, nn

from ..core.interpolant import Interpolant
from ..core.shape import like
from ..errors import RecipeError


class Metric(Protocol):
    """Loss per row (B,) of an error (B, *D)."""

    def __call__(self, error: Tensor) -> Tensor: ...


@final
@dataclass(frozen=True)
class L2:
    """The mean square over coordinates."""

    def __call__(self, error: Tensor) -> Tensor:
        return error.square().flatten(1).mean(1)


@final
@dataclass(frozen=True)
class Adaptive:
    r"""$\|\Delta\|^2 / \mathrm{sg}[(\|\Delta\|^2+c)^p]$, sums over coordinates (Geng et al. 2025, arXiv:2505.13447, eq. 22).

    p = 0 is L2 (as a sum), p = 1/2 close to pseudo-Huber, p = 1 close to a logarithm.
    """

    p: float = 1.0
    c: float = 1e-3

    def __call__(self, error: Tensor) -> Tensor:
        total = error.square().flatten(1).sum(1)
        return total / (total.detach() + self.c) ** self.p


@final
@dataclass(frozen=True)
class Huber:
    r"""Pseudo-Huber, $\sqrt{\|\Delta\|^2+c^2 D}-c\sqrt D$ (Song & Dhariwal 2024, arXiv:2310.14189; c = 0.00054)."""

    c: float = 0.00054

    def __call__(self, error: Tensor) -> Tensor:
        flat = error.flatten(1)
        c2 = self.c**2 * flat.shape[1]
        return torch.sqrt(flat.square().sum(1) + c2) - c2**0.5


class TimeWeight(Protocol):
    """A weight (B,) of the source and target times (B,) on a path."""

    def __call__(self, path: Interpolant, s: Tensor, t: Tensor) -> Tensor: ...


@final
@dataclass(frozen=True)
class InSpace:
    r"""Measures a velocity error in another space: at fixed $x_t$ predictions are proportional.

    $\Delta b = (\dot\alpha-\alpha\dot\sigma/\sigma)\,\Delta x_0 = (\dot\sigma-\sigma\dot\alpha/\alpha)\,\Delta\varepsilon$,
    so DDPM's unweighted loss on $\varepsilon$ is a velocity loss with weight $(\dot\sigma-\sigma\dot\alpha/\alpha)^{-2}$.
    """

    space: Literal["x0", "eps"]

    def __call__(self, path: Interpolant, s: Tensor, t: Tensor) -> Tensor:
        a, sigma, da, dsigma = path.alpha(s), path.sigma(s), path.dalpha(s), path.dsigma(s)
        wronskian = da * sigma - a * dsigma
        return ((sigma if self.space == "x0" else a) / wronskian).square()


@final
@dataclass(frozen=True)
class MaxSNR:
    r"""Progressive distillation's truncated-SNR weight of the $x_0$ error: $\max(\alpha_s^2/\sigma_s^2, 1)$.

    Salimans & Ho 2022 (arXiv:2202.00512), sec. 4, for an error of the mean velocity of a DDIM step:
    $\Delta u = \big(\frac{\alpha_t-\alpha_s}{t-s}-\frac{\alpha_s}{\sigma_s}\frac{\sigma_t-\sigma_s}{t-s}\big)\Delta\hat x$.
    `limit` caps the SNR: at t = 0 it is infinite.
    """

    limit: float = 100.0

    def __call__(self, path: Interpolant, s: Tensor, t: Tensor) -> Tensor:
        a, sigma = path.alpha(s), path.sigma(s)
        dalpha, dsigma = path.secant(s, t)
        snr = (a / sigma).square().clamp(1.0, self.limit)
        return snr * (sigma / (dalpha * sigma - a * dsigma)).square()


class TangentTransform(Protocol):
    r"""A transform of $g = u - \mathrm{target}$ (B, *D); it may not change its direction in expectation lightly."""

    def __call__(self, g: Tensor) -> Tensor: ...


@final
@dataclass(frozen=True)
class TangentNorm:
    r"""$g / (\|g\| + c)$ per row, the norm over coordinates divided by $\sqrt D$ (Lu & Song 2025, arXiv:2410.11081)."""

    c: float = 0.1

    def __call__(self, g: Tensor) -> Tensor:
        norm = g.flatten(1).norm(dim=1) / g[0].numel() ** 0.5
        return g / like(norm + self.c, g)


@final
@dataclass(frozen=True)
class Ramp:
    """A number that goes from `start` to `stop` while training progress goes from `begin` to `end`, linearly.

    Example:
        >>> Ramp(0.0, 1.0, end=0.5)(torch.tensor(0.25))
        tensor(0.5000)
    """

    start: float
    stop: float
    begin: float = 0.0
    end: float = 1.0

    def __post_init__(self) -> None:
        if not 0 <= self.begin < self.end <= 1:
            raise RecipeError(
                f"Ramp needs 0 <= begin < end <= 1; got begin={self.begin}, end={self.end}"
            )

    def __call__(self, progress: Tensor) -> Tensor:
        share = ((progress - self.begin) / (self.end - self.begin)).clamp(0, 1)
        return self.start + (self.stop - self.start) * share


@final
@dataclass(frozen=True)
class LearnedLogVar:
    r"""Learned uncertainty $e^{-\omega(s,t)} L + \omega(s,t)$ (Karras et al. 2024, arXiv:2312.02696, eq. 14-15; LSD).

    `Objective` builds one network $\omega$ of `channels` hidden units for all terms that ask for it.
    """

    channels: int = 128


@final
class LogVar(nn.Module):
    r"""$\omega(s, t)$: a two-layer network on sines and cosines of both times, zero at the start. (B,) to (B,)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(16, channels), nn.Linear(channels, 1)
        nn.init.zeros_(self.last.weight)
        nn.init.zeros_(self.last.bias)

    def forward(self, s: Tensor, t: Tensor) -> Tensor:
        wide = torch.promote_types(self.first.weight.dtype, torch.float32)
        omega = 2.0 ** torch.arange(4, device=s.device, dtype=wide)
        phase = torch.stack([s, t], -1).to(wide)[..., None] * omega
        features = torch.cat([phase.sin(), phase.cos()], -1).flatten(1)
        hidden = nn.functional.silu(self.first(features))
        # a mean over hidden units, not a sum: Adam moves every weight alike, and an omega that falls faster than the
        # student learns multiplies a self-distilled loss by hundreds before its targets mean anything
        return self.last(hidden)[:, 0] / hidden.shape[1]
