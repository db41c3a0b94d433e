"""Fashion-MNIST: a flow map against flow matching at equal training time, in features of the stored classifier.

    python benchmarks/fashion.py            all stages: about 70 minutes on two cores, one thread a run
    python benchmarks/fashion.py evaluate   one stage: teacher, baseline, flow_map or evaluate
    python benchmarks/fashion.py both_ways inverse inverse_long inverse_few inverse_eight inverse_last
                                           the maps of fashion_control.py and tune.py: 365 minutes more

One model is trained by flow matching first (`teacher`). From its weights, the same time is spent twice: on more flow
matching (`baseline`) and on compositional distillation with the guidance folded in (`flow_map`). Both have had the same time
then, the teacher's included. The baseline is walked with and without classifier-free guidance, at the scale that suits it
best. Results and pictures: benchmarks/fashion.json, benchmarks/fashion*.png. In the stored results the map had 840 seconds of
the second half and the baseline 1,200, beside other work on the machine; the seconds of every run are in the json.

`both_ways` is a map that goes up to the noise as well and comes back; `inverse`, `inverse_long`, `inverse_few`,
`inverse_eight` and `inverse_last` are it after stages where half or more of the rows do, in the last three by the jumps of
samplers of few steps. Their teacher had 3,600 steps in the stored results of fashion_control.json and tune.json, and
`inverse_eight` was stopped after 3,923 of its 5,400 seconds.
"""

import json
import sys
import time
from pathlib import Path
from typing import Any

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
UNCOMPILED = COMMON | {"compile": "no", "save_every": 500}


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
    down = {"anchor": "teacher", "channels": 0, "diagonal": 0.5, "starts": 0.3, "ends": 0.3}
    both = Config(
        recipe="psd",
        set=down | {"diagonal": 0.3, "both": True, "back": 0.15},
        teacher=str(RUNS / "teacher"),
        guidance=GuidanceConfig(scale=GUIDANCE, dropout=0.2),
        run=Run(steps=10**6, seconds=BOTH_WAYS, lr=7e-4, **UNCOMPILED),
        skip="yes",
        **NET,
    )
    return {
        "teacher": teacher,
        "baseline": teacher.model_copy(update={"init": str(RUNS / "teacher"), "run": second_half}),
        "flow_map": Config(
            recipe="psd",
            set=down,
            teacher=str(RUNS / "teacher"),
            guidance=GuidanceConfig(scale=GUIDANCE, dropout=0.1),
            run=second_half,
            **NET,
        ),
        "both_ways": both,
        "inverse": _returning(both, "both_ways", INVERSE, diagonal=0.15, back=0.5),
        "inverse_long": _returning(both, "inverse", LONGER, diagonal=0.1, back=0.6),
        "inverse_few": _returning(
            both, "inverse_long", FEW, diagonal=0.1, back=0.6, jumps=(1, 2, 4, 8)
        ),
        "inverse_eight": _returning(
            both, "inverse_few", EIGHT, 4e-4, diagonal=0.1, back=0.75, jumps=(1, 8)
        ),
        "inverse_last": _returning(
            both, "inverse_eight", LAST, 3e-4, diagonal=0.08, back=0.84, jumps=(1, 8, 8, 8, 8, 8)
        ),
    }


def _returning(
    both: Config, start: str, seconds: float, lr: float = 5e-4, **settings: Any
) -> Config:
    """A stage of a map of both directions in which half of the rows and more go up and come back."""
    run = Run(steps=10**6, seconds=seconds, lr=lr, **COMMON | {"warmup": 50})
    settings = both.set | {"starts": 0.5, "ends": 0.5} | settings
    return both.model_copy(update={"set": settings, "init": str(RUNS / start), "run": run})


BOTH_WAYS, INVERSE, LONGER, FEW, EIGHT, LAST = 2400.0, 4200.0, 2700.0, 4200.0, 5400.0, 3000.0
"""Seconds of the map of both directions, and of the stages in which it learns to come back."""
GUIDANCE = 1.5
"""Guidance scale folded into the map."""
SCALES = (1.0, 1.25, 1.5, 2.0)
"""Scales among which the baseline's best is chosen, with 12 Heun steps and 1,000 samples."""


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


def walk(model, steps: int, scale: float = 1.0):
    """The baseline's sampler: Heun steps of the (guided) velocity."""
    guided = CFG(model, scale, {"label": 10})
    return lambda z, y: solve(guided.velocity, z, uniform(steps), guided.interpolant, label=y)


def jump(model, steps: int):
    """The flow map's sampler."""
    return lambda z, y: sample(model, z, uniform(steps), label=y)


class Judge:
    """Frechet distance in classifier features to all 60,000 training images, and the classifier's agreement."""

    def __init__(self) -> None:
        self.net = load_classifier(HERE / "fashion_classifier.safetensors")
        data = load_data("fashion-mnist")
        self.real = moments(data.batch(torch.arange(len(data)))[0], self.net.features)

    @torch.no_grad()
    def __call__(self, x: torch.Tensor) -> dict[str, float]:
        fake = moments(x, self.net.features)
        right = (self.net(x).argmax(1) == torch.arange(len(x)) % 10).float().mean()
        distance = frechet_distance(self.real.mean, self.real.cov, fake.mean, fake.cov)
        return {"frechet": round(float(distance), 4), "accuracy": round(float(right), 4)}


def evaluate(count: int) -> None:
    """Sample, score, store and draw."""
    judge = Judge()
    runs = {name: load(RUNS / name) for name in ("teacher", "baseline", "flow_map")}
    base, model = runs["baseline"].flow_map, runs["flow_map"].flow_map
    search = {scale: judge(draw(walk(base, 12, scale), 1000)[0])["frechet"] for scale in SCALES}
    best = min(search, key=lambda scale: search[scale])
    print("baseline by guidance scale:", search, flush=True)
    plan = {f"flow map, {k} step{'s' * (k > 1)}": (jump(model, k), k) for k in (1, 2, 4, 8)}
    for k, scale in ((4, best), (64, 1.0), (64, best)):
        calls = 2 * k * (1 if scale == 1 else 2)
        plan[f"baseline, {k} Heun steps, scale {scale:g}"] = (walk(base, k, scale), calls)
    rows, pictures = [], {}
    for name, (sampler, nfe) in plan.items():
        x, seconds = draw(sampler, count)
        rows.append({"sampler": name, "nfe": nfe, **judge(x), "seconds": round(seconds, 2)})
        print(rows[-1], flush=True)
        pictures[name] = x[:20]
    store(rows, search, {name: run.about for name, run in runs.items()}, count)
    shown = [name for name in plan if "8 steps" not in name and "4 Heun" not in name[:20]]
    save_png(ladder({key: pictures[key] for key in shown}, across=4), HERE / "fashion_ladder.png")
    save_png(image_grid(draw(jump(model, 1), 100)[0], columns=10), HERE / "fashion_one_step.png")


def store(rows: list, search: dict, runs: dict, count: int) -> None:
    """Write fashion.json."""
    value = {
        "samples": count,
        "rows": rows,
        "baseline_frechet_by_scale": search,
        "guidance_in_map": GUIDANCE,
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "runs": {
            name: {
                "recipe": about["recipe"],
                "steps": about["step"],
                "seconds": round(about["seconds"]),
            }
            for name, about in runs.items()
        },
    }
    (HERE / "fashion.json").write_text(json.dumps(value, indent=1) + "\n")


def main() -> None:
    """Run the stages named on the command line, or all."""
    for stage in sys.argv[1:] or ["teacher", "baseline", "flow_map", "evaluate"]:
        if stage == "evaluate":
            evaluate(1000)
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
