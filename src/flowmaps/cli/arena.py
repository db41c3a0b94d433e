"""Recipes on equal terms: the same network, data and compute, over seeds; quality at 1 to 8 steps, cost and stability.

Examples:
  flowmaps arena --out arena                                 every recipe on the digits: hours
  flowmaps arena lsd mean_flow shortcut --budget 1 --seeds 1 --out small
  flowmaps arena lmd:through=target,skew=1.8 lmd --out two   a recipe with other arguments is another contestant
  flowmaps arena --data toy:checkerboard --net mlp-tiny --out plane
  flowmaps arena --out arena --report                        the page of what is finished; trains nothing

The budget of a run is in million forward-pass equivalents (a forward pass 1, forward and backward 3) times samples, so that it
does not depend on what else the machine does. Recipes that learn from a teacher get the rest of their budget after a flow
matching teacher, one per seed, took its share, and start at its weights if they mean the same to them; the others start from
scratch. Recipes with stored=true learn from 5,000 trajectories of the teacher, which they pay for too.

The same command again goes on where an earlier one stopped: run by run, more recipes and seeds are welcome, other terms are not.
Writes arena.html with its pictures, arena.json, and a folder for every run.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, final

import yaml
from tyro.conf import Positional, arg

from .options import UsageError, parse, to_json
from .settings import checked
from .words import nearest, say

if TYPE_CHECKING:
    from torch import Tensor

    from ..data import Data
    from ..train.arena import Entry, Terms


@final
@dataclass
class Options:
    """Options of `flowmaps arena`."""

    recipes: Annotated[
        Positional[tuple[str, ...]], arg(metavar="[RECIPE[:KEY=VALUE,...] ...]")
    ] = ()
    """Contestants; by default every recipe."""
    out: Annotated[Path, arg(metavar="DIR")] = Path("arena")
    """Where everything goes."""
    data: str = "digits"
    """Name or path of the data."""
    net: str = "mlp-small"
    """Named network."""
    patch: Annotated[int | None, arg(metavar="INT")] = None
    """Side of a patch of a dit."""
    budget: Annotated[float | None, arg(metavar="FLOAT")] = None
    """Compute of a run in million FPE x samples; by default 5."""
    seconds: Annotated[float | None, arg(metavar="FLOAT")] = None
    """Training time of a run, instead of a budget."""
    seeds: int = 3
    """Runs of every recipe."""
    teacher_share: float = 0.5
    """Part of the budget that a teacher takes."""
    init: Literal["scratch", "teacher"] = "scratch"
    """Where recipes that learn from data start; with teacher they pay for it too."""
    n: Annotated[int, arg(name="number", aliases=["-n"])] = 5000
    """Samples that are scored."""
    batch: int = 256
    """Samples per step."""
    lr: float = 2e-3
    """Peak learning rate."""
    precision: Literal["auto", "fp32", "bf16"] = "fp32"
    """Of matrix products."""
    labels: bool = True
    """Condition on the classes of the data, if it has any."""
    features: Annotated[Path | None, arg(metavar="FILE")] = None
    """A classifier's safetensors, whose features are compared; by default one is trained."""
    again: bool = False
    """Train anew what was trained before its recipe was changed."""
    keep: bool = False
    """Keep a checkpoint of every run, for flowmaps sample and compare."""
    report: bool = False
    """Write the page of what is finished, and train nothing."""
    json: bool = False
    """Print arena.json instead of the table."""


def main(argv: list[str]) -> int:
    """Train, score, write; the exit status is 130 after Ctrl-C."""
    options = parse(Options, argv, name="arena", about=f"{__doc__}")
    if options.seeds < 1:
        raise UsageError(f"--seeds is at least 1; got {options.seeds}")
    from ..data import load
    from ..train.arena import claim, read_terms

    terms = read_terms(options.out) if options.report else terms_of(options)
    data, stopped = load(terms.data), False
    if not options.report:
        contestants = entries(options.recipes)
        claim(options.out, terms)
        quality, real = scores(options.out, terms, data, options.features)
        _remember(options.out, real)
        stopped = _train(options, terms, contestants, quality)
    return _write(options, data, stopped)


def terms_of(options: Options) -> "Terms":
    """What is equal for all.

    Raises:
        UsageError: If a number is out of range, or there are two budgets.
    """
    from pydantic import ValidationError

    from ..nets import NETS
    from ..train.arena import Terms
    from .options import explained

    if options.budget is not None and options.seconds is not None:
        raise UsageError("give --budget or --seconds, not both")
    if options.net not in NETS:
        raise UsageError(f"no network is called {options.net!r}{nearest(options.net, NETS)}")
    default = 5.0 if options.seconds is None else None
    try:
        return Terms(
            data=options.data,
            net=options.net,
            patch=options.patch,
            labels=options.labels,
            budget=options.budget or default,
            seconds=options.seconds,
            teacher_share=options.teacher_share,
            start=options.init,
            batch=options.batch,
            lr=options.lr,
            precision=options.precision,
            number=options.n,
        )  # pyright: ignore[reportCallIssue]  # every field has a default
    except ValidationError as error:
        raise UsageError(f"--{explained(error, Terms)}") from error


def entries(words: Sequence[str]) -> "list[Entry]":
    """Contestants as they are written, all recipes for none.

    Raises:
        UsageError: For arguments that are not understood.
        RecipeError: For unknown names, or a contestant that is named twice.
    """
    from ..recipes import all_recipes
    from ..train.arena import Entry, refuse_twins

    found = [Entry(*_contestant(word)) for word in words or all_recipes()]
    for entry in found:
        _ = entry.value
    refuse_twins(found)
    return found


def _contestant(word: str) -> tuple[str, dict[str, Any]]:
    """A recipe's name and arguments from `name:key=value,key=value`."""
    name, colon, rest = word.partition(":")
    settings: dict[str, Any] = {}
    for part in re.split(r",(?=\w+=)", rest) if colon else ():
        key, equals, text = part.partition("=")
        if not equals or not key:
            raise UsageError(f"a contestant is RECIPE or RECIPE:key=value,...; got {word!r}")
        try:
            settings[key] = yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise UsageError(f"{part!r} of {word!r} is not understood") from error
    return name, checked(name, settings)


def scores(
    out: Path, terms: "Terms", data: "Data", features: Path | None
) -> "tuple[Callable[[Tensor], dict[str, float]], dict[str, float]]":
    """From samples to scores, and those of as many real data.

    Points in the plane: exact W2 distance to points drawn anew. Pictures with classes: Frechet distance in the features of a
    classifier, which is trained once and stored, and its accuracy; the same in pixels, as `flowmaps demo` has it.
    """
    import torch
    from torch import Generator

    from ..metrics import wasserstein
    from .scores import judge

    draw = Generator().manual_seed(1)
    rows = torch.randint(len(data), (terms.number,), generator=draw)
    if data.shape == (2,):
        fresh = _fresh(terms, data)
        size = min(2000, len(fresh) // 2, terms.number)

        def distance(x: "Tensor") -> dict[str, float]:
            return {"w2": wasserstein(x[:size], fresh[:size])}

        return distance, distance(fresh[size:])
    net = features or (_classifier(out, data) if _readable(data) else None)
    seen, flat = judge(data, net), judge(data)

    def score(x: "Tensor", labels: "Tensor | None") -> dict[str, float]:
        found = seen.quick(x, labels)
        if net is None:
            return found
        return found | {f"{name}_pixels": value for name, value in flat.quick(x, labels).items()}

    asked = None
    if terms.labels and data.classes:
        asked = torch.arange(terms.number) % len(data.classes)
    return lambda x: score(x, asked), score(*data.batch(rows))


def _readable(data: "Data") -> bool:
    """Whether a classifier can be trained on the data."""
    return bool(data.classes) and len(data.shape) == 3 and min(data.shape[1:]) >= 8


def _fresh(terms: "Terms", data: "Data") -> "Tensor":
    """Points of the same law that were not trained on; the data themselves where they are no toy."""
    import torch

    from ..data import load

    other = load(terms.data, split="test", seed=1) if terms.data.startswith("toy:") else data
    order = torch.randperm(len(other), generator=torch.Generator().manual_seed(2))
    return other.batch(order)[0]


def _classifier(out: Path, data: "Data") -> Path:
    """The arena's classifier, trained at the first call."""
    from ..metrics import fit_classifier, save_classifier

    file = out / "classifier.safetensors"
    if not file.exists():
        say("training the classifier whose features are compared ...")
        draft = file.with_name(".classifier.safetensors")
        save_classifier(
            draft, fit_classifier(data, steps=CLASSIFIER_STEPS, batch=128), data=data.name
        )
        draft.replace(file)
    return file


CLASSIFIER_STEPS = 1000
"""Enough for the digits; pass --features for larger pictures."""


def _remember(out: Path, real: dict[str, float]) -> None:
    """Machine, versions and the scores of real data, for pages that are written later."""
    import json

    from ..report.style import write_atomically
    from ..train.machine import choose
    from ..train.run import Run
    from .demo import machine_facts, versions

    device = choose(Run()).device  # pyright: ignore[reportCallIssue]
    about = {"machine": machine_facts(device), "versions": versions(), "real": real}
    write_atomically(out / "facts.json", json.dumps(about, indent=1).encode())


def _train(
    options: Options,
    terms: "Terms",
    contestants: "list[Entry]",
    quality: "Callable[[Tensor], dict[str, float]]",
) -> bool:
    """Train what is missing; whether it was stopped."""
    from ..train.arena import Arena
    from ..train.hooks import Progress

    arena = Arena(
        options.out,
        terms,
        quality,
        again=options.again,
        keep=options.keep,
        hooks=lambda title: [Progress(title, every=60.0)],
    )
    total = options.seeds * len(contestants)
    say(
        f"{len(contestants)} recipes, {options.seeds} seeds: {total} runs, and teachers; {options.out}"
    )
    for result in arena.run(contestants, options.seeds):
        if result["status"] == "stopped":
            return True
        say(_line(result))
        if result.get("changed"):
            say("  it was trained before its recipe was changed; --again trains it anew")
    return False


def _line(result: dict[str, Any]) -> str:
    """A finished run in a line."""
    name = f"{result['label']} ({result['seed']})"
    if result["status"] == "failed":
        return f"{name}: failed: {result['error']}"
    score = next(iter(result["rows"][0]["scores"]))
    values = ", ".join(f"{row['nfe']} calls {row['scores'][score]:.4g}" for row in result["rows"])
    return f"{name}: {score} {values}; {result['done']:,} steps in {result['seconds']:.0f} s"


def _write(options: Options, data: "Data", stopped: bool) -> int:
    """The page of what is finished, and the table."""
    import json

    import torch
    from rich.console import Console

    from ..errors import CheckpointError
    from ..report.arena_page import write

    file = options.out / "facts.json"
    facts = json.loads(file.read_text()) if file.exists() else {}
    try:
        x, _ = data.batch(torch.arange(min(2000, len(data))))
        page, report, table = write(options.out, facts, x)
    except CheckpointError:
        if not stopped:
            raise
        return 130
    if options.json:
        to_json(report)
    else:
        console = Console(highlight=False, emoji=False, markup=False)
        console.width = max(
            console.width, 200
        )  # the reader's terminal wraps it, or a pager scrolls
        console.print(table)
        print(page)
    if stopped:
        say("stopped; finished runs are kept: give the same command again to go on")
    return 130 if stopped else 0
