import pytest
import torch
from torch import Generator, Tensor

from flowmaps.errors import ShapeError
from flowmaps.metrics import Moments, frechet, frechet_distance, moments

F64 = torch.float64


def draw(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=Generator().manual_seed(seed), dtype=F64)


def covariance(d: int, rank: int, seed: int) -> Tensor:
    factor = draw(d, rank, seed=seed)
    return factor @ factor.T


def rotation(d: int, seed: int) -> Tensor:
    return torch.linalg.qr(draw(d, d, seed=seed)).Q


def close(found: float, expected: Tensor | float, relative: float = 1e-10) -> None:
    assert found == pytest.approx(float(expected), rel=relative, abs=1e-11)


@pytest.mark.parametrize("zeros", [0, 2])
def test_diagonal_and_rotated_covariances(zeros: int):
    a, b, gap = draw(5, seed=1).square(), draw(5, seed=2).square(), draw(5, seed=3)
    a[:zeros], b[1 : 1 + zeros] = 0, 0  # one direction null in both, others in one
    expected = gap.square().sum() + (a.sqrt() - b.sqrt()).square().sum()
    origin, turn = draw(5, seed=4), rotation(5, seed=5)
    close(frechet_distance(origin, a.diag(), origin + gap, b.diag()), expected)
    c1, c2 = turn @ a.diag() @ turn.T, turn @ b.diag() @ turn.T
    close(frechet_distance(origin, c1, origin + turn @ gap, c2), expected)


def test_covariances_that_do_not_commute():
    # in two dimensions tr sqrt(M) = sqrt(tr M + 2 sqrt(det M)) for M = C1 C2
    c1, c2, zero = covariance(2, 3, seed=6), covariance(2, 3, seed=7), torch.zeros(2, dtype=F64)
    product = c1 @ c2
    root = (product.trace() + 2 * product.det().sqrt()).sqrt()
    close(frechet_distance(zero, c1, zero, c2), c1.trace() + c2.trace() - 2 * root)


def test_covariances_of_rank_one():
    # for a a^T and b b^T the overlap is |a . b|: half the digits are lost if a root is taken last
    a, b, zero = draw(7, seed=8), draw(7, seed=9), torch.zeros(7, dtype=F64)
    found = frechet_distance(zero, torch.outer(a, a), zero, torch.outer(b, b))
    close(found, a @ a + b @ b - 2 * (a @ b).abs())


def test_a_singular_covariance_beside_a_round_one():
    # the overlap of F F^T and 2.25 I is 1.5 times the sum of the singular values of F; rounding
    # noise on 31 zero eigenvalues, kept, would show at 1e-8
    factor, zero = draw(40, 9, seed=23), torch.zeros(40, dtype=F64)
    round_one, overlap = 2.25 * torch.eye(40, dtype=F64), 1.5 * torch.linalg.svdvals(factor).sum()
    expected = factor.square().sum() + 2.25 * 40 - 2 * overlap
    close(frechet_distance(zero, factor @ factor.T, zero, round_one), expected, 1e-12)


def test_a_singular_covariance_with_itself_is_at_distance_zero():
    mean, cov = draw(40, seed=10), covariance(40, 9, seed=11)
    assert frechet_distance(mean, cov, mean, cov) < 1e-9
    assert frechet_distance(mean, 0 * cov, mean, 0 * cov) == 0


def test_samples_moved_by_a_positive_matrix():
    # x -> A x + b with A symmetric positive is optimal transport, so d^2 is its mean squared length
    x, shift = draw(60, 4, seed=12), draw(4, seed=13)
    matrix = covariance(4, 6, seed=14) / 6
    move = matrix - torch.eye(4, dtype=F64)
    expected = (move @ moments(x).cov @ move).trace()
    expected += (x.mean(0) @ move + shift).square().sum()
    close(frechet(x, x @ matrix + shift), expected)


def test_invariance_symmetry_and_scale():
    x, y = draw(30, 6, seed=15), 1.7 * draw(23, 6, seed=16) + 0.3
    base, turn, shift = frechet(x, y), rotation(6, seed=17), draw(6, seed=18)
    close(frechet(y, x), base)
    close(frechet(x @ turn + shift, y @ turn + shift), base)
    close(frechet(3 * x, 3 * y), 9 * base)
    close(frechet(x[torch.arange(29, -1, -1)], y), base)


def test_images_batches_and_features():
    x, y = draw(25, 2, 3, 2, seed=19).float(), draw(19, 2, 3, 2, seed=20).float() + 0.4
    close(frechet(x, y, batch=7), frechet(x.flatten(1), y.flatten(1), batch=100), 1e-9)

    def half(batch: Tensor) -> Tensor:
        assert len(batch) <= 6
        return batch.flatten(1)[:, :5] / 2

    close(frechet(x, y, half, batch=6), frechet(x.flatten(1)[:, :5], y.flatten(1)[:, :5]) / 4, 1e-9)


def test_the_expected_distance_between_draws_of_one_law():
    # var of a mean: two sets of n in d dimensions have E|m1 - m2|^2 = 2 d / n, and E d^2 = O(1/n)
    d, n = 3, 4000
    found = [frechet(draw(n, d, seed=2 * i), draw(n, d, seed=2 * i + 1)) for i in range(20)]
    # covariance part: each eigen gap adds about (1/4) |dC|_F^2 = (1/4) 2 (d^2 + d) / n
    expected = 2 * d / n + (d * d + d) / (2 * n)
    assert torch.tensor(found).mean().item() == pytest.approx(expected, rel=0.5)


def test_moments_of_pieces_are_moments_of_the_whole():
    x = draw(31, 5, seed=21) * torch.tensor([1, 1e-3, 1, 5, 1]) + 1e6
    streamed = Moments(5)
    for part in x.split([1, 11, 0, 2, 17]):
        streamed.update(part)
    assert streamed.count == 31
    torch.testing.assert_close(streamed.mean, x.mean(0), rtol=1e-14, atol=0)
    torch.testing.assert_close(streamed.cov, (x - 1e6).T.cov(), rtol=1e-6, atol=1e-12)


def test_what_does_not_fit_is_refused():
    x = draw(9, 3, seed=22)
    with pytest.raises(ShapeError, match=r"expected shapes \(d,\), .* got \[\(3,\), \(3, 3\), \(2"):
        frechet(x, x[:, :2])
    with pytest.raises(ShapeError, match=r"expected rows of shape \(n, 3\); got \(9, 2\)"):
        Moments(3).update(x[:, :2])
    with pytest.raises(ShapeError, match=r"expected rows of shape \(n, 9\); got \(9,\)"):
        frechet(x, x, lambda batch: batch[:, 0])
    with pytest.raises(ShapeError, match="expected finite rows; got inf or nan"):
        frechet(x, x / 0)
    with pytest.raises(ShapeError, match="expected two rows or more; got 1; add samples"):
        frechet(x, x[:1])
    with pytest.raises(ShapeError, match="expected two rows or more; got 0"):
        frechet(x[:0], x)
