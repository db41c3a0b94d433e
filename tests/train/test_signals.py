"""Ctrl-C and SIGTERM save and return; a second one aborts."""

import os
import signal
import time
from pathlib import Path

import pytest
import train_kit as kit

from flowmaps.train import checkpoint
from flowmaps.train.interrupt import ECHO

SIGNALS = [signal.SIGINT, signal.SIGTERM]


@pytest.mark.parametrize(
    "numbers", [SIGNALS[:1], SIGNALS[1:], SIGNALS], ids=["ctrl-c", "term", "both"]
)
def test_a_signal_saves_and_the_run_resumes(numbers, server, tmp_path):
    """Two at once are one: `timeout` sends one to the process and one to its group."""
    out = tmp_path / "run"
    process = server.Process(target=kit.sleeper, args=(str(out), 5))
    process.start()
    kit.wait_for(out / "ready")
    for number in numbers:
        os.kill(process.pid, number)
    (out / "go").touch()
    process.join(60)
    assert process.exitcode == 0
    assert Path(f"{out}.end").read_text() in ("5", "6")
    assert checkpoint.locate(out).name in ("step-00000005", "step-00000006")
    kit.go("mean_flow", out, resume=True)
    kit.go("mean_flow", tmp_path / "straight")
    assert kit.same(tmp_path / "straight", out) == []
    assert [row["step"] for row in kit.metrics(out)] == list(range(1, 13))


@pytest.mark.parametrize("number", SIGNALS)
def test_a_second_signal_aborts(number, server, tmp_path):
    out = tmp_path / "run"
    process = server.Process(target=kit.sleeper, args=(str(out), 6))
    process.start()
    kit.wait_for(out / "ready")
    os.kill(process.pid, number)
    time.sleep(ECHO + 0.2)
    os.kill(process.pid, number)
    kit.wait_for(Path(f"{out}.end"))
    process.join(60)
    assert process.exitcode == 0
    assert Path(f"{out}.end").read_text() == "aborted"
    assert checkpoint.locate(out).name == "step-00000004"


def test_handlers_are_put_back(tmp_path):
    seen = []
    before = [signal.getsignal(number) for number in SIGNALS]
    kit.go(
        "lsd", None, steps=1, hooks=[lambda event: seen.append(signal.getsignal(signal.SIGTERM))]
    )
    assert [signal.getsignal(number) for number in SIGNALS] == before
    assert seen != before[1:]


def test_other_threads_train_without_handlers():
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(kit.go, "lsd", None, steps=2).result(60).step == 2
