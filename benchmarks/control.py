"""Control at equal cost on an exact world: who draws the tilt, who only raises the reward, and what best-of-N would have done.

    python benchmarks/control.py               a few minutes on one thread
    python benchmarks/control.py fmtt chain    these methods again, the others as stored

Two modes on a line, one half each, under a reward of slope .6 (steering.md, M1): of the tilt the right mode has .917. Every method
has the same forward passes per sample, a backward pass counted as two; 64 samples per run, which is also the number of particles.
Results: benchmarks/control.json, benchmarks/control.md, benchmarks/control.png. Nothing is left out where it does not flatter.
"""

import json
import math
import sys
from collections.abc import Iterable
from pathlib import Path

import torch

from flowmaps.control.rewards import linear
from flowmaps.control.values import Diamond, Exact, Posterior
from flowmaps.core.flow_map import SolvedFlowMap
from flowmaps.core.interpolant import linear as path
from flowmaps.core.oracle import Product
from flowmaps.core.solver import HEUN
from flowmaps.report import save_png
from flowmaps.report.frontier import (
    Contest,
    Mark,
    Method,
    divergence,
    entrants,
    frontier,
    frontier_figure,
    frontier_table,
    leaning,
    spread,
)

HERE = Path(__file__).parent
BUDGETS, RUNS, SLOPE = (8, 16, 32, 64, 128), 8, 0.6


def column(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)[:, None]


def main() -> None:
    """Run, print, store and draw."""
    world = Product(column(0.5, 0.5), column(-2, 2), column(0.4, 0.4), path())
    # a linear tilt of a mixture: masses by exp(a mean), means moved by a std^2
    masses = torch.softmax(SLOPE * torch.tensor([[-2.0], [2.0]], dtype=torch.float64), 0)
    tilted = Product(masses, column(-2, 2) + SLOPE * 0.16, column(0.4, 0.4), path())
    generator = torch.Generator().manual_seed(0)
    tilt, model = tilted.sample(400_000, generator), world.sample(400_000, generator)
    reward = linear(torch.tensor([SLOPE], dtype=torch.float64))

    def scores(x: torch.Tensor) -> dict[str, float]:
        finite = torch.where(x.isfinite(), x, 1e3)
        return {
            "KL to the tilt": divergence(finite, tilt),
            "KL to the model": divergence(finite, model),
            "diversity": spread(finite),
        }

    def prior(count: int, g: torch.Generator) -> torch.Tensor:
        return world.interpolant.prior((count, 1), g).double()

    walks = {
        f"{2 * k}-call model": (SolvedFlowMap(world.velocity, world.interpolant, HEUN, k), 2 * k)
        for k in (4, 16)
    }
    contest = Contest(world.flow_map, reward, 1.0, prior)
    # values that are right: in closed form for this reward; for any by four posterior draws of two Heun steps, or of jumps
    more = {
        "lean, exact": Method("tilt", 3, 1, leaning(Exact())),
        "lean, 4 draws": Method("tilt", 17, 1, leaning(Posterior(draws=4, steps=2))),
        "lean, 4 diamonds": Method("tilt", 10, 1, leaning(Diamond(draws=4))),
    }
    field = entrants(contest, walks) | {k: contest.entrant(m) for k, m in more.items()}
    chosen = {k: v for k, v in field.items() if k in sys.argv[1:] or not sys.argv[1:]}
    marks = frontier(chosen, reward, BUDGETS, runs=RUNS, scores=scores)
    marks = sorted([*kept(chosen), *marks], key=lambda mark: list(field).index(mark.method))
    exact = tilted.sample(64 * RUNS, generator)
    known = {
        "reward of the tilt": float(reward(tilt).mean()),
        "reward of the model": float(reward(model).mean()),
        "draws of the tilt itself": scores(exact),
    }
    print(json.dumps(known, indent=1))
    found = {
        "world": "two modes on a line, masses .5, means -2 and 2, deviations .4; reward .6 x",
        "samples": 64 * RUNS,
        "particles": 64,
        "known": known,
        "marks": [mark.to_json() for mark in marks],
        "torch": torch.__version__,
    }
    (HERE / "control.json").write_text(json.dumps(found, indent=1) + "\n")
    show(marks, known)


def kept(again: Iterable[str]) -> list[Mark]:
    """What an earlier run stored of the methods that are not run again."""
    rows = json.loads((HERE / "control.json").read_text())["marks"] if sys.argv[1:] else []
    own = ("method", "kind", "budget", "spent", "reward", "error", "note")
    found = []
    for row in rows:
        numbers = {k: math.nan if v is None else v for k, v in row.items()}
        scores = {k: v for k, v in numbers.items() if k not in own}
        if row["method"] not in again:
            found.append(Mark(**{k: numbers[k] for k in own if k in row}, scores=scores))
    return found


def show(marks: list[Mark], known: dict) -> None:
    """Table and picture; climbing in the noise leaves the first panel through its top."""
    table = frontier_table(marks)
    print(table)
    (HERE / "control.md").write_text(table)
    floor = known["draws of the tilt itself"]["KL to the tilt"]
    picture = frontier_figure(
        marks,
        of=["KL to the tilt"],
        logarithmic=["KL to the tilt"],
        limits={"reward": (-0.2, 2.8)},
        levels={
            "reward": (known["reward of the tilt"], "the tilt's"),
            "KL to the tilt": (floor, "as many draws of the tilt"),
        },
    )
    save_png(picture, HERE / "control.png")


if __name__ == "__main__":
    main()
