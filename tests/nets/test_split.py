"""A transformer whose early blocks see s and whose late blocks see t."""

import pytest
import torch
from torch.testing import assert_close

from flowmaps.core.autodiff import along_source, along_target
from flowmaps.nets import DiT

S, T = torch.tensor([0.8, 0.5, 0.3]), torch.tensor([0.1, 0.4, 0.9])


def awake(**settings) -> DiT:
    net = DiT((1, 4, 4), patch=2, width=12, depth=3, heads=2, classes=2, guided=True, **settings)
    gen = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in net.parameters():
            p.add_(0.2 * torch.randn(p.shape, generator=gen))
    return net


def test_a_one_time_network_becomes_a_split_map_as_it_stands(gen) -> None:
    """At s = t both read the same weights alike, so a teacher is loaded without a new parameter; elsewhere they differ."""
    whole, split = awake(), awake(split=2)
    split.load_state_dict(whole.state_dict())
    x = torch.randn(3, 1, 4, 4, generator=gen)
    cond = {"label": torch.tensor([0, 1, 2]), "scale": torch.tensor([1.5, 1.0, 3.0])}
    assert_close(split(x, S, S, **cond), whole(x, S, S, **cond), rtol=1e-5, atol=1e-6)
    assert (split(x, S, T, **cond) - whole(x, S, T, **cond)).abs().max() > 1e-2


def test_early_blocks_see_the_source_and_late_blocks_the_target(gen) -> None:
    net = awake(split=2)
    x = torch.randn(3, 1, 4, 4, generator=gen)
    seen = []
    for i, block in enumerate(net.blocks):
        block.register_forward_pre_hook(lambda _, args, i=i: seen.append((i, args[1].detach())))
    net(x, S, T)
    early, late = (torch.nn.functional.silu(net.condition(time, time)) for time in (S, T))
    for i, c in seen:
        assert_close(c, early if i < 2 else late)
    for derivative in (along_source(net, x, S, T, x)[1], along_target(net, x, S, T)[1]):
        assert derivative.isfinite().all()
        assert derivative.abs().max() > 1e-3


@pytest.mark.parametrize("split", [0, 3, -1])
def test_a_split_leaves_blocks_on_both_sides(split) -> None:
    with pytest.raises(ValueError, match="0 < split < depth=3"):
        awake(split=split)
