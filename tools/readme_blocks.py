"""Run the ```python blocks of README.md and docs/**/*.md, top to bottom, one process per file.

A block is skipped when the line before its fence is `<!-- no-run -->`. Each file runs in a
temporary folder of its own. Line numbers in a traceback are those of the Markdown file.
"""

import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

FENCE = re.compile(r"^(\s*)```python\s*$")


def script(text: str) -> str:
    """Return the file's runnable Python, with every other line blank so that line numbers stay."""
    out: list[str] = []
    indent: str | None = None
    skip, previous = False, ""
    for line in text.splitlines():
        opening = FENCE.match(line) if indent is None else None
        if indent is not None and line.strip() == "```":
            indent = None
        keep = indent is not None and not skip
        out.append(line.removeprefix(indent or "") if keep else "")
        if opening:
            indent, skip = opening[1], previous.strip() == "<!-- no-run -->"
        previous = line or previous
    return "\n".join(out)


def run(path: Path) -> bool:
    """Run one file's blocks; return whether they passed (a file without blocks passes)."""
    source = script(path.read_text(encoding="utf-8"))
    if not source.strip():
        return True
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder, path.name + ".py")
        target.write_text(source, encoding="utf-8")
        quick = {"MPLBACKEND": "Agg", "FLOWMAPS_FAST": "1"}
        command = [sys.executable, target]
        done = subprocess.run(command, cwd=folder, env=os.environ | quick, check=False)
    print(f"{'ok  ' if done.returncode == 0 else 'FAIL'} {path}")
    return done.returncode == 0


def main() -> int:
    """Run every file that is there; return 1 if one failed."""
    paths = [Path("README.md"), *sorted(Path("docs").rglob("*.md"))]
    passed = [run(path) for path in paths if path.is_file()]
    return 0 if all(passed) else 1


if __name__ == "__main__":
    sys.exit(main())
