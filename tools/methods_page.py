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
or the jump on the right-hand side comes from. *JVP*: whether the network is differentiated in forward mode.

| name | year | paper | rules | velocity from | teacher | JVP | status |
|---|---|---|---|---|---|---|---|
"""


def page() -> str:
    """The page, from `flowmaps recipes --json`."""
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        flowmaps(["recipes", "--json"])
    rows = json.loads(out.getvalue())
    table = "".join(
        f"| `{row['name']}` | {row['year']} | [{row['paper']}](https://arxiv.org/abs/{row['paper'].split(':')[-1]}) "
        f"| {', '.join(row['rules'])} | {', '.join(row['velocity_from'])} "
        f"| {'yes' if row['teacher'] else ''} | {'yes' if row['jvp'] else ''} | {row['status']} |\n"
        for row in rows
    )
    cards = "".join(
        f"\n## {row['name']}\n\n{row['summary']}\n\n"
        f"Arguments: {', '.join(f'`{key}={value}`' for key, value in row['arguments'].items()) or 'none'}.\n"
        for row in rows
    )
    return HEAD + table + cards


if __name__ == "__main__":
    text = page()
    if "--check" in sys.argv and (not PAGE.exists() or PAGE.read_text() != text):
        sys.exit(f"{PAGE} is not what the recipes say: run `make methods`")
    PAGE.write_text(text)
