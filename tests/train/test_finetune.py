"""A few-step map is taught new data: what it is shown, what it keeps, and what is refused."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image

from flowmaps import recipes
from flowmaps.cli.main import main
from flowmaps.core.interpolant import linear
from flowmaps.data import TensorData
from flowmaps.errors import CheckpointError, DataError, RecipeError
from flowmaps.learn.guidance import Guidance
from flowmaps.learn.particles import EnergyDistance, PushForward
from flowmaps.learn.rules import DiagonalRule, Points
from flowmaps.learn.times import Fixed, Times
from flowmaps.report.change import VIEWS, views
from flowmaps.train import checkpoint
from flowmaps.train.finetune import Rehearsed, prepare
from flowmaps.train.run import ChangeConfig, Config

FAST = ["--run.steps=2", "--run.batch=8", "--run.precision=fp32", "--run.save-every=1"]
PUSH = ["push_forward", "--set.diagonal=0.25", "--net=mlp-tiny"]


def pictures(folder: Path, names: str, side: int = 4) -> str:
    """Grey pictures of one shade per class, a little varied."""
    for shade, name in enumerate(names):
        (folder / name).mkdir(parents=True)
        for k in range(5):
            Image.new("L", (side, side), 40 * shade + 3 * k).save(folder / name / f"{k}.png")
    return str(folder)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A map of the classes a and b, a model of velocities, and new pictures of b and c."""
    place = tmp_path_factory.mktemp("finetune")
    old = pictures(place / "old", "ab")
    pictures(place / "new", "bc")
    pictures(place / "large", "bc", 6)
    assert main(["train", *PUSH, f"--data={old}", f"--out={place}/map", *FAST]) == 0
    wave = ["flow_matching", "--net=mlp-tiny", f"--data={old}", f"--out={place}/wave"]
    assert main(["train", *wave, *FAST]) == 0
    return place


def config(place: Path, **more: object) -> Config:
    settings = {
        "recipe": "push_forward",
        "set": {"diagonal": 0.25},
        "data": str(place / "new"),
        "init": str(place / "map"),
        "change": ChangeConfig(),
    }
    return Config(**(settings | more))


def test_the_share_of_old_rows_is_kept_and_dealt() -> None:
    """Every step shows `keep` of old rows; each row of both comes equally often; terms that take the first rows see both."""
    new = TensorData("new", torch.zeros(6, 2))
    data = Rehearsed(new, None, torch.ones(10, 2), {}, {})
    order = data.order(8, 0.25, seed=3)
    rows = torch.stack([order(k) for k in range(30)])
    assert ((rows >= 6).sum(1) == 2).all()
    times = rows.flatten().bincount(minlength=16)
    assert (times[:6] == 30).all()
    assert (times[6:] == 6).all()
    first = rows[:, :2] >= 6
    assert 0.05 < first.double().mean() < 0.5
    assert torch.equal(order(4), data.order(8, 0.25, seed=3)(4))
    assert (data.order(8, 0.0, seed=3)(0) < 6).all()
    assert torch.equal(data.batch(rows[0])[0][:, 0], (rows[0] >= 6).float())


def test_conditions_are_those_of_either_side() -> None:
    new = TensorData("new", torch.zeros(3, 2), torch.tensor([0, 1, 1]), ("b", "c"))
    told = {"label": torch.tensor([0, 1])}
    data = Rehearsed(new, torch.tensor([1, 2]), torch.ones(2, 2), told, {"label": torch.tensor(3)})
    found = data.conditions(torch.tensor([4, 0, 2, 3]))["label"]
    assert found.tolist() == [1, 1, 2, 0]
    plain = TensorData("dog", torch.zeros(3, 2))
    data = Rehearsed(plain, torch.tensor([2]), torch.ones(2, 2), told, {"label": torch.tensor(3)})
    assert data.conditions(torch.tensor([1, 4]))["label"].tolist() == [2, 1]


def test_a_map_with_room_for_a_class_is_the_map_that_it_was(place: Path) -> None:
    parts = prepare(config(place))
    old = checkpoint.load(place / "map")
    assert parts.about["data"]["classes"] == ["a", "b", "c"]
    x = torch.randn(4, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    labels = torch.tensor([0, 1, 2, 2])  # of the old map, 2 is "no class": there the new one starts
    with torch.no_grad():
        expected = old.flow_map(x, 0.9, 0.2, label=labels)
        assert torch.equal(parts.flow_map(x, 0.9, 0.2, label=labels), expected)
        assert torch.equal(parts.flow_map(x, 0.9, 0.2, label=labels + (labels == 2)), expected)
    assert isinstance(parts.data, Rehearsed)
    assert parts.data.null["label"] == 3
    assert parts.data.conditions(torch.arange(10))["label"].tolist() == [1] * 5 + [2] * 5
    assert set(parts.data.told["label"].tolist()) == {0, 1}
    assert parts.data.batch(torch.tensor([0]))[0].shape == (1, 1, 4, 4)


def test_the_command_teaches_resumes_and_reports(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = place / "taught"
    command = ["finetune", f"{place}/map", f"--data={place}/new", *FAST]
    assert main([*command, f"--out={out}"]) == 0
    rows = json.loads((out / "finetune.json").read_text())["frechet"]
    assert [(row["data"], row["steps"]) for row in rows] == [
        (d, k) for d in ("new", "old") for k in (1, 2, 4)
    ]
    assert all(row["before"] >= 0 and row["after"] >= 0 for row in rows)
    whole = checkpoint.read(out)[1]
    for file in (newest := out / "checkpoints" / "step-00000002").iterdir():
        file.unlink()
    newest.rmdir()
    assert main(["finetune", "--resume", str(out)]) == 0
    again = checkpoint.read(out)[1]
    assert all(torch.equal(whole[key], again[key]) for key in whole)
    assert main(["sample", str(out), "--class", "c", "-n", "2", f"--out={place}/c.npy"]) == 0
    capsys.readouterr()
    assert main(["finetune", f"{place}/map"]) == 2
    assert "--data NEW" in capsys.readouterr().err


def test_many_numbers_are_seen_through_fixed_directions() -> None:
    """A law of a million numbers has no covariance that fits a memory; its shift is seen all the same."""
    x = torch.randn(5, 3, 100, 100, generator=torch.Generator().manual_seed(0)).double()
    seen, again = views((3, 100, 100))(x), views((3, 100, 100))(x)
    assert seen.shape == (5, VIEWS)
    assert torch.equal(seen, again)
    moved = views((3, 100, 100))(x + 1) - seen
    # unit directions: a shift by a in every number is seen as |a|^2 VIEWS / D of |a|^2, four deviations are 25 %
    assert float(moved.square().sum(1)[0]) == pytest.approx(VIEWS, rel=0.25)
    assert torch.equal(views((3, 4, 4))(x[..., :4, :4]), x[..., :4, :4].flatten(1))


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"init": "wave"}, CheckpointError, "model of velocities"),
        ({"data": "large", "size": 6}, DataError, "the map draws"),
        ({"recipe": "lmd", "set": {}}, RecipeError, "none knows the new data"),
    ],
)
def test_what_does_not_fit_is_refused(
    place: Path, change: dict, error: type[Exception], words: str
) -> None:
    here = {k: str(place / v) if k in ("init", "data") else v for k, v in change.items()}
    with pytest.raises(error, match=words):
        prepare(config(place, **here))


@pytest.mark.parametrize("told", [0.0, 1.0])
def test_laws_with_their_classes_see_what_laws_alone_do_not(told: float) -> None:
    """Two classes, and a map that draws each in place of the other: its law is that of the data, with classes it is not."""
    gen = torch.Generator().manual_seed(0)
    label = torch.randint(2, (4000,), generator=gen)
    mean = (2.0 * label - 1)[:, None].double()
    x_0, eps = (torch.randn(4000, 3, generator=gen).double() / 4 for _ in range(2))
    times = Times(*(torch.full((4000,), t).double() for t in (1.0, 0.5, 0.0)))
    law, found = EnergyDistance(), []
    for sign in (1, -1):
        noise = Points(eps, eps - (mean + x_0), times, {"label": label}, torch.zeros(()))
        drawn = Drawing(sign)
        found.append(float(law(*PushForward(told)(drawn, noise, None)).mean()))
    assert abs(found[0]) < 0.01  # four deviations of 4,000 rows are 0.004
    assert (found[1] > 0.3) == bool(told)


class Drawing:
    """A map whose samples of class c are around `sign` times its mean."""

    interpolant = linear()

    def __init__(self, sign: int) -> None:
        self.sign = sign

    def __call__(self, x: torch.Tensor, s: object, t: object, label: torch.Tensor) -> torch.Tensor:
        return self.sign * (2.0 * label - 1)[:, None].double() + x


def test_push_forward_without_a_teacher_learns_its_velocity_from_data() -> None:
    recipe = recipes.get("push_forward", diagonal=0.25)
    assert not recipe.needs_teacher
    assert isinstance(recipe.terms[0].rule, DiagonalRule)
    assert sum(term.share for term in recipe.terms[:2]) == 1
    assert recipe.sources == {"conditional", "self"}
    assert recipes.get("push_forward").needs_teacher


def test_push_forward_takes_a_guided_teacher_once_laws_are_not_compared() -> None:
    guided = Guidance({"label": 3.0}, Fixed(2.0))
    with pytest.raises(RecipeError, match="learns the law of the data"):
        replace(recipes.get("push_forward"), guidance=guided)
    recipe = replace(recipes.get("push_forward", laws=0), guidance=guided)
    assert [term.label for term in recipe.terms] == ["lastleg"]
    assert recipe.needs_teacher
