"""The model card of a saved map: README.md with the front matter that the hub reads, how to sample, and what was measured."""

from collections.abc import Mapping, Sequence
from typing import Any

import yaml

Results = Sequence[Mapping[str, Any]]
"""Rows of the measured table, all with the same columns."""


def card(
    *, title: str, usage: str, results: Results = (), base: str | None = None, notes: str = ""
) -> str:
    """A model card.

    Args:
        title: Its heading.
        usage: Python code that samples.
        results: The measured table.
        base: The model that it was made from: a name on the hub, or a folder.
        notes: A paragraph of your own.
    """
    front: dict[str, Any] = {
        "library_name": "diffusers",
        "tags": ["flow-map", "few-step", "distillation", "flowmaps"],
    }
    if base is not None and base.count("/") == 1 and not base.startswith((".", "/")):
        front["base_model"] = base  # a folder is no name on the hub
    parts = [f"---\n{yaml.safe_dump(front, sort_keys=False)}---", f"# {title}"]
    origin = "" if base is None else f" of `{base}`"
    parts.append(
        f"A flow map{origin}: it jumps from any time of the diffusion trajectory to any other, so that one to a few calls "
        "of the network draw a sample. Made with flowmaps; sampling needs diffusers only."
    )
    if notes:
        parts.append(notes)
    parts.append(f"```python\n{usage.strip()}\n```")
    if results:
        parts += ["## Measured", table(results)]
    return "\n\n".join(parts) + "\n"


def table(results: Results) -> str:
    """Rows as a Markdown table; floats with four digits.

    Example:
        >>> print(table([{"steps": 1, "Frechet distance": 3.14159}, {"steps": 4, "Frechet distance": 2}]))
        | steps | Frechet distance |
        |---|---|
        | 1 | 3.142 |
        | 4 | 2 |
    """
    columns = list(results[0])
    lines = [columns, ["---"] * len(columns)]
    lines += [[_cell(row.get(name, "")) for name in columns] for row in results]
    head, rule, *rows = lines
    body = [f"| {' | '.join(line)} |" for line in (head, *rows)]
    return "\n".join([body[0], f"|{'|'.join(rule)}|", *body[1:]])


def _cell(value: object) -> str:
    text = f"{value:.4g}" if isinstance(value, float) else str(value)
    return " ".join(text.replace("|", "\\|").split())
