"""The DiT on sequences, such as frames of sound, and the part of the input that its output takes along."""

import pytest
import torch
from torch.testing import assert_close

from flowmaps.nets import DiT, build, describe_net


@pytest.fixture
def gen() -> torch.Generator:
    return torch.Generator().manual_seed(0)


@pytest.mark.parametrize(("shape", "patch"), [((5, 12), 1), ((2, 12), 3), ((3, 6, 4), 2)])
def test_a_token_holds_a_patch_of_all_channels(shape, patch, gen) -> None:
    net = DiT(shape, patch, width=8, depth=1, heads=2)
    x = torch.randn(3, *shape, generator=gen)
    tokens = net._patches(x)
    assert tokens.shape == (3, len(net.position), shape[0] * patch ** (len(shape) - 1))
    assert_close(net._unpatched(tokens), x)
    corner = x[(slice(None), slice(None), *[slice(0, patch)] * (len(shape) - 1))]
    assert_close(tokens[:, 0], corner.flatten(1))
    last = x[(slice(None), slice(None), *[slice(-patch, None)] * (len(shape) - 1))]
    assert_close(tokens[:, -1], last.flatten(1))


def test_wide_tokens_take_the_input_along(gen) -> None:
    """A linear map of rank `width` cannot return noise of more dimensions; a gain per number can."""
    settings = describe_net("dit-tiny", (300, 4))
    assert settings["skip"] is True
    assert settings["patch"] == 1
    assert "skip" not in describe_net("dit-tiny", (1, 28, 28))
    assert describe_net("dit-tiny", (1, 28, 28), skip="yes")["skip"] is True
    assert "skip" not in describe_net("dit-tiny", (300, 4), skip="no")
    net = build(settings)
    x, s = torch.randn(2, 300, 4, generator=gen), torch.tensor([0.7, 0.2])
    with torch.no_grad():
        assert net(x, s, s).abs().max() == 0
        net.last.bias[300:] = 2.0  # type: ignore[index]
        assert_close(net(x, s, s), 2 * x)
        net.last.bias[:300] = 0.5  # type: ignore[index]
        assert_close(net(x, s, s), 2 * x + 0.5)


def test_patches_of_a_sequence_make_at_most_128_tokens() -> None:
    assert describe_net("dit-tiny", (1, 16000))["patch"] == 125
    assert describe_net("dit-tiny", (500, 32))["patch"] == 1
    assert describe_net("dit-tiny", (2, 129))["patch"] == 3
    with pytest.raises(
        ValueError, match=r"or sequences \(C, L\), whose sides are multiples of patch=5"
    ):
        DiT((2, 12), 5)


def test_many_classes_start_far_apart() -> None:
    few, many = (build(describe_net("dit-tiny", (3, 4), classes=n)) for n in (10, 66))
    assert_close(few.condition.label.weight.std(), torch.tensor(0.02), rtol=0.2, atol=0)
    assert_close(many.condition.label.weight.std(), torch.tensor(1.0), rtol=0.2, atol=0)
    assert "spread" not in describe_net("mlp-tiny", (3, 4), classes=66)
