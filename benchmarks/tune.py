"""Fashion-MNIST: a one-step map tuned by a reward that is a black box, and what that costs.

    python benchmarks/tune.py            both stages: some ten minutes of a core of its own
    python benchmarks/tune.py evaluate   one stage: tune or evaluate

`flowmaps tune` runs forward-process RL (NFT) on the map `both_ways` of benchmarks/fashion.py; the reward is how small a JPEG
is (benchmarks/compressibility.py), and only its values are used. Measured before and after, in 1, 2 and 4 jumps of the same 1,000
noises: the reward, rewards held out (brightness, symmetry), the Frechet distance to the data in features of the stored
classifier, and its agreement.

Another law is further from the data with any model. How much is known from the data themselves: `data` are real pictures, drawn
with weights exp(beta r) within every class, beta such that they are as compressible as the tuned map's.

Results: benchmarks/tune.json, tune.png (samples) and tune_curves.png (the run). tune_brightness.json is an earlier run, of another
map, whose reward was the mean brightness.
"""

import json
import shutil
import sys
from pathlib import Path

import torch
from compressibility import compressibility

from flowmaps.cli.main import main as flowmaps
from flowmaps.control.rewards import Brightness, Symmetry
from flowmaps.control.tune_rules import centred
from flowmaps.data import load as load_data
from flowmaps.metrics import frechet_distance, load_classifier, moments
from flowmaps.report import ladder, save_png
from flowmaps.sample import sample, uniform
from flowmaps.train import load

HERE, BASE, OUT = Path(__file__).parent, "runs/fashion/both_ways", Path("runs/fashion/tuned")
COUNT = 1000
SETTINGS = (
    f"--method nft --reward {HERE / 'compressibility.py'}:compressibility --held brightness,symmetry --count 60 "
    "--set.adaptive false --set.kl 0 --set.ends 0 --set.diagonal 0.3 --set.compose 0.3 --run.steps 84 --run.lr 2.5e-5 "
    "--run.warmup 5 --run.batch 64 --run.precision bf16 --run.preview-every 21 --run.save-every 4 --run.keep 6"
).split()


def tune() -> None:
    """The run."""
    assert flowmaps(["tune", BASE, *SETTINGS, "--out", str(OUT)]) == 0


class Judge:
    """All that is measured of pictures that come class by class."""

    def __init__(self) -> None:
        self.net = load_classifier(HERE / "fashion_classifier.safetensors")
        data = load_data("fashion-mnist")
        self.x, self.labels = data.batch(torch.arange(len(data)))
        self.real = moments(self.x, self.net.features)
        self.base: dict = {}

    @torch.no_grad()
    def __call__(self, x: torch.Tensor) -> dict:
        fake, label = moments(x, self.net.features), torch.arange(len(x)) % 10
        r = compressibility(x)
        within = centred(r, {"label": label}).square().mean().sqrt()
        found = {
            "reward": float(r.mean()),
            "deviation": float(r.std()),
            "deviation_within_classes": float(within),
            "held_out_brightness": float(Brightness()(x).mean()),
            "held_out_symmetry": float(Symmetry()(x).mean()),
            "frechet": frechet_distance(self.real.mean, self.real.cov, fake.mean, fake.cov),
            "agreement": float((self.net(x).argmax(1) == label).float().mean()),
        }
        return {name: round(value, 4) for name, value in found.items()}

    def tilted(self, reward: float) -> torch.Tensor:
        """Real pictures, class by class, with weights exp(beta r) within their class: as compressible as asked for."""
        r, generator = compressibility(self.x).double(), torch.Generator().manual_seed(0)
        rows = [(self.labels == c).nonzero()[:, 0] for c in range(10)]
        low, high = -200.0, 200.0
        for _ in range(40):
            beta = (low + high) / 2
            weights = [torch.softmax(beta * r[i], 0) for i in rows]
            mean = sum(float(w @ r[i]) for w, i in zip(weights, rows, strict=True)) / 10
            low, high = (beta, high) if mean < reward else (low, beta)
        drawn = [
            i[torch.multinomial(w, COUNT // 10, replacement=True, generator=generator)]
            for w, i in zip(weights, rows, strict=True)
        ]
        return self.x[torch.stack(drawn, 1).flatten()]


@torch.no_grad()
def draw(flow_map, steps: int) -> torch.Tensor:
    """Class-balanced samples; the noise is the same for every map, and no noise of the tuning."""
    noise = torch.randn(COUNT, 1, 28, 28, generator=torch.Generator().manual_seed(20))
    labels = torch.arange(COUNT) % 10
    with torch.autocast("cpu", torch.bfloat16):
        parts = [
            sample(flow_map, noise[i : i + 250], uniform(steps), label=labels[i : i + 250])
            for i in range(0, COUNT, 250)
        ]
    return torch.cat(parts).float()


def evaluate() -> None:
    """Before, after, and the data as compressible."""
    judge, rows, pictures = Judge(), {}, {}
    for name, run in (("before", BASE), ("after", OUT)):
        saved = load(run)
        for steps in (1, 2, 4):
            x, key = draw(saved.flow_map, steps), f"{name}, {steps} step{'s' * (steps > 1)}"
            rows[key] = judge(x)
            if steps != 2:
                pictures[key] = x[:40]
            print(key, rows[key], flush=True)
    (HERE / "tune.json").write_text(json.dumps(value_of(judge, rows, saved), indent=1) + "\n")
    save_png(ladder(pictures, across=5), HERE / "tune.png")
    shutil.copyfile(OUT / "tuning.png", HERE / "tune_curves.png")


def value_of(judge: Judge, rows: dict, saved) -> dict:
    """What is stored: gains in deviations, ratios of distances, and the data as compressible as the tuned map."""
    rows["data"], one = (
        judge(judge.tilted(rows["before, 1 step"]["reward"])),
        rows["before, 1 step"],
    )
    two = one["reward"] + 2 * one["deviation"]
    rows["data, two deviations more compressible than the map before"] = judge(judge.tilted(two))
    summary = {}
    for steps in ("1 step", "2 steps", "4 steps"):
        before, after = rows[f"before, {steps}"], rows[f"after, {steps}"]
        real = rows[f"data, as compressible as after, {steps}"] = judge(
            judge.tilted(after["reward"])
        )
        gain = after["reward"] - before["reward"]
        summary[steps] = {
            "gain_in_deviations": round(gain / before["deviation"], 3),
            "gain_in_deviations_within_classes": round(
                gain / before["deviation_within_classes"], 3
            ),
            "frechet_before": before["frechet"],
            "frechet": after["frechet"],
            "frechet_ratio": round(after["frechet"] / before["frechet"], 3),
            "frechet_of_data_as_compressible": real["frechet"],
        }
    print(json.dumps(summary, indent=1))
    return {
        "samples": COUNT,
        "summary": summary,
        "rows": rows,
        "settings": [word.replace(f"{HERE}/", "benchmarks/") for word in SETTINGS],
        "seconds": round(saved.about["seconds"]),
        "steps": saved.about["step"],
        "curves": json.loads((OUT / "tuning.json").read_text())["rows"],
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
    }


if __name__ == "__main__":
    torch.set_num_threads(1)
    chosen = sys.argv[1:] or ["tune", "evaluate"]
    for stage in chosen:
        {"tune": tune, "evaluate": evaluate}[stage]()
