import itertools

import pytest
import torch
from torch import Generator, Tensor

from flowmaps.errors import ShapeError
from flowmaps.metrics import sliced_wasserstein, wasserstein


def draw(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=Generator().manual_seed(seed), dtype=torch.float64)


def shuffled(x: Tensor, seed: int) -> Tensor:
    return x[torch.randperm(len(x), generator=Generator().manual_seed(seed))]


def test_a_shift_costs_its_length():
    x, shift = draw(41, 3, 2, seed=1), draw(3, 2, seed=2)
    assert wasserstein(x, shuffled(x + shift, 3)) == pytest.approx(float(shift.norm()), rel=1e-12)
    assert wasserstein(x, shuffled(x, 4)) == 0


def test_the_cheapest_of_all_matchings_is_found():
    x, y = draw(6, 3, seed=5), draw(6, 3, seed=6)
    costs = [
        (x - y[list(order)]).square().sum(1).mean() for order in itertools.permutations(range(6))
    ]
    assert wasserstein(x, y) == pytest.approx(float(min(costs)) ** 0.5, rel=1e-12)


def test_on_a_line_sorting_is_optimal_for_both():
    x, y = draw(57, 1, seed=7), 2 * draw(57, 1, seed=8) + 1
    sort = float((x.sort(0).values - y.sort(0).values).square().mean().sqrt())
    assert wasserstein(x, y) == pytest.approx(sort, rel=1e-12)
    assert sliced_wasserstein(x, y, Generator().manual_seed(9)) == pytest.approx(sort, rel=1e-12)


def test_sliced_sees_a_shift_as_its_length_over_root_dimension():
    # 20 000 directions in 5 dimensions: the mean square has a relative error of 1 %; 5 of them
    x, shift = draw(23, 5, seed=10), draw(5, seed=11)
    generator = Generator().manual_seed(12)
    found = sliced_wasserstein(x, shuffled(x + shift, 13), generator, directions=20_000)
    assert found == pytest.approx(float(shift.norm()) / 5**0.5, rel=0.05)


def test_sliced_is_never_above_exact_and_follows_its_generator():
    x, y = draw(35, 4, seed=14), draw(35, 4, seed=15) + 0.5
    values = [
        sliced_wasserstein(x, y, Generator().manual_seed(s), directions=50) for s in (1, 1, 2)
    ]
    assert values[0] == values[1] != values[2]
    assert 0 < max(values) < wasserstein(x, y)


def test_what_does_not_fit_is_refused():
    x = draw(5, 2, seed=16)
    for function in (wasserstein, lambda a, b: sliced_wasserstein(a, b, Generator())):
        with pytest.raises(ShapeError, match=r"one shape \(N, \*D\); got \(5, 2\) and \(4, 2\)"):
            function(x, x[:4])
        with pytest.raises(ShapeError, match="expected finite samples; got inf or nan"):
            function(x, x / 0)
