import pytest
import torch

from flowmaps.data import load
from flowmaps.errors import ShapeError
from flowmaps.metrics import Agreement, fit_agreement


@pytest.fixture(scope="module")
def digits() -> tuple[torch.Tensor, torch.Tensor]:
    x, labels = load("digits").batch(torch.arange(1797))
    assert labels is not None
    return x, labels


@pytest.fixture(scope="module")
def judge(digits: tuple[torch.Tensor, torch.Tensor]) -> Agreement:
    x, labels = digits
    return fit_agreement(x[::2], labels[::2])


def test_held_out_digits_are_named(judge: Agreement, digits: tuple[torch.Tensor, torch.Tensor]):
    x, labels = digits[0][1::2], digits[1][1::2]
    found = judge(x, labels)
    assert found > 0.98
    assert judge(x, (labels + 1) % 10) < 1 - found + 1e-9
    assert judge(x, (judge.predict(x) + 3) % 10) == 0
    half = torch.where(torch.arange(len(x)) % 2 == 0, judge.predict(x), 11)
    assert judge(x, half) == pytest.approx(0.5, abs=1 / len(x))


def test_fits_are_equal(judge: Agreement, digits: tuple[torch.Tensor, torch.Tensor]):
    x, labels = digits
    again = fit_agreement(x[::2], labels[::2])
    assert torch.equal(judge.predict(x[1::2]), again.predict(x[1::2]))


def test_gamma_is_scikit_learns_on_the_scale_of_ink(digits: tuple[torch.Tensor, torch.Tensor]):
    from sklearn.svm import SVC

    x, labels = digits
    ink = (x * 8 + 8).flatten(1).double().numpy()
    theirs = SVC(gamma=0.001).fit(ink[:600], labels[:600].numpy()).predict(ink[600:])
    ours = fit_agreement(x[:600], labels[:600]).predict(x[600:])
    assert ours.tolist() == theirs.tolist()


def test_other_scales_use_scale():
    generator = torch.Generator().manual_seed(3)
    labels = torch.randint(3, (90,), generator=generator)
    x = 1e3 * (labels[:, None] + 0.1 * torch.randn(90, 2, generator=generator))
    assert fit_agreement(x, labels, gamma="scale")(x, labels) == 1


def test_what_does_not_fit_is_refused(judge: Agreement):
    x = torch.zeros(5, 1, 8, 8)
    with pytest.raises(ShapeError, match=r"expected labels of shape \(5,\), .* got \(4,\)"):
        judge(x, torch.zeros(4, dtype=torch.int64))
    with pytest.raises(ShapeError, match=r"expected samples \(N, 1, 8, 8\); got \(5, 8, 8\)"):
        judge(x[:, 0], torch.zeros(5, dtype=torch.int64))
