"""Makes `train_kit` importable here, and in the processes that tests start."""

import multiprocessing
import sys
from pathlib import Path

import pytest

HERE = str(Path(__file__).parent)
if HERE not in sys.path:
    sys.path.insert(0, HERE)


@pytest.fixture(scope="session")
def server():
    """A context that forks processes from a clean server that has imported torch once."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["train_kit"])
    return context
