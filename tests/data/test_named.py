import subprocess
import sys
from pathlib import Path

import pytest
import torch

from flowmaps.data import TensorData, load, names
from flowmaps.data.sets import fashion_mnist
from flowmaps.errors import DataError

TOYS = ("toy:moons", "toy:checkerboard", "toy:rings", "toy:mixture")


def everything(name: str, **options: int | str | None) -> torch.Tensor:
    data = load(name, **options)  # type: ignore[arg-type]
    return data.batch(torch.arange(len(data)))[0]


def test_digits_are_scaled_and_complete():
    data = load("digits")
    x, labels = data.batch(torch.arange(len(data)))
    assert (len(data), data.shape, x.dtype) == (1797, (1, 8, 8), torch.float32)
    assert (x.min(), x.max()) == (-1, 1)
    ink = (x + 1) * 8
    torch.testing.assert_close(ink, ink.round())
    # the first image of the set as scikit-learn documents it
    assert ink[0, 0, 0].tolist() == [0, 0, 5, 13, 9, 1, 0, 0]
    assert labels is not None
    assert labels.bincount().tolist() == [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]
    assert data.classes == tuple("0123456789")


def test_digits_have_one_split_and_any_size():
    with pytest.raises(DataError, match="expected split 'train', the only one; got 'test'"):
        load("digits", split="test")
    x = everything("digits", size=13)
    assert x.shape == (1797, 1, 13, 13)
    assert x.min() >= -1
    assert x.max() <= 1


@pytest.mark.parametrize("name", TOYS)
def test_toys_are_seeded_centred_and_of_unit_scale(name: str):
    x = everything(name, seed=5)
    assert (x.shape, x.dtype) == ((10_000, 2), torch.float32)
    torch.testing.assert_close(x, everything(name, seed=5))
    assert not torch.equal(x, everything(name, seed=6))
    assert not torch.equal(x, everything(name, seed=5, split="test"))
    assert x.mean(0).abs().max() < 0.06  # 5 standard errors
    assert x.std(0).min() > 0.6
    assert x.std(0).max() < 1.3
    with pytest.raises(DataError, match=f"{name}: expected no size"):
        load(name, size=8)


def test_moons_lie_on_two_half_circles():
    x = everything("toy:moons") / 1.4 + torch.tensor([0.5, 0.25])
    upper = (x.norm(dim=1) - 1).abs() + 9 * (x[:, 1] < -0.3)
    lower = ((x - torch.tensor([1, 0.5])).norm(dim=1) - 1).abs() + 9 * (x[:, 1] > 0.8)
    assert torch.minimum(upper, lower).max() < 6 * 0.07 / 1.4
    assert (upper < lower).float().mean().sub(0.5).abs() < 0.03


def test_checkerboard_fills_dark_squares_evenly():
    square = everything("toy:checkerboard").floor().long() + 2
    assert (square.sum(1) % 2 == 0).all()
    counts = (4 * square[:, 0] + square[:, 1]).bincount(minlength=16)
    assert (counts > 0).sum() == 8
    assert (counts[counts > 0] - 1250).abs().max() < 5 * 33.1  # binomial standard deviation


def test_rings_and_mixture_lie_where_they_should():
    radius = everything("toy:rings").norm(dim=1)
    gap = (radius[:, None] - torch.tensor([0.5, 1.25, 2.0])).abs().min(1)
    assert gap.values.max() < 6 * 0.05
    assert (gap.indices.bincount(minlength=3) - 3333).abs().max() < 5 * 47.2
    angle = torch.arange(8) * torch.pi / 4
    centres = 2**0.5 * torch.stack([angle.cos(), angle.sin()], -1)
    near = torch.cdist(everything("toy:mixture"), centres).min(1)
    assert near.values.square().mean().sub(0.02).abs() < 5 * 0.02 / 100  # 2 degrees of freedom
    assert (near.indices.bincount(minlength=8) - 1250).abs().max() < 5 * 33.1


@pytest.mark.skipif(not fashion_mnist.DEBIAN.is_dir(), reason="needs dataset-fashion-mnist")
def test_fashion_mnist_as_debian_has_it():
    data = load("fashion-mnist", split="test")
    x, labels = data.batch(torch.arange(len(data)))
    assert (len(data), data.shape) == (10_000, (1, 28, 28))
    assert labels is not None
    assert labels.bincount().tolist() == [1000] * 10
    assert (x.min(), x.max()) == (-1, 1)
    trousers = x[labels == data.classes.index("Trouser")].mean(0)[0]
    assert trousers[2:26, 3].mean() < -0.9  # narrow: nothing at the left edge, cloth in the middle
    assert trousers[2:26, 11].mean() > -0.2


def test_fashion_mnist_missing_tells_the_command(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setattr(fashion_mnist, "DEBIAN", tmp_path)
    with pytest.raises(DataError, match="sudo apt-get install dataset-fashion-mnist"):
        load("fashion-mnist")


def test_an_unknown_name_tells_the_nearest_and_all():
    with pytest.raises(DataError, match=r"got 'digit'; did you mean 'digits'\?") as error:
        load("digit")
    assert all(name in str(error.value) for name in names())
    with pytest.raises(DataError, match=r"did you mean 'toy:moons'\?"):
        load("toy:moon")
    with pytest.raises(DataError, match=r"got '/no/such/folder'"):
        load("/no/such/folder")
    with pytest.raises(DataError, match=r"expected size >= 1 pixel; got -3"):
        load("digits", size=-3)


def test_names_are_found_in_the_folder():
    assert {"digits", "fashion-mnist", "hf:", *TOYS} <= set(names())


def test_bytes_and_labels_are_checked():
    x = torch.tensor([[0, 255], [51, 102]], dtype=torch.uint8)
    data = TensorData("pair", x, torch.tensor([1, 0]), ("a", "b"))
    torch.testing.assert_close(data.batch(torch.tensor([1]))[0], torch.tensor([[-0.6, -0.2]]))
    assert repr(data) == "TensorData(name='pair', classes=('a', 'b'))"
    with pytest.raises(DataError, match=r"pair: expected labels in 0\.\.0; got 0\.\.1"):
        TensorData("pair", x, torch.tensor([1, 0]), ("a",))
    with pytest.raises(DataError, match="expected labels and classes together"):
        TensorData("pair", x, torch.tensor([1, 0]))
    with pytest.raises(DataError, match="expected labels and classes together"):
        TensorData("pair", x, classes=("a",))
    with pytest.raises(DataError, match=r"expected int64 labels of shape \(2,\); got torch.int32"):
        TensorData("pair", x, torch.tensor([1, 0], dtype=torch.int32), ("a", "b"))
    with pytest.raises(DataError, match=r"expected x in uint8 or float32; got torch.float64"):
        TensorData("pair", x.double())
    with pytest.raises(DataError, match=r"with N > 0; got \(0, 2\)"):
        TensorData("pair", x[:0])


def test_importing_data_imports_nothing_heavy():
    code = (
        "import sys, flowmaps.data; "
        "print([m for m in ('sklearn', 'PIL', 'datasets', 'scipy') if m in sys.modules])"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"
