"""A run that was stopped, killed or crashed goes on as if nothing had happened, bit for bit."""

import signal

import pytest
import torch
import train_kit as kit

from flowmaps.data import Sampler
from flowmaps.errors import CheckpointError
from flowmaps.train import checkpoint, fit


class Crash(Exception):
    pass


def crash(at):
    def hook(event):
        if event.state.step == at:
            raise Crash

    return hook


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    """The folder of the uninterrupted run of each recipe, made when it is first asked for."""
    made = {}

    def get(name):
        if name not in made:
            made[name] = tmp_path_factory.mktemp(name)
            kit.go(name, made[name])
        return made[name]

    return get


def told(rows):
    return [(row["step"], row["loss"], row["lr"], row["grad_norm"]) for row in rows]


@pytest.mark.parametrize(
    ("name", "save_every", "at"),
    [
        ("mean_flow", 4, 7),
        ("shortcut", 4, 7),
        ("lsd", 4, 7),
        # the teacher is refreshed after steps 4 and 8
        ("progressive_distillation", 3, 5),
        ("progressive_distillation", 5, 6),
        ("progressive_distillation", 4, 11),
    ],
)
def test_a_crashed_run_resumes_bit_for_bit(name, save_every, at, straight, tmp_path):
    with pytest.raises(Crash):
        kit.go(name, tmp_path / "run", save_every=save_every, hooks=[crash(at)])
    assert checkpoint.locate(tmp_path / "run").name == f"step-{at - at % save_every:08d}"
    torch.rand(3)  # what the global generator does is of no matter
    kit.go(name, tmp_path / "run", save_every=save_every, resume=True)
    assert kit.same(straight(name), tmp_path / "run") == []
    assert told(kit.metrics(tmp_path / "run")) == told(kit.metrics(straight(name)))


def test_the_whole_state_is_kept_and_moves(straight):
    """The comparison above would be void if a part were missing, or stayed what it was."""
    for name, parts in {
        "mean_flow": {"student", "ema", "optimizer", "generator"},
        "shortcut": {"student", "ema", "target", "optimizer", "generator"},
        "lsd": {"student", "ema", "logvar", "optimizer", "generator"},
        "progressive_distillation": {"student", "ema", "teacher", "optimizer", "generator"},
    }.items():
        last = kit.tensors(straight(name))
        before = kit.tensors(straight(name) / "checkpoints" / "step-00000008")
        assert {key.partition(".")[0] for key in last} == parts
        assert {
            key.partition(".")[0] for key in last if not torch.equal(last[key], before[key])
        } >= parts - {"teacher"}
        assert any(key.startswith("ema.1.") for key in last)
        assert not torch.equal(last["ema.0.net.last.weight"], last["ema.1.net.last.weight"])


@pytest.mark.parametrize("death", kit.DEATHS)
def test_a_killed_run_resumes_bit_for_bit(death, straight, tmp_path, server):
    """SIGKILL at a step, and at four moments of writing the checkpoint of step 8."""
    process = server.Process(target=kit.victim, args=(str(tmp_path / "run"), death, 8))
    process.start()
    process.join(60)
    assert process.exitcode == -signal.SIGKILL
    folder = tmp_path / "run" / "checkpoints"
    kept = ["step-00000004"] + ["step-00000008"] * (death == "rotation")
    assert [path.name for path in checkpoint.complete(folder)] == kept
    kit.go("mean_flow", tmp_path / "run", resume=True)
    assert kit.same(straight("mean_flow"), tmp_path / "run") == []
    rows = kit.metrics(tmp_path / "run")
    assert told(rows) == told(kit.metrics(straight("mean_flow")))
    assert sorted(path.name for path in folder.iterdir()) == ["step-00000008", "step-00000012"]


def test_a_run_that_was_killed_before_its_first_checkpoint_starts_again(straight, tmp_path):
    with pytest.raises(Crash):
        kit.go("lsd", tmp_path / "run", hooks=[crash(3)])
    assert checkpoint.complete(tmp_path / "run" / "checkpoints") == []
    kit.go("lsd", tmp_path / "run", resume=True)
    assert kit.same(straight("lsd"), tmp_path / "run") == []
    assert [row["step"] for row in kit.metrics(tmp_path / "run")] == list(range(1, 13))


def test_a_line_of_metrics_that_was_cut_short_is_dropped(tmp_path):
    with pytest.raises(Crash):
        kit.go("lsd", tmp_path / "run", hooks=[crash(6)])
    with (tmp_path / "run" / "metrics.jsonl").open("a") as out:
        out.write('{"step": 6, "loss": {"tot')
    kit.go("lsd", tmp_path / "run", resume=True)
    assert [row["step"] for row in kit.metrics(tmp_path / "run")] == list(range(1, 13))


def test_a_finished_run_resumes_to_itself_and_can_be_made_longer(tmp_path, straight):
    kit.go("shortcut", tmp_path / "run", schedule="constant")
    before = kit.tensors(tmp_path / "run")
    state = kit.go("shortcut", tmp_path / "run", schedule="constant", resume=True)
    assert state.step == 12
    assert all(torch.equal(before[k], v) for k, v in kit.tensors(tmp_path / "run").items())
    assert (
        kit.go("shortcut", tmp_path / "run", schedule="constant", resume=True, steps=14).step == 14
    )
    assert [row["step"] for row in kit.metrics(tmp_path / "run")] == list(range(1, 15))


def test_the_seed_decides_everything(tmp_path):
    """Whatever was drawn before from torch's global generator: the learned weight of lsd starts from the seed, too."""
    kit.go("lsd", tmp_path / "a", steps=2)
    torch.rand(5)
    kit.go("lsd", tmp_path / "b", steps=2)
    assert kit.same(tmp_path / "a", tmp_path / "b") == []
    kit.go("lsd", tmp_path / "c", steps=2, seed=6)
    assert kit.same(tmp_path / "a", tmp_path / "c") != []


@pytest.mark.parametrize("wrong", [{"ema": (0.05,)}, {"ema": (0.05, 0.3)}])
def test_other_averages_are_refused(wrong, tmp_path):
    kit.go("lsd", tmp_path / "run", steps=2)
    with pytest.raises(CheckpointError, match="made with another averages"):
        kit.go("lsd", tmp_path / "run", steps=4, resume=True, **wrong)


class Clock:
    """A clock that goes on by a hundredth of a second whenever it is read."""

    def __init__(self):
        self.now = 500.0

    def perf_counter(self):
        self.now += 0.01
        return self.now


def test_a_seconds_budget_counts_over_resumes(tmp_path, monkeypatch):
    """The clock is read once at the start and once a step."""
    long = {"steps": 10**6, "save_every": 10**6, "warmup": 0}
    clock = Clock()
    monkeypatch.setattr("flowmaps.train.loop.time.perf_counter", clock.perf_counter)
    state = kit.go("lsd", tmp_path / "run", seconds=0.155, **long)
    assert (state.step, state.seconds) == (16, pytest.approx(0.16))
    again = kit.go("lsd", tmp_path / "run", seconds=0.155, resume=True, **long)
    assert (again.step, again.seconds) == (16, pytest.approx(0.16))
    more = kit.go("lsd", tmp_path / "run", seconds=0.195, resume=True, **long)
    assert (more.step, more.seconds) == (20, pytest.approx(0.20))
    assert [row["step"] for row in kit.metrics(tmp_path / "run")] == list(range(1, 21))


def test_rows_come_in_the_order_of_the_sampler_and_go_on_after_a_resume(tmp_path):
    asked = []

    class Spy:
        def __len__(self):
            return 37

        def batch(self, index):
            asked.append(index.tolist())
            return kit.toy().batch(index)

    recipe = kit.RECIPES["lsd"]()
    for steps in (5, 9):
        run = kit.run_of(steps=steps)
        fit(recipe, kit.student(recipe), Spy(), run, out=tmp_path, resume=steps == 9)
    sampler = Sampler(37, 16, seed=5)
    assert asked == [sampler.at(step).tolist() for step in range(9)]
    assert sorted([*asked[0], *asked[1], *asked[2]][:37]) == list(range(37))


def test_a_seconds_budget_passes_every_refresh(tmp_path, monkeypatch):
    """The clock moves during a step: the stage that passes then must not be missed."""
    from flowmaps.train.state import State

    refreshed = []
    plain = State.refresh_teacher
    monkeypatch.setattr(
        State, "refresh_teacher", lambda state: (refreshed.append(state.step), plain(state))
    )
    kit.go("progressive_distillation", None, steps=10**6, seconds=0.3, warmup=0)
    assert len(refreshed) == 2
