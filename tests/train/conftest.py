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
    """A context that forks processes from a clean server that has imported everything once."""
    context = multiprocessing.get_context("forkserver")
    # by absolute modules, which the server finds without our sys.path
    context.set_forkserver_preload(
        [
            "flowmaps.train.loop",
            "flowmaps.data",
            "torch.utils.tensorboard.writer",
            "torch.fx.experimental.symbolic_shapes",
        ]
    )
    return context
