"""Directional derivatives against differences, through attention, bfloat16 and the compiler; and the layer-norm trap."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.testing import assert_close

from flowmaps.core import autodiff
from flowmaps.core.autodiff import Derivative, _frozen, advection, along_source, along_target
from flowmaps.core.interpolant import INTERPOLANTS
from flowmaps.errors import DerivativeError
from flowmaps.nets import MLP, DiT

S = torch.tensor([0.83, 0.61, 0.47], dtype=torch.float64)
T = torch.tensor([0.22, 0.71, 0.13], dtype=torch.float64)


def awake(net: nn.Module, seed: int = 3) -> nn.Module:
    """A network whose zero-initialised layers were moved: at the start every derivative would be 0."""
    gen = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in net.parameters():
            p.add_(0.1 * torch.randn(p.shape, generator=gen, dtype=torch.float64).to(p.dtype))
    return net


def dit() -> nn.Module:
    return awake(DiT((2, 4, 8), patch=2, width=24, depth=2, heads=3)).double()


def mlp(dtype: torch.dtype = torch.float64) -> nn.Module:
    return awake(MLP((5,), width=16, depth=2)).to(dtype)


CASES = {"mlp": (mlp, (3, 5)), "dit": (dit, (3, 2, 4, 8))}


@pytest.fixture(params=CASES)
def case(request, gen):
    make, shape = CASES[request.param]
    x, dx = torch.randn(2, *shape, generator=gen, dtype=torch.float64)
    return make(), x, dx


def central(net, x, s, t, dx, ds, dt, h=1e-5):
    ahead, behind = net(x + h * dx, s + h * ds, t + h * dt), net(x - h * dx, s - h * ds, t - h * dt)
    return (ahead - behind) / (2 * h)


def close(got, expected, tolerance=1e-7):
    """Relative to the largest entry; central differences at h = 1e-5 have error (16 h)^2 and 1e-16/h."""
    assert (got - expected).abs().max() < tolerance * expected.abs().max()
    assert expected.abs().max() > 1e-3  # something was measured


@pytest.mark.parametrize("through", [False, True])
def test_derivatives_agree_with_fine_differences(case, through) -> None:
    net, x, dx = case
    value, slope = along_source(net, x, S, T, dx, through=through)
    assert_close(value, net(x, S, T), rtol=1e-11, atol=1e-11)
    close(slope, central(net, x, S, T, dx, 1, 0))
    assert slope.requires_grad == through
    assert value.requires_grad
    value, slope = along_target(net, x, S, T, through=through)
    close(slope, central(net, x, S, T, 0 * dx, 0, 1))
    assert slope.requires_grad == through


def test_advection_leaves_the_times(case) -> None:
    net, x, dx = case
    slope = advection(net, x, S, T, dx)
    close(slope, central(net, x, S, T, dx, 0, 0))
    assert not slope.requires_grad
    close(advection(net, x, S, T, dx, derivative=Derivative("finite", 1e-5)), slope)


def test_gradient_through_the_derivative(case) -> None:
    """d/dtheta of a projection of the JVP, against a difference in a random direction of parameter space."""
    net, x, dx = case
    gen = torch.Generator().manual_seed(5)
    probe = torch.randn(x.shape, generator=gen, dtype=torch.float64)
    direction = [torch.randn(p.shape, generator=gen, dtype=torch.float64) for p in net.parameters()]

    def measure(through: bool):
        return (along_source(net, x, S, T, dx, through=through)[1] * probe).sum()

    slope = torch.autograd.grad(measure(True), list(net.parameters()), allow_unused=True)
    analytic = sum((g * d).sum() for g, d in zip(slope, direction, strict=True) if g is not None)
    h, values = 1e-5, []
    for sign in (1, -1):
        with torch.no_grad():
            for p, d in zip(net.parameters(), direction, strict=True):
                p.add_(sign * h * d)
            values.append(measure(False))
            for p, d in zip(net.parameters(), direction, strict=True):
                p.sub_(sign * h * d)
    numeric = (values[0] - values[1]) / (2 * h)
    assert abs((analytic - numeric) / numeric).item() < 1e-5  # h^2 times third derivatives


def test_bfloat16_autocast(gen) -> None:
    """bfloat16 has 8 bits: 0.4% per rounding, a few layers deep; methods.md 7 measured 0.6%. Times stay float32."""
    net = awake(MLP((5,), width=64, depth=2))
    x, dx = torch.randn(2, 64, 5, generator=gen)
    s, t = torch.rand(2, 64, generator=gen)
    exact = along_source(net, x, s, t, dx, through=True)
    torch.autograd.backward(exact[1].square().mean() + exact[0].square().mean())
    grads = [p.grad.clone() for p in net.parameters()]
    net.zero_grad()
    with torch.autocast("cpu", torch.bfloat16):
        with torch.no_grad():
            net(
                x, s, t
            )  # casts made without a graph must not be reused by the pass that is trained
        value, slope = along_source(net, x, s, t, dx, through=True)
    torch.autograd.backward(slope.float().square().mean() + value.float().square().mean())
    assert (slope - exact[1]).norm() < 0.03 * exact[1].norm()
    assert (slope - exact[1]).norm() > 0  # it did run in bfloat16
    for p, g in zip(net.parameters(), grads, strict=True):
        assert (p.grad - g).norm() < 0.08 * g.norm() + 1e-6


def test_compiled_derivative_and_its_gradient() -> None:
    net = mlp()
    x, dx = torch.randn(2, 3, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64)

    def loss(x, s, t, dx):
        value, slope = along_source(net, x, s, t, dx, through=True)
        still = along_target(net, x, s, t)[1]
        return (value + slope).square().mean() + (value * still).sum()

    eager = loss(x, S, T, dx)
    expected = torch.autograd.grad(eager, list(net.parameters()))
    compiled = torch.compile(loss, backend="aot_eager", fullgraph=True)(x, S, T, dx)
    assert_close(compiled, eager, rtol=1e-12, atol=0)
    for a, b in zip(torch.autograd.grad(compiled, list(net.parameters())), expected, strict=True):
        assert_close(a, b, rtol=1e-9, atol=1e-12)


class Normed(nn.Module):
    def __init__(self, norm) -> None:
        super().__init__()
        gen = torch.Generator().manual_seed(2)
        self.w = nn.Parameter(torch.randn(6, 6, generator=gen, dtype=torch.float64))
        self.norm = norm

    def forward(self, x, s, t):
        return torch.tanh(self.norm(x @ self.w * (1 + s[:, None] + 2 * t[:, None])))


def composite(h):
    centred = h - h.mean(-1, keepdim=True)
    return centred * torch.rsqrt(centred.square().mean(-1, keepdim=True) + 1e-5)


TRAPS = {
    "F.layer_norm": lambda h: F.layer_norm(h, (6,)),
    "nn.LayerNorm": nn.LayerNorm(6, dtype=torch.float64),
    "torch.layer_norm": lambda h: torch.layer_norm(h, (6,)),
    "batch_norm": nn.BatchNorm1d(6, dtype=torch.float64, track_running_stats=False),
    "instance_norm": lambda h: F.instance_norm(h[None])[0],
}


@pytest.mark.parametrize("name", TRAPS)
def test_layer_norm_is_refused_only_where_its_gradient_is_wrong(name, gen) -> None:
    net = Normed(TRAPS[name])
    x, dx = torch.randn(2, 3, 6, generator=gen, dtype=torch.float64)
    with pytest.raises(
        DerivativeError, match=r"the network calls F\.\w+, whose gradient through.*rms_norm"
    ):
        along_source(net, x, S, T, dx, through=True)
    with pytest.raises(DerivativeError, match="issue 196700"):
        along_target(net, x, S, T, through=True)
    slope = along_source(net, x, S, T, dx)[1]
    close(slope, central(net, x, S, T, dx, 1, 0), 1e-6)


@pytest.mark.parametrize("norm", [F.rms_norm, F.group_norm])
def test_sound_norms_are_accepted(norm, gen) -> None:
    net = Normed(lambda h: norm(h, (6,)) if norm is F.rms_norm else norm(h, 2))
    frozen = Normed(nn.BatchNorm1d(6, dtype=torch.float64).eval())
    x, dx = torch.randn(2, 3, 6, generator=gen, dtype=torch.float64)
    for sound in (net, frozen):
        close(
            along_source(sound, x, S, T, dx, through=True)[1],
            central(sound, x, S, T, dx, 1, 0),
            1e-6,
        )


def through_jvp(norm) -> torch.Tensor:
    net, gen = Normed(norm), torch.Generator().manual_seed(4)
    x, dx = torch.randn(2, 3, 6, generator=gen, dtype=torch.float64)
    slope = torch.func.jvp(lambda z: net(z, S, T), (x,), (dx,))[1]
    return torch.autograd.grad(slope.square().sum(), net.w)[0]


def test_torch_is_still_wrong_about_layer_norm() -> None:
    """Why the trap exists. When this fails, torch has mended it: raise the minimum version and drop the trap."""
    right, torchs = through_jvp(composite), through_jvp(lambda h: F.layer_norm(h, (6,)))
    assert (right - torchs).norm() > 0.1 * right.norm(), (
        f"torch {torch.__version__} differentiates F.layer_norm correctly through a JVP: remove refuse_layer_norm"
    )


def test_attention_backends_are_restored(gen) -> None:
    cuda = torch.backends.cuda
    flags = [
        cuda.flash_sdp_enabled,
        cuda.mem_efficient_sdp_enabled,
        cuda.math_sdp_enabled,
        cuda.cudnn_sdp_enabled,
    ]
    before = [flag() for flag in flags]
    assert before[0]
    net, x = dit(), torch.randn(3, 2, 4, 8, generator=gen, dtype=torch.float64)
    along_target(net, x, S, T)
    assert [flag() for flag in flags] == before
    with pytest.raises(RuntimeError, match="mine"):
        along_target(lambda x, s, t: (_ for _ in ()).throw(RuntimeError("mine")), x, S, T)
    assert [flag() for flag in flags] == before


def test_finite_differences_have_second_order(gen) -> None:
    net, x, dx = mlp(), *torch.randn(2, 3, 5, generator=gen, dtype=torch.float64)
    exact = along_source(net, x, S, T, dx)[1]
    errors = []
    for h in (4e-3, 2e-3, 1e-3):
        value, slope = along_source(net, x, S, T, dx, derivative=Derivative("finite", h))
        assert torch.equal(value, net(x, S, T))
        errors.append((slope - exact).norm())
    assert 3.6 < errors[0] / errors[1] < 4.4
    assert 3.6 < errors[1] / errors[2] < 4.4
    along_t = along_target(net, x, S, T, derivative=Derivative("finite", 1e-4), through=True)[1]
    close(along_t, along_target(net, x, S, T)[1], 1e-5)
    assert along_t.requires_grad


class Opaque(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x**2

    @staticmethod
    def backward(ctx, g):
        return g


def test_operation_without_forward_mode_is_explained(gen) -> None:
    x = torch.randn(3, 5, generator=gen, dtype=torch.float64)

    def net(x, s, t):
        return (
            nn.functional.scaled_dot_product_attention(x, x, x).cumsum(0)
            + torch.cdist(x, x, p=3.0).sum()
        )

    with pytest.raises(DerivativeError, match=r"without forward-mode AD .*Derivative\('finite'\)"):
        along_source(net, x, S, T, x)


def test_old_autograd_functions_are_explained(gen) -> None:
    x = torch.randn(3, 5, generator=gen, dtype=torch.float64)
    with pytest.raises(DerivativeError, match=r"without forward-mode AD .*Derivative\('finite'\)"):
        along_source(lambda x, s, t: Opaque.apply(x), x, S, T, x)


def test_tangents_take_the_dtype_of_their_primals(gen) -> None:
    net = mlp(torch.float32)
    x = torch.randn(3, 5, generator=gen)
    slope = along_source(net, x, S.float(), T.float(), x.double())[1]
    assert slope.dtype == torch.float32
    expanded = torch.tensor(0.4).expand(3)
    assert along_source(net, x, expanded, T.float(), x)[1].isfinite().all()
    assert Derivative() == autodiff.EXACT


@pytest.mark.parametrize("name", ["linear", "trig", "vp", "ve"])
def test_differences_along_the_path_are_the_jvp_with_its_velocity(name, gen) -> None:
    """methods.md 6.3, item 6: x_0 and noise held, the difference tends to the JVP with the conditional velocity, order 2."""
    path = INTERPOLANTS[name]()
    net = mlp()
    x_0, eps = torch.randn(2, 3, 5, generator=gen, dtype=torch.float64)
    x, v = path.sample(x_0, eps, S)
    exact = along_source(net, x, S, T, v)[1]

    def error(h: float) -> float:
        derivative = Derivative("finite", h, path)
        slope = along_source(net, x, S, T, v, derivative=derivative)[1]
        by_hand = [net(path.sample(x_0, eps, S + k)[0], S + k, T) for k in (h, -h)]
        assert_close(slope, (by_hand[0] - by_hand[1]) / (2 * h), rtol=1e-8, atol=1e-8)
        return (slope - exact).norm().item()

    steps = (4e-4, 2e-4, 1e-4) if name == "ve" else (4e-3, 2e-3, 1e-3)
    errors = [error(h) for h in steps]
    assert 3.6 < errors[0] / errors[1] < 4.4
    assert 3.6 < errors[1] / errors[2] < 4.4
    straight = along_source(net, x, S, T, v, derivative=Derivative("finite", steps[0]))[1]
    bent = along_source(net, x, S, T, v, derivative=Derivative("finite", steps[0], path))[1]
    apart = (straight - bent).norm() / exact.norm()
    assert (apart > 1e-6) if name in ("trig", "vp") else (apart < 1e-10)
    value, slope = along_source(
        net, x, S, T, v, derivative=Derivative("finite", 1e-3, path), through=True
    )
    assert_close(value, net(x, S, T), rtol=1e-12, atol=1e-12)
    assert slope.requires_grad
    with pytest.raises(DerivativeError, match="only method='finite' moves along a path"):
        Derivative("exact", path=path)


def test_semi_finite_derivative(gen) -> None:
    """Exact in the point, order 2 in the times; no difference is taken of the point: a function of x alone is exact."""
    net, x, dx = mlp(), *torch.randn(2, 3, 5, generator=gen, dtype=torch.float64)
    for through in (False, True):
        errors = []
        for h in (4e-3, 2e-3):
            semi = Derivative("semi", h)
            value, slope = along_source(net, x, S, T, dx, derivative=semi, through=through)
            assert_close(value, net(x, S, T), rtol=1e-11, atol=1e-11)
            errors.append((slope - along_source(net, x, S, T, dx)[1]).norm())
            assert slope.requires_grad == through
        assert 3.6 < errors[0] / errors[1] < 4.4
    cubic = along_source(lambda x, s, t: x**3, x, S, T, dx, derivative=Derivative("semi", 0.1))[1]
    assert_close(cubic, 3 * x**2 * dx, rtol=1e-12, atol=1e-12)
    target = along_target(net, x, S, T, derivative=Derivative("semi", 1e-4))[1]
    normed, z = Normed(TRAPS["F.layer_norm"]), torch.randn(3, 6, generator=gen, dtype=torch.float64)
    with pytest.raises(DerivativeError, match="issue 196700"):
        along_source(normed, z, S, T, z, derivative=Derivative("semi"), through=True)
    close(target, along_target(net, x, S, T)[1], 1e-5)


def test_a_detached_difference_calls_the_network_twice_and_once_more(gen) -> None:
    calls = []

    def net(x, s, t):
        calls.append(torch.is_grad_enabled())
        return x * (s + t)[:, None]

    x = torch.randn(3, 5, generator=gen, dtype=torch.float64)
    along_source(net, x, S, T, x, derivative=Derivative("finite"))
    assert calls == [False, False, True]


def test_a_batch_norm_is_frozen_unless_it_trains() -> None:
    """However the flag is passed: by its name, as the sixth argument, or not at all."""
    given = (torch.zeros(3, 2), torch.zeros(2), torch.ones(2), None, None)
    assert _frozen("batch_norm", given, {})
    assert _frozen("batch_norm", (*given, False), {})
    assert _frozen("batch_norm", given, {"training": False})
    assert not _frozen("batch_norm", (*given, True), {})
    assert not _frozen("batch_norm", (*given, True, 0.1, 1e-5), {})
    assert not _frozen("batch_norm", given, {"training": True})
    assert not _frozen("layer_norm", given, {})
