"""What a training step costs: every recipe against flow matching, and bfloat16 + compile against float32 eager, on the DiT.

    python benchmarks/step_cost.py [--quick] [RECIPE ...]     about a minute for each recipe, which is compiled once

Ratios are taken within this run: the variants of a recipe are timed in turns, and the medians compared. Results:
benchmarks/step_cost.json, where recipes that were not asked for keep theirs.
"""

import copy
import json
import statistics
import sys
import time
from pathlib import Path

import torch

from flowmaps.core.autodiff import compiled
from flowmaps.core.flow_map import NetFlowMap
from flowmaps.learn.objective import Objective
from flowmaps.nets import DiT
from flowmaps.recipes import all_recipes

BATCH = 64
SHAPE = (1, 28, 28)
ROUNDS = 10


def variant(factory, *, bf16: bool, fast: bool):
    """A closure that runs one training step, optimiser included."""
    torch.manual_seed(0)
    recipe = factory()
    net = DiT(SHAPE, patch=4, width=192, depth=2, heads=3, classes=10)
    student = NetFlowMap(net, recipe.interpolant, recipe.parametrization, local=recipe.local)
    teacher = copy.deepcopy(student) if recipe.needs_teacher else None
    ema = copy.deepcopy(student) if recipe.ema_target is not None else None
    objective = Objective(recipe, student, teacher, ema)
    loss_of = compiled(objective) if fast else objective
    optimizer = torch.optim.AdamW(
        [p for p in objective.parameters() if p.requires_grad], fused=True
    )
    generator = torch.Generator().manual_seed(0)
    x_0, label = torch.randn(BATCH, *SHAPE, generator=generator), torch.arange(BATCH) % 10

    def step() -> float:
        drawn = recipe.draw(x_0, generator, {"label": label}, 0.5)
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16, cache_enabled=False):
            loss = loss_of(drawn)
        loss.total.backward()
        optimizer.step()
        optimizer.zero_grad()
        return float(loss.total.detach())

    return step


def seconds(steps: dict) -> dict[str, float]:
    """Median seconds of each step, timed in turns."""
    spent: dict[str, list[float]] = {name: [] for name in steps}
    for step in steps.values():
        step()
        step()
    for _ in range(ROUNDS):
        for name, step in steps.items():
            began = time.perf_counter()
            step()
            spent[name].append(time.perf_counter() - began)
    return {name: statistics.median(values) for name, values in spent.items()}


def main() -> None:
    """Time everything and write the json."""
    asked = {name for name in sys.argv[1:] if not name.startswith("-")}
    names = sorted({"flow_matching", *asked}) if asked else sorted(all_recipes())
    torch.set_float32_matmul_precision("highest")
    eager = seconds({name: variant(all_recipes()[name], bf16=False, fast=False) for name in names})
    rows = {
        name: {"eager_fp32_seconds": eager[name], "cost": eager[name] / eager["flow_matching"]}
        for name in names
    }
    for name in names if "--quick" not in sys.argv else ():
        torch.compiler.reset()
        began = time.perf_counter()
        fast = variant(all_recipes()[name], bf16=True, fast=True)
        fast()
        rows[name]["compile_seconds"] = round(time.perf_counter() - began, 1)
        both = seconds({"slow": variant(all_recipes()[name], bf16=False, fast=False), "fast": fast})
        rows[name]["compiled_bf16_seconds"] = both["fast"]
        rows[name]["speedup"] = both["slow"] / both["fast"]
        print(name, {key: round(value, 3) for key, value in rows[name].items()}, flush=True)
    net = "DiT patch 4, width 192, depth 2"
    about = {
        "batch": BATCH,
        "net": net,
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
    }
    file = Path(__file__).parent / "step_cost.json"
    kept = json.loads(file.read_text())["recipes"] if asked and file.exists() else {}
    value = {**about, "recipes": dict(sorted((kept | rows).items()))}
    file.write_text(json.dumps(value, indent=1) + "\n")
    for name, row in rows.items():
        print(f"{name:26s} cost {row['cost']:.2f}  speedup {row.get('speedup', float('nan')):.2f}")


if __name__ == "__main__":
    main()
