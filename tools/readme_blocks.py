"""Run the blocks of README.md, CONTRIBUTING.md and docs/**/*.md, top to bottom, one process per file.

The line before a fence says what happens to its block:

    (nothing)                ```python runs; any other block is text
    <!-- no-run -->          nothing happens
    <!-- run -->             ```bash runs as well, and stops the file if a command fails
    <!-- file: NAME -->      the block, of any language, is written to NAME; folders are made
    <!-- append: NAME -->    the block is added to the end of NAME

Each file runs in a temporary folder of its own. Where it writes below src/, that folder holds a copy of the package, and
the copy is what is imported. Line numbers in a traceback are those of the Markdown file.
"""

import os
import re
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).parents[1]
FENCE = re.compile(r"^(\s*)```(\w+)\s*$")
NOTE = re.compile(r"^<!-- (no-run|run|file|append)(?:: (\S+))? -->$")
SHELL = "__import__('subprocess').run({!r}, shell=True, check=True, executable='/bin/bash')"
WRITE = "__import__('pathlib').Path({0!r}).parent.mkdir(parents=True, exist_ok=True); open({0!r}, {1!r}).write({2!r})"


@dataclass
class Block:
    """A fenced block: the line of its fence, its language, what the line before says, its text."""

    line: int
    indent: str
    language: str
    note: str
    name: str
    text: list[str] = field(default_factory=list)

    def code(self) -> list[str]:
        """The Python lines that do what is asked, beginning at the line of the fence."""
        text = "".join(line + "\n" for line in self.text)
        if self.note in ("file", "append"):
            return [WRITE.format(self.name, self.note[0].replace("f", "w"), text)]
        if self.note == "run" and self.language == "bash":
            return [SHELL.format("set -euo pipefail\n" + text)]
        runs = self.language == "python" and self.note != "no-run"
        return ["", *self.text] if runs else []


def blocks(text: str) -> list[Block]:
    """The fenced blocks of a file."""
    found: list[Block] = []
    inside, previous = False, ""
    for number, line in enumerate(text.splitlines()):
        opening = FENCE.match(line)
        if inside and line.strip() == "```":
            inside = False
        elif inside:
            found[-1].text.append(line.removeprefix(found[-1].indent))
        elif opening:
            note = NOTE.match(previous.strip())
            said = (note[1], note[2] or "") if note else ("", "")
            found.append(Block(number, opening[1], opening[2], *said))
            inside = True
        previous = line or previous
    return found


def script(text: str) -> str:
    """The file's runnable parts, with every other line blank so that line numbers stay."""
    out = [""] * len(text.splitlines())
    for block in blocks(text):
        for i, line in enumerate(block.code()):
            out[block.line + i] = line
    return "\n".join(out)


def run(path: Path) -> bool:
    """Run one file's blocks; return whether they passed (a file without blocks passes)."""
    source = script(path.read_text(encoding="utf-8"))
    if not source.strip():
        return True
    quick = {"MPLBACKEND": "Agg", "FLOWMAPS_FAST": "1"}
    quick["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    with tempfile.TemporaryDirectory() as folder:
        if "'src/" in source:
            hide = shutil.ignore_patterns("__pycache__")
            shutil.copytree(ROOT / "src", Path(folder, "src"), ignore=hide)
            quick["PYTHONPATH"] = str(Path(folder, "src"))
        target = Path(folder, path.name + ".py")
        target.write_text(source, encoding="utf-8")
        command = [sys.executable, target]
        done = subprocess.run(command, cwd=folder, env=os.environ | quick, check=False)
    print(f"{'ok  ' if done.returncode == 0 else 'FAIL'} {path}")
    return done.returncode == 0


def main(asked: list[str]) -> int:
    """Run the files that are named, or all that are there; return 1 if one failed."""
    paths = [Path("README.md"), Path("CONTRIBUTING.md"), *sorted(Path("docs").rglob("*.md"))]
    passed = [run(path) for path in map(Path, asked or paths) if path.is_file()]
    return 0 if all(passed) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
