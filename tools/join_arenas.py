"""Add the rows of an arena to a stored one of the same terms and ruler, and draw its ranking anew.

    python tools/join_arenas.py DIR/arena.json benchmarks/arena-digits.json     rows of the same name are replaced
    python tools/join_arenas.py DIR/arena.json benchmarks/arena-digits.json --drop default:starts=0.05

Nothing is joined that was not measured alike: the terms must be equal, and the scores of real data to the last digit.
"""

import argparse
import json
import math
import sys
from pathlib import Path

from flowmaps.report import save_png
from flowmaps.report.arena import Json, Mean, Standing, ranking_figure


def standing(row: Json) -> Standing:
    """A stored row as it was before it was stored."""
    scores = {
        (found["sampler"], found["steps"]): {
            name: Mean(value[0], math.nan if value[1] is None else value[1])
            for name, value in found.items()
            if isinstance(value, list)
        }
        for found in row["scores"]
    }
    numbers = {
        name: math.nan if row[name] is None else row[name]
        for name in (
            "loss_spikes",
            "norm_spikes",
            "peak",
            "cost",
            "steps",
            "step_seconds",
            "seconds",
        )
    }
    return Standing(row["label"], row, row["seeds"], tuple(row["failed"]), scores, **numbers)


def joined(stored: Json, new: Json, drop: list[str]) -> Json:
    """The stored arena with the rows of the new one, best at one step first."""
    for key in ("terms", "real", "score"):
        if stored[key] != new[key]:
            sys.exit(
                f"the arenas differ in {key}: {stored[key]} and {new[key]}; run the new one on the stored one's terms"
            )
    rows = {
        row["label"]: row for row in [*stored["rows"], *new["rows"]] if row["label"] not in drop
    }

    def first(row: Json) -> float:
        return row["scores"][0][stored["score"]][0] if row["scores"] else math.inf

    return stored | {"rows": sorted(rows.values(), key=first)}


def main() -> None:
    """Join, and write the stored file and its picture."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("new", type=Path)
    parser.add_argument("stored", type=Path)
    parser.add_argument("--drop", action="append", default=[], help="a row that is left out")
    options = parser.parse_args()
    arena = joined(
        json.loads(options.stored.read_text()), json.loads(options.new.read_text()), options.drop
    )
    options.stored.write_text(json.dumps(arena, indent=1) + "\n")
    picture = options.stored.with_name(options.stored.stem + "-ranking.png")
    save_png(ranking_figure([standing(row) for row in arena["rows"]]), picture)
    print(f"{len(arena['rows'])} rows; {picture}")


if __name__ == "__main__":
    main()
