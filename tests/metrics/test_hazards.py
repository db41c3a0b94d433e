"""Every hazard is found in a network that was broken so, alone, and none in ours."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from flowmaps.core.flow_map import NetFlowMap
from flowmaps.core.interpolant import INTERPOLANTS
from flowmaps.core.parametrization import Denoised, EDMTwoTime
from flowmaps.metrics import HAZARDS, hazards
from flowmaps.metrics.hazards import bf16_error, time_tangent
from flowmaps.nets import MLP, DiT
from flowmaps.testing import worlds


class Net(nn.Module):
    """A sound network with a place where it can be broken."""

    def __init__(self, middle=None, frequency: float = 4.0) -> None:
        super().__init__()
        gen = torch.Generator().manual_seed(4)
        self.first, self.last = nn.Linear(3, 24), nn.Linear(24, 3)
        with torch.no_grad():
            for p in self.parameters():
                p.copy_(0.4 * torch.randn(p.shape, generator=gen))
        self.middle = middle or nn.Identity()
        self.frequency = frequency

    def forward(self, x, s, t):
        phase = self.frequency * torch.stack([s, s - t], -1)
        time = torch.cat([phase.sin(), phase.cos()], -1).repeat(1, 6)
        return self.last(self.middle(torch.tanh(self.first(x) + time)))


class Trained(nn.Module):
    """Something that happens in training mode only."""

    def __init__(self, act) -> None:
        super().__init__()
        self.act = act

    def forward(self, h):
        return self.act(h) if self.training else h


class Opaque(torch.autograd.Function):
    @staticmethod
    def forward(ctx, h):
        return h.clone()

    @staticmethod
    def backward(ctx, g):
        return g


class Lying(torch.autograd.Function):
    """Its derivative is not that of its value."""

    generate_vmap_rule = True

    @staticmethod
    def forward(h):
        return h.sin()

    @staticmethod
    def setup_context(ctx, inputs, output):
        pass

    @staticmethod
    def backward(ctx, g):
        return g

    @staticmethod
    def jvp(ctx, tangent):
        return 2 * tangent


def flash(h):
    q = h.reshape(len(h), 1, 4, 6)
    with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
        return F.scaled_dot_product_attention(q, q, q).reshape(h.shape)


def quotient(x, s, t):
    return (x * torch.sin(s)[:, None] - x * torch.sin(t)[:, None]) / (s - t)[:, None]


def stepped(x, s, t):
    return x * (1 + (s == t).to(x.dtype))[:, None]


def cancelling(x, s, t):
    """A difference of large matrix products, which half precision does not survive."""
    big = torch.full((3, 3), 100.0, device=x.device)
    a = x @ (big + torch.eye(3) * (1 + 0.1)) - x @ big
    return a * (1 + s * t)[:, None]


BROKEN = {
    "layer_norm": lambda: Net(nn.LayerNorm(24)),
    "attention": lambda: Net(Wrapped(flash)),
    "forward_mode": lambda: Net(Wrapped(Opaque.apply)),
    "derivative": lambda: Net(Wrapped(Lying.apply)),
    "time_frequency": lambda: Net(frequency=1000.0),
    "bf16_derivative": lambda: cancelling,
    "dropout": lambda: Net(nn.Dropout(0.2)),
    "hidden_noise": lambda: Net(Trained(lambda h: h + 0.1 * torch.randn_like(h))),
    "batch_statistics": lambda: Net(Trained(lambda h: h - h.mean(0))),
    "diagonal": lambda: stepped,
}


class Wrapped(nn.Module):
    def __init__(self, act) -> None:
        super().__init__()
        self.act = act

    def forward(self, h):
        return self.act(h)


def found(net, gen, **options) -> list[str]:
    f = NetFlowMap(net, **options)
    x = torch.randn(16, 3, generator=gen)
    s, t = 0.6 + 0.3 * torch.rand(16, generator=gen), 0.1 + 0.3 * torch.rand(16, generator=gen)
    return [hazard.name for hazard in hazards(f, x, s, t)]


def test_there_is_a_broken_network_for_every_hazard() -> None:
    assert set(BROKEN) == set(HAZARDS)


@pytest.mark.parametrize("name", BROKEN)
def test_the_hazard_is_found(name, gen) -> None:
    names = found(BROKEN[name](), gen)
    # an embedding that steep is also rough in half precision, and batch norm is a relative of layer norm
    assert name in names
    assert set(names) <= {name, "bf16_derivative", "diagonal"}
    assert name == "time_frequency" or names == [name]


def test_a_quotient_is_found(gen) -> None:
    assert "diagonal" in found(quotient, gen)
    assert set(found(Net(nn.BatchNorm1d(24)), gen)) >= {"batch_statistics"}


@pytest.mark.parametrize("awake", [0.0, 0.1, 0.3])
@pytest.mark.parametrize("make", [lambda: MLP((3,), 32, 2), lambda: DiT((1, 8, 8), 2, 24, 2, 3)])
def test_our_networks_have_none(make, awake, gen) -> None:
    """At the start, and with every weight moved: the zeros of initialisation hide nothing."""
    net = make()
    shape = (3,) if isinstance(net, MLP) else (1, 8, 8)
    with torch.no_grad():
        for p in net.parameters():
            p.add_(awake * torch.randn(p.shape, generator=gen))
    x, cond = torch.randn(16, *shape, generator=gen), {}
    assert hazards(NetFlowMap(net), x, 0.8, 0.2, **cond) == ()
    assert all(p.requires_grad for p in net.parameters())
    assert net.training


@pytest.mark.parametrize("path", INTERPOLANTS)
def test_exact_maps_have_none(path, gen) -> None:
    world = worlds.gaussian(INTERPOLANTS[path]())
    x = world.sample(16, gen)
    assert hazards(world.flow_map, x, 0.8, 0.2) == ()
    for parametrization in (Denoised, EDMTwoTime):
        sound = NetFlowMap(Net(), world.interpolant, parametrization(world.interpolant))
        assert hazards(sound, torch.randn(16, 3, generator=gen), 0.8, 0.2) == ()


def test_the_network_is_left_as_it_is(gen) -> None:
    net = Net(nn.BatchNorm1d(24))
    before = {key: value.clone() for key, value in net.state_dict().items()}
    state = torch.get_rng_state()
    found(net, gen)
    assert torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())
    assert net.training


def test_sizes_of_the_two_measures(gen) -> None:
    """d/ds of sin(w s) x is w cos(w s) x; a product of bfloat16 matrices rounds at 2^-9."""
    x = torch.randn(400, 3, generator=gen, dtype=torch.float64)
    s = torch.rand(400, generator=gen, dtype=torch.float64)
    f = NetFlowMap(lambda x, s, t: x * torch.sin(30 * s)[:, None])
    assert time_tangent(f, x, s, 0.1) == pytest.approx(30, rel=0.15)
    g = NetFlowMap(lambda x, s, t: x * torch.sin(30 * t)[:, None])
    assert time_tangent(g, x, 0.9, s) == pytest.approx(30, rel=0.15)
    turn = torch.randn(3, 3, generator=gen)
    rough = bf16_error(NetFlowMap(lambda x, s, t: (x @ turn) * s[:, None]), x.float(), 0.8, 0.1)
    assert 1e-4 < rough < 1e-2


def test_advice_is_said(gen) -> None:
    f = NetFlowMap(Net(nn.Dropout(0.2)))
    (hazard,) = hazards(f, torch.randn(16, 3, generator=gen), 0.8, 0.2)
    assert str(hazard).startswith("dropout is active in training (middle; it moves the output by ")
    assert "set it to 0." in str(hazard)
