"""Small words of the command line: nearest names, tables, and who may speak."""

import os
import sys
from collections.abc import Iterable, Sequence
from difflib import get_close_matches


def nearest(name: str, known: Iterable[str], *, cutoff: float = 0.4) -> str:
    """` (did you mean 'x'?)`, or nothing if no name is near.

    Example:
        >>> nearest("trian", ["train", "sample"])
        " (did you mean 'train'?)"
    """
    close = get_close_matches(name, list(known), n=1, cutoff=cutoff)
    return f" (did you mean {close[0]!r}?)" if close else ""


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Columns of text under a ruled head; columns of numbers are set to the right.

    Example:
        >>> print(table(["model", "steps"], [["flow map", "1"], ["walk", "64"]]))
        model     steps
        --------  -----
        flow map      1
        walk         64
    """
    columns = list(zip(*rows, strict=True)) if rows else [()] * len(head)
    widths = [max(map(len, [name, *column])) for name, column in zip(head, columns, strict=True)]
    right = [bool(column) and all(_numeric(cell) for cell in column) for column in columns]

    def line(cells: Sequence[str]) -> str:
        parts = zip(cells, widths, right, strict=True)
        return "  ".join(c.rjust(w) if r else c.ljust(w) for c, w, r in parts).rstrip()

    return "\n".join([line(head), "  ".join("-" * w for w in widths), *map(line, rows)])


def _numeric(cell: str) -> bool:
    return not cell.strip("-.,%x e+0123456789")


def first_process() -> bool:
    """Whether this process may print: the only one, or torchrun's first."""
    return os.environ.get("RANK", "0") == "0"


def say(*text: str) -> None:
    """A line for the human, on stderr, by the first process."""
    if first_process():
        print(*text, file=sys.stderr, flush=True)
