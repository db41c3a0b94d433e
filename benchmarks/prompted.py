"""From a prompt to a picture and to a sound: a flow map of each kind, by jumps and by its own walk, in one table.

    python benchmarks/prompted.py                    trains what runs/prompted lacks, then measures all four
    python benchmarks/prompted.py tones speech       these alone; what is stored of the others stays

All four learn from data by `default`, one core each: scenes and emoji by their captions, instruments and spoken digits by their
names; scenes and digits in more than one stage, and the last of scenes is `push_forward` along the walk of the map before it.
Every row is drawn from the same noise; the walk is 64 Heun steps along the map's own velocity. `one` is the median time from
what is asked for to one result, the model being loaded, and `round_trip` what the codec alone loses.
Writes prompted.json, its table in docs/prompts.md, docs/pictures/prompted_*.png and docs/sounds/*.wav. Needs espeak-ng and the
font of emoji (Debian: apt-get install espeak-ng fonts-noto-color-emoji).
"""

import json
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from histories import commit, history

from flowmaps.cli.compare import conditions
from flowmaps.cli.demo import machine_facts, one_sample
from flowmaps.cli.draw import Model, Way, data_of, open_model
from flowmaps.cli.scores import judge
from flowmaps.data.captions import Captioned
from flowmaps.data.encoded import Encoded
from flowmaps.data.sounds import in_a_row, sound_bytes
from flowmaps.metrics.sound import log_spectral_distance
from flowmaps.report import ladder, save_png
from flowmaps.report.images import told_grid
from flowmaps.report.sounds import as_images
from flowmaps.report.style import write_atomically
from flowmaps.train import Config, GuidanceConfig, Run, train
from flowmaps.train.hooks import Progress

HERE, RUNS = Path(__file__).parent, Path("runs/prompted")
DOCS, STORE = HERE.parent / "docs", HERE / "prompted.json"
WAYS = (Way(1), Way(2), Way(4), Way(64, "heun"))
BEGIN, END = "<!-- the four runs -->", "<!-- end -->"


@dataclass(frozen=True)
class Plan:
    """A run of one or more stages, and how it is judged: `n` samples on each of `judged`, of whose scores these are kept."""

    stages: tuple[Config, ...]
    n: int
    scores: dict[str, str]
    shown: tuple[int, ...] = tuple(range(10))
    judged: tuple[tuple[str, str | None], ...] = (("", None),)
    features: Path | None = None


def _run(seconds: float, lr: float, batch: int) -> Run:
    return Run(
        steps=10**6, seconds=seconds, lr=lr, batch=batch, ema=(0.03,), precision="bf16", compile="yes",
        save_every=2000,
    )  # fmt: skip


# Captions differ from row to row and clips from each other: to pool their velocities (as `default` does) gives nothing here.
OWN = {"velocity": "conditional"}
CLIPS = OWN | {"mean": 0.5, "std": 1.6, "starts": 0.2}  # a name shows through noise of 95 %
SOUND = {"recipe": "default", "set": CLIPS, "codec": "advance", "net": "dit-tiny"}
NET = {"net": "dit-tiny", "patch": 8}
IMAGE = NET | {"recipe": "default", "set": OWN}
LED = {"data": "shapes", "guidance": GuidanceConfig(scale=2.0, dropout=0.1, low=0.3)}
PLANS = {
    "shapes": Plan(
        (
            Config(run=_run(3000, 2e-3, 64), **LED | IMAGE),
            Config(run=_run(3900, 1.5e-3, 64), **LED | IMAGE | {"set": OWN | {"starts": 0.1}}),
            Config(
                recipe="push_forward",
                set={"laws": 0, "predict": "x0", "starts": 0.5, "ends": 0.3},
                data="shapes",
                teacher=str(RUNS / "shapes_2"),
                run=_run(5400, 1e-3, 64),
                **NET,
            ),
        ),
        300,
        {"adherence": "adherence", "adherence, new pairs": "new pairs"},
        judged=(("", "shapes:test"), (", new pairs", "shapes:held-out")),
    ),
    "emoji": Plan(
        (Config(data="emoji", run=_run(2700, 2e-3, 64), **IMAGE),),
        300,
        {"found": "the right sign is the nearest"},
        shown=tuple(range(40, 280, 24)),
    ),
    "tones": Plan(
        (Config(data="tones", run=_run(2700, 2e-3, 32), **SOUND),),
        264,
        {"frechet": "Frechet", "instrument": "instrument", "in_tune": "in tune"},
        shown=(33, 37, 42, 47, 51, 54, 58, 63, 65, 2),
        features=HERE / "tones_classifier.safetensors",
    ),
    "speech": Plan(
        (
            Config(data="speech", run=_run(1500, 2e-3, 32), **SOUND),
            Config(data="speech", run=_run(1200, 5e-4, 32), **SOUND),
        ),
        300,
        {"frechet": "Frechet", "accuracy": "digit"},
        features=HERE / "speech_classifier.safetensors",
    ),
}


def _trained(name: str, stages: tuple[Config, ...]) -> Path:
    """The run of the last stage; each starts as the one before."""
    before = None
    for i, config in enumerate(stages, 1):
        folder = RUNS / (name if i == len(stages) else f"{name}_{i}")
        if not (folder / "done").exists():
            config = config.model_copy(update={"init": before})
            train(config, folder, resume=(folder / "config.json").exists(), hooks=[Progress(name)])
            (folder / "done").touch()
        before = str(folder)
    return Path(f"{before}")


@torch.no_grad()
def measured(model: Model, plan: Plan) -> dict[str, Any]:
    """The rows of one run: scores and seconds per sample by every way."""
    asked = []
    for suffix, name in plan.judged:
        data = data_of(model, name)
        asked.append((suffix, *conditions(model, data, plan.n, 0, {}), judge(data, plan.features)))
    rows = []
    for way in WAYS:
        row: dict[str, Any] = {"way": str(way), "network_calls": way.nfe}
        spent = 0.0
        for suffix, noise, cond, labels, scores in asked:
            began = time.perf_counter()
            x = _drawn(model, way, noise, cond)
            spent += time.perf_counter() - began
            quick = scores.quick(x, labels)
            row |= {k + suffix: v for k, v in quick.items() if k + suffix in plan.scores}
        rows.append(row | {"seconds_each": spent / plan.n / len(asked)})
        print(rows[-1], flush=True)
    return {
        "n": plan.n,
        "rows": rows,
        "one": one_sample(model, WAYS[-1]),
        "round_trip": _round_trip(model),
        "runs": history(model),
        "machine": machine_facts(model.device),
        "torch": torch.__version__,
        "commit": commit(),
    }


def _drawn(model: Model, way: Way, noise: torch.Tensor, cond: Any, batch: int = 60) -> torch.Tensor:
    parts = [
        way(model.flow_map, x, **{k: v.split(batch)[i] for k, v in cond.items()})
        for i, x in enumerate(noise.split(batch))
    ]
    return model.saved.decode(torch.cat(parts)).cpu()


def _round_trip(model: Model) -> dict[str, float] | None:
    """What a clip loses on its way through the codec: largest error, and spectral distance in dB."""
    codec = model.saved.codec
    if codec is None:
        return None
    data = data_of(model, split="test")
    assert isinstance(data, Encoded)
    x = data.data.batch(torch.arange(50))[0]
    again = codec.decode(codec.encode(x))
    return {
        "largest_error": float((again - x).abs().max()),
        "log_spectral_distance": float(log_spectral_distance(x, again).mean()),
    }


def pictured(name: str, model: Model, plan: Plan) -> None:
    """The same noises by every way, beside what was asked for; of clips their spectrograms, and they themselves."""
    data = data_of(model, plan.judged[0][1])
    rows = torch.tensor(plan.shown)
    noise, cond, _ = conditions(model, data, int(rows.max()) + 1, 0, {})
    drawn = {
        f"{way.steps} {'step' if way.solver else 'jump'}{'s' * (way.steps > 1)}": _drawn(
            model, way, noise[rows], {k: v[rows] for k, v in cond.items()}
        )
        for way in WAYS
    }
    file = DOCS / "pictures" / f"prompted_{name}.png"
    if model.saved.rate is None:
        assert isinstance(data, Captioned)
        told = zip(data.captions(rows), torch.stack(list(drawn.values()), 1), strict=True)
        save_png(told_grid(list(told), heads=list(drawn)), file)
        return
    real = model.saved.decode(data.batch(rows)[0])
    heard = drawn | {"data": real}
    save_png(ladder({k: as_images(x) for k, x in heard.items()}, across=2), file)
    for way in ("1 jump", "64 steps", "data"):
        clips = sound_bytes(in_a_row(heard[way][:10:2], model.saved.rate), model.saved.rate)
        write_atomically(DOCS / "sounds" / f"{name}_{way.replace(' ', '_')}.wav", clips)


def table(found: dict[str, Any]) -> str:
    """The stored results in markdown."""
    lines = ["| run | score | " + " | ".join(str(way) for way in WAYS) + " |", "|---|---|" + "---|" * len(WAYS)]  # fmt: skip
    for name, told in found.items():
        for key, words in PLANS[name].scores.items():
            values = [row[key] for row in told["rows"]]
            cells = [f"{v:.1f}" if key == "frechet" else f"{100 * v:.1f} %" for v in values]
            lines.append(f"| `{name}` | {words} | " + " | ".join(cells) + " |")
        jump, walk = told["one"]["jump"], told["one"]["walk"]
        ends = f"{1000 * jump:.0f} ms", f"{1000 * walk:.0f} ms, {walk / jump:.0f} x"
        lines.append(f"| | one result, from what is asked for | {ends[0]} | | | {ends[1]} |")
    return "\n".join(lines)


def main(names: list[str]) -> None:
    """Train, measure, store, draw."""
    torch.set_num_threads(1)
    for name in names or PLANS:
        plan = PLANS[name]
        model = open_model(_trained(name, plan.stages))
        result = measured(model, plan)
        pictured(name, model, plan)
        stored = json.loads(STORE.read_text()) if STORE.exists() else {}
        kept = {k: (stored | {name: result})[k] for k in PLANS if k in stored or k == name}
        write_atomically(STORE, (json.dumps(kept, indent=1) + "\n").encode())
        page = DOCS / "prompts.md"
        before, _, rest = page.read_text().partition(BEGIN)
        shown = f"{before}{BEGIN}\n{table(kept)}\n{END}{rest.partition(END)[2]}"
        write_atomically(page, shown.encode())


if __name__ == "__main__":
    main(sys.argv[1:])
