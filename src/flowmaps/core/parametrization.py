r"""How a raw network output $F(x, s, t)$ is read as a flow map: two formulas per method and one identity between them.

All published parametrizations but the average velocity are one construction. Read the output as a pair
$(\hat x, \hat\varepsilon)$ with $x = \alpha_s \hat x + \sigma_s \hat\varepsilon$, and jump with it:

$$ X = \alpha_t \hat x + \sigma_t \hat\varepsilon, \qquad
   u = \frac{\alpha_t-\alpha_s}{t-s}\,\hat x + \frac{\sigma_t-\sigma_s}{t-s}\,\hat\varepsilon . $$

It is the DDIM step (the exact map of a constant denoiser), it is the identity at t = s, and its mean velocity
has no cancellation, because the secants of $\alpha$ and $\sigma$ are written by hand. What differs between
methods is only how $(\hat x, \hat\varepsilon)$ is read off $F$.
"""

from dataclasses import asdict, dataclass
from typing import Any, Protocol, final, runtime_checkable

import torch
from torch import Tensor

from ..errors import RecipeError
from .interpolant import Interpolant, Prediction, trig
from .shape import like


@runtime_checkable
class Parametrization(Protocol):
    """Contract: `endpoint == x + (t - s) * mean_velocity` for s != t, and `endpoint == x` at s == t.

    Outputs and points are (B, *D); times are `(B,)`.
    """

    def endpoint(self, out: Tensor, x: Tensor, s: Tensor, t: Tensor) -> Tensor:
        """The point X(x, s, t)."""
        ...

    def mean_velocity(self, out: Tensor, x: Tensor, s: Tensor, t: Tensor) -> Tensor:
        """U = (X - x) / (t - s), continued by the velocity at t = s."""
        ...

    def network_input(self, x: Tensor, s: Tensor) -> Tensor:
        """The point as the network sees it (EDM's c_in; the point itself where no scaling is needed)."""
        ...


@final
@dataclass(frozen=True)
class Average:
    """The network predicts the mean velocity itself: Shortcut, MeanFlow, LSD, TVM."""

    def endpoint(self, out: Tensor, x: Tensor, s: Tensor, t: Tensor) -> Tensor:
        return x + like(t - s, x) * out

    def mean_velocity(self, out: Tensor, x: Tensor, s: Tensor, t: Tensor) -> Tensor:
        return out

    def network_input(self, x: Tensor, s: Tensor) -> Tensor:
        return x


@final
@dataclass(frozen=True)
class Denoised:
    r"""The network predicts a field ($x_0$, noise, velocity or score at the source), carried by the DDIM step.

    `prediction="x0"` is the denoised field of progressive distillation, CTM and pixel MeanFlow;
    `prediction="eps"` makes a DDPM network a flow map whose jumps are DDIM steps. Where there is no noise, a prediction of
    $x_0$ says nothing of it. The velocity takes it for its mean there, $E[\varepsilon|x] = -\sigma\nabla\log p \to 0$; a jump
    up from clean data, which would need it, is NaN.
    """

    interpolant: Interpolant
    prediction: Prediction = "x0"

    def endpoint(self, out: Tensor, x: Tensor, s: Tensor, t: Tensor) -> Tensor:
        return _carry(self.interpolant, *self._pair(out, x, s, t), x, t)

    def mean_velocity(self, out: Tensor, x: Tensor, s: Tensor, t: Tensor) -> Tensor:
        return _mean(self.interpolant, *self._pair(out, x, s, t), x, s, t)

    def network_input(self, x: Tensor, s: Tensor) -> Tensor:
        return x

    def _pair(self, out: Tensor, x: Tensor, s: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        if self.prediction != "x0":
            return self.interpolant.endpoints(out, x, s, self.prediction)
        clean = self.interpolant.sigma(s) == 0
        # another time in those rows: a gradient through `where` is NaN if either side is
        x_0, eps = self.interpolant.endpoints(out, x, torch.where(clean, 0.5, s), "x0")
        known = like(clean, x)
        x_0 = torch.where(known, x / self.interpolant.at(s, x).alpha, x_0)
        unknown = like(torch.where(t == s, 0.0, torch.nan), x)
        return x_0, torch.where(known, unknown, eps)


@final
@dataclass(frozen=True)
class EDMTwoTime:
    r"""$X = c_{skip} x + c_{out} F$, EDM's preconditioning with two times (IMM, arXiv:2503.07565; trig: sCM).

    $c_{skip} = (\alpha_s\alpha_t+\sigma_s\sigma_t)/n$, $c_{out} = -(\alpha_t\sigma_s-\alpha_s\sigma_t)\sigma_d/\sqrt n$,
    $n = \alpha_s^2+\sigma_s^2$; i.e. $\hat x = \alpha_s x/n - \sigma_s\sigma_d F/\sqrt n$ and
    $\hat\varepsilon = \sigma_s x/n + \alpha_s\sigma_d F/\sqrt n$. On the trig path it reads
    $X = \cos(\theta_s-\theta_t) x - \sin(\theta_s-\theta_t)\sigma_d F$.
    The network sees $x / \sqrt{\alpha_s^2\sigma_d^2+\sigma_s^2}$.
    """

    interpolant: Interpolant
    sigma_data: float = 1.0

    def endpoint(self, out: Tensor, x: Tensor, s: Tensor, t: Tensor) -> Tensor:
        return _carry(self.interpolant, *self._pair(out, x, s), x, t)

    def mean_velocity(self, out: Tensor, x: Tensor, s: Tensor, t: Tensor) -> Tensor:
        return _mean(self.interpolant, *self._pair(out, x, s), x, s, t)

    def network_input(self, x: Tensor, s: Tensor) -> Tensor:
        return _unit(self.interpolant, self.sigma_data, x, s)

    def _pair(self, out: Tensor, x: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
        c = self.interpolant.at(s, x)
        root = torch.hypot(c.alpha, c.sigma)
        unit, push = x / root.square(), self.sigma_data * out / root
        return c.alpha * unit - c.sigma * push, c.sigma * unit + c.alpha * push


@final
@dataclass(frozen=True)
class Boundary:
    r"""Consistency models' boundary condition (Song et al. 2023, arXiv:2303.01469, appendix C).

    The point at noise level $\sigma_{min}$ is $f = c_{skip}(\sigma) y + c_{out}(\sigma) F$ with $y = x/\alpha_s$,
    $\sigma = \sigma_s/\alpha_s$, $c_{skip} = \sigma_d^2/((\sigma-\sigma_{min})^2+\sigma_d^2)$ and
    $c_{out} = (\sigma-\sigma_{min})\sigma_d/\sqrt{\sigma^2+\sigma_d^2}$: the identity at $\sigma_{min}$.
    Other targets lie on the DDIM step through y and f, whose noise is
    $\hat\varepsilon = (y-f)/(\sigma-\sigma_{min}) = (\sigma-\sigma_{min})y/((\sigma-\sigma_{min})^2+\sigma_d^2)
    - \sigma_d F/\sqrt{\sigma^2+\sigma_d^2}$.
    """

    interpolant: Interpolant
    sigma_data: float = 0.5
    sigma_min: float = 0.002

    def endpoint(self, out: Tensor, x: Tensor, s: Tensor, t: Tensor) -> Tensor:
        return _carry(self.interpolant, *self._pair(out, x, s), x, t)

    def mean_velocity(self, out: Tensor, x: Tensor, s: Tensor, t: Tensor) -> Tensor:
        return _mean(self.interpolant, *self._pair(out, x, s), x, s, t)

    def network_input(self, x: Tensor, s: Tensor) -> Tensor:
        return _unit(self.interpolant, self.sigma_data, x, s)

    def _pair(self, out: Tensor, x: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
        c = self.interpolant.at(s, x)
        # numerators and denominators times alpha: finite in pure noise, where sigma / alpha is not
        shifted, data = c.sigma - self.sigma_min * c.alpha, self.sigma_data * c.alpha
        near, far = shifted.square() + data.square(), torch.hypot(c.sigma, data)
        point = (c.alpha * self.sigma_data**2 / near) * x + (shifted * self.sigma_data / far) * out
        eps = (shifted / near) * x - (data / far) * out
        return point - self.sigma_min * eps, eps


def trig_two_time(sigma_data: float = 1.0) -> EDMTwoTime:
    """TrigFlow's two-time map (Lu & Song 2025, arXiv:2410.11081): `EDMTwoTime` on the trig path."""
    return EDMTwoTime(trig(), sigma_data)


PARAMETRIZATIONS: dict[str, Any] = {
    "average": Average,
    "denoised": Denoised,
    "edm_two_time": EDMTwoTime,
    "boundary": Boundary,
}


def describe(parametrization: Parametrization) -> dict[str, Any]:
    """A parametrization as plain values, for checkpoints: its name and settings, without its interpolant."""
    names = {cls: name for name, cls in PARAMETRIZATIONS.items()}
    if type(parametrization) not in names:
        raise RecipeError(
            f"a checkpoint can name the parametrizations {sorted(PARAMETRIZATIONS)}; got {type(parametrization).__name__}"
        )
    fields = asdict(parametrization)  # pyright: ignore[reportArgumentType]  # every class in the table is a dataclass
    fields.pop("interpolant", None)
    return {"name": names[type(parametrization)], **fields}


def restore(values: dict[str, Any], interpolant: Interpolant) -> Parametrization:
    """The inverse of `describe`, on a given path."""
    settings = dict(values)
    cls = PARAMETRIZATIONS[settings.pop("name")]
    return cls() if cls is Average else cls(interpolant, **settings)


def _carry(path: Interpolant, x_0: Tensor, eps: Tensor, x: Tensor, t: Tensor) -> Tensor:
    c = path.at(t, x)
    return c.alpha * x_0 + c.sigma * eps


def _mean(path: Interpolant, x_0: Tensor, eps: Tensor, x: Tensor, s: Tensor, t: Tensor) -> Tensor:
    dalpha, dsigma = path.secant(s, t)
    return like(dalpha, x) * x_0 + like(dsigma, x) * eps


def _unit(path: Interpolant, sigma_data: float, x: Tensor, s: Tensor) -> Tensor:
    c = path.at(s, x)
    return x / torch.hypot(c.alpha * sigma_data, c.sigma)
