r"""Velocity fields $b_t(x) = E[\dot x_t | x_t = x]$: what any pretrained diffusion model is, once converted."""

from collections.abc import Callable
from typing import Any, Protocol, final

from torch import Tensor, nn

from .interpolant import Interpolant, Prediction, matched
from .shape import as_time


class Velocity(Protocol):
    """Anything that gives $dx/dt$ (B, *D) at points `x` (B, *D) and times `t` (B,)."""

    def __call__(self, x: Tensor, t: Tensor, **cond: Any) -> Tensor: ...


@final
class NetVelocity(nn.Module):
    """A one-time network `net(x, t, **cond)` that predicts $x_0$, noise, velocity or score, read as a velocity.

    Args:
        net: Network; its output (B, *D) is a `prediction`.
        interpolant: The path on which the network was trained.
        prediction: What the output means.
    """

    def __init__(
        self,
        net: Callable[..., Tensor],
        interpolant: Interpolant,
        prediction: Prediction = "velocity",
    ) -> None:
        super().__init__()
        self.net = net
        self.interpolant = interpolant
        self.prediction: Prediction = prediction

    def forward(self, x: Tensor, t: Tensor, **cond: Any) -> Tensor:
        """Velocity (B, *D) at points (B, *D) and times `()` or (B,)."""
        time = as_time(t, x)
        out = self.net(x, time, **cond)
        return self.interpolant.convert(out, x, time, source=self.prediction, target="velocity")


@final
class RematchedVelocity:
    r"""A velocity of the path `old`, on the path `new` (any teacher for any student).

    The two paths are one up to time and scale, so at matched SNR both see the same $(D, E)$:
    $b^{new}_t(x) = \dot\alpha_n D + \dot\sigma_n E$ with $(D, E)$ read off `velocity` at $(x/k, t_{old})$.
    No step divides by $\sigma$ (methods.md 1.3; the route through the denoiser, never through the velocities).
    """

    def __init__(self, velocity: Velocity, old: Interpolant, new: Interpolant) -> None:
        self.velocity, self.old, self.new = velocity, old, new

    def __call__(self, x: Tensor, t: Tensor, **cond: Any) -> Tensor:
        t_old, k = matched(t, x, self.old, self.new)
        point = x / k
        x_0, eps = self.old.endpoints(self.velocity(point, t_old, **cond), point, t_old, "velocity")
        c = self.new.at(as_time(t, x), x)
        return c.dalpha * x_0 + c.dsigma * eps
