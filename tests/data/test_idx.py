import gzip
import struct
from pathlib import Path

import pytest
import torch
from torch import Tensor

from flowmaps.data import load
from flowmaps.errors import DataError


def encode(values: Tensor) -> bytes:
    header = struct.pack(f">HBB{values.ndim}I", 0, 8, values.ndim, *values.shape)
    return header + bytes(values.flatten().tolist())


def pictures(n: int, height: int = 5, width: int = 7) -> Tensor:
    generator = torch.Generator().manual_seed(n)
    return torch.randint(256, (n, height, width), generator=generator)


def write(folder: Path, prefix: str, n: int, suffix: str = ".gz", dot: str = "-") -> Tensor:
    x, labels = pictures(n), torch.arange(n) % 3
    for what, axes, values in (("images", 3, x), ("labels", 1, labels)):
        raw = encode(values)
        path = folder / f"{prefix}-{what}{dot}idx{axes}-ubyte{suffix}"
        path.write_bytes(gzip.compress(raw) if suffix else raw)
    return x


@pytest.mark.parametrize("suffix", ["", ".gz"])
@pytest.mark.parametrize("dot", ["-", "."])
def test_round_trip_of_both_splits(tmp_path: Path, suffix: str, dot: str):
    x = write(tmp_path, "train", 11, suffix, dot)
    write(tmp_path, "t10k", 6, suffix, dot)
    data = load(tmp_path)
    assert (len(data), data.shape, data.classes) == (11, (1, 5, 7), ("0", "1", "2"))
    batch, labels = data.batch(torch.tensor([10, 4]))
    assert batch.dtype == torch.float32
    torch.testing.assert_close((batch[:, 0] + 1) * 127.5, x[[10, 4]].float())
    assert labels is not None
    assert labels.tolist() == [1, 1]
    assert len(load(str(tmp_path), split="test")) == 6


def test_resizing_keeps_the_mean_of_a_flat_image(tmp_path: Path):
    write(tmp_path, "train", 4)
    (tmp_path / "train-images-idx3-ubyte.gz").write_bytes(encode(torch.full((4, 6, 6), 51)))
    batch, _ = load(tmp_path, size=9).batch(torch.arange(4))
    torch.testing.assert_close(batch, torch.full((4, 1, 9, 9), 51 / 127.5 - 1))


def damage(folder: Path, what: str, raw: bytes) -> None:
    axes = 3 if what == "images" else 1
    (folder / f"train-{what}-idx{axes}-ubyte").write_bytes(raw)


@pytest.mark.parametrize(
    ("what", "raw", "message"),
    [
        ("images", encode(pictures(8))[:-1], r"expected 280 values .* got 279; .*truncated"),
        ("images", encode(pictures(8)) + b"\0", r"expected 280 values .* got 281"),
        ("images", encode(pictures(8))[:9], r"header 00000803 and 3 axis lengths; got 00000803 in"),
        ("images", encode(torch.arange(8)), r"expected an IDX header 00000803 .* got 00000801"),
        ("labels", b"\x89PNG and so on", r"expected an IDX header 00000801 .* got 89504e47"),
        ("labels", b"", r"got an empty file in 0 bytes"),
        ("labels", encode(torch.arange(7)), r"as many images as labels; got 8 and 7"),
        ("images", gzip.compress(encode(pictures(8)))[:-20], "expected a readable IDX file"),
        ("images", b"\x1f\x8b" + bytes(40), "expected a readable IDX file"),
    ],
)
def test_damage_is_told_with_the_file(tmp_path: Path, what: str, raw: bytes, message: str):
    write(tmp_path, "train", 8, suffix="")
    damage(tmp_path, what, raw)
    with pytest.raises(DataError, match=message) as error:
        load(tmp_path)
    assert str(tmp_path) in str(error.value)


def test_missing_parts_are_told(tmp_path: Path):
    write(tmp_path, "train", 4)
    with pytest.raises(DataError, match=r"expected t10k-images-idx3-ubyte\[.gz\] for split 'test'"):
        load(tmp_path, split="test")
    with pytest.raises(DataError, match="expected split 'train' or 'test'; got 'valid'"):
        load(tmp_path, split="valid")
    (tmp_path / "train-labels-idx1-ubyte.gz").unlink()
    with pytest.raises(DataError, match="expected images and labels of split 'train'; got only"):
        load(tmp_path)


def test_fashion_mnist_is_taken_from_a_named_folder(tmp_path: Path):
    write(tmp_path, "train", 5)
    data = load(f"fashion-mnist:{tmp_path}")
    assert (data.name, len(data), data.classes[9]) == ("fashion-mnist", 5, "Ankle boot")


def test_fashion_mnist_absent_names_the_command(tmp_path: Path):
    with pytest.raises(DataError, match="sudo apt-get install dataset-fashion-mnist"):
        load(f"fashion-mnist:{tmp_path}")
