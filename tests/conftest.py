"""What all tests share: one thread, a generator, and the four paths."""

import pytest
import torch

from flowmaps.core import interpolant

PATHS = ("linear", "trig", "vp", "ve", "edm")


WHOLE = ("cli", "train", "report", "data", "control")
"""Folders whose files share runs, servers and downloads: one process takes a file of theirs as a whole."""


def pytest_configure() -> None:
    torch.set_num_threads(1)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Tests are dealt out to the processes of xdist one by one, but for those of `WHOLE`."""
    if config.pluginmanager.hasplugin("xdist"):
        for item in items:
            if item.path.parent.name in WHOLE:
                item.add_marker(pytest.mark.xdist_group(str(item.path)))


@pytest.fixture(autouse=True)
def same_initial_weights() -> None:
    """Networks draw their initial weights from the global generator: the same in every run."""
    torch.manual_seed(20261123)


@pytest.fixture
def gen() -> torch.Generator:
    return torch.Generator().manual_seed(20261123)


@pytest.fixture(params=PATHS)
def path(request: pytest.FixtureRequest) -> interpolant.Interpolant:
    """Each path in turn."""
    return interpolant.INTERPOLANTS[request.param]()


@pytest.fixture(params=PATHS[:3])
def unit_path(request: pytest.FixtureRequest) -> interpolant.Interpolant:
    """The paths whose prior is (almost) standard normal."""
    return interpolant.INTERPOLANTS[request.param]()
