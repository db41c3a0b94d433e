r"""Linear measurements $y = A x + \sigma n$: masks, blurs, coarser grids, matrices, and whatever linear function you have.

An operator is any callable that is linear in x (B, *D), row by row, and that torch can differentiate: its adjoint is then its own
vector-Jacobian product (`adjoint`), which cannot be wrong by a transposition.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor
from torch.nn import functional

from ..errors import ControlError

Operator = Callable[[Tensor], Tensor]
"""A linear function of (B, *D), row by row, to measurements (B, *M)."""


@final
@dataclass(frozen=True, eq=False)
class Mask:
    """Inpainting: keeps the coordinates where `keep` (*D) is 1 and blanks the others."""

    keep: Tensor

    def __call__(self, x: Tensor) -> Tensor:
        return x * self.keep.to(x)


@final
@dataclass(frozen=True, eq=False)
class Blur:
    """Convolution of images (B, C, H, W) with `kernel` (k, k), k odd; zeros beyond the border.

    Images whose background is not 0 lose light at the border, as in a camera whose scene ends there; the adjoint knows.
    """

    kernel: Tensor

    def __post_init__(self) -> None:
        shape = tuple(self.kernel.shape)
        if len(shape) != 2 or shape[0] % 2 == 0 or shape[1] % 2 == 0:
            raise ControlError(f"a blur's kernel has two odd sides; got shape {shape}")

    def __call__(self, x: Tensor) -> Tensor:
        channels = x.shape[1]
        kernel = self.kernel.to(x).expand(channels, 1, *self.kernel.shape)
        padding = (self.kernel.shape[0] // 2, self.kernel.shape[1] // 2)
        return functional.conv2d(x, kernel, padding=padding, groups=channels)


def gaussian_blur(deviation: float, reach: float = 3.0) -> Blur:
    """A round blur whose kernel has the given standard deviation in pixels and sums to 1."""
    if deviation <= 0:
        raise ControlError(f"a blur has a deviation above 0 pixels; got {deviation:g}")
    half = max(1, round(reach * deviation))
    line = torch.exp(-0.5 * (torch.arange(-half, half + 1, dtype=torch.float64) / deviation) ** 2)
    kernel = torch.outer(line, line)
    return Blur(kernel / kernel.sum())


@final
@dataclass(frozen=True)
class Downsample:
    """Super-resolution: means over squares of `factor` by `factor` pixels of images (B, C, H, W)."""

    factor: int

    def __call__(self, x: Tensor) -> Tensor:
        if x.shape[-1] % self.factor or x.shape[-2] % self.factor:
            raise ControlError(
                f"images of {x.shape[-2]} x {x.shape[-1]} have no squares of side {self.factor}: choose a divisor"
            )
        return functional.avg_pool2d(x, self.factor)


@final
@dataclass(frozen=True, eq=False)
class Matrix:
    """A matrix (M, D) on flattened rows."""

    matrix: Tensor

    def __call__(self, x: Tensor) -> Tensor:
        return x.flatten(1) @ self.matrix.to(x).mT


def adjoint(operator: Operator, y: Tensor, x: Tensor) -> Tensor:
    r"""$A^\top y$ (B, *D) for measurements `y` (B, *M); of `x` (B, *D) only the shape counts."""
    with torch.enable_grad():
        origin = torch.zeros_like(x, requires_grad=True)
        return torch.autograd.grad(operator(origin), origin, y.to(x))[0]


@final
@dataclass(frozen=True, eq=False)
class Measurement:
    r"""What was seen, how, and with what noise: a linear inverse problem $y = A x + \sigma n$.

    It is also a reward: called with clean data it returns $-|y - A x|^2/2\sigma^2$, whose tilt of the data law is the posterior.

    Attributes:
        y: Measurements (B, *M).
        operator: A.
        sigma: Standard deviation of the noise, in units of y; above 0.
    """

    y: Tensor
    operator: Operator
    sigma: float

    def __post_init__(self) -> None:
        if not self.sigma > 0:
            raise ControlError(
                f"a measurement has noise of deviation sigma > 0 (1e-3 stands for none); got {self.sigma:g}"
            )
        if not bool(torch.isfinite(self.y).all()):
            raise ControlError("a measurement is finite; got inf or nan in y")

    def __call__(self, x_0: Tensor) -> Tensor:
        """The log-likelihood of clean data (B, *D), up to a constant, (B,)."""
        return -0.5 * self.misfit(x_0).flatten(1).square().sum(1) / self.sigma**2

    def misfit(self, x_0: Tensor) -> Tensor:
        """Y - A x (B, *M)."""
        return self.y.to(x_0) - self.operator(x_0)

    def residual(self, x_0: Tensor) -> Tensor:
        r"""$|y-Ax|^2/(m\sigma^2)$ (B,): about 1 where the data are fitted as well as their noise allows."""
        return self.misfit(x_0).flatten(1).square().mean(1) / self.sigma**2

    def back(self, y: Tensor, x: Tensor) -> Tensor:
        """The adjoint at measurements `y` (B, *M), in the shape of `x`."""
        return adjoint(self.operator, y, x)

    def nearest(self, x: Tensor, spread: Tensor, iterations: int) -> Tensor:
        r"""$\arg\min_z |y-Az|^2/\sigma^2+|z-x|^2/$`spread` (B, *D), by at most so many conjugate gradients."""

        def inner(w: Tensor) -> Tensor:
            return self.sigma**2 * w + self.operator(spread * self.back(w, x))

        w = conjugate_gradient(inner, self.misfit(x), iterations)
        return x + spread * self.back(w, x)

    def projected(self, x: Tensor, iterations: int = 30) -> Tensor:
        r"""The nearest point that fits, $x + A^+(y-Ax)$ (B, *D), by at most so many conjugate gradients on the normal equations.

        Where y cannot be fitted (what a mask blanks), the nearest of those that fit best.
        """

        def normal(w: Tensor) -> Tensor:
            return self.back(self.operator(w), x)

        return x + conjugate_gradient(normal, self.back(self.misfit(x), x), iterations)

    def repeat(self, n: int) -> "Measurement":
        """The same measurements n times over, (n B, *M)."""
        return Measurement(self.y.repeat(n, *[1] * (self.y.ndim - 1)), self.operator, self.sigma)

    def check(self, x: Tensor) -> None:
        """Refuse an operator that is not linear, or whose measurements of points like `x` (B, *D) are not shaped like `y`.

        Raises:
            ControlError: If so.
        """
        generator = torch.Generator().manual_seed(0)
        a, b = torch.randn(2, *x.shape, generator=generator, dtype=x.dtype).to(x.device)
        seen = self.operator(a)
        if seen.shape != self.y.shape:
            raise ControlError(
                f"the operator takes data {tuple(x.shape)} to {tuple(seen.shape)}, "
                f"but the measurements have shape {tuple(self.y.shape)}: give `shape` of the data, or the right operator"
            )
        found, wanted = self.operator(a + 2 * b), seen + 2 * self.operator(b)
        scale = float(wanted.abs().max()) + 1e-12
        if float((found - wanted).abs().max()) > 1e-3 * scale:
            raise ControlError(
                "the operator is not linear: A(a + 2b) differs from A(a) + 2 A(b); "
                "subtract its offset from the measurements, or steer with a reward"
            )


def conjugate_gradient(
    apply: Operator, right: Tensor, iterations: int, tolerance: float = 1e-10
) -> Tensor:
    """Solve `apply(w) = right` for a symmetric positive operator, row by row (B, *M). Rows stop at a relative residual."""
    w, r = torch.zeros_like(right), right
    p, square = r, _square(r)
    goal = tolerance**2 * square
    for _ in range(iterations):
        if bool((square <= goal).all()):
            break
        image = apply(p)
        curvature = (p * image).flatten(1).sum(1)
        # a learned covariance need not be positive: such a direction is left where it is
        go = (square > goal) & (curvature > 0)
        length = torch.where(go, square / torch.where(go, curvature, 1.0), 0.0)
        w, r = w + _rows(length, p) * p, r - _rows(length, p) * image
        new = _square(r)
        p = r + _rows(torch.where(square > 0, new / square.clamp(min=1e-300), 0.0), p) * p
        square = torch.where(go, new, 0.0)
    return w


def _square(x: Tensor) -> Tensor:
    return x.flatten(1).square().sum(1)


def _rows(value: Tensor, x: Tensor) -> Tensor:
    return value.reshape(-1, *[1] * (x.ndim - 1)).to(x)
