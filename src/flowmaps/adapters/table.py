r"""A discrete noise schedule as a continuous path: the angle of its noise, interpolated monotonically.

With $\theta = \arctan(\sigma/\alpha) = \arctan(e^{-\lambda})$ a variance-preserving path is $\alpha = \cos\theta$,
$\sigma = \sin\theta$. The log-SNR $\lambda$ of a table runs to infinity at clean data, and at the other end if the terminal
SNR is zero; its angle runs from 0 to at most $\pi/2$, so a cubic through the angles is a monotone interpolation of the
log-SNR with finite derivatives everywhere, exact at the timesteps that were trained.
"""

from typing import final

import torch
from torch import Tensor

from ..core.interpolant import Interpolant

HALF_PI = torch.pi / 2


@final
class MonotoneCubic:
    r"""The monotone cubic of Fritsch & Butland through $(k/N, \theta_k)$, k = 0..N (SIAM J. Sci. Stat. Comput. 5, 1984).

    Args:
        knots: Monotone values (N+1,), N at least 2.
    """

    def __init__(self, knots: Tensor) -> None:
        self.knots = knots.double().cpu()
        self.cells = len(knots) - 1
        self.ends = float(self.knots[0]), float(self.knots[-1])
        rise = self.knots.diff()
        product, total = rise[:-1] * rise[1:], rise[:-1] + rise[1:]
        inner = torch.where(product > 0, 2 * product / torch.where(total == 0, 1.0, total), 0.0)
        slope = torch.cat([_end(rise[0], rise[1]), inner, _end(rise[-1], rise[-2])])
        left, right = slope[:-1], slope[1:]
        self.rows = torch.stack(
            [self.knots[:-1], left, 3 * rise - 2 * left - right, left + right - 2 * rise], -1
        )

    def value(self, t: Tensor) -> Tensor:
        cell, u = self._locate(t)
        a, b, c, d = self._row(cell, t)
        return a + u * (b + u * (c + u * d))

    def derivative(self, t: Tensor) -> Tensor:
        cell, u = self._locate(t)
        _, b, c, d = self._row(cell, t)
        return self.cells * (b + u * (2 * c + 3 * u * d))

    def secant(self, s: Tensor, t: Tensor) -> Tensor:
        r"""$(\theta_t-\theta_s)/(t-s)$: the divided difference in one cell, and joined at the knots where s and t have two."""
        s, t = torch.broadcast_tensors(s, t)
        (i, u), (j, v) = self._locate(s), self._locate(t)
        one = self._divided(i, u, v, s)
        # from each time to the knot of its cell that faces the other; between these the knots themselves
        up = (j > i).to(s.dtype)
        near, far = i + up.long(), j + 1 - up.long()
        out, back = up - u, v - (1 - up)
        middle = self._knot(far, s) - self._knot(near, s)
        total = self._divided(i, u, up, s) * out + self._divided(j, 1 - up, v, s) * back
        # t - s from the same parts: a mean of slopes, whatever the rounding of t - s itself
        apart = torch.where(i == j, 1.0, out + back + (far - near))
        return torch.where(i == j, one, (total + self.cells * middle) / apart)

    def inverse(self, theta: Tensor) -> Tensor:
        """The time of an angle; below the first knot 0, above the last 1."""
        flat = theta.detach().clamp(*self.ends)
        # counted, not searched for: ONNX has no sorted search
        cell = (self._on(self.knots[1:-1], theta) <= flat[..., None]).sum(-1)
        a, b, c, d = self._row(cell, theta)
        low, high = torch.zeros_like(flat), torch.ones_like(flat)
        for _ in range(54 if theta.dtype == torch.float64 else 25):  # a bit of the mantissa each
            u = (low + high) / 2
            over = a + u * (b + u * (c + u * d)) > flat
            low, high = torch.where(over, low, u), torch.where(over, u, high)
        u = (low + high) / 2
        slope = (b + u * (2 * c + 3 * u * d)).clamp(min=torch.finfo(theta.dtype).tiny)
        # one Newton step carries the derivative of the inverse; bisection has left it nothing else to do
        value = a + u * (b + u * (c + u * d))
        step = (theta - value) / slope
        return ((cell + u + step.clamp(-1, 1)) / self.cells).clamp(0, 1)

    def _divided(self, cell: Tensor, u: Tensor, v: Tensor, t: Tensor) -> Tensor:
        _, b, c, d = self._row(cell, t)
        return self.cells * (b + c * (u + v) + d * (u * u + u * v + v * v))

    def _locate(self, t: Tensor) -> tuple[Tensor, Tensor]:
        place = t * self.cells
        cell = place.detach().floor().long().clamp(0, self.cells - 1)
        return cell, place - cell

    def _row(self, cell: Tensor, t: Tensor) -> tuple[Tensor, ...]:
        return self._on(self.rows, t)[cell].unbind(-1)

    def _knot(self, index: Tensor, t: Tensor) -> Tensor:
        return self._on(self.knots, t)[index]

    def _on(self, table: Tensor, t: Tensor) -> Tensor:
        return table.to(device=t.device, dtype=t.dtype)


def _end(near: Tensor, next_: Tensor) -> Tensor:
    """The slope at an end, from the parabola of its two cells, kept monotone."""
    share = ((3 - next_ / near) / 2).clamp(0, 3) if near != 0 else near
    return (share * near)[None]


def tabulated(alphas_cumprod: Tensor) -> Interpolant:
    r"""The variance-preserving path through a table of $\bar\alpha_n = \alpha^2$ (N,), decreasing; timestep n is time (n+1)/N.

    Time 0 is clean data, which no table holds; a terminal SNR of zero is time 1 as it stands. Timesteps of equal noise
    (a table in float32 may end so) keep a path that stands still between them.

    Example:
        >>> path = tabulated(torch.linspace(0.999, 0.01, 10).double())
        >>> path.alpha(torch.tensor([0.0, 0.1, 1.0]).double()).square()
        tensor([1.0000, 0.9990, 0.0100], dtype=torch.float64)
    """
    table = alphas_cumprod.double().cpu()
    angles = torch.atan2((1 - table).sqrt(), table.sqrt())
    noise = MonotoneCubic(torch.cat([torch.zeros(1, dtype=torch.float64), angles]))
    data = MonotoneCubic(HALF_PI - noise.knots)

    def secant(s: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        # sum-to-product, as on the trig path, with the angle's own secant in front
        a, b, rate = noise.value(s), noise.value(t), noise.secant(s, t)
        middle, chord = (a + b) / 2, torch.sinc((b - a) / (2 * torch.pi))
        return -torch.sin(middle) * chord * rate, torch.cos(middle) * chord * rate

    # the angle left to pure noise has a cubic of its own: in float32 cos(pi/2) is negative, and the SNR's logarithm NaN
    alpha = lambda t: torch.sin(data.value(t).clamp(min=0))
    sigma = lambda t: torch.sin(noise.value(t).clamp(min=0))
    return Interpolant(
        name="tabulated",
        alpha=alpha,
        sigma=sigma,
        dalpha=lambda t: -torch.sin(noise.value(t)) * noise.derivative(t),
        dsigma=lambda t: torch.sin(data.value(t)) * noise.derivative(t),
        secant=secant,
        time_at=lambda lam: noise.inverse(torch.atan(torch.exp(-lam))),
        settings={
            "steps": float(len(table)),
            "first": float(table[0]),
            "last": float(table[-1]),
            "sum": float(table.sum()),
        },
    )
