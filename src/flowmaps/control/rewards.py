r"""Rewards: what a sample is steered to. A reward is any callable from clean samples (B, *D) to one number per row (B,).

Nothing has to be inherited or registered, and a black box will do wherever no gradient is taken. `scored` and `slope` look at
what comes back: a NaN, a wrong shape or a gradient that is missing where one is needed ends in one sentence, not in a picture
that is quietly wrong. -inf is allowed: it forbids a sample.

`linear` and `pull` are the rewards whose tilt $p(x)e^{r(x)}$ is known for every data law (`flowmaps.control.steer.Exact`).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, cast, final

import torch
from torch import Tensor

from ..errors import ControlError

BLACK_BOX = "best_of_n, search_noise, tempered_smc, smc or noise_mcmc with pcn or slice"
"""Where a reward needs no gradient."""


class Reward(Protocol):
    """Clean samples (B, *D) to rewards (B,), larger is better, in natural units: the tilt is p(x) exp(beta r(x))."""

    def __call__(self, x: Tensor, /) -> Tensor: ...


@final
@dataclass(frozen=True, eq=False)
class ClassLogProb:
    r"""$\log p(label | x)$ (B,) of a classifier.

    Attributes:
        classifier: Samples (B, *D) to logits (B, classes).
        label: Number of the class.
    """

    classifier: Callable[[Tensor], Tensor]
    label: int

    def __call__(self, x: Tensor) -> Tensor:
        return torch.log_softmax(self.classifier(x), -1)[:, self.label]


@final
@dataclass(frozen=True)
class Brightness:
    """The mean over all coordinates (B,): of pictures in [-1, 1], their brightness."""

    def __call__(self, x: Tensor) -> Tensor:
        return x.flatten(1).mean(1)


@final
@dataclass(frozen=True)
class Colour:
    """Minus the squared distance (B,) of a picture's mean colour (B, C, H, W) from `target`.

    Attributes:
        target: One number per channel, in the units of the pictures: (1, -1, -1) is red.
    """

    target: Sequence[float]

    def __call__(self, x: Tensor) -> Tensor:
        if x.ndim != 4 or x.shape[1] != len(self.target):
            raise ControlError(
                f"Colour has {len(self.target)} channels and wants pictures (B, {len(self.target)}, H, W); "
                f"got {tuple(x.shape)}"
            )
        return -(x.mean((2, 3)) - torch.as_tensor(self.target).to(x)).square().sum(1)


@final
@dataclass(frozen=True)
class Symmetry:
    """Minus the mean square (B,) of the difference between a picture (B, ..., W) and its mirror image, left to right."""

    def __call__(self, x: Tensor) -> Tensor:
        return -(x - x.flip(-1)).square().flatten(1).mean(1)


@final
@dataclass(frozen=True)
class Loudness:
    """The root mean square (B,) of a sound (B, ...) in decibels below full scale, 1; silence counts as -120."""

    def __call__(self, x: Tensor) -> Tensor:
        return 10 * torch.log10(x.square().flatten(1).mean(1) + 1e-12)


@final
@dataclass(frozen=True)
class Pitch:
    r"""How much of a sound (B, ..., samples) is a note: the log of the share (B,) of its power near a frequency and its harmonics.

    A pure tone of that frequency has reward 0, noise about the log of the share of the bands. Differentiable.

    Attributes:
        frequency: In Hz.
        rate: Samples per second.
        width: Half-width of a band, as a share of the frequency; at least two cells of the spectrum are in it.
        harmonics: Bands, at 1, 2, ... times the frequency.
    """

    frequency: float
    rate: float
    width: float = 0.03
    harmonics: int = 5

    def __call__(self, x: Tensor) -> Tensor:
        n = x.shape[-1]
        if not 2 * self.rate / n < self.frequency < self.rate / 2:
            raise ControlError(
                f"Pitch of {self.frequency:g} Hz needs a clip of two periods or more and a rate above twice the frequency; got "
                f"{n} samples at {self.rate:g} per second"
            )
        window = torch.hann_window(n, dtype=x.dtype, device=x.device)
        power = torch.fft.rfft(x * window).abs().square()
        at = torch.arange(power.shape[-1], device=x.device) * self.rate / n
        reach = max(self.width * self.frequency, 2 * self.rate / n)
        notes = self.frequency * torch.arange(1, self.harmonics + 1, device=x.device)
        near = ((at[:, None] - notes).abs() <= reach).any(1)
        total = power.flatten(1).sum(1)
        return torch.log(((power * near).flatten(1).sum(1) + 1e-12) / (total + 1e-12))


@final
@dataclass(frozen=True, eq=False)
class Quadratic:
    r"""$a\cdot x - \frac\Lambda2|x|^2 + c$ (B,): the rewards that are solved exactly for every data law.

    Attributes:
        slope: a, of the shape of one sample (*D).
        curvature: $\Lambda$; negative values push outwards and need not have a tilt.
        constant: c.
    """

    slope: Tensor
    curvature: float = 0.0
    constant: float = 0.0

    def __call__(self, x: Tensor) -> Tensor:
        flat, a = x.flatten(1), self.slope.to(x).flatten()
        return flat @ a - 0.5 * self.curvature * flat.square().sum(1) + self.constant


def linear(slope: Tensor) -> Quadratic:
    r"""$a\cdot x$: for a Gaussian law the tilt moves the mean by $\Sigma a$.

    Example:
        >>> linear(torch.tensor([1.0, -2.0]))(torch.tensor([[3.0, 1.0]]))
        tensor([1.])
    """
    return Quadratic(slope)


def pull(centre: Tensor, curvature: float) -> Quadratic:
    r"""$-\frac\Lambda2|x-c|^2$: towards c (*D); the tilt is the posterior given c in noise of std $\Lambda^{-1/2}$."""
    return Quadratic(curvature * centre, curvature, -0.5 * curvature * float(centre.square().sum()))


@final
@dataclass(frozen=True, eq=False)
class Scaled:
    """`factor` times a reward."""

    reward: Reward
    factor: float

    def __call__(self, x: Tensor) -> Tensor:
        return self.factor * self.reward(x)


@final
@dataclass(frozen=True, eq=False)
class Decoded:
    """A reward of what a latent sample is decoded to; `Budget` counts the decodes.

    Attributes:
        reward: On decoded samples.
        decode: Latents (B, *D) to samples (B, *E).
    """

    reward: Reward
    decode: Callable[[Tensor], Tensor]

    def __call__(self, x: Tensor) -> Tensor:
        return self.reward(self.decode(x))


def scored(reward: Reward, x: Tensor) -> Tensor:
    """The rewards (B,) of samples (B, *D), looked at.

    Raises:
        ControlError: For anything but one floating-point number per row, for NaN and for +inf.
    """
    r = cast("object", reward(x))
    name = getattr(reward, "__name__", type(reward).__name__)
    if not isinstance(r, Tensor):
        raise ControlError(
            f"reward {name} must return a tensor ({len(x)},), one number per sample; got {type(r).__name__}"
        )
    if r.shape != (len(x),):
        raise ControlError(
            f"reward {name} must return shape ({len(x)},) for samples {tuple(x.shape)}; got {tuple(r.shape)}: "
            "reduce every axis but the first"
        )
    if not r.is_floating_point():
        raise ControlError(f"reward {name} must return floating-point numbers; got {r.dtype}")
    # a NaN fails the comparison as well
    bad = ~(r.detach() < torch.inf)
    if bool(bad.any()):
        raise ControlError(
            f"reward {name} is NaN or +inf for {int(bad.sum())} of {len(x)} samples (row {int(bad.nonzero()[0])} first): "
            "clip it or guard its logarithms and divisions; -inf forbids a sample"
        )
    return r


def slope(value: Callable[[Tensor], Tensor], x: Tensor) -> tuple[Tensor, Tensor]:
    """A value (B,) of points (B, *D), row by row, and its gradient (B, *D), both detached.

    Raises:
        ControlError: If no gradient comes back, or one that is not finite.
    """
    with torch.enable_grad():
        point = x.detach().requires_grad_(True)
        v = value(point)
        found = (
            torch.autograd.grad(v.sum(), point, allow_unused=True)[0] if v.requires_grad else None
        )
    if found is None:
        raise ControlError(
            "this control follows the gradient of the reward, and the reward has none: it must not detach, round or "
            f"convert to numpy; for a black box use {BLACK_BOX}"
        )
    bad = ~found.isfinite().flatten(1).all(1)
    if bool(bad.any()):
        raise ControlError(
            f"the gradient of the reward is not finite for {int(bad.sum())} of {len(x)} samples (row "
            f"{int(bad.nonzero()[0])} first): a square root or logarithm at 0 does that, add a small number inside"
        )
    return v.detach(), found
