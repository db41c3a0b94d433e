import pytest
import torch
from torch import Generator, Tensor

from flowmaps.errors import ShapeError
from flowmaps.metrics import kernel_distance, precision, precision_recall


def draw(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=Generator().manual_seed(seed), dtype=torch.float64)


def line(*values: float) -> Tensor:
    return torch.tensor(values)[:, None]


def test_two_clusters_of_which_one_is_found():
    # k = 1: real balls reach 1; generated ones 0.6, 0.6, 0.7 and, far from all data, 1
    real, fake = line(0, 1, 2, 10, 11, 12), line(0.4, 1.0, 1.7, 30, 31)
    assert precision_recall(real, fake, k=1) == (pytest.approx(3 / 5), pytest.approx(3 / 6))
    assert precision_recall(fake, real, k=1) == (pytest.approx(3 / 6), pytest.approx(3 / 5))


def test_equal_and_distant_sets():
    x = draw(19, 3, 2, seed=1)
    assert precision_recall(x, x.flip(0)) == (1, 1)
    assert precision_recall(x, x + 100) == (0, 0)


def test_lost_modes_keep_precision_and_lose_recall():
    real = torch.cat([0.1 * draw(40, 2, seed=2), 0.1 * draw(40, 2, seed=3) + 5])
    found = precision_recall(real, 0.05 * draw(40, 2, seed=4))
    assert found.precision == 1
    assert found.recall < 0.5


@pytest.mark.parametrize("k", [1, 4])
def test_against_the_definition(monkeypatch: pytest.MonkeyPatch, k: int):
    monkeypatch.setattr(precision, "_BLOCK", 7)
    real, fake = draw(23, 3, seed=5), 1.3 * draw(17, 3, seed=6)

    def covered(points: Tensor, support: Tensor) -> float:
        radius = [sorted(float((p - q).norm()) for q in support)[k] for p in support]
        hits = [
            any(float((p - q).norm()) <= r for q, r in zip(support, radius, strict=True))
            for p in points
        ]
        return sum(hits) / len(hits)

    found = precision_recall(real, fake, k=k)
    assert found == (pytest.approx(covered(fake, real)), pytest.approx(covered(real, fake)))
    assert 0 < found.precision < 1


def test_kernel_distance_against_its_definition(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(precision, "_BLOCK", 4)
    x, y = draw(9, 2, 3, seed=7), draw(7, 2, 3, seed=8) + 0.5

    def kernel(a: Tensor, b: Tensor) -> float:
        return (float((a * b).sum()) / 6 + 1) ** 3

    def within(z: Tensor) -> float:
        pairs = [kernel(z[i], z[j]) for i in range(len(z)) for j in range(len(z)) if i != j]
        return sum(pairs) / len(pairs)

    across = sum(kernel(a, b) for a in x for b in y) / (len(x) * len(y))
    expected = within(x) + within(y) - 2 * across
    assert kernel_distance(x, y) == pytest.approx(expected, rel=1e-10)


def test_kernel_distance_is_zero_in_expectation_at_small_n():
    # 5 standard errors: a false alarm once in two million; the biased form is off by 70 of them
    values = torch.tensor(
        [kernel_distance(draw(6, 3, seed=2 * i), draw(5, 3, seed=2 * i + 1)) for i in range(1500)]
    )
    error = values.std() / len(values) ** 0.5
    assert values.mean().abs() < 5 * error
    assert values.min() < 0


def test_kernel_distance_sees_mean_and_spread():
    x = draw(400, 3, seed=9)
    same = kernel_distance(x, draw(400, 3, seed=10))
    assert kernel_distance(x, draw(400, 3, seed=11) + 0.5) > 10 * abs(same)
    assert kernel_distance(x, 2 * draw(400, 3, seed=12)) > 10 * abs(same)


def test_features_are_used():
    x, y = draw(12, 4, seed=13), draw(11, 4, seed=14)

    def first(z: Tensor) -> Tensor:
        return z[:, :1]

    assert kernel_distance(x, y, first) == kernel_distance(x[:, :1], y[:, :1])
    assert precision_recall(x, y, first) == precision_recall(x[:, :1], y[:, :1])


def test_what_does_not_fit_is_refused():
    x = draw(5, 2, seed=15)
    with pytest.raises(ShapeError, match="at least 4 samples in each set; got 5 and 3; draw more"):
        precision_recall(x, x[:3])
    with pytest.raises(ShapeError, match="at least 2 samples in each set; got 1 and 5"):
        kernel_distance(x[:1], x)
    with pytest.raises(
        ShapeError, match=r"features \(N, d\) and \(M, d\); got \(5, 2\) and \(5, 1"
    ):
        kernel_distance(x, x[:, :1])
    with pytest.raises(ShapeError, match="expected finite features; got inf or nan"):
        precision_recall(x, x / 0)
