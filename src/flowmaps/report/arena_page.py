"""The page of an arena: arena.json, pictures and arena.html from what lies in its folder, finished or not."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors.torch import load_file
from torch import Tensor

from ..errors import CheckpointError
from ..train.arena import TEACHER, WALK, Terms, read_terms, results
from ..train.curves import SPIKE, WINDOW
from .arena import (
    HEAD,
    Standing,
    arena_table,
    cells,
    clouds_figure,
    contestants,
    curves_figure,
    leading,
    ranking_figure,
    standings,
    steps_figure,
)
from .compare import HIGHER
from .images import ladder
from .page import Grid, Picture, Section, write_page
from .style import save_png, write_atomically

if TYPE_CHECKING:
    from rich.table import Table

Json = dict[str, Any]


def write(out: Path, facts: Json, data: Tensor) -> tuple[Path, Json, Table]:
    """Write arena.json, the pictures and arena.html of a folder.

    Args:
        out: Folder of the arena.
        facts: What else arena.json says: machine, versions, scores of real data.
        data: Real data (N, *D), for comparison.

    Returns:
        The page's path, the contents of arena.json, and the ranking for the terminal.

    Raises:
        CheckpointError: If the folder is no arena, or no run is finished.
    """
    terms, runs = read_terms(out), results(out)
    found = standings(runs)
    if not contestants(found):
        raise CheckpointError(f"no run of the arena {out} is finished yet")
    report: Json = {
        "terms": terms.model_dump(mode="json"),
        "score": leading(found),
        **facts,
        "rows": [one.to_json() for one in found],
    }
    write_atomically(out / "arena.json", json.dumps(report, indent=1).encode())
    pictures = _pictures(runs, found, data)
    for name, picture in pictures.items():
        save_png(picture, out / f"{name}.png")
    shown = {name: (out / f"{name}.png").read_bytes() for name in pictures}
    page = write_page(
        out / "arena.html",
        f"Flow-map recipes on {terms.data}, on equal terms",
        lead(terms, found),
        _sections(terms, report, found, shown),
    )
    return page, report, arena_table(found)


def _pictures(runs: Sequence[Json], found: Sequence[Standing], data: Tensor) -> dict[str, Any]:
    order = [one.label for one in found]
    pictures: dict[str, Any] = {}
    if any(one.scores for one in contestants(found)):
        pictures |= {"ranking": ranking_figure(found), "steps": steps_figure(found)}
    for steps in (1, 4):
        drawn = samples(runs, order, f"jump.{steps}")
        if drawn:
            pictures[f"samples_{steps}"] = _drawn(drawn, data)
    if any(run["curve"] is not None for run in runs):
        pictures |= {kind: curves_figure(runs, kind, order) for kind in ("loss", "norm")}
    return pictures


def samples(runs: Sequence[Json], order: Sequence[str], way: str) -> dict[str, Tensor]:
    """The first seed's samples of every recipe, by label."""
    found: dict[str, Tensor] = {}
    for label in order:
        files = [
            Path(run["folder"]) / "samples.safetensors" for run in runs if run["label"] == label
        ]
        stored = next((load_file(file) for file in files if file.exists()), {})
        if way in stored and bool(stored[way].isfinite().all()):
            found[label] = stored[way]
    return found


def _drawn(drawn: dict[str, Tensor], data: Tensor) -> Any:  # noqa: ANN401  # a figure or an image
    if data.shape[1:] == (2,):
        return clouds_figure(drawn, data[:2000])
    blocks = {"data": data[:10]} | {label: x[:10] for label, x in drawn.items()}
    return ladder(blocks, across=5, scale=max(1, 64 // data.shape[-1]), per_row=6)


def lead(terms: Terms, found: Sequence[Standing]) -> str:
    """What was found, in two sentences."""
    ranked, name = [one for one in contestants(found) if one.scores], leading(found)
    budget = (
        f"{terms.budget:g} million forward-pass equivalents x samples"
        if terms.budget is not None
        else f"{terms.seconds:g} seconds"
    )
    head = f"{len(contestants(found))} recipes with the same network ({terms.net}), data and compute ({budget} each)."
    if not ranked:
        return f"{head} None of them finished."
    best = ranked[0]
    text = f"{head} With one network call, {best.label} has the best {name}: {best.score(name, 1)}."
    sign = -1 if name in HIGHER else 1
    four = [(sign * mean.value, one) for one in ranked if (mean := one.score(name, 4))]
    other = min(four, key=lambda pair: pair[0])[1]
    return f"{text} With four it is {other.label}: {other.score(name, 4)}."


def _sections(
    terms: Terms, report: Json, found: Sequence[Standing], shown: dict[str, bytes]
) -> list[Section]:
    name = leading(found)
    sections = [Section("Ranking", [*_ranking(terms, found, name, shown)])]
    if "steps" in shown:
        caption = (
            "Each panel shows one recipe in colour (blue jumps, orange local diffusion models, which take Euler or DDIM steps) "
            "and all the others in grey, on one scale."
        )
        sections.append(
            Section("Quality against network calls", [Picture(shown["steps"], caption)])
        )
    sections.append(Section("What one sees", [*_seen(shown)]))
    sections.append(Section("How smoothly they trained", [*_stable(shown)]))
    failed = tuple(f"{one.label}, {error}" for one in found for error in one.errors)
    if failed:
        sections.append(Section("What failed", [failed]))
    return [*sections, Section("Terms", [*_terms(terms, report)])]


def _ranking(
    terms: Terms, found: Sequence[Standing], name: str, shown: dict[str, bytes]
) -> list[str | Picture | Grid]:
    caption = (
        f"{name} of {terms.number:,} samples from the same noise, mean ± standard error over seeds, best at one step first. "
        f"{WALK} Heun: local models only, {2 * WALK} network calls. FPE: cost of a training sample in forward-pass equivalents. "
        f"Start: from the teacher's weights; taught, by a teacher whose weights mean something else to the recipe (another path "
        f"or parametrization), hence from scratch; or from scratch without one. A teacher was paid for with "
        f"{terms.teacher_share:.0%} of the budget. Spikes, of the loss / of "
        f"the gradient norm: steps above {SPIKE:g} times the median of the {WINDOW} steps before."
    )
    rows = [cells(one, name) for one in found]
    local = frozenset(i for i, one in enumerate(found) if one.first["local"])
    blocks: list[str | Picture | Grid] = [Grid(HEAD, rows, caption, local)]
    if "ranking" in shown:
        dotted = f"Dotted: the best local model with {WALK} Heun steps."
        blocks = [Picture(shown["ranking"], dotted), *blocks]
    return blocks


def _seen(shown: dict[str, bytes]) -> list[str | Picture]:
    texts = {
        "samples_1": "One network call each, from the same noise.",
        "samples_4": "Four network calls, from the same noise.",
    }
    return [Picture(shown[key], text) for key, text in texts.items() if key in shown]


def _stable(shown: dict[str, bytes]) -> list[str | Picture]:
    texts = {
        "loss": "The loss of every seed: medians of equal parts of the run bold, maxima faint. Scales differ: losses of "
        "different recipes cannot be compared.",
        "norm": "The gradient's norm before it is clipped.",
    }
    return [Picture(shown[key], text) for key, text in texts.items() if key in shown]


def _terms(terms: Terms, report: Json) -> list[str | Grid]:
    rows = [[key, str(value)] for key, value in report["terms"].items() if value is not None]
    rows += [
        [key, str(value)]
        for part in ("machine", "versions")
        for key, value in report.get(part, {}).items()
    ]
    start = (
        "from the teacher too"
        if terms.start == "teacher"
        else "from scratch, with the whole budget"
    )
    real = ", ".join(f"{key} {value:.4g}" for key, value in report.get("real", {}).items())
    return [
        f"The teacher is flow matching, one per seed, called {TEACHER} in the table. Recipes that learn from data start {start}.",
        *([f"As many real data score: {real}."] if real else []),
        Grid(["what", "value"], rows),
    ]


__all__ = ["lead", "samples", "write"]
