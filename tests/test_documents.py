"""The documents say what is so: every test that docs/proof.md names exists, and CONTRIBUTING.md runs."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PROOF = (ROOT / "docs" / "proof.md").read_text(encoding="utf-8")


def test_every_test_that_the_proof_names_exists() -> None:
    named = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", PROOF)
    assert len(named) > 40
    for file, name in named:
        tree = ast.parse((ROOT / file).read_text(encoding="utf-8"))
        assert name in {n.name for n in tree.body if isinstance(n, ast.FunctionDef)}, (file, name)
    assert PROOF.count("tests/") == len(named) + 1  # thresholds.json


def test_every_row_of_the_proof_names_a_test() -> None:
    rows = [line for line in PROOF.splitlines() if line.startswith("| ")]
    headers = [row for row in rows if "tested in" in row]
    assert len(headers) == 2
    assert all("::" in row for row in rows if row not in headers)


def test_the_worked_example_for_contributors_runs() -> None:
    """Writes a recipe file, lists it, cites it, puts it through the exam, plants a fault; and as another package."""
    command = [sys.executable, "tools/readme_blocks.py", "CONTRIBUTING.md"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Report(name='clipped_mean_flow', problems=()" in done.stdout
    assert "even_flow" in done.stdout


@pytest.mark.skipif(
    not [*ROOT.glob("benchmarks/arena-*.json")], reason="no arena is stored in benchmarks yet"
)
def test_the_page_which_recipe_when_is_what_the_stored_arenas_say() -> None:
    command = [sys.executable, "tools/which_page.py", "--check"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_blocks_of_documents(tmp_path) -> None:
    """Files are written, shell runs and stops at its first failure, other blocks are text, line numbers stay."""
    text = """# A
<!-- file: a/b.txt -->
```text
one
```
<!-- append: a/b.txt -->
```text
two
```
<!-- run -->
```bash
test "$(cat a/b.txt)" = "$(printf 'one\\ntwo')"
```
<!-- no-run -->
```python
1 / 0
```
```json
{
```
"""
    file = tmp_path / "doc.md"
    command = [sys.executable, str(ROOT / "tools" / "readme_blocks.py"), str(file)]

    def run(more: str) -> subprocess.CompletedProcess[str]:
        file.write_text(text + more)
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)

    assert run("").returncode == 0
    failed = run("```python\nx = 1\nx / 0\n```\n")
    assert failed.returncode == 1
    assert f"line {len(text.splitlines()) + 3}" in failed.stderr
    assert run("<!-- run -->\n```bash\nfalse\ntrue\n```\n").returncode == 1
