"""What pooled velocities cost beside the network: steps of `default` with none, the batch's own data, and 1,024 rows more.

Of clips (the last case) the loop remembers fewer, `train.memory.LIMIT` bytes; all 1,024 of them would be 135 MB.

    python benchmarks/pooled_cost.py        a minute

Ratios are taken within this run: the variants are timed in turns, processor seconds, medians. Results: benchmarks/pooled_cost.json.
"""

import json
import statistics
import time
from pathlib import Path

import torch

from flowmaps.core.flow_map import NetFlowMap
from flowmaps.learn.objective import Objective
from flowmaps.learn.pooled import kept, together
from flowmaps.nets.build import build, describe_net
from flowmaps.recipes import get
from flowmaps.train.memory import LIMIT

ROUNDS = 40
CASES = (
    ("mlp-tiny", (1, 8, 8), 128, None),
    ("mlp-base", (1, 8, 8), 128, None),
    ("dit-tiny", (1, 28, 28), 64, 7),
    ("dit-tiny", (1002, 33), 32, None),
)
VARIANTS = {
    "conditional": {"velocity": "conditional", "memory": 0},
    "pooled over the batch": {"memory": 0},
    "pooled over 1,024 rows more": {"memory": 1024},
}


def variant(net: str, shape: tuple[int, ...], batch: int, patch: int | None, settings: dict):
    """A closure that draws and computes one step, without the optimiser, and returns its processor seconds."""
    torch.manual_seed(0)
    recipe, generator = get("default", **settings), torch.Generator().manual_seed(0)
    network = build(describe_net(net, shape, classes=10, patch=patch))
    objective = Objective(recipe, NetFlowMap(network))
    x_0, cond = torch.randn(batch, *shape, generator=generator), {"label": torch.arange(batch) % 10}
    memory = [
        kept(torch.randn(x_0.shape, generator=generator), cond)
        for _ in range(min(recipe.memory // batch, LIMIT // x_0.nbytes))
    ]

    def step() -> float:
        began = time.process_time()
        before = None
        if memory:  # as the loop does: what is remembered is joined, and the batch remembered
            before = together(memory)
            kept(x_0, cond)
        objective(recipe.draw(x_0, generator, cond, 0.5, None, before)).total.backward()
        return time.process_time() - began

    return step


def main() -> None:
    """Time every case and write the figures."""
    torch.set_num_threads(1)
    found = {}
    for net, shape, batch, patch in CASES:
        steps = {name: variant(net, shape, batch, patch, s) for name, s in VARIANTS.items()}
        spent: dict[str, list[float]] = {name: [] for name in steps}
        for k in range(ROUNDS + 3):
            for name, step in steps.items():
                seconds = step()
                if k >= 3:
                    spent[name].append(seconds)
        middle = {name: statistics.median(values) for name, values in spent.items()}
        found[f"{net}, {shape}, batch {batch}"] = {
            name: {"ms": round(1e3 * s, 2), "ratio": round(s / middle["conditional"], 3)}
            for name, s in middle.items()
        }
    result = {
        "about": "one step of default, optimiser left out",
        "torch": torch.__version__,
        "threads": 1,
        "cases": found,
    }
    Path(__file__).with_suffix(".json").write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
