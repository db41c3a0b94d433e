"""How the runs that a benchmark measures came about: themselves, those that they were started from, and the code that measures."""

import subprocess
from pathlib import Path
from typing import Any

from flowmaps.cli.draw import Model
from flowmaps.train import checkpoint

Json = dict[str, Any]


def history(model: Model) -> list[Json]:
    """Steps, seconds and settings of all runs that led to a model, the first one first."""
    found, about = list[Json](), model.about
    while True:
        config = dict(about["config"])
        start = config.get("init")
        for key in ("init", "teacher"):
            config[key] = None if config.get(key) is None else Path(config[key]).name
        found.append({"step": about["step"], "seconds": about["seconds"], "config": config})
        if start is None:
            return found[::-1]
        about = checkpoint.read(start)[0]


def commit() -> str:
    """The commit that measures, with a + if the files differ from it."""
    here = Path(__file__).parent

    def git(*words: str) -> str:
        return subprocess.run(["git", *words], cwd=here, capture_output=True, text=True, check=True).stdout.strip()  # fmt: skip

    changed = git("status", "--porcelain", "--untracked-files=no", "--", "../src", "*.py")
    return git("rev-parse", "--short=12", "HEAD") + "+" * bool(changed)


def add_histories(report: Json, **models: Model) -> None:
    """Write the histories into a demo's report, and count all their seconds as training."""
    runs = {name: history(model) for name, model in models.items()}
    spent = {
        legs[-1]["config"]["recipe"] if name == "baseline" else name: round(
            sum(leg["seconds"] for leg in legs), 1
        )
        for name, legs in runs.items()
    }
    report["train_seconds"] = {**spent, "total": round(sum(spent.values()), 1)}
    report["runs"] = runs
