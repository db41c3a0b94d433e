"""A few-step map of the digits 0 to 4 is taught 5 to 9: by `flowmaps finetune`, naively, and by retraining, at equal cost.

Writes finetune.json. Equal cost is equal forward-pass equivalents times samples (flowmaps.learn.cost): the naive fine-tune is
regression of the velocity on the new data alone, its steps are cheaper and so there are more of them; retraining starts from
random weights, sees the new data alone and learns by the recipe of the map. Every map is drawn in 1, 2 and 4 jumps; Frechet
distances in pixels to all real digits of each half, and the share of samples that a support vector machine recognises as the
class that was asked for. Mean of SEEDS of everything but the map before, and the error of that mean. About fifteen minutes of one
core; what lies in runs/finetune already is used as it is.
"""

# %% the halves, as a user has them: folders of pictures
import json
import os
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path
from statistics import mean, stdev

import torch
from PIL import Image

from flowmaps import recipes
from flowmaps.cli.main import main
from flowmaps.data import load
from flowmaps.learn.cost import fpe
from flowmaps.metrics import fit_agreement, frechet_distance, moments
from flowmaps.metrics.agreement import DIGITS_GAMMA
from flowmaps.report.change import STEPS, drawn
from flowmaps.train import checkpoint

FAST = os.environ.get("FLOWMAPS_FAST") == "1"
LENGTH, BATCH, COUNT, SEEDS = (6, 128, 100, (0, 1)) if FAST else (2000, 128, 2000, (0, 1, 2))
NET = "mlp-tiny" if FAST else "mlp-small"
HERE = Path(__file__).parent
PLACE = Path(tempfile.mkdtemp()) if FAST else HERE.parent / "runs" / "finetune"
HALVES = {"new": range(5, 10), "old": range(5)}

digits = load("digits")
x, labels = digits.batch(torch.arange(len(digits)))
recognise = fit_agreement(x, labels, gamma=DIGITS_GAMMA).predict
for image, label, k in zip(x, labels.tolist(), range(len(x)), strict=True):
    folder = PLACE / ("old" if label < 5 else "new") / str(label)
    folder.mkdir(parents=True, exist_ok=True)
    picture = Image.fromarray(((image[0] + 1) * 127.5).round().byte().numpy())
    picture.save(folder / f"{k}.png")


# %% maps, each by one command
PLAIN = fpe(recipes.get("flow_matching"))
NAIVE = round(LENGTH * fpe(recipes.get("default")) / PLAIN)
BEFORE = LENGTH // 2
# the velocity is what naive fine-tuning regresses: on a map that predicts the image its errors would be divided by s
READ = "--set.predict=velocity"
WHOLE = ["train", "default", READ, f"--net={NET}", f"--run.steps={LENGTH}"]
TUNE = ["finetune", f"{PLACE}/before", f"--data={PLACE}/new"]
MAPS = {
    "before": [*WHOLE, f"--data={PLACE}/old", f"--run.steps={BEFORE}"],
    "finetune": [*TUNE, READ, f"--run.steps={LENGTH}"],
    "naive": [*TUNE, "--recipe=flow_matching", f"--run.steps={NAIVE}", "--change.keep=0"],
    "retrained on the new": [*WHOLE, f"--data={PLACE}/new"],
}
RUN = [
    f"--run.batch={BATCH}",
    "--run.precision=fp32",
    "--run.save-every=100000",
    "--run.preview-every=100000",
]


def make(name: str, seed: int) -> float:
    """Run the command of a map unless it has been run; its processor seconds."""
    begin = time.process_time()
    place = PLACE / (name if name == "before" else f"{name}-{seed}")
    note = place / "cpu_seconds"
    if note.exists():
        return float(note.read_text())
    if main([*MAPS[name], *RUN, f"--run.seed={seed}", f"--out={place}"]) != 0:
        sys.exit(f"{name} failed")
    note.write_text(f"{time.process_time() - begin:.1f}")
    return float(note.read_text())


# %% quality
def quality(name: str) -> dict[tuple[str, int], tuple[float, float]]:
    """Frechet distance and share recognised, by half and steps, of the halves that a map knows."""
    saved, found = checkpoint.load(PLACE / name), {}
    for half, classes in HALVES.items():
        wanted = torch.tensor(list(classes))[torch.arange(COUNT) % 5]
        if not {str(k) for k in classes} <= set(saved.classes):
            continue
        told = {"label": torch.tensor([saved.classes.index(str(k)) for k in wanted.tolist()])}
        real = moments(x[torch.isin(labels, torch.tensor(list(classes)))])
        for steps in STEPS:
            samples = drawn(saved.flow_map, saved.shape, steps, told, COUNT)
            here = moments(samples)
            distance = frechet_distance(here.mean, here.cov, real.mean, real.cov)
            right = float((recognise(samples) == wanted).double().mean())
            found[half, steps] = (distance, right)
    return found


seconds: defaultdict[str, list[float]] = defaultdict(list)
values: defaultdict[tuple[str, str, int], list[tuple[float, float]]] = defaultdict(list)
for seed in SEEDS:
    for name in MAPS:
        if seed == SEEDS[0] or name != "before":
            seconds[name].append(make(name, seed))
            place = name if name == "before" else f"{name}-{seed}"
            for (half, steps), pair in quality(place).items():
                values[name, half, steps].append(pair)
                print(f"{place}: {half}, {steps} steps: {pair[0]:.3f}, {pair[1]:.1%}", flush=True)


def summary(numbers: list[float]) -> dict[str, float]:
    error = stdev(numbers) / len(numbers) ** 0.5 if len(numbers) > 1 else 0.0
    return {"mean": round(mean(numbers), 4), "error": round(error, 4)}


rows = [
    {"map": name, "data": half, "steps": steps}
    | {"frechet": summary([a for a, _ in pairs]), "accuracy": summary([b for _, b in pairs])}
    for (name, half, steps), pairs in values.items()
]
for row in rows:
    print(row)


# %% the bars
def of(name: str, half: str, steps: int, what: str) -> float:
    return next(
        r[what]["mean"] for r in rows if (r["map"], r["data"], r["steps"]) == (name, half, steps)
    )


worse = [
    f"{half}, {steps} steps, {what}"
    for half in HALVES
    for steps in STEPS
    for what, sign in (("frechet", 1), ("accuracy", -1))
    if sign * of("finetune", half, steps, what) > sign * of("naive", half, steps, what)
]
retrained = of("retrained on the new", "new", 1, "frechet")
ratio = round(of("finetune", "new", 1, "frechet") / retrained, 3)
print(
    f"one step, new data: Frechet distance {ratio} x that of retraining; worse than naive: {worse}"
)
if not FAST:
    about = {
        "task": f"digits 0-4 taught 5-9; {NET}, batch {BATCH}, learning rate 1e-3",
        "steps": {name: {"before": BEFORE, "naive": NAIVE}.get(name, LENGTH) for name in MAPS},
        "fpe": {"default": fpe(recipes.get("default")), "flow_matching": PLAIN},
        "samples": COUNT, "seeds": list(SEEDS), "cpu_seconds": seconds, "one_step_to_retrained": ratio,
        "worse_than_naive": worse, "rows": rows,
    }  # fmt: skip
    (HERE / "finetune.json").write_text(json.dumps(about, indent=1) + "\n")
