import pickle
from itertools import pairwise

import pytest
import torch

from flowmaps.data import Sampler
from flowmaps.errors import DataError


@pytest.mark.parametrize(("n", "batch"), [(7, 3), (5, 5), (3, 8), (11, 1)])
def test_every_epoch_visits_each_row_once(n: int, batch: int):
    sampler = Sampler(n, batch, seed=4)
    line = torch.cat([sampler.at(step) for step in range(4 * n)])
    epochs = line[: 4 * n * batch // n * n].reshape(-1, n)
    assert len(epochs) >= 4
    assert all(sorted(epoch.tolist()) == list(range(n)) for epoch in epochs)


def test_a_step_is_a_pure_function_of_seed_and_number():
    forward = [Sampler(13, 5, seed=2).at(step) for step in range(20)]
    sampler = Sampler(13, 5, seed=2)
    for step in (19, 0, 7, 7, 18, 3):
        torch.testing.assert_close(sampler.at(step), forward[step])
    sampler.at(3).fill_(-1)  # the caller owns what it gets
    torch.testing.assert_close(sampler.at(3), forward[3])
    torch.testing.assert_close(pickle.loads(pickle.dumps(sampler)).at(7), forward[7])


def test_epochs_and_seeds_have_orders_of_their_own():
    orders = [Sampler(50, 50, seed).at(epoch).tolist() for seed in range(4) for epoch in range(4)]
    assert len({tuple(order) for order in orders}) == 16
    assert all(order != sorted(order) for order in orders)


def test_first_row_is_uniform():
    # 3000 draws of 5 values: each count has standard deviation 22; 5 of them are never reached
    first = torch.tensor([int(Sampler(5, 5, seed).at(1)[0]) for seed in range(3000)])
    assert (first.bincount(minlength=5) - 600).abs().max() < 110


def test_ranks_take_disjoint_parts_of_one_batch():
    batch = Sampler(31, 12, seed=1).at(5)
    parts = [batch[rank::3] for rank in range(3)]
    assert sorted(torch.cat(parts).tolist()) == sorted(batch.tolist())


def test_the_global_generator_is_left_alone():
    before = torch.get_rng_state()
    Sampler(9, 4, seed=0).at(2)
    assert torch.equal(before, torch.get_rng_state())


def test_a_large_set_is_not_shuffled_anew_at_every_step():
    from flowmaps.data.batches import _permutation

    sampler = Sampler(1000, 10, seed=77)
    misses = _permutation.cache_info().misses
    assert all(len(set(a.tolist()) & set(b.tolist())) == 0 for a, b in _neighbours(sampler))
    assert _permutation.cache_info().misses == misses + 1


def _neighbours(sampler: Sampler):
    return pairwise([sampler.at(step) for step in range(100)])


def test_what_cannot_be_sampled_is_refused():
    with pytest.raises(DataError, match=r"expected n >= 1 and batch >= 1; got n=0, batch=4"):
        Sampler(0, 4, seed=0)
    with pytest.raises(DataError, match="got n=3, batch=0"):
        Sampler(3, 0, seed=0)
    with pytest.raises(DataError, match="expected step >= 0; got -1"):
        Sampler(3, 2, seed=0).at(-1)
