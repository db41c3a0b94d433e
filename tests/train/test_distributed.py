"""Two processes under torchrun learn what one process learns. One launch does everything; each test reads a part of it."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
import torch
import train_kit as kit

from flowmaps.train import checkpoint


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """What two processes wrote; they were interrupted by Ctrl-C at the end, as a terminal does it."""
    folder = tmp_path_factory.mktemp("two")
    flags = ["--standalone", "--nnodes=1", "--nproc-per-node=2"]
    command = [sys.executable, "-m", "torch.distributed.run", *flags, kit.__file__, str(folder)]
    with (folder / "log").open("w") as log:
        launcher = subprocess.Popen(
            command,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # its own process group, so that the signal reaches all of it
        )
        try:
            kit.wait_for(folder / "ctrl-c" / "ready", 80)
            os.killpg(launcher.pid, signal.SIGINT)
            kit.wait_for(folder / "log", 20, "closing signal SIGINT")  # the launcher passes it on
            time.sleep(0.5)
            (folder / "ctrl-c" / "go").touch()
            launcher.wait(40)
        except (TimeoutError, subprocess.TimeoutExpired):
            pytest.fail(f"two processes hang:\n{(folder / 'log').read_text()[-3000:]}")
        finally:
            if launcher.poll() is None:
                os.killpg(launcher.pid, signal.SIGKILL)
                launcher.wait(20)
    crashes = [path.read_text() for path in folder.glob("crash.*")]
    assert not crashes, crashes[0]
    return folder


def both(folder, name):
    return [(folder / f"{name}.{rank}").read_text() for rank in (0, 1)]


@pytest.mark.parametrize("name", ["mean_flow", "lsd", "progressive_distillation"])
def test_the_loss_curve_and_weights_are_those_of_one_process(name, folder, tmp_path):
    """To the order of a float32 sum; Adam's first steps divide by the gradient's own size, which costs digits: the bound
    is a twentieth of what six steps can move a weight."""
    kit.go(name, tmp_path, steps=6)
    assert both(folder, name + ".end") == ["6", "6"]
    one, two = kit.metrics(tmp_path), kit.metrics(folder / name)
    assert [row["step"] for row in two] == [1, 2, 3, 4, 5, 6]
    for a, b in zip(one, two, strict=True):
        assert a["loss"] == pytest.approx(b["loss"], rel=3e-6)
        assert a["grad_norm"] == pytest.approx(b["grad_norm"], rel=3e-5)
        assert a["lr"] == b["lr"]
    mine, theirs = kit.tensors(tmp_path), kit.tensors(folder / name)
    for key, value in mine.items():
        if key.startswith(("student", "ema", "teacher", "logvar")):
            torch.testing.assert_close(value, theirs[key], rtol=1e-5, atol=1e-4, msg=key)
    assert torch.equal(mine["generator"], theirs["generator"])


def test_only_the_first_process_writes(folder):
    boards = list((folder / "mean_flow" / "tensorboard").iterdir())
    assert len(boards) == 1
    names = sorted(path.name for path in (folder / "mean_flow" / "checkpoints").iterdir())
    assert names == ["step-00000004", "step-00000006"]


def test_a_batch_that_does_not_divide_is_refused_by_all(folder):
    for told in both(folder, "uneven"):
        assert told.startswith(
            "RecipeError: a term has 11 rows, which 2 processes cannot share evenly; choose a batch"
        )


def test_an_occupied_folder_is_refused_by_all(folder):
    first, second = both(folder, "occupied")
    assert first.startswith("CheckpointError")
    assert "already holds a run" in first
    assert second.startswith("CheckpointError: the first process stopped at its folder")


def test_two_processes_resume(folder):
    assert both(folder, "short") == ["4", "4"]
    assert both(folder, "resumed") == ["6", "6"]
    assert [row["step"] for row in kit.metrics(folder / "again")] == [1, 2, 3, 4, 5, 6]


def test_a_signal_to_one_process_stops_all(folder):
    first, second = both(folder, "poked")
    assert first == second
    assert 4 <= int(first) < kit.STEPS
    assert checkpoint.locate(folder / "poked.run").name == f"step-{int(first):08d}"


def test_the_clock_is_that_of_the_first_process(folder):
    first, second = both(folder, "timed")
    assert first == second
    assert int(first) > 1


def test_a_loss_that_is_not_finite_in_one_process_stops_all(folder):
    first, second = both(folder, "broken")
    assert first == "TrainingError: the loss is not finite at step 2 in another process"
    assert "not finite at step 2: term 'diagonal', 1 of 6 rows" in second


def test_ctrl_c_at_the_launcher_saves(folder):
    ends = [(folder / f"ctrl-c.end{rank}").read_text() for rank in (0, 1)]
    assert ends[0] == ends[1] != "aborted"
    assert checkpoint.locate(folder / "ctrl-c").name == f"step-{int(ends[0]):08d}"
    assert json.loads((folder / "ctrl-c" / "config.json").read_text())["run"]["steps"] == kit.STEPS
