"""Control of the Fashion-MNIST map, without telling it the class: steering at equal cost, restoring, editing, inverting.

    python benchmarks/fashion_control.py              all stages: four minutes of one idle core
    python benchmarks/fashion_control.py restore      one stage: frontier, classes, restore, edit or invert

The map is runs/fashion/both_ways, whose jumps go up as well, or runs/fashion/flow_map where that is missing; the many-step model
is the teacher of both. Both were trained with dropped labels, and label 10 means "not told". Every stage of the results says
which map it had. Results: benchmarks/fashion_control.json, fashion_control.png and docs/pictures/control_*.png.
"""

import json
import sys
import time
from dataclasses import replace
from pathlib import Path

import torch
from fashion import Judge, draw, jump
from torch import Tensor

from flowmaps.cli.restore import scores as restored_scores
from flowmaps.control.edit import edit
from flowmaps.control.invert import BDIA, FixedPoint, Jump, Ode, invert, noise_statistics
from flowmaps.control.operators import Downsample, Mask, gaussian_blur
from flowmaps.control.restore import NoisePosterior, PiGDM, PlugAndPlay, PnPCM, restore
from flowmaps.control.rewards import Brightness, ClassLogProb, Reward, Symmetry
from flowmaps.control.smc import tempered_smc
from flowmaps.control.steer import steer
from flowmaps.core.flow_map import SolvedFlowMap
from flowmaps.core.solver import EULER, HEUN
from flowmaps.data import load as load_data
from flowmaps.metrics import load_classifier
from flowmaps.report import (
    Contest,
    entrants,
    frontier,
    frontier_figure,
    frontier_table,
    ladder,
    save_png,
)
from flowmaps.report.frontier import METHODS, Mark, spread
from flowmaps.sample import sample, uniform
from flowmaps.train import load

HERE, PICTURES, RUNS = Path(__file__).parent, Path("docs/pictures"), Path("runs/fashion")
STORE = HERE / "fashion_control.json"
UNTOLD = {"label": torch.tensor([10])}
STRENGTH, BUDGETS = 3.0, (8, 16, 32, 64, 128)
SAMPLES = 24
FIELD = (
    "tempered",
    "lean, look-ahead",
    "lean, look-ahead, 4 x",
    "lean, Tweedie",
    "fmrg",
    "climb in noise",
)


def rounded(value: float) -> float:
    return float(f"{value:.4g}")


class Bench:
    """What the stages share."""

    def __init__(self) -> None:
        both = any((RUNS / "both_ways" / "checkpoints").glob("*"))
        name = "both_ways" if both else "flow_map"
        saved = load(RUNS / name)
        self.name, self.about = name, saved.about
        self.map = saved.flow_map.requires_grad_(False)
        self.judge = load_classifier(HERE / "fashion_classifier.safetensors").requires_grad_(False)
        data = load_data("fashion-mnist", split="test")
        rows = torch.randperm(len(data), generator=torch.Generator().manual_seed(0))
        self.x, self.label = data.batch(rows[:200])
        self.classes = data.classes

    def prior(self, count: int, generator: torch.Generator) -> Tensor:
        return self.map.interpolant.prior((count, 1, 28, 28), generator)

    def scores(self, x: Tensor) -> dict[str, float]:
        """How sure the classifier is on average, and how far two samples are apart."""
        with torch.no_grad():
            sure = torch.softmax(self.judge(x), 1).max(1).values.mean()
        return {"confidence": rounded(float(sure)), "diversity": rounded(spread(x))}


def margins(marks: list[Mark]) -> dict[str, dict[int, float]]:
    """By how much each method is above the better of the many-step models' best-of-N, by budget."""
    walks = [mark for mark in marks if "-call" in mark.method]
    bar = {b: max(mark.reward for mark in walks if mark.budget == b) for b in BUDGETS}
    found: dict[str, dict[int, float]] = {}
    for mark in marks:
        if "-call" not in mark.method and not mark.note:
            found.setdefault(mark.method, {})[mark.budget] = rounded(mark.reward - bar[mark.budget])
    return found


def run_frontier(bench: Bench) -> dict:
    """Two attributes, budgets of 8 to 128 forward-pass equivalents; no method is tuned to an attribute or a budget."""
    teacher = load(RUNS / "teacher").flow_map.requires_grad_(False)
    walks = {
        f"{2 * k}-call model": (
            SolvedFlowMap(teacher.velocity, teacher.interpolant, HEUN, k),
            2 * k,
        )
        for k in (4, 16)
    }
    found: dict = {"strength": STRENGTH, "budgets": BUDGETS, "samples": SAMPLES}
    drawn = {}
    g = torch.Generator().manual_seed(1)
    with torch.autocast("cpu", torch.bfloat16):
        base = sample(bench.map, bench.prior(256, g), uniform(1), label=UNTOLD["label"].expand(256))
        for name, reward in {"brightness": Brightness(), "symmetry": Symmetry()}.items():
            r = reward(base)
            beta = STRENGTH / float(r.std())
            contest = Contest(bench.map, reward, beta, bench.prior, n=SAMPLES, cond=UNTOLD)
            field = entrants(contest, walks)
            # the ramped look-ahead moves a fraction of the tilt where data vary more than noise: the same, four times as strong
            strong = replace(contest, beta=4 * beta)
            field["lean, look-ahead, 4 x"] = strong.entrant(METHODS["lean, look-ahead"])
            chosen = {k: v for k, v in field.items() if k in FIELD or k.startswith("best")}
            marks = frontier(chosen, reward, BUDGETS, runs=1, scores=bench.scores)
            print(name, frontier_table(marks), sep="\n", flush=True)
            found[name] = {
                "model": {"mean": rounded(float(r.mean())), "std": rounded(float(r.std()))},
                "model_scores": bench.scores(base),
                "beta": rounded(beta),
                "margins": margins(marks),
                "marks": [mark.to_json() for mark in marks],
            }
            draw_frontier(name, marks, float(r.mean()))
            drawn |= draw_steered(bench, name, reward, beta)
    save_png(ladder(drawn, across=4, scale=3), PICTURES / "control_steer.png")
    return found


LIMITS = {"brightness": (-0.6, 1.0), "symmetry": (-0.3, 0.02)}
"""A white picture has brightness 1: what climbs out of the panel is no picture."""


def draw_frontier(name: str, marks: list[Mark], mean: float) -> None:
    picture = frontier_figure(
        marks,
        of=["confidence", "diversity"],
        levels={"reward": (mean, "the model's")},
        limits={"reward": LIMITS[name], "diversity": (0.0, 1.1)},
        title=name.capitalize(),
    )
    save_png(picture, HERE / f"fashion_control_{name}.png")


def draw_steered(bench: Bench, name: str, reward: Reward, beta: float) -> dict[str, Tensor]:
    """Twelve noises as they are drawn and as they are steered, by eight jumps each."""
    z = bench.prior(12, torch.Generator().manual_seed(5))
    plain = sample(bench.map, z, uniform(8), label=UNTOLD["label"].expand(12))
    lean = steer(bench.map, reward, z, uniform(8), beta=4 * beta, **UNTOLD).x
    blocks = {"as drawn": plain, f"{name}, steered": lean}
    return {key: x.float() for key, x in blocks.items()}


def run_classes(bench: Bench) -> dict:
    """Four classes from the map that is told none, by a classifier; log Z should be the log of the class's share."""
    found, drawn = {}, {}
    with torch.autocast("cpu", torch.bfloat16):
        z = bench.prior(500, torch.Generator().manual_seed(2))
        base = sample(bench.map, z, uniform(1), label=UNTOLD["label"].expand(500))
        probability = torch.softmax(bench.judge(base), 1).float().mean(0)
        for number in (1, 5, 8, 9):
            name = bench.classes[number]
            g = torch.Generator().manual_seed(3)
            out = tempered_smc(
                bench.map, ClassLogProb(bench.judge, number), z[:64], generator=g, **UNTOLD
            )
            x = out.resample(64, g)
            right = float((bench.judge(x).argmax(1) == number).float().mean())
            found[name] = {
                "share": rounded(right),
                "log_z": rounded(out.log_z),
                "log_z_error": rounded(out.log_z_error),
                "log_share_of_500": rounded(float(probability[number].log())),
                "equivalents": out.cost.equivalents / 64,
                "degenerate": out.degenerate,
                **bench.scores(x),
            }
            print(name, found[name], flush=True)
            drawn[name] = x[torch.randperm(64, generator=g)[:6]].float()
    save_png(ladder(drawn, across=2, scale=2), PICTURES / "control_classes.png")
    return found


def run_restore(bench: Bench) -> dict:
    """Six test images, damaged in three ways; seven draws each. The map is not told what they show."""
    x, found = bench.x[:6], {}
    g = torch.Generator().manual_seed(4)
    damages = {
        "half": Mask((torch.rand(1, 28, 28, generator=g) < 0.5).float()),
        "blurred": gaussian_blur(1.5),
        "shrunk": Downsample(4),
    }
    scale = float(bench.x.std())
    methods = {
        "PiGDM, 16 steps": PiGDM(16, "isotropic", scale=scale, solver=EULER),
        "plug and play, 16 jumps": PlugAndPlay(16, scale=scale),
        "PnP-CM, 4 jumps": PnPCM(4, scale=scale),
        "noise chain, 40 moves": NoisePosterior(40),
    }
    for damage, operator in damages.items():
        clean = operator(x)
        y = clean + 0.05 * torch.randn(clean.shape, generator=g)
        columns = {"truth": x, "seen": _shown(operator(y) if damage == "half" else y)}
        for name, method in methods.items():
            out = restore(
                bench.map,
                y,
                operator,
                0.05,
                shape=(1, 28, 28),
                method=method,
                draws=7,
                generator=g,
                **UNTOLD,
            )
            numbers = restored_scores(out, x)
            numbers["equivalents_per_draw"] = numbers.pop("cost")["equivalents"] / (7 * len(x))
            found[f"{damage}, {name}"] = numbers
            print(damage, name, numbers, flush=True)
            if name.startswith("plug"):
                columns |= {"mean": out.mean, "deviation": 2 * out.std - 1}
            columns[name.split(",")[0]] = out.x[0]
        save_png(ladder(columns), PICTURES / f"control_restore_{damage}.png")
    return found


def _shown(y: Tensor) -> Tensor:
    by = 28 // y.shape[-1]
    return y.repeat_interleave(by, -1).repeat_interleave(by, -2)


def run_edit(bench: Bench) -> dict:
    """A class into another, by the map's own walk up and a jump down; how often the classifier agrees, and what stays."""
    pairs = ((1, 3), (0, 6), (7, 9), (2, 0))
    found, drawn = {}, {}
    for old, new in pairs:
        x = bench.x[bench.label == old][:12]
        n = len(x)
        source, target = ({"label": torch.full((n,), k)} for k in (old, new))
        z = bench.prior(n, torch.Generator().manual_seed(6))
        fresh = sample(bench.map, z, uniform(1), **target)
        title = f"{bench.classes[old]} -> {bench.classes[new]}"
        drawn[bench.classes[old]] = x[:5]
        found[title] = {
            "change_of_a_fresh_sample": rounded(float((fresh - x).square().mean().sqrt()))
        }
        for at in (0.5, 0.7, 0.9):
            out = edit(bench.map, x, source, target, time=at, method=Ode(12), jumps=2)
            found[title][f"time {at}"] = {
                "agreed": rounded(float((bench.judge(out.x).argmax(1) == new).float().mean())),
                "change": rounded(float((out.x - x).square().mean().sqrt())),
                "equivalents": out.cost.equivalents / n,
            }
            if at > 0.5:
                drawn[f"{bench.classes[new]}, {at}"] = out.x[:5]
        print(title, found[title], flush=True)
    save_png(ladder(drawn, per_row=6), PICTURES / "control_edit.png")
    return found


def run_invert(bench: Bench) -> dict:
    """Round trips of test images under their own class, from t = 0 as they are, by every map there is; and how well it draws."""
    x, label, found, judge = bench.x[:128], bench.label[:128], {}, Judge()
    ways = {
        "1 + 1 jumps": Jump(1),
        "8 + 8 jumps": Jump(8),
        "1 jump up, corrected 3 times": FixedPoint(1, iterations=4, jump=True),
        "8 jumps up, each corrected once": FixedPoint(8, iterations=2, jump=True),
        "1 jump, inverted by a fixed point": FixedPoint(1, iterations=50),
        "8 jumps, inverted by fixed points": FixedPoint(8, iterations=20),
        "32 Heun steps up, 8 jumps down": Ode(32),
        "4 steps of jumps both ways, two points kept": BDIA(4),
        "8 steps of jumps both ways, two points kept": BDIA(8),
    }
    for name in ("flow_map", "both_ways", "inverse_long", "inverse_few", "inverse_last"):
        if not (RUNS / name).exists():
            continue
        flow_map = load(RUNS / name).flow_map
        rows = {f"{k} jumps of noise": judge(draw(jump(flow_map, k), 2000)[0]) for k in (1, 4)}
        print(name, rows, flush=True)
        for way_name, way in ways.items():
            back = 8 if isinstance(way, Ode) else None
            out = invert(flow_map, x, way, back=back, label=label)
            rows[way_name] = {
                "error": rounded(float(out.error.mean())),
                "worst": rounded(float(out.error.max())),
                "equivalents": out.cost.equivalents / len(x),
                "noise": {k: rounded(v) for k, v in noise_statistics(out.x).items()},
            }
            print(name, way_name, rows[way_name], flush=True)
        found[name] = rows
    return found


STAGES = {
    "frontier": run_frontier,
    "classes": run_classes,
    "restore": run_restore,
    "edit": run_edit,
    "invert": run_invert,
}


def main() -> None:
    """Run the stages named on the command line, or all; every stage stores what it found."""
    bench = Bench()
    print(f"map: {bench.name}", flush=True)
    for stage in sys.argv[1:] or STAGES:
        began = time.process_time()
        value = STAGES[stage](bench)
        kept = json.loads(STORE.read_text()) if STORE.exists() else {}
        kept[stage] = {
            "map": f"{bench.name}: {bench.about['recipe']['name']}, step {bench.about['step']}",
            "cpu_seconds": round(time.process_time() - began),
            "torch": torch.__version__,
            "found": value,
        }
        STORE.write_text(json.dumps({k: kept[k] for k in STAGES if k in kept}, indent=1) + "\n")


if __name__ == "__main__":
    main()
