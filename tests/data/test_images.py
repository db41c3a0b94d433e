from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from flowmaps.data import folder_data, load
from flowmaps.errors import DataError


def save(path: Path, colour: tuple[int, int, int], width: int = 9, height: int = 7) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (width, height), colour).save(path)
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for i in range(3):
        save(tmp_path / "cat" / f"{i}.png", (10 * i, 0, 255))
    save(tmp_path / "ant" / "deep" / "x.bmp", (255, 51, 0))
    (tmp_path / "notes.txt").write_text("not an image")
    for hidden in (".x.png", ".thumbs/0.png", "cat/.thumbs/0.png", "cat/._0.png"):
        save(tmp_path / hidden, (9, 9, 9))
    return tmp_path


def test_sub_folders_are_classes(folder: Path):
    data = load(folder, size=5)
    assert (len(data), data.shape, data.classes) == (4, (3, 5, 5), ("ant", "cat"))
    x, labels = data.batch(torch.tensor([3, 0]))
    assert labels is not None
    assert labels.tolist() == [1, 0]
    colours = torch.tensor([[20, 0, 255], [255, 51, 0]]) / 127.5 - 1
    torch.testing.assert_close(x, colours[:, :, None, None].expand(2, 3, 5, 5))


def test_without_sub_folders_there_are_no_labels(tmp_path: Path):
    save(tmp_path / "b.png", (1, 2, 3), width=12)
    save(tmp_path / "a.JPG", (1, 2, 3))
    data = load(tmp_path)
    assert (len(data), data.shape, data.classes) == (2, (3, 7, 7), ())
    assert data.batch(torch.tensor([1]))[1] is None


def test_the_centre_is_cropped_not_squeezed(tmp_path: Path):
    pixels = np.zeros((4, 12), dtype=np.uint8)
    pixels[:, 4:8] = 200
    Image.fromarray(pixels).save(tmp_path / "wide.png")
    x, _ = load(tmp_path).batch(torch.tensor([0]))
    torch.testing.assert_close(x, torch.full((1, 1, 4, 4), 200 / 127.5 - 1))


def test_grayscale_comes_from_the_first_file_or_as_asked(folder: Path, tmp_path: Path):
    assert folder_data(folder, channels=1).shape == (1, 7, 7)
    Image.new("L", (6, 6), 90).save(tmp_path / "ant" / "0.png")
    assert load(folder).shape == (1, 6, 6)
    assert folder_data(folder, channels=3).shape == (3, 6, 6)


def test_sixteen_bits_are_scaled_not_clipped(tmp_path: Path):
    values = np.array([[0, 257 * 100], [257 * 200, 65535]], dtype=np.uint16)
    Image.fromarray(values).save(tmp_path / "deep.png")
    x, _ = load(tmp_path).batch(torch.tensor([0]))
    expected = torch.tensor([[0, 100], [200, 255]]) / 127.5 - 1
    torch.testing.assert_close(x[0, 0], expected)


def test_a_photograph_is_turned_as_its_camera_says(tmp_path: Path):
    pixels = np.zeros((4, 4), dtype=np.uint8)
    pixels[0] = 255
    exif = Image.Exif()
    exif[0x0112] = 3  # upside down
    Image.fromarray(pixels).save(tmp_path / "turned.png", exif=exif)
    x, _ = load(tmp_path).batch(torch.tensor([0]))
    assert x[0, 0, :, 0].tolist() == [-1, -1, -1, 1]


def test_a_broken_file_is_named(folder: Path):
    broken = folder / "cat" / "1.png"
    broken.write_bytes(broken.read_bytes()[:40])
    data = load(folder)
    assert data.batch(torch.tensor([0, 1, 3]))[0].shape[0] == 3
    with pytest.raises(DataError, match=r"cat/1\.png: expected an image; got .*; replace the file"):
        data.batch(torch.tensor([0, 2]))
    (folder / "ant" / "0.png").write_text("no picture at all")
    with pytest.raises(DataError, match=r"ant/0\.png: expected an image; got 'cannot identify"):
        load(folder)


def test_files_are_decoded_once_while_memory_lasts(folder: Path):
    room_for_two = folder_data(folder, size=4, budget=2 * 3 * 4 * 4 + 1)
    everything, rows = folder_data(folder, size=4), torch.tensor([2, 0, 2, 3, 1])
    for data in (room_for_two, everything):
        first, _ = data.batch(rows)
        torch.testing.assert_close(data.batch(rows)[0], first)
    for file in everything.files:
        file.unlink()
    everything.batch(rows)
    room_for_two.batch(torch.tensor([2, 0]))
    with pytest.raises(DataError, match="expected an image"):
        room_for_two.batch(torch.tensor([3]))


def test_splits_are_sub_folders(tmp_path: Path):
    for split, n in (("train", 3), ("test", 2)):
        for i in range(n):
            save(tmp_path / split / "ant" / f"{i}.png", (1, 2, 3))
    assert (len(load(tmp_path)), load(tmp_path).classes) == (3, ("ant",))
    assert len(load(tmp_path, split="test")) == 2
    with pytest.raises(DataError, match="expected a sub-folder 'valid' for that split"):
        load(tmp_path, split="valid")


def test_what_is_no_data_set_is_refused(tmp_path: Path, folder: Path):
    with pytest.raises(DataError, match="expected size >= 1 pixel; got 0"):
        folder_data(folder, size=0)
    save(folder / "loose.png", (1, 2, 3))
    with pytest.raises(DataError, match=r"in sub-folders or beside each other; got both"):
        load(folder)
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(DataError, match=r"expected image files \(\.bmp.*got none; check the path"):
        load(empty)
