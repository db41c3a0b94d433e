"""The curves of a tuning: what they show, that they resume, and that a foreign file is refused."""

import json

import pytest
import torch

from flowmaps.control.rewards import linear
from flowmaps.control.tune_watch import Examiner
from flowmaps.errors import CheckpointError
from flowmaps.report.style import png_bytes
from flowmaps.report.tuning import Curves, curves
from flowmaps.testing.worlds import plane


def examiner() -> Examiner:
    noise = torch.randn(40, 2, generator=torch.Generator().manual_seed(0))
    rewards = {"x": linear(torch.tensor([1.0, 0.0])), "y": linear(torch.tensor([0.0, 1.0]))}
    return Examiner(plane(dtype=torch.float32).flow_map, rewards, noise)


def test_every_panel_says_what_it_shows(tmp_path) -> None:
    start = Curves(tmp_path, examiner()).rows[0]
    risen = start | {"step": 10, "kl_path": 2.5, "disagree": [0.4, 0.1]}
    figure = curves([start, risen])
    assert [axes.get_title(loc="left") for axes in figure.axes] == [
        "Reward",
        "Held out",
        "Divergence from the base",
        "Health",
    ]
    reward, held, kl, health = figure.axes
    assert [line.get_label() for line in held.lines[:2]] == ["x (tuned to)", "y"]
    assert kl.lines[0].get_ydata()[-1] == 2.5
    assert [line.get_ydata()[-1] for line in health.lines[:2]] == [0.4, 0.1]
    assert reward.lines[3].get_ydata()[0] == start["rewards"]["x"][0]
    assert png_bytes(figure) == png_bytes(curves([start, risen]))


def test_a_foreign_file_is_refused(tmp_path) -> None:
    (tmp_path / "tuning.json").write_text(json.dumps([1, 2]))
    with pytest.raises(CheckpointError, match="not what a tuning wrote"):
        Curves(tmp_path, examiner())
