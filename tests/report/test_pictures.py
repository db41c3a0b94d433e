import base64
import io
import re
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Generator, Tensor

from flowmaps.core import oracle
from flowmaps.core.flow_map import NetFlowMap
from flowmaps.core.interpolant import linear
from flowmaps.errors import ShapeError
from flowmaps.report import (
    Grid,
    Picture,
    Section,
    Sound,
    article_figures,
    image_grid,
    ladder,
    loss_curve,
    png_bytes,
    save_png,
    tangents_and_jumps,
    time_and_space,
    trajectory_strip,
    write_page,
)
from flowmaps.testing.worlds import product


def images(n: int, channels: int = 1, size: int = 3) -> Tensor:
    g = Generator().manual_seed(1)
    return torch.rand(n, channels, size, size, generator=g) * 2 - 1


@pytest.mark.parametrize("channels", [1, 3])
def test_grid_shows_every_pixel_as_a_square(channels: int):
    x = images(5, channels)
    grid = image_grid(x, columns=2, scale=4, gap=1)
    assert grid.size == (25, 38)
    picture = torch.tensor(list(grid.get_flattened_data())).reshape(38, 25, 3)
    for i in range(5):
        row, column = divmod(i, 2)
        cell = picture[row * 13 : row * 13 + 12, column * 13 : column * 13 + 12]
        blocks = cell.reshape(3, 4, 3, 4, 3)
        want = ((x[i] + 1) * 127.5).round().long().movedim(0, -1).expand(3, 3, 3)
        assert (blocks == want[:, None, :, None]).all()
    assert (picture[12] == 255).all()  # the gap
    assert (picture[26:, 13:] == 255).all()  # the missing sixth


def test_values_outside_are_clipped_and_what_is_no_image_is_refused():
    grid = image_grid(torch.tensor([-3.0, 3.0]).reshape(2, 1, 1, 1), columns=2, scale=1, gap=0)
    assert [grid.getpixel((i, 0)) for i in (0, 1)] == [(0, 0, 0), (255, 255, 255)]
    for bad in (torch.zeros(3, 8, 8), torch.zeros(3, 2, 8, 8), torch.zeros(0, 1, 8, 8)):
        with pytest.raises(ShapeError, match=r"expected images \(N, 1, H, W\)"):
            image_grid(bad)
    with pytest.raises(ShapeError, match="expected finite images"):
        image_grid(images(2) / 0)
    with pytest.raises(ShapeError, match="a ladder needs columns of one shape"):
        ladder({"noise": images(2), "1 step": images(3)})


def test_same_picture_same_bytes_and_nothing_but_pixels(tmp_path: Path):
    columns = {"noise": images(4), "1 step": images(4)}
    for make in (lambda: image_grid(images(6)), lambda: ladder(columns, across=2)):
        assert png_bytes(make()) == png_bytes(make())
    figure = loss_curve([{"step": i, "loss": 1 / (1 + i)} for i in range(9)])
    path = save_png(figure, tmp_path / "new" / "loss.png")
    with Image.open(path) as picture:
        assert set(picture.info) <= {"dpi"}
    assert path.read_bytes() == png_bytes(figure)
    assert [p.name for p in path.parent.iterdir()] == ["loss.png"]


def test_failed_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = save_png(image_grid(images(2)), tmp_path / "a.png")
    before = path.read_bytes()

    def full(self: Path, target: Path) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(OSError, match="disk full"):
        save_png(image_grid(images(3)), path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_strip_jumps_from_every_point_to_the_same_end():
    ends: list[Tensor] = []

    def net(x: Tensor, s: Tensor, t: Tensor) -> Tensor:
        if bool((t == 0).all() and (s > 0).all()):
            ends.append(x - s.reshape(-1, 1, 1, 1) * 0.5)
        return torch.full_like(x, 0.5)  # straight lines: X = x + (t - s) / 2

    strip = trajectory_strip(NetFlowMap(net), images(1), frames=5, steps=8)
    assert strip.size[0] > strip.size[1]
    assert len(ends) == 4
    for end in ends:
        torch.testing.assert_close(end, ends[0])
    with pytest.raises(ShapeError, match="shows one noise"):
        trajectory_strip(NetFlowMap(net), images(2))


def test_figures_are_drawn_and_refuse_other_dimensions():
    figures = article_figures()
    assert set(figures) == {"plane", "line"}
    assert all(len(png_bytes(figure)) > 20_000 for figure in figures.values())
    world = oracle.Gaussian(torch.zeros(3), torch.ones(3), linear())
    with pytest.raises(ShapeError, match="in the plane"):
        tangents_and_jumps(world.flow_map, torch.zeros(4, 3))
    with pytest.raises(ShapeError, match="on a line"):
        time_and_space(world.flow_map, torch.zeros(4, 3), data=torch.zeros(9, 1))
    with pytest.raises(ShapeError, match="rows with 'step'"):
        loss_curve([{"step": 1, "seconds": 2.0}])


def page(path: Path) -> str:
    sections = [
        Section("A <b>heading</b>", ["Text & <script>alert(1)</script>", ("one", "two > 1")]),
        Section(
            "Blocks",
            [
                Picture(image_grid(images(4)), 'A "caption" of 4 < 5', width=200),
                Grid(
                    ["model", "nfe"], [["flow <map>", 1], ["solved", 128]], "Cells", frozenset({0})
                ),
            ],
        ),
    ]
    return write_page(path, "Title & <more>", "Lead.", sections).read_text(encoding="utf-8")


def test_page_holds_everything_and_escapes_everything(tmp_path: Path):
    text = page(tmp_path / "report.html")
    assert not re.findall(r"""(?:src|href)\s*=\s*["'](?!data:)""", text)
    assert not re.search("https?:", text)
    assert "url(" not in text
    assert "@import" not in text
    for raw in ("<script", "<b>", "<map>", "<more>", '"caption"'):
        assert raw not in text
    assert "Text &amp; &lt;script&gt;" in text
    assert '<td class="number">128</td>' in text
    assert '<tr class="strong"><td>flow &lt;map&gt;</td>' in text
    assert "prefers-color-scheme: dark" in text
    assert page(tmp_path / "again.html") == text


def test_pictures_on_the_page_are_the_pictures(tmp_path: Path):
    import base64

    found = re.findall(r"data:image/png;base64,([^\"]+)", page(tmp_path / "report.html"))
    assert base64.b64decode(found[0]) == png_bytes(image_grid(images(4)))
    with Image.open(io.BytesIO(base64.b64decode(found[0]))) as picture:
        assert picture.size == image_grid(images(4)).size


def test_clips_on_the_page_are_the_clips(tmp_path: Path):
    sound = Sound({"one <jump>": b"RIFFabc"}, "What & where.")
    page = write_page(tmp_path / "p.html", "t", "l", [Section("s", [sound])]).read_text()
    found = re.search(r'<audio controls preload="none" src="data:audio/wav;base64,([^"]+)"', page)
    assert found is not None
    assert base64.b64decode(found[1]) == b"RIFFabc"
    assert "one &lt;jump&gt;" in page
    assert "What &amp; where." in page


def test_a_strip_draws_what_is_seen_of_points():
    flow_map = product().flow_map
    noise = torch.tensor([[0.3, -0.7]], dtype=torch.float64)
    seen: list[torch.Tensor] = []

    def see(x: torch.Tensor) -> torch.Tensor:
        seen.append(x)
        return x.float().reshape(-1, 1, 1, 2).clamp(-1, 1)

    trajectory_strip(flow_map, noise, frames=3, steps=4, see=see)
    assert [tuple(x.shape) for x in seen] == [(3, 2)] * 3
