r"""How an error becomes a loss: spaces, metrics, weights of time, tangent transforms, in this order.

A space reads both sides of a rule as something else than a mean velocity; a tangent transform acts on
$g$ = prediction - target, which is where every trick on the learning direction belongs (methods.md 2.4); a metric maps
prediction and target (B, *D) to one loss per row (B,); a weight multiplies that.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Literal, Protocol, final

import torch
from torch import Tensor, nn

from ..core.interpolant import Interpolant, linear
from ..core.parametrization import Average, Denoised, Parametrization
from ..core.shape import like
from ..errors import RecipeError


class Space(Protocol):
    """A mean velocity `u` (B, *D) of the jumps from `x` (B, *D), times (B,), read as something else (B, *D)."""

    def __call__(self, u: Tensor, x: Tensor, s: Tensor, t: Tensor) -> Tensor: ...


@final
@dataclass(frozen=True)
class AtData:
    r"""The denoised field whose DDIM step has the mean velocity u, on the linear path $\hat x = x - s\,u$.

    Solves $u = \Delta_\alpha \hat x + \Delta_\sigma (x-\alpha_s\hat x)/\sigma_s$, with the secants $\Delta$ of the path. At
    t = 0 it is the endpoint $X(x, s, 0)$, at t = s the denoised mean.
    """

    path: Interpolant

    def __call__(self, u: Tensor, x: Tensor, s: Tensor, t: Tensor) -> Tensor:
        c = self.path.at(s, x)
        dalpha, dsigma = (like(slope, x) for slope in self.path.secant(s, t))
        return (c.sigma * u - dsigma * x) / (c.sigma * dalpha - c.alpha * dsigma)


@final
@dataclass(frozen=True)
class AtTarget:
    r"""The endpoint $X = x + (t-s)\,u$: consistency models compare where both jumps arrive."""

    def __call__(self, u: Tensor, x: Tensor, s: Tensor, t: Tensor) -> Tensor:
        return x + like(t - s, x) * u


@final
@dataclass(frozen=True)
class ClippedTime:
    r"""$u\,\min(1, s/c)$: the velocity that $\hat x$ has as $(x-\hat x)/\max(s, c)$ on the linear path.

    Keeps the loss of an $x_0$ prediction finite at s = 0 (Lu et al. 2026, arXiv:2601.22158, c = 0.05).
    """

    floor: float = 0.05

    def __post_init__(self) -> None:
        if not 0 < self.floor <= 1:
            raise RecipeError(f"ClippedTime needs a time 0 < floor <= 1; got {self.floor}")

    def __call__(self, u: Tensor, x: Tensor, s: Tensor, t: Tensor) -> Tensor:
        return like((s / self.floor).clamp(max=1), u) * u


def read_as(
    predict: Literal["velocity", "x0"], floor: float = 0.05
) -> tuple[Parametrization, Space | None]:
    """How recipes of the linear path read a network as a velocity or as the image, and the space in which they compare then."""
    return (Denoised(linear(), "x0"), ClippedTime(floor)) if predict == "x0" else (Average(), None)


class Metric(Protocol):
    """Loss per row (B,) of a prediction (B, *D) against its target, a tensor of the same shape or 0."""

    def __call__(self, prediction: Tensor, target: Tensor | float = 0.0) -> Tensor: ...


@final
@dataclass(frozen=True)
class L2:
    """The mean square over coordinates."""

    def __call__(self, prediction: Tensor, target: Tensor | float = 0.0) -> Tensor:
        return (prediction - target).square().flatten(1).mean(1)


def _squares(prediction: Tensor, target: Tensor | float) -> Tensor:
    return (prediction - target).square().flatten(1).sum(1)


@final
@dataclass(frozen=True)
class Adaptive:
    r"""$L / \mathrm{sg}[(L+c)^p]$, by default of $L = \|\Delta\|^2$ summed over coordinates.

    p = 0 is L itself; for squares p = 1/2 is close to pseudo-Huber, p = 1 to a logarithm. `of=L2()` takes the mean over
    coordinates instead of the sum (Geng et al. 2025, arXiv:2505.13447, eq. 22).
    """

    p: float = 1.0
    c: float = 1e-3
    of: Metric | None = None

    def __call__(self, prediction: Tensor, target: Tensor | float = 0.0) -> Tensor:
        total = (self.of or _squares)(prediction, target)
        return total / (total.detach() + self.c) ** self.p


@final
@dataclass(frozen=True)
class Huber:
    r"""Pseudo-Huber, $\sqrt{\|\Delta\|^2+c^2 D}-c\sqrt D$ (Song & Dhariwal 2024, arXiv:2310.14189; c = 0.00054)."""

    c: float = 0.00054

    def __call__(self, prediction: Tensor, target: Tensor | float = 0.0) -> Tensor:
        c2 = self.c**2 * prediction[0].numel()
        return torch.sqrt(_squares(prediction, target) + c2) - c2**0.5


@final
@dataclass(frozen=True)
class Cosine:
    """1 - cos of the angle between prediction and target along their first axis (channels), mean over the others.

    It sees the direction alone and belongs beside a metric of the size. Its minimum is the mean of *unit* targets: with
    targets that are right only on average (the conditional velocity) it is biased (methods.md C7, D10).
    """

    def __call__(self, prediction: Tensor, target: Tensor | float = 0.0) -> Tensor:
        other = torch.as_tensor(target, dtype=prediction.dtype, device=prediction.device)
        aligned = nn.functional.cosine_similarity(prediction, other.expand_as(prediction), dim=1)
        return 1 - aligned.reshape(len(prediction), -1).mean(1)


@final
@dataclass(frozen=True)
class Perceptual:
    """Mean square between features: `features` maps images (B, C, H, W) to a tensor (B, ...) or a tuple of them.

    The network is yours: frozen, in evaluation mode, on the student's device. It needs images on both sides, so the
    term needs a space such as `AtData`.
    """

    features: Callable[[Tensor], Tensor | tuple[Tensor, ...]]

    def __call__(self, prediction: Tensor, target: Tensor | float = 0.0) -> Tensor:
        with torch.no_grad():
            seen = self.features(torch.as_tensor(target).expand_as(prediction))
        felt = self.features(prediction)
        pairs = zip(_listed(felt), _listed(seen), strict=True)
        return torch.stack([(a - b).square().flatten(1).mean(1) for a, b in pairs]).sum(0)


def _listed(value: Tensor | tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return value if isinstance(value, tuple) else (value,)


@final
@dataclass(frozen=True)
class Sum:
    """The sum of metrics."""

    parts: tuple[Metric, ...]

    def __call__(self, prediction: Tensor, target: Tensor | float = 0.0) -> Tensor:
        return torch.stack([part(prediction, target) for part in self.parts]).sum(0)


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


@final
@dataclass(frozen=True)
class Rise:
    r"""$\sin(\pi s/2)$: 1 in pure noise, 0 at the data (FACM's $\cos(\pi(1-s)/2)$, methods.md C7)."""

    def __call__(self, path: Interpolant, s: Tensor, t: Tensor) -> Tensor:
        return torch.sin(torch.pi / 2 * s)


@final
@dataclass(frozen=True)
class TangentGap:
    r"""$(\tan s - \tan t + \sigma_d)^{-1/2}$, times in [0, 1] (transition models, arXiv:2509.04394)."""

    sigma_data: float = 1.0

    def __call__(self, path: Interpolant, s: Tensor, t: Tensor) -> Tensor:
        return (torch.tan(s) - torch.tan(t) + self.sigma_data).rsqrt()


@final
@dataclass(frozen=True)
class Before:
    """1 at sources below a time, 0 above."""

    time: float

    def __call__(self, path: Interpolant, s: Tensor, t: Tensor) -> Tensor:
        return (s < self.time).to(s.dtype)


@final
@dataclass(frozen=True)
class PerLeg:
    r"""$1/|\sigma_s/\alpha_s - \sigma_w/\alpha_w|$ of the first leg s -> w, not of the jump: iCT's weight, eq. 9, and TCM's.

    Song & Dhariwal 2024 (arXiv:2310.14189).
    """

    first_leg: ClassVar[bool] = True

    def __call__(self, path: Interpolant, s: Tensor, t: Tensor) -> Tensor:
        return 1 / (path.sigma(s) / path.alpha(s) - path.sigma(t) / path.alpha(t)).abs()


@final
@dataclass(frozen=True)
class EDMWeight:
    r"""$1/\sigma^2 + 1/\sigma_d^2$ at $\sigma = \sigma_s/\alpha_s$; ECT's SNR + 1 at $\sigma_d = 1$.

    Karras et al. 2022 (arXiv:2206.00364).
    """

    sigma_data: float = 0.5

    def __call__(self, path: Interpolant, s: Tensor, t: Tensor) -> Tensor:
        return (path.alpha(s) / path.sigma(s)).square() + 1 / self.sigma_data**2


class TangentTransform(Protocol):
    r"""A transform of $g$ = prediction - target (B, *D), which goes from `s` (B,) to `t` (B,)."""

    def __call__(self, g: Tensor, s: Tensor, t: Tensor) -> Tensor: ...


@final
@dataclass(frozen=True)
class TangentNorm:
    r"""$g / (\|g\| + c)$ per row, the norm over coordinates divided by $\sqrt D$ (Lu & Song 2025, arXiv:2410.11081)."""

    c: float = 0.1

    def __call__(self, g: Tensor, s: Tensor, t: Tensor) -> Tensor:
        norm = g.flatten(1).norm(dim=1) / g[0].numel() ** 0.5
        return g / like(norm + self.c, g)


@final
@dataclass(frozen=True)
class Clip:
    """Every coordinate of g clipped to [-c, c]: the alternative to `TangentNorm` (Lu & Song 2025, arXiv:2410.11081)."""

    c: float = 1.0

    def __call__(self, g: Tensor, s: Tensor, t: Tensor) -> Tensor:
        return g.clamp(-self.c, self.c)


@final
@dataclass(frozen=True)
class Relax:
    r"""$(1-(1-s)^p)\,g$: the target stays near the prediction where the source is near the data (FACM, methods.md C7).

    Attributes:
        p: Power of the signal share 1 - s.
        of: A transform that comes first, or None.
    """

    p: float = 0.5
    of: TangentTransform | None = None

    def __call__(self, g: Tensor, s: Tensor, t: Tensor) -> Tensor:
        first = g if self.of is None else self.of(g, s, t)
        return like(1 - (1 - s) ** self.p, g) * first


@final
@dataclass(frozen=True)
class LearnedLogVar:
    r"""Learned uncertainty $e^{-\omega(s,t)} L + \omega(s,t)$ (Karras et al. 2024, arXiv:2312.02696, eq. 14-15; LSD).

    `Objective` builds one network $\omega$ of `channels` hidden units for all terms that ask for it.

    Minimised over $\omega$ it is $1 + \log L$, which has no lower bound: two terms that share a network can trade the law of
    the data, whose loss has a floor, for a perfect agreement with itself, whose loss has none.

    Attributes:
        channels: Hidden units.
        floor: Added to L, so that no error counts more than 1 / floor times itself; 0 is the published form.
        cauchy: A number c replaces the Gaussian by $\log(e^{-\omega}L+c)+\omega = \log(L + c\,e^\omega)$ (decoupled MeanFlow,
            c = 0.01). That falls with $\omega$ everywhere: $\omega$ is the decreasing floor below which errors stop
            counting, and has no finite optimum.
    """

    channels: int = 128
    cauchy: float | None = None
    floor: float = 0.0

    def loss(self, row: Tensor, omega: Tensor) -> Tensor:
        """Loss (B,) of the errors `row` (B,) under the log-variances `omega` (B,)."""
        scaled = torch.exp(-omega) * (row + self.floor)
        return (scaled if self.cauchy is None else torch.log(scaled + self.cauchy)) + omega


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
