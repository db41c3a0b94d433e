"""Learned restorers of digits beside those that learn nothing: half of the pixels lost, or a blur.

    python benchmarks/restore_learned.py FOLDER [--seconds 90]

Trains in FOLDER, where nothing is there, a map of the digits (`push_forward` after a teacher) and a restorer of each kind beside it
for each damage, and restores 100 test digits, 16 draws of each. Stores benchmarks/restore_learned.json: peak signal-to-noise ratios
of the mean and of draws, residual, coverage, and forward-pass equivalents per draw (a backward pass counts two).
"""

import argparse
import contextlib
import io
import json
from pathlib import Path
from typing import Any

import torch

from flowmaps.cli.main import main as flowmaps

HERE = Path(__file__).parent
DAMAGES = {"half of the pixels lost": ["--damage", "mask"], "blurred": ["--damage", "blur"]}
METHODS = {
    "VFM": ["--method", "vfm"],
    "CoSIGN, 1 jump": ["--method", "cosign", "--steps", "1"],
    "CoSIGN, 2 jumps": ["--method", "cosign", "--steps", "2"],
    "plug and play, 2 jumps": ["--method", "plug", "--steps", "2"],
    "plug and play, 32 jumps": ["--method", "plug", "--steps", "32"],
    "PnP-CM, 4 jumps": ["--method", "admm", "--steps", "4"],
    "PiGDM, 16 steps": ["--method", "pigdm", "--steps", "16"],
}


def run(*words: object) -> str:
    """What the command line prints; a status other than 0 ends the benchmark."""
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        status = flowmaps([str(word) for word in words])
    if status:
        raise SystemExit(f"flowmaps {' '.join(map(str, words))}: status {status}")
    return out.getvalue()


def trained(folder: Path, seconds: float) -> Path:
    """A map of digits."""
    teacher, flow_map = folder / "teacher", folder / "map"
    for recipe, out, more in (
        ("flow_matching", teacher, []),
        ("push_forward", flow_map, ["--teacher", teacher]),
    ):
        if not out.exists():
            length = ["--run.steps", 1_000_000, "--run.seconds", seconds]
            where = ["--data", "digits", "--net", "mlp-small", "--out", out]
            run("train", recipe, *more, *length, *where)
    return flow_map


def main() -> None:
    """Train, restore, print and store."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seconds", type=float, default=90)
    options = parser.parse_args()
    flow_map = trained(options.folder, options.seconds)
    rows: dict[str, dict[str, Any]] = {}
    for damage, words in DAMAGES.items():
        for name, method in METHODS.items():
            kind = method[1]
            more: list[object] = []
            if kind in ("vfm", "cosign"):
                prior = options.folder / f"{kind}-{words[1]}"
                # a folder that is there is opened as it is
                learn = ["--learn", "--run.steps", 1_000_000, "--run.seconds", options.seconds]
                more = ["--prior", prior, *([] if prior.exists() else learn)]
            picture = options.folder / f"{kind}-{method[-1]}-{words[1]}.png"
            much = ["-n", 100, "--draws", 16, "--out", picture]
            run("restore", flow_map, *words, *method, *more, *much)
            found = json.loads(picture.with_suffix(".json").read_text())
            cost = found["cost"]["equivalents"] / (found["n"] * found["draws"])
            kept = ("snr_mean", "snr_draw", "residual", "coverage")
            rows.setdefault(damage, {})[name] = {"cost": cost} | {key: found[key] for key in kept}
            print(damage, name, json.dumps(rows[damage][name]), flush=True)
    about = {
        "data": "digits",
        "sigma": 0.05,
        "seconds": options.seconds,
        "torch": torch.__version__,
    }
    text = json.dumps(about | {"rows": rows}, indent=1) + "\n"
    (HERE / "restore_learned.json").write_text(text)


if __name__ == "__main__":
    main()
