"""Reference networks: they start at zero, carry their conditioning, and behave under derivatives of time."""

import pytest
import torch
from torch.testing import assert_close

from flowmaps.core.autodiff import along_source, along_target
from flowmaps.nets import MLP, NETS, DiT, build, describe_net
from flowmaps.nets.embed import MAX_FREQUENCY, Conditioning, Frequencies, rms_norm

S = torch.tensor([0.83, 0.61, 0.47])
T = torch.tensor([0.22, 0.71, 0.13])


def small(family: str, **settings):
    if family == "mlp":
        return MLP((3, 4, 8), width=24, depth=2, **settings)
    return DiT((3, 4, 8), patch=2, width=24, depth=2, heads=3, **settings)


def shake(net: torch.nn.Module, size: float = 0.2) -> torch.nn.Module:
    gen = torch.Generator().manual_seed(9)
    with torch.no_grad():
        for p in net.parameters():
            p.add_(size * torch.randn(p.shape, generator=gen))
    return net


def points(gen: torch.Generator) -> torch.Tensor:
    return torch.randn(3, 3, 4, 8, generator=gen)


@pytest.mark.parametrize("name", NETS)
def test_named_sizes_build_and_start_at_zero(name, gen) -> None:
    if name.endswith(("large", "base")):
        with torch.device(
            "meta"
        ):  # their shapes only: memory and time of the big ones are not needed
            net = build(describe_net(name, (1, 8, 8), classes=10, guided=True))
        assert sum(p.numel() for p in net.parameters()) > 1e6
        return
    net = build(describe_net(name, (1, 8, 8), classes=10, guided=True))
    x = torch.randn(3, 1, 8, 8, generator=gen)
    out = net(x, S, T, label=torch.tensor([0, 10, 7]), scale=torch.tensor([1.0, 2.0, 3.5]))
    assert torch.equal(out, torch.zeros_like(x))
    points_net = build(describe_net("mlp-tiny", (2,)))
    assert points_net(torch.ones(3, 2), S, T).shape == (3, 2)


@pytest.mark.parametrize("family", ["mlp", "dit"])
def test_a_diagonal_network_is_a_constant_in_the_target(family, gen) -> None:
    """Trained at s = t only, with weight decay and momentum, u(x, s, t) = u(x, s, s) to the bit."""
    net = shake_all_but_anchors(small(family))
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-2, weight_decay=0.1)
    x = points(gen)
    for _ in range(3):
        loss = (net(x, S, S) - x.flip(0)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert torch.equal(net(x, S, T), net(x, S, S))
    assert not torch.allclose(net(x, S, S), net(x, T, T), atol=1e-4)  # the source does matter
    moved = (net(x, S, T) - x.flip(0)).square().mean()
    moved.backward()
    optimizer.step()
    assert not torch.allclose(net(x, S, T), net(x, S, S), atol=1e-4)  # and the jump can be learned


def shake_all_but_anchors(net):
    anchored = {id(m.last.weight) for m in net.modules() if getattr(m, "anchored", False)}
    gen = torch.Generator().manual_seed(9)
    with torch.no_grad():
        for p in net.parameters():
            if id(p) not in anchored:
                p.add_(0.2 * torch.randn(p.shape, generator=gen))
    return net


@pytest.mark.parametrize("family", ["mlp", "dit"])
def test_missing_conditioning_is_the_neutral_one(family, gen) -> None:
    net, x = shake(small(family, classes=5, guided=True)), points(gen)
    label, scale = torch.tensor([0, 4, 2]), torch.tensor([1.7, 2.9, 0.6])
    null, one = torch.full((3,), 5), torch.ones(3)
    assert torch.equal(net(x, S, T, scale=scale), net(x, S, T, label=null, scale=scale))
    assert torch.equal(net(x, S, T, label=label), net(x, S, T, label=label, scale=one))
    full = net(x, S, T, label=label, scale=scale)
    for other in (
        net(x, S, T, label=label),
        net(x, S, T, scale=scale),
        net(x, S, T, label=label.flip(0), scale=scale),
    ):
        assert (full - other).abs().max() > 1e-3


@pytest.mark.parametrize("family", ["mlp", "dit"])
def test_rows_are_independent_and_times_matter(family, gen) -> None:
    net, x = shake(small(family)), points(gen)
    together = net(x, S, T)
    for i in range(3):
        alone = net(x[i : i + 1], S[i : i + 1], T[i : i + 1])
        assert_close(alone[0], together[i], rtol=1e-4, atol=1e-5)
    assert (net(x, T, S) - together).abs().max() > 1e-3


def test_dit_patches_are_undone(gen) -> None:
    """With identity layers the network would copy: patches and image are inverse to each other."""
    net, x = small("dit"), points(gen)
    assert torch.equal(net._unpatched(net._patches(x)), x)
    first = net._patches(x)[0, 1].reshape(
        3, 2, 2
    )  # the second token is the patch at rows 0-1, columns 2-3
    assert torch.equal(first, x[0, :, 0:2, 2:4])


def test_rms_norm_under_jvp_and_its_gradient(gen) -> None:
    x, dx, probe = torch.randn(3, 3, 7, generator=gen, dtype=torch.float64)
    x.requires_grad_()
    jvp = lambda z: torch.func.jvp(rms_norm, (z,), (dx,))[1]
    r = (x.square().mean(-1, keepdim=True) + 1e-6).sqrt()
    hand = dx / r - x * (x * dx).mean(-1, keepdim=True) / r**3
    assert_close(jvp(x), hand, rtol=1e-12, atol=1e-12)
    got = torch.autograd.grad((jvp(x) * probe).sum(), x)[0]
    want = torch.autograd.grad((hand * probe).sum(), x)[0]
    assert_close(got, want, rtol=1e-11, atol=1e-12)
    assert_close(rms_norm(3.7 * x).square().mean(-1), torch.ones(3).double(), rtol=1e-5, atol=0)
    assert rms_norm(x.bfloat16()).dtype == torch.bfloat16


@pytest.mark.parametrize("family", ["mlp", "dit"])
def test_time_tangents_are_of_the_order_of_the_output(family, gen) -> None:
    """With times x 1000 the derivative would be hundreds of outputs; the largest frequency is 16."""
    net, x = shake(small(family)), points(gen)
    u = net(x, S, T)
    with torch.no_grad():
        along_s = along_source(net, x, S, T, torch.zeros_like(x))[1]
        along_t = along_target(net, x, S, T)[1]
    for slope in (along_s, along_t):
        assert 0.01 < slope.square().mean() ** 0.5 / u.square().mean().sqrt() < 20


def test_frequencies_are_bounded() -> None:
    features = Frequencies(64)
    assert features.omega.max() == MAX_FREQUENCY
    value = torch.rand(5, generator=torch.Generator().manual_seed(0))
    out = features(value)
    assert_close(out[:, :32].square() + out[:, 32:].square(), torch.ones(5, 32))
    assert_close(out[:, 3], (value * features.omega[3]).sin())


def test_times_keep_float64_in_float64_networks() -> None:
    c = Conditioning(8).double()
    with torch.no_grad():
        c.jump.last.weight.normal_(generator=torch.Generator().manual_seed(0))
    s, t = torch.tensor([0.6], dtype=torch.float64), torch.tensor([0.2], dtype=torch.float64)
    moved = c(s, t + 1e-9) - c(s, t)
    assert 0 < moved.abs().max() < 1e-7  # float32 times would not notice 1e-9


def test_times_stay_float32_under_autocast() -> None:
    c = Conditioning(8)
    with torch.autocast("cpu", torch.bfloat16):
        assert c(S, T).dtype == torch.float32


def test_dit_refuses_what_it_cannot_tile() -> None:
    with pytest.raises(ValueError, match=r"sides are multiples of patch=3; got \(1, 8, 9\)"):
        DiT((1, 8, 9), patch=3)
    with pytest.raises(ValueError, match="heads that divide the width; got width=10, heads=3"):
        DiT((1, 8, 8), patch=2, width=10, heads=3)
    with pytest.raises(ValueError, match=r"dit needs images"):
        DiT((2,))
    with pytest.raises(ValueError, match="net must be one of mlp-tiny"):
        describe_net("unet", (1, 8, 8))
