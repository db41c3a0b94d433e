"""Stored trajectories: made, written, read, learned from; a run on them resumes bit for bit."""

import json

import pytest
import torch
import train_kit as kit
from safetensors.torch import save_file
from torch.testing import assert_close

from flowmaps import recipes
from flowmaps.core.solver import EULER, HEUN, RK4
from flowmaps.data import TensorData, load
from flowmaps.data.pairs import FILE, Accompanied, PairData, read_pairs
from flowmaps.errors import DataError, RecipeError
from flowmaps.testing import worlds
from flowmaps.train import checkpoint, fit
from flowmaps.train.pairs import make_pairs

PLANE = worlds.plane(dtype=torch.float32)


@pytest.fixture(scope="module")
def made() -> PairData:
    return make_pairs(PLANE.flow_map, 70, (2,), times=5, steps=16, solver=RK4, batch=32)


def test_points_are_the_teachers_at_their_times(made) -> None:
    assert made.points.shape == (70, 5, 2)
    assert made.points.dtype == torch.float32
    assert_close(made.times, torch.tensor([1.0, 0.75, 0.5, 0.25, 0.0]))
    for k, time in enumerate(made.times.tolist()):
        exact = PLANE.flow_map(made.points[:, 0], 1.0, time)
        assert_close(made.points[:, k], exact, atol=1e-4, rtol=0)
    assert abs(made.points[:, 0].mean()) < 0.4
    assert made.batch(torch.tensor([3]))[1] is None
    assert torch.equal(made.batch(torch.tensor([3, 5]))[0], made.points[[3, 5], 4])


def test_a_trajectory_depends_on_seed_and_number_alone(made) -> None:
    def make(n, batch, seed=0):
        return make_pairs(
            PLANE.flow_map, n, (2,), times=5, steps=16, solver=RK4, batch=batch, seed=seed
        ).points

    assert_close(make(9, 4), made.points[:9], atol=1e-6, rtol=0)
    assert not torch.equal(make(9, 9, 1)[:, 0], made.points[:9, 0])


def test_labels_reach_the_teacher_in_turn() -> None:
    seen = []

    def field(x, t, *, label):
        seen.append(label)
        return 0 * x + label[:, None]

    pairs = make_pairs(
        PLANE.flow_map,
        7,
        (2,),
        steps=1,
        solver=EULER,
        classes=("a", "b", "c"),
        field=field,
        batch=4,
    )
    assert torch.cat(seen).tolist() == pairs.labels.tolist() == [0, 1, 2, 0, 1, 2, 0]
    assert_close(
        pairs.points[:, 0] - pairs.points[:, 1], pairs.labels[:, None].expand(7, 2).float()
    )
    for bad in ({"times": 1}, {"times": 18, "steps": 16}, {"n": 0}):
        with pytest.raises(DataError, match="expected n >= 1 and 2 to"):
            make_pairs(PLANE.flow_map, **({"n": 3, "shape": (2,), "steps": 16} | bad))


def test_round_trip(made, tmp_path) -> None:
    labelled = PairData("x", made.points, made.times, torch.arange(70) % 2, ("no", "yes"))
    for each in (made, labelled):
        assert each.write(tmp_path / "p") == tmp_path / "p" / FILE
        back = load(f"pairs:{tmp_path / 'p'}")
        assert isinstance(back, PairData)
        assert torch.equal(back.points, each.points)
        assert torch.equal(back.times, each.times)
        assert back.classes == each.classes
        assert (back.labels is None) == (each.labels is None)
        assert (len(back), back.shape) == (70, (2,))
        points, times, labels = back.trajectory(torch.tensor([4, 1]))
        assert torch.equal(points, each.points[[4, 1]])
        assert torch.equal(times, each.times)
        assert labels is None or labels.tolist() == [0, 1]
    assert [file.name for file in (tmp_path / "p").iterdir()] == [FILE]


def test_what_is_wrong_is_said(made, tmp_path) -> None:
    with pytest.raises(DataError, match="make it with flowmaps pairs"):
        load(f"pairs:{tmp_path}")
    with pytest.raises(DataError, match="expected no size"):
        load(f"pairs:{tmp_path}", size=8)
    (tmp_path / FILE).write_bytes(b"nothing")
    with pytest.raises(DataError, match="is damaged or holds something else"):
        read_pairs(tmp_path, "x")
    save_file({"other": torch.zeros(2)}, tmp_path / FILE)
    with pytest.raises(DataError, match="is damaged or holds something else"):
        read_pairs(tmp_path, "x")
    with pytest.raises(DataError, match="at K >= 2 times"):
        PairData("x", made.points, made.times[:3])
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(DataError, match="could not be written"):
        made.write(tmp_path / "file")
    with pytest.raises(DataError, match="they must be the same"):
        Accompanied(TensorData("cloud", torch.zeros(4, 3)), made)


def test_a_write_that_fails_leaves_what_was_there(made, tmp_path, monkeypatch) -> None:
    made.write(tmp_path)
    before = (tmp_path / FILE).read_bytes()

    def full(*ignored, **also):
        raise OSError("no space left on device")

    monkeypatch.setattr("flowmaps.data.pairs.save_file", full)
    with pytest.raises(DataError, match="no space left"):
        made.write(tmp_path)
    assert (tmp_path / FILE).read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == [FILE]


# Learning from them ---------------------------------------------------------------------------------------------------


def learned(data, out=None, *, name="cmt", steps=6, resume=False, hooks=(), **settings):
    recipe = recipes.get(name, **({"stored": True} | settings))
    torch.manual_seed(3)
    from flowmaps.testing.contract import _Small

    flow_map = checkpoint.NetFlowMap(_Small(0, False, 1), recipe.interpolant, local=recipe.local)
    run = kit.run_of(steps=steps, flip=False, save_every=2)
    return fit(recipe, flow_map, data, run, out=out, resume=resume, hooks=hooks)


@pytest.mark.parametrize("beside", [False, True])
def test_a_run_on_trajectories_resumes_bit_for_bit(beside, made, tmp_path) -> None:
    data = Accompanied(TensorData("cloud", torch.zeros(40, 2)), made) if beside else made
    learned(data, tmp_path / "straight")

    def crash(event):
        if event.state.step == 3:
            raise RuntimeError("crash")

    with pytest.raises(RuntimeError, match="crash"):
        learned(data, tmp_path / "run", hooks=[crash])
    learned(data, tmp_path / "run", resume=True)
    assert kit.same(tmp_path / "straight", tmp_path / "run") == []


def test_data_beside_trajectories_see_their_own_rows(made, monkeypatch) -> None:
    """The cloud lies at 9: flow matching sees it, the regression does not, and its rows are shuffled on their own."""
    from flowmaps.learn.objective import Recipe

    seen = []
    draw = Recipe.draw
    monkeypatch.setattr(
        Recipe,
        "draw",
        lambda self, x_0, *rest: seen.append((x_0, rest[3])) or draw(self, x_0, *rest),
    )
    data = Accompanied(TensorData("cloud", torch.full((40, 2), 9.0)), made)
    assert (len(data), data.shape, data.classes) == (40, (2,), ())
    learned(data, steps=8)
    assert all(torch.equal(x_0, torch.full((16, 2), 9.0)) for x_0, _ in seen)
    assert not any(stored.coupled for _, stored in seen)
    starts = {tuple(row.tolist()) for _, stored in seen for row in stored.points[:, 0]}
    assert len(starts) == 70  # 8 x 16 rows of a shuffle: every trajectory came
    seen.clear()
    learned(made, steps=2, name="reflow")
    x_0, stored = seen[0]
    assert stored.coupled
    assert torch.equal(stored.points[:, -1], x_0)


def test_flips_and_missing_trajectories_are_refused(made) -> None:
    recipe, run = recipes.get("cmt", stored=True), kit.run_of(steps=1)
    flow_map = checkpoint.NetFlowMap(torch.nn.Identity())
    flow_map.weight = torch.nn.Parameter(torch.ones(1))
    with pytest.raises(DataError, match="flip would take samples off their stored trajectories"):
        fit(recipe, flow_map, made, run)
    with pytest.raises(RecipeError, match="reads stored trajectories"):
        fit(
            recipe,
            flow_map,
            TensorData("cloud", torch.zeros(40, 2)),
            kit.run_of(steps=1, flip=False),
        )


def test_regression_on_stored_trajectories_learns_the_map() -> None:
    """3 forward passes a sample: one step of the learned map is near the exact one."""
    from flowmaps.testing.contract import errors, learn

    world = worlds.rotated(dtype=torch.float32)
    f = learn(recipes.get("cmt", stored=True), world, 300, 512, 0)
    assert errors(f, world.interpolant, 0)[0] < 0.3


def test_the_command(tmp_path) -> None:
    from flowmaps.cli.main import main

    tiny = [
        "--net",
        "mlp-tiny",
        "--run.batch",
        "32",
        "--run.precision",
        "fp32",
        "--run.compile",
        "no",
    ]
    teacher, out = str(tmp_path / "teacher"), tmp_path / "pairs"
    assert main(["train", "flow_matching", *tiny, "--run.steps", "3", "--out", teacher]) == 0
    words = ["-n", "12", "--times", "3", "--steps", "4", "--out", str(out)]
    assert main(["pairs", "--teacher", teacher, *words]) == 0
    back = read_pairs(out, "x")
    assert back.points.shape == (12, 3, 1, 8, 8)
    assert back.labels.tolist() == [*range(10), 0, 1]
    flow_map = checkpoint.load(teacher).flow_map
    walk = HEUN.integrate(
        flow_map.velocity,
        back.points[:, 0],
        torch.linspace(1, 0, 5),
        flow_map.interpolant,
        label=back.labels,
    )
    assert_close(back.points[:, -1], [*walk][-1], atol=1e-4, rtol=1e-4)
    again = ["--data", f"digits+pairs:{out}", "--set.stored", "true", "--init", teacher]
    assert (
        main(["train", "cmt", *tiny, *again, "--run.steps", "2", "--out", str(tmp_path / "m")]) == 0
    )
    config = json.loads((tmp_path / "m" / "config.json").read_text())
    assert config["data"].startswith("digits+pairs:")
    assert main(["pairs", "--teacher", teacher, "-n", "0", "--out", str(out)]) == 2
