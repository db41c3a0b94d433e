r"""Directional derivatives of two-time maps: the only file that knows about `torch.func`.

Two derivatives carry the whole field. Moving the **source** along the trajectory (tangent $(\dot x, 1, 0)$)
gives the Eulerian derivative $\partial_s f + \nabla_x f\,\dot x$; moving the **target** (tangent $(0, 0, 1)$)
gives the Lagrangian derivative $\partial_t f$.

Three traps are handled here, and nowhere else:

* torch's fused attention has no forward-mode AD: the math kernel is switched on for the call only;
* the *gradient through* the JVP of `F.layer_norm` is silently wrong (pytorch issue 196700): such a network
  is refused when that gradient is asked for;
* tangents must have the dtype and memory of their primals: times are float32 or wider and own their memory.

Finite differences have two of their own: rounding, so a step has a least size and autocast is off while they are taken,
and the ends of time, beyond which no network was trained and sqrt(t) is NaN, so they are one-sided there.
"""

from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, final

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode

from ..errors import DerivativeError
from .interpolant import Interpolant
from .shape import like

TwoTime = Callable[[Tensor, Tensor, Tensor], Tensor]
"""A function of (x, s, t), such as `FlowMap.forward` or `FlowMap.mean_velocity`."""

Triple = tuple[Tensor, Tensor, Tensor]
"""Point, source and target times, or a tangent to them."""


@final
@dataclass(frozen=True)
class Derivative:
    """How a directional derivative is taken: `EXACT` (forward-mode AD), a central difference, or half of each.

    Attributes:
        method: "exact" needs forward-mode AD of every operation of the network; "finite" calls it twice; "semi" is exact
            in the point and a difference in the times, for embeddings of time that are too steep to differentiate in
            low precision (rCM, arXiv:2510.08431).
        step: Half-width h of the central difference, in units of time. Its error is O(h^2), and O(h) in rows whose time
            is nearer than h to 0 or 1, where it is one-sided; float32 wants 1e-3 to 5e-3. Autocast is off meanwhile.
        path: A path: source and point then move along its curve through (x, dx), with x_0 and noise held (transition
            models), instead of along a straight line; on the linear path the two are one.

    Raises:
        DerivativeError: If the step is not positive, or, when it is taken, below `LEAST_STEP` of the points' precision.
    """

    method: Literal["exact", "finite", "semi"] = "exact"
    step: float = 5e-3  # Wang et al. 2025 (TiM, arXiv:2509.04394) use 5e-3 in float32
    path: Interpolant | None = None

    def __post_init__(self) -> None:
        if not self.step > 0:
            raise DerivativeError(f"a finite difference needs a step > 0; got {self.step}")
        if self.path is not None and self.method != "finite":
            raise DerivativeError(
                f"only method='finite' moves along a path: an exact derivative sees its tangent; got {self.method!r}"
            )

    def __call__(self, fn: TwoTime, primals: Triple, tangents: Triple) -> tuple[Tensor, Tensor]:
        """`fn` at the primals and its derivative along the tangents."""
        if self.method == "finite":
            return fn(*primals), self._difference(fn, primals, tangents)
        if self.method == "exact":
            with forward_mode_attention():
                value, slope = torch.func.jvp(fn, primals, tangents)[:2]
            return value, slope
        x, s, t = primals
        dx, ds, dt = tangents
        with forward_mode_attention():
            value, slope = torch.func.jvp(lambda x: fn(x, s, t), (x,), (dx,))[:2]
        return value, slope + self._difference(fn, primals, (torch.zeros_like(dx), ds, dt))

    def slope(self, fn: TwoTime, primals: Triple, tangents: Triple) -> Tensor:
        """The derivative alone: a finite difference then needs two calls, not three."""
        if self.method == "finite":
            return self._difference(fn, primals, tangents)
        return self(fn, primals, tangents)[1]

    def _difference(self, fn: TwoTime, primals: Triple, tangents: Triple) -> Tensor:
        (x, s, t), (dx, ds, dt) = primals, tangents
        least = LEAST_STEP.get(x.dtype, 0.0)
        if self.step < least:
            raise DerivativeError(
                f"a finite difference with step {self.step:g} in {x.dtype} is rounding noise: use step >= {least:g}, "
                "points and network in float32, or an exact derivative"
            )
        ahead, behind = (_inside(s + h * ds, t + h * dt) for h in (self.step, -self.step))
        # where both sides leave [0, 1], which one time alone cannot, the central difference is as good as any
        right = torch.where(ahead | ~behind, self.step, 0.0).to(s.dtype)
        left = torch.where(behind | ~ahead, self.step, 0.0).to(s.dtype)
        with torch.autocast(x.device.type, enabled=False):
            far, near = (
                fn(x + like(h, x).to(x.dtype) * dx, s + h * ds, t + h * dt) for h in (right, -left)
            )
        return (far - near) / like(right + left, far)


def _inside(*times: Tensor) -> Tensor:
    """Which rows have all their times in [0, 1]."""
    return torch.stack([(time >= 0) & (time <= 1) for time in times]).all(0)


LEAST_STEP = {torch.float64: 1e-12, torch.float32: 1e-5, torch.float16: 1e-2, torch.bfloat16: 5e-2}
"""Half-widths below which rounding is more than a hundredth of the derivative, or a tenth in half precision.

Measured for float32 and bfloat16 in benchmarks/hazards.json; the others follow from their number of bits.
"""

EXACT = Derivative()


def along_source(
    fn: TwoTime,
    x: Tensor,
    s: Tensor,
    t: Tensor,
    dx: Tensor,
    *,
    derivative: Derivative = EXACT,
    through: bool = False,
) -> tuple[Tensor, Tensor]:
    r"""`fn` and its Eulerian derivative $\partial_s f + (\nabla_x f)\,\dot x$.

    Args:
        fn: Function of (x, s, t) with values (B, *D).
        x: Point (B, *D).
        s: Source times (B,) in [0, 1].
        t: Target times (B,) in [0, 1].
        dx: Velocity of the point (B, *D), data units per unit of time.
        derivative: Exact or finite difference.
        through: Whether a gradient will be taken through the derivative. If not, the derivative is computed
            in a pass of its own without a graph: less memory, and fused attention in the pass that is trained.

    Returns:
        Value (B, *D), with gradient, and derivative (B, *D), with gradient only if `through`.

    Raises:
        DerivativeError: If `through` and the network calls `F.layer_norm`, or an operation lacks forward AD.
    """
    tangents = (dx, torch.ones_like(s), torch.zeros_like(t))
    if derivative.path is not None:
        fn = _on_path(fn, derivative.path, x, s, dx)
    return _directional(fn, (x, s, t), tangents, derivative, through)


def advection(
    fn: TwoTime, x: Tensor, s: Tensor, t: Tensor, dx: Tensor, *, derivative: Derivative = EXACT
) -> Tensor:
    r"""$(\nabla_x f)\,\dot x$ (B, *D), detached: the times stay where they are. Arguments as `along_source`."""
    tangents = (dx, torch.zeros_like(s), torch.zeros_like(t))
    return _slope(fn, (x, s, t), tangents, derivative)


def _on_path(fn: TwoTime, path: Interpolant, x: Tensor, s: Tensor, dx: Tensor) -> TwoTime:
    """`fn` with the straight line x + h dx bent into the curve of the path that it touches."""
    x_0, eps = path.endpoints(dx, x, s, "velocity")
    start = path.sample(x_0, eps, s)[0]

    def moved(point: Tensor, source: Tensor, t: Tensor) -> Tensor:
        bend = path.sample(x_0, eps, source)[0] - start - like(source - s, x) * dx
        return fn(point + bend, source, t)

    return moved


def along_target(
    fn: TwoTime,
    x: Tensor,
    s: Tensor,
    t: Tensor,
    *,
    derivative: Derivative = EXACT,
    through: bool = False,
) -> tuple[Tensor, Tensor]:
    r"""`fn` and its Lagrangian derivative $\partial_t f$. Arguments as `along_source`."""
    tangents = (torch.zeros_like(x), torch.zeros_like(s), torch.ones_like(t))
    return _directional(fn, (x, s, t), tangents, derivative, through)


def _directional(
    fn: TwoTime,
    primals: Triple,
    tangents: Triple,
    derivative: Derivative,
    through: bool,
) -> tuple[Tensor, Tensor]:
    if not through:
        slope = _slope(fn, primals, tangents, derivative)  # first: no graph is held meanwhile
        return fn(*primals), slope
    owned, tangents = _matched(primals, tangents)
    if derivative.method == "finite":
        return derivative(fn, owned, tangents)
    with refuse_layer_norm(), _explain():
        return derivative(fn, owned, tangents)


@torch.no_grad()
def _slope(fn: TwoTime, primals: Triple, tangents: Triple, derivative: Derivative) -> Tensor:
    """The derivative alone, in a pass of its own without a graph."""
    with _explain():
        return derivative.slope(fn, *_matched(primals, tangents))


def _matched(primals: Triple, tangents: Triple) -> tuple[Triple, Triple]:
    """Primals that own their memory, and tangents of their dtypes."""
    x, s, t = (p.contiguous() for p in primals)
    dx, ds, dt = (d.to(p.dtype).contiguous() for p, d in zip((x, s, t), tangents, strict=True))
    return (x, s, t), (dx, ds, dt)


@contextmanager
def forward_mode_attention() -> Generator[None]:
    """Within this block attention uses the math kernel, the only one with forward-mode AD; outside nothing changes."""
    with sdpa_kernel(SDPBackend.MATH):
        yield


# the last: a custom autograd.Function of the old kind, such as a wrapped attention kernel
_NO_FORWARD = ("forward AD", "forward-mode", "forward mode", "autograd.Function with functorch")


@contextmanager
def _explain() -> Generator[None]:
    try:
        yield
    except (NotImplementedError, RuntimeError) as error:
        if not any(words in str(error) for words in _NO_FORWARD):
            raise
        raise DerivativeError(
            f"the network uses an operation without forward-mode AD ({str(error).splitlines()[0][:160]}); "
            "write it from elementary operations, or pass derivative=Derivative('finite')"
        ) from error


# batch and instance norm share layer norm's backward formula and its fault; group norm and rms norm are right
_TRAPS = ("layer_norm", "native_layer_norm", "batch_norm", "instance_norm")


def _frozen(name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Whether a batch norm uses its running statistics: an affine map, which is safe."""
    return name == "batch_norm" and not kwargs.get("training", args[5] if len(args) > 5 else False)


@final
class _LayerNormTrap(TorchFunctionMode):
    """Sees every torch function that is called inside it and refuses `layer_norm` and its relatives."""

    def __torch_function__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        name = getattr(func, "__name__", "")
        if name in _TRAPS and not _frozen(name, args, kwargs or {}):
            raise DerivativeError(
                f"the network calls F.{name}, whose gradient through a forward-mode derivative is silently wrong "
                "in torch (pytorch issue 196700); use RMSNorm or a layer norm written with mean and rsqrt "
                "(flowmaps.nets.embed.rms_norm), or choose a rule with through='target'"
            )
        return func(*args, **(kwargs or {}))


@contextmanager
def refuse_layer_norm() -> Generator[None]:
    """Within this block a call of `F.layer_norm` (or `nn.LayerNorm`) raises `DerivativeError`.

    A function mode costs some microseconds per operation and cannot be traced by `torch.compile`;
    compiled losses are checked once, eagerly, before they are compiled (`flowmaps.learn.Objective`).
    """
    if torch.compiler.is_compiling():
        yield
        return
    with _LayerNormTrap():
        yield


def compiled(loss: nn.Module) -> nn.Module:
    """`torch.compile` for losses that differentiate through a JVP.

    Forward-mode AD fills missing tangents with ZeroTensors, which inductor's kernels refuse ("ZeroTensors are
    immutable") once they are saved for the backward pass. Lowering their one constructor to `zeros` mends it.
    """
    from torch._inductor.decomposition import decompositions

    def zeros(size: list[int], *, dtype: Any = None, device: Any = None, **unused: Any) -> Tensor:
        return torch.zeros(size, dtype=dtype, device=device)

    torch.compiler.reset()  # code of an earlier loss would be compared with this one, guard by guard, and its names differ
    decompositions.setdefault(torch.ops.aten._efficientzerotensor.default, zeros)
    return torch.compile(loss, dynamic=False)  # pyright: ignore[reportReturnType]
