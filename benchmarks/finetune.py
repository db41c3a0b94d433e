"""A few-step map of the digits 0 to 4 is taught 5 to 9: by `flowmaps finetune`, naively, and by retraining, at equal cost.

Writes finetune.json. Equal cost is equal forward-pass equivalents times samples (flowmaps.learn.cost). Every map is drawn in
1, 2 and 4 jumps; Frechet distances in pixels to all real digits of each half, and the share of samples that a support
vector machine recognises as the class that was asked for. Some minutes on one core.
"""

# %% the two halves, as a user has them: folders of pictures
import json
import os
import sys
import tempfile
import time
from pathlib import Path

import torch
from PIL import Image

from flowmaps import recipes
from flowmaps.cli.main import main
from flowmaps.data import TensorData, load
from flowmaps.learn.cost import fpe
from flowmaps.metrics import fit_agreement, frechet_distance, moments
from flowmaps.metrics.agreement import DIGITS_GAMMA
from flowmaps.report.change import drawn
from flowmaps.train import checkpoint

FAST = os.environ.get("FLOWMAPS_FAST") == "1"
STEPS, BATCH, COUNT = (6 if FAST else 400), 128, (100 if FAST else 2000)
HERE, PLACE = Path(__file__).parent, Path(tempfile.mkdtemp())

digits = load("digits")
x, labels = digits.batch(torch.arange(len(digits)))
recognise = fit_agreement(x, labels, gamma=DIGITS_GAMMA).predict
for image, label, k in zip(x, labels.tolist(), range(len(x)), strict=True):
    folder = PLACE / ("old" if label < 5 else "new") / str(label)
    folder.mkdir(parents=True, exist_ok=True)
    Image.fromarray(((image[0] + 1) * 127.5).round().byte().numpy()).save(folder / f"{k}.png")


# %% maps
OURS = recipes.get("push_forward", diagonal=0.25)
NAIVE = round(STEPS * fpe(OURS) / fpe(recipes.get("flow_matching")))
RUN = [
    f"--run.batch={BATCH}",
    "--run.precision=fp32",
    "--run.save-every=100000",
    "--run.preview-every=100000",
]
WHOLE = ["push_forward", "--set.diagonal=0.25", "--net=mlp-tiny", *RUN]


def run(name: str, *command: str) -> Path:
    """A run of the command line, and its processor seconds."""
    begin = time.process_time()
    if main([*command, f"--out={PLACE / name}"]) != 0:
        sys.exit(f"{name} failed")
    seconds[name] = round(time.process_time() - begin, 1)
    return PLACE / name


seconds: dict[str, float] = {}
old = run("before", "train", *WHOLE, f"--data={PLACE}/old", f"--run.steps={2 * STEPS}")
tune = ["finetune", str(old), f"--data={PLACE}/new", *RUN, "--run.lr=1e-3"]
plain = ["--recipe=flow_matching", f"--run.steps={NAIVE}"]
run("finetune", *tune, f"--run.steps={STEPS}")
run("naive", *tune, *plain, "--change.keep=0")
run("retrained on the new", "train", *WHOLE, f"--data={PLACE}/new", f"--run.steps={STEPS}")


# %% quality
def quality(name: str) -> list[dict]:
    saved = checkpoint.load(PLACE / name)
    rows = []
    for half, classes in (("new", range(5, 10)), ("old", range(5))):
        wanted = torch.tensor(list(classes))[torch.arange(COUNT) % 5]
        known = [
            saved.classes.index(str(k)) if str(k) in saved.classes else None for k in range(10)
        ]
        if any(known[k] is None for k in classes):
            continue
        told = {"label": torch.tensor([known[k] for k in wanted.tolist()])}
        here = TensorData(half, x[labels.unsqueeze(1).eq(torch.tensor(list(classes))).any(1)])
        real = moments(here.x)
        for steps in (1, 2, 4):
            samples = drawn(saved.flow_map, saved.shape, steps, told, COUNT)
            found = moments(samples)
            distance = frechet_distance(found.mean, found.cov, real.mean, real.cov)
            right = float((recognise(samples) == wanted).double().mean())
            rows.append(
                {
                    "map": name,
                    "data": half,
                    "steps": steps,
                    "frechet": round(distance, 4),
                    "accuracy": round(right, 4),
                }
            )
    return rows


rows = [row for name in seconds for row in quality(name)]
for row in rows:
    print(row)
if not FAST:
    about = {
        "task": "digits 0-4 taught 5-9; mlp-tiny, batch 128", "steps": STEPS, "naive_steps": NAIVE,
        "fpe": {"push_forward, diagonal": fpe(OURS), "flow_matching": fpe(recipes.get("flow_matching"))},
        "samples": COUNT, "cpu_seconds": seconds, "rows": rows,
    }  # fmt: skip
    (HERE / "finetune.json").write_text(json.dumps(about, indent=1) + "\n")
