"""Fashion-MNIST: a flow map against flow matching at equal training time, in features of the stored classifier.

    python benchmarks/fashion.py            all stages: about 70 minutes on two cores, one thread a run
    python benchmarks/fashion.py evaluate   one stage: teacher, baseline, flow_map or evaluate

One model is trained by flow matching first (`teacher`). From its weights, the same time is spent twice: on more flow matching
(`baseline`) and on Lagrangian distillation (`flow_map`). Both have had the same time then, the teacher's included. Results and pictures: benchmarks/fashion.json, benchmarks/fashion*.png.
"""

import json
import platform
import sys
import time
from pathlib import Path

import torch

from flowmaps.data import load as load_data
from flowmaps.metrics import frechet_distance, load_classifier, moments
from flowmaps.report import image_grid, ladder, save_png
from flowmaps.sample import CFG, sample, solve, uniform
from flowmaps.train import Config, GuidanceConfig, Run, load, train
from flowmaps.train.hooks import Progress

HERE = Path(__file__).parent
RUNS = Path("runs/fashion")
NET = {"data": "fashion-mnist", "net": "dit-small", "patch": 7}
TEACHER_STEPS = 7000
SECOND_HALF = 1200.0  # seconds, for each of the two
COMMON = {
    "batch": 64,
    "warmup": 200,
    "ema": (0.05,),
    "precision": "bf16",
    "compile": "yes",
    "save_every": 2000,
}


def configs() -> dict[str, Config]:
    """The three runs: the teacher is counted in steps, the other two in equal seconds."""
    teacher = Config(
        recipe="flow_matching",
        guidance=GuidanceConfig(scale=1.0, dropout=0.1),
        run=Run(steps=TEACHER_STEPS, lr=1e-3, **COMMON),
        **NET,
    )
    if not (RUNS / "teacher" / "checkpoints").exists():
        return {"teacher": teacher}
    second_half = Run(steps=10**6, seconds=SECOND_HALF, lr=5e-4, **COMMON)
    return {
        "teacher": teacher,
        "baseline": teacher.model_copy(update={"init": str(RUNS / "teacher"), "run": second_half}),
        "flow_map": Config(
            recipe="lmd",
            set={"through": "target", "starts": 0.4, "ends": 0.4, "compose": 0.5},
            teacher=str(RUNS / "teacher"),
            guidance=GuidanceConfig(scale=GUIDANCE, dropout=0.1),
            run=second_half,
            **NET,
        ),
    }


GUIDANCE = 1.5
"""Guidance scale folded into the map; the baseline is measured at every scale of `SCALES`, and its best one is compared."""
SCALES = (1.0, 1.25, 1.5, 2.0)


@torch.no_grad()
def draw(walk, count: int) -> tuple[torch.Tensor, float]:
    """Class-balanced samples and the seconds that they took; the noise is the same for every model."""
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(count, 1, 28, 28, generator=generator)
    labels = torch.arange(count) % 10
    began = time.perf_counter()
    with torch.autocast("cpu", torch.bfloat16):
        parts = [walk(noise[i : i + 250], labels[i : i + 250]) for i in range(0, count, 250)]
    return torch.cat(parts).float(), time.perf_counter() - began


def walks(baseline, flow_map) -> dict:
    """Every sampler that is compared: name -> (function of noise and labels, NFE)."""
    found = {}
    for k in (1, 2, 4, 8):
        found[f"flow_map {k}"] = (lambda z, y, k=k: sample(flow_map, z, uniform(k), label=y), k)
    for scale in SCALES:
        guided = CFG(baseline, scale, {"label": 10})
        found[f"baseline heun 64, scale {scale:g}"] = (
            lambda z, y, g=guided: solve(g.velocity, z, uniform(64), g.interpolant, label=y),
            128 if scale == 1 else 256,
        )
    for k in (1, 4, 16):
        found[f"baseline heun {k}, scale 1"] = (
            lambda z, y, k=k: solve(
                baseline.velocity, z, uniform(k), baseline.interpolant, label=y
            ),
            2 * k,
        )
    return found


def evaluate(count: int) -> None:
    """Frechet distance in classifier features to all 60,000 training images; accuracy is the classifier's."""
    net = load_classifier(HERE / "fashion_classifier.safetensors")
    data = load_data("fashion-mnist")
    real = moments(data.batch(torch.arange(len(data)))[0], net.features)
    runs = {name: load(RUNS / name) for name in ("teacher", "baseline", "flow_map")}
    rows, pictures = [], {}
    for name, (walk, nfe) in walks(runs["baseline"].flow_map, runs["flow_map"].flow_map).items():
        x, seconds = draw(walk, count)
        fake = moments(x, net.features)
        with torch.no_grad():
            right = (net(x).argmax(1) == torch.arange(count) % 10).float().mean()
        distance = frechet_distance(real.mean, real.cov, fake.mean, fake.cov)
        rows.append(
            {
                "sampler": name,
                "nfe": nfe,
                "frechet": round(float(distance), 4),
                "accuracy": round(float(right), 4),
                "seconds": round(seconds, 2),
            }
        )
        print(rows[-1], flush=True)
        pictures[name] = x[:20]
    store(rows, {name: run.about for name, run in runs.items()}, count)
    shown = ("flow_map 1", "flow_map 2", "flow_map 4", "baseline heun 64, scale 1")
    save_png(ladder({key: pictures[key] for key in shown}, across=4), HERE / "fashion_ladder.png")
    x, _ = draw(lambda z, y: sample(runs["flow_map"].flow_map, z, uniform(1), label=y), 100)
    save_png(image_grid(x, columns=10), HERE / "fashion_one_step.png")


def store(rows: list, runs: dict, count: int) -> None:
    """Write fashion.json."""
    value = {
        "samples": count,
        "rows": rows,
        "torch": torch.__version__,
        "machine": platform.processor() or platform.machine(),
        "threads": torch.get_num_threads(),
        "runs": {
            k: {"steps": v["step"], "seconds": round(v["seconds"]), "recipe": v["recipe"]["name"]}
            for k, v in runs.items()
        },
    }
    (HERE / "fashion.json").write_text(json.dumps(value, indent=1) + "\n")


def main() -> None:
    """Run the stages named on the command line, or all."""
    for stage in sys.argv[1:] or ["teacher", "baseline", "flow_map", "evaluate"]:
        if stage == "evaluate":
            evaluate(10_000)
        else:
            out = RUNS / stage
            train(
                configs()[stage],
                out,
                resume=(out / "config.json").exists(),
                hooks=[Progress(stage, every=30)],
            )


if __name__ == "__main__":
    main()
