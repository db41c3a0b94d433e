"""Write docs/which.md from benchmarks/arena-*.json and the recipes' cards; with --check, fail if the page is another.

The page states what was measured there, and for everything else names the paper. An arena is stored by
`cp DIR/arena.json benchmarks/arena-NAME.json`.
"""

import contextlib
import io
import json
import sys
from pathlib import Path
from typing import Any

from flowmaps.cli.main import main as flowmaps

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "which.md"
STEPS = (1, 2, 4, 8)
HIGHER = ("accuracy",)

Json = dict[str, Any]

HEAD = """# Which recipe when

Written by `tools/which_page.py` from the stored results of `flowmaps arena` (`benchmarks/arena-*.json`). Every recipe had the same
network, data and compute; a recipe with a teacher paid for it out of its own budget. Recipes were run with the arguments that are
their defaults here unless the name says otherwise, on small networks and small data: an order found here is an order under these
terms. What is good at other scales is said in the papers, which [the methods](methods.md) cite.
"""


def page(root: Path = ROOT) -> str:
    """The page, from every stored arena."""
    arenas = [json.loads(file.read_text()) for file in sorted(root.glob("benchmarks/arena-*.json"))]
    if not arenas:
        return f"{HEAD}\nNo arena is stored yet.\n"
    cards = {card["name"]: card for card in _cards()}
    return "\n".join([HEAD, *(_arena(arena, cards) for arena in arenas)])


def _cards() -> list[Json]:
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        flowmaps(["recipes", "--json"])
    return json.loads(out.getvalue())


def _arena(arena: Json, cards: dict[str, Json]) -> str:
    terms, score = arena["terms"], arena["score"]
    rows = [row for row in arena["rows"] if row["label"] != "teacher"]
    done = [row for row in rows if _value(row, score, 1)]
    budget = (
        f"{terms['budget']:g} million FPE x samples"
        if terms["budget"] is not None
        else f"{terms['seconds']:g} s"
    )
    seeds = sorted({row["seeds"] for row in rows})
    parts = [
        f"## {terms['data']}, {terms['net']}, {budget}\n",
        f"{len(rows)} contestants, {' to '.join(map(str, {seeds[0], seeds[-1]}))} seeds, batch {terms['batch']}, "
        f"{terms['number']:,} samples. Score: {score}{_real(arena, score)}.\n",
        _choices(done, score, cards),
        _smooth(rows),
        _table(rows, score, cards),
    ]
    return "\n".join(part for part in parts if part)


def _real(arena: Json, score: str) -> str:
    real = arena.get("real", {}).get(score)
    return "" if real is None else f"; as many real data score {real:.3g}"


def _value(row: Json, score: str, steps: int, sampler: str = "") -> list[float] | None:
    samplers = (sampler,) if sampler else ("jump", "renoise")
    for found in row["scores"]:
        if found["steps"] == steps and found["sampler"] in samplers:
            return found.get(score)
    return None


def _choices(rows: list[Json], score: str, cards: dict[str, Json]) -> str:
    """The best at every number of steps, by what one has, with those that are not clearly worse."""
    kinds = {
        "with a teacher": [row for row in rows if row["taught"]],
        "from data alone": [row for row in rows if not row["taught"] and not row["local"]],
        "from data alone, without forward-mode derivatives": [
            row
            for row in rows
            if not row["taught"]
            and not row["local"]
            and not cards.get(row["recipe"], {"jvp": True})["jvp"]
        ],
        "a local diffusion model": [row for row in rows if row["local"]],
    }
    head = "| what one has | " + " | ".join(f"{k} step{'s' * (k > 1)}" for k in STEPS) + " |\n"
    lines = [
        f"| {name} | " + " | ".join(_best(group, score, k) for k in STEPS) + " |\n"
        for name, group in kinds.items()
        if group
    ]
    return (
        "The best of each kind; in brackets those within two standard errors of it.\n\n"
        + head
        + "|---" * (len(STEPS) + 1)
        + "|\n"
        + "".join(lines)
    )


def _best(rows: list[Json], score: str, steps: int) -> str:
    sign = -1 if score.startswith(HIGHER) else 1
    found = [
        (sign * v[0], v[1] or 0.0, row["label"]) for row in rows if (v := _value(row, score, steps))
    ]
    if not found:
        return ""
    best, error, label = min(found)
    near = [
        f"`{name}`"
        for value, spread, name in sorted(found)
        # runs that were lost are within any number of their own standard errors
        if name != label and value - best <= 2 * (error**2 + min(spread, abs(best)) ** 2) ** 0.5
    ]
    others = f" ({', '.join(near[:4])}{', ...' * (len(near) > 4)})" if near else ""
    return f"`{label}` {sign * best:.3g}{others}"


def _smooth(rows: list[Json]) -> str:
    """Who failed, and whose training jumped."""
    lines = [
        f"* `{row['label']}` failed in {len(row['failed'])} of {row['seeds']} runs: {row['failed'][0]}.\n"
        for row in rows
        if row["failed"]
    ]
    jumpy = sorted(
        (row for row in rows if (row["norm_spikes"] or 0) >= 1), key=lambda row: -row["norm_spikes"]
    )
    if jumpy:
        named = ", ".join(f"`{row['label']}` {row['norm_spikes']:.3g}" for row in jumpy[:8])
        lines.append(
            f"* Steps per run whose gradient norm was above ten times the median of the 200 steps before: {named}"
            f"{', fewer in the others' if len(jumpy) > 8 else ''}.\n"
        )
    return "Smoothness:\n\n" + "".join(lines) if lines else ""


def _table(rows: list[Json], score: str, cards: dict[str, Json]) -> str:
    head = "| recipe | paper | start | FPE | steps | 1 | 2 | 4 | 8 | 64 Heun |\n|---|---|---|---|---|---|---|---|---|---|\n"
    lines: list[str] = []
    for row in rows:
        paper = cards.get(row["recipe"], {}).get("paper", "")
        values = [_value(row, score, k) for k in STEPS] + [_value(row, score, 64, "heun")]
        cells = [
            f"`{row['label']}`",
            _link(paper),
            row["start"],
            _short(row["cost"]),
            _short(row["steps"]),
        ]
        lines.append("| " + " | ".join([*cells, *map(_mean, values)]) + " |\n")
    return head + "".join(lines)


def _link(paper: str) -> str:
    if not paper.startswith("arXiv:"):
        return f"<{paper}>" if paper else ""
    return f"[{paper}](https://arxiv.org/abs/{paper.split(':')[-1]})"


def _short(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}" if value < 1000 else f"{value:,.0f}"


def _mean(value: list[float] | None) -> str:
    if value is None:
        return ""
    mean, error = value
    return f"{mean:.3g}" if error is None else f"{mean:.3g} ± {error:.1g}"


if __name__ == "__main__":
    text = page()
    if "--check" in sys.argv and (not PAGE.exists() or PAGE.read_text() != text):
        sys.exit(f"{PAGE} is not what the stored arenas say: run python tools/which_page.py")
    PAGE.write_text(text)
