"""Text inside the DiT: what is not there is not seen, the empty text is no text, and derivatives stay exact."""

import pytest
import torch
from torch.testing import assert_close

from flowmaps.core.autodiff import Derivative, along_source
from flowmaps.data.text import Words
from flowmaps.errors import RecipeError
from flowmaps.nets import DiT, build, describe_net
from flowmaps.nets.block import Block
from flowmaps.nets.embed import rms_norm
from flowmaps.nets.text import TextTokens

S, T = torch.tensor([0.83, 0.61, 0.47]).double(), torch.tensor([0.22, 0.71, 0.13]).double()
BYTES = {"length": 5, "size": 4, "letters": True}
EMBEDDED = {"length": 5, "size": 7, "letters": False}
READ = Words(5, 4)


def shaken(net: torch.nn.Module) -> torch.nn.Module:
    gen = torch.Generator().manual_seed(9)
    with torch.no_grad():
        for p in net.parameters():
            p.add_(0.2 * torch.randn(p.shape, generator=gen))
    return net.double()


def dit(text=BYTES, **settings) -> DiT:
    return shaken(DiT((3, 4, 8), patch=2, width=24, depth=2, heads=3, text=text, **settings))


def told(kind=BYTES) -> dict[str, torch.Tensor]:
    read = READ(["a red box", "green", "a b c d e f"])
    if kind is BYTES:
        return read
    mask = (read["text"] != 0).any(-1)
    return {
        "text": torch.randn(
            3, 5, 7, dtype=torch.double, generator=torch.Generator().manual_seed(1)
        ),
        "mask": mask,
    }


@pytest.fixture
def x(gen):
    return torch.randn(3, 3, 4, 8, generator=gen, dtype=torch.double)


def test_a_block_looks_at_its_own_tokens_and_at_those_it_is_told(gen) -> None:
    """Attention by hand, row by row and head by head: the tokens that are there, their keys and their values."""
    block = shaken(Block(12, 2, told=True))
    h, told = (torch.randn(3, n, 12, generator=gen, dtype=torch.double) for n in (5, 4))
    c = torch.randn(3, 12, generator=gen, dtype=torch.double)
    seen = torch.rand(3, 9, generator=gen) < 0.6
    seen[:, 0] = True
    with torch.no_grad():
        shift_a, gain_a, gate_a, shift_m, gain_m, gate_m = block.modulate(c)[:, None].chunk(6, -1)
        q, k, v = block.qkv(rms_norm(h) * (1 + gain_a) + shift_a).chunk(3, -1)
        more_k, more_v = block.told(rms_norm(told)).chunk(2, -1)
        keys, values = torch.cat([k, more_k], 1), torch.cat([v, more_v], 1)
        mixed = torch.zeros_like(h)
        for row in range(3):
            for part in (slice(0, 6), slice(6, 12)):
                key, value = (z[row, seen[row], part] for z in (keys, values))
                share = (rms_norm(q[row, :, part]) @ rms_norm(key).T / 6**0.5).softmax(-1)
                mixed[row, :, part] = share @ value
        h_1 = h + gate_a * block.out(mixed)
        inner = torch.nn.functional.gelu(
            block.up(rms_norm(h_1) * (1 + gain_m) + shift_m), approximate="tanh"
        )
        assert_close(block(h, c, told, seen), h_1 + gate_m * block.down(inner))


@pytest.mark.parametrize("kind", [BYTES, EMBEDDED])
def test_text_matters_and_what_is_masked_does_not(kind, x) -> None:
    """By the tokens of the text, and by the vector that stands for the whole of it."""
    net, cond = dit(kind), told(kind)
    with torch.no_grad():
        both = net(x, S, T, **cond)
        net.text.whole.weight.zero_()
        assert (net(x, S, T, **cond) - both).abs().max() > 1e-3
        out = net(x, S, T, **cond)
        other = {name: value.roll(1, 0) for name, value in cond.items()}
        assert ((net(x, S, T, **other) - out).abs().amax((1, 2, 3)) > 1e-3).all()
        if kind is EMBEDDED:
            noise = torch.where(cond["mask"][:, :, None], cond["text"], 1e3)
            assert_close(net(x, S, T, text=noise, mask=cond["mask"]), out)


@pytest.mark.parametrize("kind", [BYTES, EMBEDDED])
def test_no_text_is_the_empty_text(kind, x) -> None:
    net, cond = dit(kind), told(kind)
    empty = {name: torch.zeros_like(value) for name, value in cond.items()}
    with torch.no_grad():
        assert torch.equal(net(x, S, T), net(x, S, T, **empty))
        assert (net(x, S, T) - net(x, S, T, **cond)).abs().max() > 1e-3


def test_rows_are_told_apart_and_longer_padding_changes_nothing(x) -> None:
    """A row sees its own text only; an empty place of the text adds nothing."""
    net, cond = dit(), told()
    with torch.no_grad():
        out = net(x, S, T, **cond)
        one = net(x[1:2], S[1:2], T[1:2], text=cond["text"][1:2])
    assert_close(out[1:2], one)
    tokens = shaken(TextTokens(24, 3, **BYTES))
    short = shaken(TextTokens(24, 3, **(BYTES | {"length": 2})))
    state = tokens.state_dict()
    short.load_state_dict(state | {"position": state["position"][:2]})
    with torch.no_grad():
        long_h, long_seen, long_whole = tokens(3, cond["text"] * (torch.arange(5) < 2)[:, None])
        h, _, whole = short(3, cond["text"][:, :2])
    assert_close(long_whole, whole)
    assert_close(long_h[:, :3][long_seen[:, :3]], h[long_seen[:, :3]])


def test_derivatives_of_time_go_through_a_told_network(x) -> None:
    net, cond = dit(), told()

    def f(x, s, t):
        return net(x, s, t, **cond)

    dx = x.roll(1, 0)
    value, slope = along_source(f, x, S, T, dx, through=True)
    steps = along_source(f, x, S, T, dx, derivative=Derivative("finite", 1e-6))[1]
    assert_close(slope, steps, rtol=1e-6, atol=1e-7)
    gradient = torch.autograd.grad((value * slope).sum(), net.text.letters.weight)[0]
    assert gradient.abs().max() > 0


def test_half_precision_on_a_cpu_is_the_same_to_its_digits(x) -> None:
    net, cond, x = dit().float(), told(), x.float()
    with torch.no_grad():
        plain = net(x, S.float(), T.float(), **cond)
        with torch.autocast("cpu", torch.bfloat16):
            half = net(x, S.float(), T.float(), **cond)
    assert (
        half.float() - plain
    ).norm() < 0.05 * plain.norm()  # seven bits, through two blocks of each kind


def test_a_network_is_described_by_what_the_data_tell(x) -> None:
    null = {"text": READ([""])["text"][0]}
    settings = describe_net("dit-tiny", (3, 8, 8), null=null)
    assert settings["text"] == BYTES
    net = build(settings)
    start = net(x.float().repeat(1, 1, 2, 1), S.float(), T.float(), **told())
    assert not start.any()
    with pytest.raises(RecipeError, match="reads no text"):
        describe_net("mlp-tiny", (3, 8, 8), null=null)
    assert "text" not in describe_net("dit-tiny", (3, 8, 8), null={"label": torch.tensor(3)})
