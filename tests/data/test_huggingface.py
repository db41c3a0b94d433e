import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

from flowmaps.data import hub_data, load
from flowmaps.data.captions import CaptionedImages
from flowmaps.errors import DataError


def test_without_the_package_the_command_is_told(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(
        DataError, match=r"expected the package 'datasets'; .* pip install datasets"
    ):
        load("hf:mnist")


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """A real data set of seven flat images in three classes, with a second label column."""
    datasets = pytest.importorskip("datasets")
    features = datasets.Features(
        image=datasets.Image(),
        kind=datasets.ClassLabel(names=["x", "y", "z"]),
        note=datasets.Value("string"),
    )
    rows = {
        "image": [Image.new("RGB", (6, 5), (10 * i, 0, 255)) for i in range(7)],
        "kind": [i % 3 for i in range(7)],
        "note": ["odd" if i % 2 else "even" for i in range(7)],
    }
    rows = datasets.Dataset.from_dict(rows, features=features)
    datasets.DatasetDict({"train": rows}).save_to_disk(str(tmp_path / "saved"))
    return tmp_path / "saved"


def test_columns_are_found_by_type(saved: Path):
    data = load(f"hf:{saved}")
    assert (len(data), data.shape, data.classes) == (7, (3, 5, 5), ("x", "y", "z"))
    x, labels = data.batch(torch.tensor([5, 2]))
    assert labels is not None
    assert labels.tolist() == [2, 2]
    torch.testing.assert_close(x[:, 0, 0, 0], torch.tensor([50, 20]) / 127.5 - 1)


def test_columns_can_be_given(saved: Path):
    data = hub_data(str(saved), image="image", label="note", channels=1, size=4)
    assert (data.shape, data.classes) == ((1, 4, 4), ("even", "odd"))
    labels = data.batch(torch.arange(7))[1]
    assert labels is not None
    assert labels.tolist() == [0, 1, 0, 1, 0, 1, 0]
    with pytest.raises(DataError, match=r"expected a column 'kinds'; got \['image', 'kind'"):
        hub_data(str(saved), label="kinds")
    with pytest.raises(DataError, match="expected split 'test' of a data set; got KeyError"):
        load(f"hf:{saved}", split="test")


def test_captions_take_the_place_of_classes(saved: Path, tmp_path: Path):
    told = hub_data(str(saved), text="note")
    assert isinstance(told, CaptionedImages)
    assert (told.captions(torch.tensor([1, 4])), told.classes) == (["odd", "even"], ())
    import datasets  # pyright: ignore[reportMissingImports]

    rows = datasets.load_from_disk(str(saved))["train"].remove_columns("kind")
    rows.rename_column("note", "caption").save_to_disk(str(tmp_path / "captions"))
    found = load(f"hf:{tmp_path / 'captions'}")
    assert isinstance(found, CaptionedImages)
    assert found.captions(torch.tensor([2])) == ["even"]
    torch.testing.assert_close(
        found.batch(torch.tensor([5]))[0][0, 0, 0, 0], torch.tensor(50 / 127.5 - 1)
    )


def test_a_folder_of_images_is_read(tmp_path: Path):
    pytest.importorskip("datasets")
    for kind in ("a", "b"):
        (tmp_path / "images" / kind).mkdir(parents=True)
        Image.new("L", (4, 4), 51).save(tmp_path / "images" / kind / "0.png")
    data = load(f"hf:{tmp_path / 'images'}")
    assert (len(data), data.shape, data.classes) == (2, (1, 4, 4), ("a", "b"))
