"""What an import costs: heavy and optional libraries stay out until they are used."""

import subprocess
import sys

import pytest

HEAVY = ("diffusers", "transformers", "datasets", "matplotlib", "sklearn", "tyro", "tensorboard")


def loaded(code: str) -> set[str]:
    """Run `code` in a fresh interpreter and return the top-level modules that it left loaded."""
    report = "; import sys; print('@@' + ' '.join({n.partition('.')[0] for n in sys.modules}))"
    command = [sys.executable, "-c", code + report]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    return set(done.stdout.rpartition("@@")[2].split())


def test_import_leaves_heavy_libraries_out() -> None:
    modules = loaded("import flowmaps")
    assert "flowmaps" in modules
    assert modules.isdisjoint(HEAVY)


def test_training_leaves_the_compiler_out() -> None:
    """Importing it takes a second, and most runs do not compile."""
    code = "import flowmaps.train.loop, sys; assert 'torch._dynamo' not in sys.modules"
    assert "torch" in loaded(code)


@pytest.mark.parametrize("flag", ["--help", "--version"])
def test_command_line_answers_without_torch(flag: str) -> None:
    code = f"""import contextlib, sys
sys.argv = ['flowmaps', {flag!r}]
from flowmaps.cli.main import main
with contextlib.suppress(SystemExit):
    main()
0"""
    modules = loaded(code)
    assert "flowmaps" in modules
    assert "torch" not in modules
