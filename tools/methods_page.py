"""Write docs/methods.md from the recipes; with --check, fail if the page is not what the recipes say."""

import contextlib
import io
import json
import sys
from pathlib import Path

from flowmaps.cli.main import main as flowmaps

PAGE = Path(__file__).parent.parent / "docs" / "methods.md"
HEAD = """# The methods

Written by `make methods` from the recipes themselves (`flowmaps recipes` prints the same). *Velocity from*: where the velocity
or the jump on the right-hand side comes from. *Points*: where the term is evaluated. *JVP*: whether the network is
differentiated in forward mode. *Cost*: forward passes per training sample, counted by the library on the recipe's own loss
(forward 1, with a derivative 2, forward and backward 3, backward through a derivative 6; a teacher's or an average's calls too).

| name | year | paper | rules | velocity from | points | teacher | JVP | cost | status |
|---|---|---|---|---|---|---|---|---|---|
"""


def page() -> str:
    """The page, from `flowmaps recipes --json`."""
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        flowmaps(["recipes", "--json"])
    rows = json.loads(out.getvalue())
    table = "".join(
        f"| `{row['name']}` | {row['year']} | {_link(row['paper'])} "
        f"| {', '.join(row['rules'])} | {', '.join(row['velocity_from'])} | {', '.join(row['points'])} "
        f"| {'yes' if row['teacher'] else ''} | {'yes' if row['jvp'] else ''} | {row['cost']:g} | {row['status']} |\n"
        for row in rows
    )
    cards = "".join(
        f"\n## {row['name']}\n\n{row['summary']}\n\n"
        f"Per training sample: {_calls(row['calls'])}.\n\nDeviations: {row['deviations'] or 'none known.'}\n\n"
        f"Arguments: {', '.join(f'`{key}={value}`' for key, value in row['arguments'].items()) or 'none'}.\n"
        for row in rows
    )
    return HEAD + table + cards


WORDS = {
    "F": "forward",
    "J": "forward with derivative",
    "FB": "forward and backward",
    "JF": "forward with derivative, backward through the value",
    "JB": "forward with derivative, backward through both",
}


def _link(paper: str) -> str:
    """Where to read it, as a link."""
    number = paper.removeprefix("arXiv:")
    return f"<{paper}>" if number == paper else f"[{paper}](https://arxiv.org/abs/{number})"


def _calls(calls: dict[str, float]) -> str:
    """Network calls in words."""
    parts = []
    for kind, number in calls.items():
        role, how = kind.split()
        parts.append(f"{number:g} {role} ({WORDS[how]})")
    return ", ".join(parts)


if __name__ == "__main__":
    text = page()
    if "--check" in sys.argv and (not PAGE.exists() or PAGE.read_text() != text):
        sys.exit(f"{PAGE} is not what the recipes say: run `make methods`")
    PAGE.write_text(text)
