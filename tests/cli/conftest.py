"""One tiny teacher and one tiny flow map, trained once through the command line."""

from collections.abc import Callable
from pathlib import Path

import pytest

from flowmaps.cli.main import main

TINY = ["--net", "mlp-tiny", "--run.batch", "64", "--run.precision", "fp32", "--run.compile", "no"]


@pytest.fixture(scope="session")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the runs `teacher` and `map`."""
    folder = tmp_path_factory.mktemp("runs")
    teacher = str(folder / "teacher")
    assert main(["train", "flow_matching", *TINY, "--run.steps", "30", "--out", teacher]) == 0
    arguments = ["--set.through", "target", "--run.steps", "30", "--run.preview-every", "15"]
    out = str(folder / "map")
    assert main(["train", "emd", *TINY, *arguments, "--teacher", teacher, "--out", out]) == 0
    return folder


Call = Callable[..., tuple[int, str, str]]


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str]) -> Call:
    """Run a command in this process: its status, stdout and stderr."""

    def run(*argv: object) -> tuple[int, str, str]:
        capsys.readouterr()
        status = main([str(word) for word in argv])
        said = capsys.readouterr()
        return status, said.out, said.err

    return run
