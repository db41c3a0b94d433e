"""What the arguments of `default` say: shares of all rows, legs, what the network predicts, what is remembered."""

import pytest
import torch

from flowmaps.core.interpolant import linear
from flowmaps.core.parametrization import Average, Denoised
from flowmaps.learn.weights import ClippedTime
from flowmaps.recipes import get

N = 20_000


@pytest.mark.parametrize(("diagonal", "starts", "ends"), [(0.5, 0.0, 0.2), (0.3, 0.1, 0.25)])
def test_shares_are_of_all_rows(diagonal, starts, ends, gen) -> None:
    """Five standard errors of the share of 20,000 rows."""
    recipe = get("default", diagonal=diagonal, starts=starts, ends=ends, memory=0)
    still, moved = recipe.draw(torch.zeros(N, 1), gen)
    assert (len(still.x), len(moved.x)) == (N * diagonal, N * (1 - diagonal))
    assert torch.equal(still.times.s, still.times.t)
    s, w, t = moved.times
    assert abs(float((t == 0).sum()) / N - ends) < 5 * (ends / N) ** 0.5
    assert abs(float((s == 1).sum()) / N - starts) < 5 * (starts / N) ** 0.5 + 1e-12
    torch.testing.assert_close(w, s + 0.02 * (t - s))


def test_what_the_network_predicts() -> None:
    image, velocity = get("default", floor=0.07), get("default", predict="velocity")
    assert image.parametrization == Denoised(linear(), "x0")
    assert [term.space for term in image.terms] == [ClippedTime(0.07)] * 2
    assert velocity.parametrization == Average()
    assert [term.space for term in velocity.terms] == [None] * 2


def test_it_remembers_what_it_pools() -> None:
    assert get("default").memory == 1024
    assert get("default", memory=7).memory == 7
    assert get("default", velocity="conditional").memory == 0
    assert [term.pooled for term in get("default").terms] == [True, True]
