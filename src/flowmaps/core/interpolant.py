r"""Gaussian interpolants $x_t = \alpha_t x_0 + \sigma_t \varepsilon$: the path between data (t = 0) and noise (t = 1).

Everything that a method needs of a path is here: its coefficients with hand-written derivatives, the
conversions between the four things a network can predict ($x_0$, $\varepsilon$, velocity, score), and the
inverse of its log-SNR, which is what lets a teacher on one path serve a student on another.

With $D = E[x_0 | x_t]$ and $E = E[\varepsilon | x_t]$ the probability-flow velocity is
$b_t(x) = \dot\alpha_t D + \dot\sigma_t E$, and $x = \alpha_t D + \sigma_t E$ is the second equation: any of
the four predictions is one row of a 2x2 system, so every conversion is one solve.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal, NamedTuple, final

import torch
from torch import Tensor

from .shape import Time, as_time, like

Prediction = Literal["x0", "eps", "velocity", "score"]
"""What a network outputs: clean data, noise, velocity $dx_t/dt$ or score $\\nabla \\log p_t$."""

Coefficient = Callable[[Tensor], Tensor]
Secant = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


class Coefficients(NamedTuple):
    r"""$\alpha_t, \sigma_t$ and their time derivatives, each shaped to broadcast against a sample."""

    alpha: Tensor
    sigma: Tensor
    dalpha: Tensor
    dsigma: Tensor


@final
@dataclass(frozen=True, eq=False)
class Interpolant:
    r"""A path $x_t = \alpha_t x_0 + \sigma_t \varepsilon$, as a value.

    Attributes:
        name: "linear", "trig", "vp", "ve" or "edm", or a name of your own.
        alpha: Signal coefficient, a function of time (any shape) to the same shape.
        sigma: Noise coefficient.
        dalpha: $d\alpha/dt$, written by hand: derivatives of derivatives must stay exact and cheap.
        dsigma: $d\sigma/dt$.
        secant: $(s, t) \mapsto ((\alpha_t-\alpha_s)/(t-s), (\sigma_t-\sigma_s)/(t-s))$ without cancellation,
            equal to the derivatives at s = t.
        time_at: Inverse of the log signal-to-noise ratio $\lambda = \log(\alpha_t/\sigma_t)$.
        t_min: Smallest time at which velocities are finite (0 unless $\dot\sigma$ diverges at the data end).
        settings: The arguments that made it, so that it prints and is saved.
    """

    name: str
    alpha: Coefficient
    sigma: Coefficient
    dalpha: Coefficient
    dsigma: Coefficient
    secant: Secant
    time_at: Coefficient
    t_min: float = 0.0
    settings: dict[str, float] = field(default_factory=dict[str, float])

    def __repr__(self) -> str:
        return f"{self.name}({', '.join(f'{k}={v:g}' for k, v in self.settings.items())})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Interpolant) and (self.name, self.settings) == (
            other.name,
            other.settings,
        )

    def __hash__(self) -> int:
        return hash((self.name, tuple(self.settings.items())))

    def at(self, t: Tensor, x: Tensor) -> Coefficients:
        """The four coefficients at time `t` (`()` or `(B,)`), shaped to broadcast against `x` (B, *D)."""
        return Coefficients(
            *(like(f(t), x) for f in (self.alpha, self.sigma, self.dalpha, self.dsigma))
        )

    def sample(self, x_0: Tensor, eps: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        r"""The point of the path and its conditional velocity.

        Args:
            x_0: Data (B, *D).
            eps: Noise (B, *D), standard normal.
            t: Times `()` or `(B,)` in [0, 1].

        Returns:
            $x_t = \alpha_t x_0 + \sigma_t \varepsilon$ and $\dot\alpha_t x_0 + \dot\sigma_t \varepsilon$, both (B, *D).
        """
        c = self.at(t, x_0)
        return c.alpha * x_0 + c.sigma * eps, c.dalpha * x_0 + c.dsigma * eps

    def endpoints(
        self, value: Tensor, x_t: Tensor, t: Tensor, source: Prediction
    ) -> tuple[Tensor, Tensor]:
        r"""The pair $(x_0, \varepsilon)$ that a prediction at $(x_t, t)$ implies.

        Solves $a x_0 + b \varepsilon = \mathrm{value}$ together with $\alpha x_0 + \sigma \varepsilon = x_t$.
        From a velocity this never divides by $\sigma_t$ on the linear, trig and VE paths.
        """
        c = self.at(t, x_t)
        a, b = _row(c, source)
        det = c.alpha * b - c.sigma * a
        return (b * x_t - c.sigma * value) / det, (c.alpha * value - a * x_t) / det

    def convert(
        self, value: Tensor, x_t: Tensor, t: Tensor, *, source: Prediction, target: Prediction
    ) -> Tensor:
        """Any prediction to any other, (B, *D) to (B, *D), at the point `x_t` of time `t`.

        Example:
            >>> path, x, t = linear(), torch.ones(2, 3), torch.tensor([0.25, 0.5])
            >>> path.convert(torch.zeros(2, 3), x, t, source="x0", target="velocity")[:, 0]
            tensor([4., 2.])
        """
        if source == target:
            return value
        x_0, eps = self.endpoints(value, x_t, t, source)
        a, b = _row(self.at(t, x_t), target)
        return a * x_0 + b * eps

    def log_snr(self, t: Tensor) -> Tensor:
        r"""$\lambda_t = \log(\alpha_t / \sigma_t)$: +inf at clean data, decreasing in t."""
        return torch.log(self.alpha(t)) - torch.log(self.sigma(t))

    def scale(self, t: Tensor) -> Tensor:
        r"""$\sqrt{\alpha_t^2 + \sigma_t^2}$: what is left of a path when its SNR is given."""
        return torch.hypot(self.alpha(t), self.sigma(t))

    def prior(self, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
        r"""Noise to start from: $\sigma_1 \varepsilon$, float32, of the given shape (B, *D)."""
        return self.sigma(torch.ones(())) * torch.randn(shape, generator=generator)


def _row(c: Coefficients, kind: Prediction) -> tuple[Tensor, Tensor]:
    """Coefficients (a, b) with prediction = a x_0 + b eps."""
    zero, one = torch.zeros_like(c.alpha), torch.ones_like(c.alpha)
    match kind:
        case "x0":
            return one, zero
        case "eps":
            return zero, one
        case "velocity":
            return c.dalpha, c.dsigma
        case "score":
            return zero, -1 / c.sigma


def linear() -> Interpolant:
    r"""$x_t = (1-t) x_0 + t \varepsilon$: rectified flow, flow matching (Lipman et al. 2023, arXiv:2210.02747)."""
    return Interpolant(
        name="linear",
        alpha=lambda t: 1 - t,
        sigma=lambda t: t,
        dalpha=lambda t: -torch.ones_like(t),
        dsigma=torch.ones_like,
        secant=lambda s, t: (-torch.ones_like(t + s), torch.ones_like(t + s)),
        time_at=lambda lam: torch.sigmoid(-lam),
    )


def trig() -> Interpolant:
    r"""$x_t = \cos(\pi t/2) x_0 + \sin(\pi t/2) \varepsilon$: cosine VP, TrigFlow with unit data scale."""
    w = math.pi / 2

    def secant(s: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        # sum-to-product: cos b - cos a = -2 sin((a+b)/2) sin((b-a)/2); torch.sinc(z) = sin(pi z)/(pi z)
        middle, chord = w * (s + t) / 2, torch.sinc((t - s) / 4)
        return -w * torch.sin(middle) * chord, w * torch.cos(middle) * chord

    return Interpolant(
        name="trig",
        # sin(w(1-t)), not cos(wt): in float32 cos(pi/2) is -4e-8, whose logarithm is NaN
        alpha=lambda t: torch.sin(w * (1 - t)),
        sigma=lambda t: torch.sin(w * t),
        dalpha=lambda t: -w * torch.sin(w * t),
        dsigma=lambda t: w * torch.sin(w * (1 - t)),
        secant=secant,
        time_at=lambda lam: torch.atan(torch.exp(-lam)) / w,
    )


def vp(beta_min: float = 0.1, beta_max: float = 20.0) -> Interpolant:
    r"""DDPM's variance-preserving SDE (Song et al. 2021, arXiv:2011.13456, eq. 32-33).

    $\alpha_t = e^{-B_t/2}$, $\sigma_t = \sqrt{1-e^{-B_t}}$ with
    $B_t = \beta_{min} t + (\beta_{max}-\beta_{min}) t^2/2$. $\dot\sigma \sim t^{-1/2}$, so `t_min` is 1e-5
    (the same paper, appendix C), and $\alpha_1 = 0.0066$, not 0: the end of the path keeps a trace of data.
    """
    slope = beta_max - beta_min

    def area(t: Tensor) -> Tensor:
        return beta_min * t + 0.5 * slope * t.square()

    def alpha(t: Tensor) -> Tensor:
        return torch.exp(-0.5 * area(t))

    def sigma(t: Tensor) -> Tensor:
        return torch.sqrt(
            -torch.expm1(-area(t))
        )  # expm1: in float32, 1 - exp(-B) keeps 3 digits at t = 1e-4

    def rate(t: Tensor) -> Tensor:
        return beta_min + slope * t

    def secant(s: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        half = 0.5 * (beta_min + 0.5 * slope * (s + t))  # (B_t - B_s) / (t - s) / 2
        dalpha = -half * alpha(s) * _expm1_over(-half * (t - s))
        return dalpha, -dalpha * (alpha(s) + alpha(t)) / (sigma(s) + sigma(t))

    def time_at(lam: Tensor) -> Tensor:
        b = torch.nn.functional.softplus(-2 * lam)  # B = -log alpha^2 = log(1 + e^{-2 lambda})
        # 2b / (beta_min + sqrt(beta_min^2 + 2 slope b)), divided by b: inf, not NaN, where the SNR is 0
        return 2 / (beta_min / b + torch.sqrt((beta_min / b).square() + 2 * slope / b))

    return Interpolant(
        name="vp",
        alpha=alpha,
        sigma=sigma,
        dalpha=lambda t: -0.5 * rate(t) * alpha(t),
        dsigma=lambda t: 0.5 * rate(t) * alpha(t).square() / sigma(t),
        secant=secant,
        time_at=time_at,
        t_min=1e-5,
        settings={"beta_min": beta_min, "beta_max": beta_max},
    )


def ve(sigma_max: float = 80.0) -> Interpolant:
    r"""EDM's variance-exploding path (Karras et al. 2022, arXiv:2206.00364): $x_t = x_0 + \sigma_{max} t\,\varepsilon$.

    EDM's own time is $\sigma = \sigma_{max} t$; here time stays in [0, 1]. The prior is
    $N(0, \sigma_{max}^2)$, not $N(0, I)$: draw it with `Interpolant.prior`.
    """
    return Interpolant(
        name="ve",
        alpha=torch.ones_like,
        sigma=lambda t: sigma_max * t,
        dalpha=torch.zeros_like,
        dsigma=lambda t: sigma_max * torch.ones_like(t),
        secant=lambda s, t: (torch.zeros_like(s + t), sigma_max * torch.ones_like(s + t)),
        time_at=lambda lam: torch.exp(-lam) / sigma_max,
        settings={"sigma_max": sigma_max},
    )


def edm(sigma_min: float = 0.002, sigma_max: float = 80.0, rho: int = 7) -> Interpolant:
    r"""EDM's path in the time of its own grid: $x_t = x_0 + \sigma_t\,\varepsilon$, $\sigma_t^{1/\rho}$ linear in t.

    Equal steps of time are Karras's grid (Karras et al. 2022, arXiv:2206.00364, eq. 5), so a network resolves every noise
    level; consistency models live here. Clean data, t = 0, keeps noise of deviation `sigma_min` as theirs does, and the prior
    is $N(0, \sigma_{max}^2)$: draw it with `Interpolant.prior`.
    """
    low, high = sigma_min ** (1 / rho), sigma_max ** (1 / rho)

    def root(t: Tensor) -> Tensor:
        return low + (high - low) * t

    def secant(s: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        a, b = root(s), root(t)
        # (b^n - a^n) / (b - a) as the sum of products that it is
        total = sum((a**i * b ** (rho - 1 - i) for i in range(rho)), torch.zeros_like(a + b))
        return torch.zeros_like(total), (high - low) * total

    return Interpolant(
        name="edm",
        alpha=torch.ones_like,
        sigma=lambda t: root(t) ** rho,
        dalpha=torch.zeros_like,
        dsigma=lambda t: rho * (high - low) * root(t) ** (rho - 1),
        secant=secant,
        time_at=lambda lam: ((torch.exp(-lam / rho) - low) / (high - low)).clamp(min=0.0),
        settings={"sigma_min": sigma_min, "sigma_max": sigma_max, "rho": rho},
    )


INTERPOLANTS: dict[str, Callable[..., Interpolant]] = {
    "linear": linear,
    "trig": trig,
    "vp": vp,
    "ve": ve,
    "edm": edm,
}
"""The paths by name, as checkpoints and the command line know them."""


def _expm1_over(z: Tensor) -> Tensor:
    """$(e^z - 1)/z$, 1 at z = 0."""
    small = z.abs() < 1e-6
    safe = torch.where(small, 1.0, z)
    return torch.where(small, 1 + z / 2, torch.expm1(safe) / safe)


_INSIDE = 1e-6


def matched(t: Time, x: Tensor, old: Interpolant, new: Interpolant) -> tuple[Tensor, Tensor]:
    r"""The time on `old` with the SNR that `new` has at `t`, and the scale between the two paths.

    With $\sigma_o(t_o)/\alpha_o(t_o) = \sigma_n(t)/\alpha_n(t)$ the two paths are the same up to
    $x_n = k x_o$; $k = \sqrt{\alpha_n^2+\sigma_n^2} / \sqrt{\alpha_o^2+\sigma_o^2}$ stays finite where $\alpha_n = 0$.
    An SNR below the end of `old` (the VP path stops at $\alpha_1 > 0$) is matched to that end.

    Returns:
        Time (B,) and scale, shaped to broadcast against `x` (B, *D).
    """
    t_new = as_time(t, x)
    exact = old.time_at(new.log_snr(t_new))
    # at the ends the log-SNR is infinite, and so is its slope, which makes even a derivative by another time NaN: theirs is that
    # of a point just inside
    inner = old.time_at(
        new.log_snr(t_new + _INSIDE * ((t_new == 0).float() - (t_new == 1).float()))
    )
    t_old = (inner + (exact - inner).detach()).clamp(max=1.0)
    return t_old, like(new.scale(t_new) / old.scale(t_old), x)
