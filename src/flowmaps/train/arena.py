"""Many recipes on equal terms: the same network, data, batches and compute, over seeds. Pictures and tables lie in `report.arena`.

    DIR/settings.json                    the terms; a folder has one set of them
    DIR/runs/LABEL-SEED/result.json      a finished run: cost, curves, stability, scores; absent or complete
    DIR/runs/LABEL-SEED/samples.safetensors
    DIR/runs/teacher-SEED/checkpoints/   the teacher of a seed, for all recipes that need one
    DIR/pairs/SEED/                      its trajectories, for recipes that learn from stored ones

The budget of a run is counted in forward-pass equivalents (FPE: forward 1, forward and backward 3) times samples, which no
busy machine changes. A recipe that learns from a teacher pays for it: a share of its budget is what the teacher was trained
with. It starts at the teacher's weights where they mean the same to it (one path, one parametrization), else afresh. Recipes
set to `stored` trajectories pay for the walks too. What is interrupted is trained anew from the start of that run; what is
finished stays.
"""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, final

import torch
from pydantic import BaseModel, ConfigDict, Field
from safetensors.torch import save_file
from torch import Generator, Tensor

from ..core.solver import HEUN
from ..data.captions import in_turn
from ..data.pairs import FILE
from ..errors import CheckpointError, RecipeError
from ..learn.cost import fpe
from ..learn.objective import Recipe
from ..recipes import get
from ..sample import generate, solve, uniform
from . import checkpoint
from .checkpoint import Json
from .curves import Recorder
from .hooks import Hook
from .pairs import make_pairs
from .run import Config, Run
from .setup import train
from .state import State

STEPS = (1, 2, 4, 8)
"""Numbers of network calls at which every recipe is measured."""

WALK = 64
"""Heun steps that a local recipe is also measured with."""

SHOWN = 40
"""Samples that a run keeps for pictures; of points in the plane fifty times as many."""

TEACHER = "teacher"
"""Label of the shared teacher's runs."""

PAIRS, POINTS, PAIR_STEPS = 5000, 9, 32
"""Stored trajectories, points kept of each, and the Heun steps that they were walked with."""

Quality = Callable[[Tensor], dict[str, float]]
"""From samples (N, *D) on the CPU, in the order of the noises, to scores by name; the first one ranks."""


@final
class Terms(BaseModel):
    """What is equal for all.

    Raises:
        pydantic.ValidationError: If a number is out of range, or there are two budgets or none.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    data: str = "digits"
    net: str = "mlp-small"
    patch: int | None = Field(None, ge=1)
    labels: bool = True
    budget: float | None = Field(None, gt=0)
    """Million FPE x samples of a run."""
    seconds: float | None = Field(None, gt=0)
    """Or seconds of training; exactly one of the two is set."""
    teacher_share: float = Field(0.5, gt=0, lt=1)
    """Part of the budget that the teacher takes, for recipes that start from it."""
    start: Literal["scratch", "teacher"] = "scratch"
    """Where recipes that learn from data start."""
    batch: int = Field(256, ge=1)
    lr: float = Field(2e-3, gt=0)
    ema: float = Field(0.03, gt=0, lt=1)
    precision: Literal["auto", "fp32", "bf16"] = "fp32"
    number: int = Field(5000, ge=10)
    """Samples that are scored."""


@final
@dataclass(frozen=True)
class Entry:
    """A contestant: a recipe with some of its arguments set.

    Attributes:
        recipe: Its name.
        set: Arguments that are not at their defaults.
        label: What tables and folders call it.
    """

    recipe: str
    set: Mapping[str, Any] = field(default_factory=dict[str, Any])
    label: str = ""

    def __post_init__(self) -> None:
        words = ",".join(f"{key}={value}" for key, value in self.set.items())
        object.__setattr__(self, "label", self.label or f"{self.recipe}:{words}".rstrip(":"))

    @cached_property
    def value(self) -> Recipe:
        """The recipe, as it is when it is first asked for."""
        return get(self.recipe, **self.set)

    @property
    def stored(self) -> bool:
        """Whether it learns from stored trajectories: an argument of that name says so."""
        return bool(self.set.get("stored"))

    @property
    def same_weights(self) -> bool:
        """Whether the teacher's weights mean the same to it."""
        own, other = self.value, THE_TEACHER.value
        return (own.interpolant, own.parametrization) == (other.interpolant, other.parametrization)


THE_TEACHER = Entry("flow_matching", {}, TEACHER)
"""Flow matching, whatever the contestants are."""


@final
@dataclass(frozen=True)
class Arena:
    """A folder, its terms, and how samples are scored.

    Attributes:
        out: Where results lie.
        terms: What is equal for all.
        quality: Scores of `terms.number` samples.
        again: Train anew what was trained before its recipe was changed; otherwise it is kept, and said.
        keep: Whether checkpoints of the contestants are kept; those of teachers are.
        hooks: From the title of a run to functions of its events, such as a line of progress.
    """

    out: Path
    terms: Terms
    quality: Quality
    again: bool = False
    keep: bool = False
    hooks: Callable[[str], Sequence[Hook]] = lambda title: ()

    def run(self, entries: Sequence[Entry], seeds: int) -> Iterator[Json]:
        """Train whatever is not finished, seed after seed; yields every result as it comes, stored ones too.

        The last result has the status "stopped" after Ctrl-C or SIGTERM.

        Raises:
            CheckpointError: If the folder belongs to other terms, or cannot be written.
        """
        claim(self.out, self.terms)
        for seed in range(seeds):
            taught = any(map(self.taught, entries))
            plan = [THE_TEACHER] * taught + list(entries)
            for entry in plan:
                result = self._stored(entry, seed) or self._train(entry, seed)
                yield result
                if result["status"] == "stopped":
                    return

    def taught(self, entry: Entry) -> bool:
        """Whether a contestant learns from the teacher or starts from it, and pays for it."""
        if entry.label == TEACHER:
            return False
        wished = self.terms.start == "teacher" and entry.same_weights
        return entry.value.needs_teacher or entry.stored or wished

    def folder(self, entry: Entry, seed: int) -> Path:
        """Where a run lies."""
        return self.out / "runs" / f"{re.sub(r'[^A-Za-z0-9._=,-]+', '-', entry.label)}-{seed}"

    def config(self, entry: Entry, seed: int) -> Config:
        """The configuration of a run: steps from the budget and the recipe's cost."""
        terms, taught = self.terms, self.taught(entry)
        teacher = str(self.folder(THE_TEACHER, seed)) if taught else None
        copied = taught and entry.same_weights and not entry.value.needs_teacher
        seconds = None if terms.seconds is None else self._share(entry) * terms.seconds
        return Config(  # pyright: ignore[reportCallIssue]  # every field has a default
            recipe=entry.recipe,
            set=dict(entry.set),
            data=f"pairs:{self._pairs(seed)}" if entry.stored else terms.data,
            net=terms.net,
            patch=terms.patch,
            labels=terms.labels,
            teacher=teacher if entry.value.needs_teacher else None,
            init=teacher if copied else None,
            run=Run(  # pyright: ignore[reportCallIssue]
                steps=self._steps(entry),
                seconds=seconds,
                seed=seed,
                batch=terms.batch,
                lr=terms.lr,
                ema=(terms.ema,),
                precision=terms.precision,
                compile="no",
            ),
        )

    def _share(self, entry: Entry) -> float:
        """The part of the budget that a run may spend itself."""
        if entry.label == TEACHER:
            return self.terms.teacher_share
        return 1 - self.terms.teacher_share * self.taught(entry)

    def _steps(self, entry: Entry) -> int:
        if self.terms.budget is None:
            return 1_000_000  # the clock ends the run
        walks = PAIRS * HEUN.evaluations(PAIR_STEPS) * entry.stored
        left = self._share(entry) * self.terms.budget * 1e6 - walks
        if left <= 0:
            raise RecipeError(
                f"{PAIRS:,} stored trajectories cost {walks / 1e6:g} million FPE, which leaves nothing to train with; "
                "give a larger --budget"
            )
        return max(1, round(left / (fpe(entry.value) * self.terms.batch)))

    def _pairs(self, seed: int) -> Path:
        """The folder of the teacher's trajectories; `_store` fills it."""
        return self.out / "pairs" / str(seed)

    def _store(self, seed: int) -> None:
        """Walk the teacher, once per seed."""
        if (self._pairs(seed) / FILE).exists():
            return
        teacher = checkpoint.load(self.folder(THE_TEACHER, seed))
        made = make_pairs(
            teacher.flow_map, PAIRS, teacher.shape, times=POINTS, steps=PAIR_STEPS,
            classes=teacher.classes, seed=seed,
        )  # fmt: skip
        made.write(self._pairs(seed))

    def _identity(self, entry: Entry, seed: int) -> Json:
        """What a stored result must agree with, free of paths and addresses."""
        value = re.sub(r" at 0x[0-9a-f]+", "", repr(entry.value))
        named = {"label": entry.label, "recipe": entry.recipe, "set": dict(entry.set)}
        return named | {"seed": seed, "value": value}

    def _stored(self, entry: Entry, seed: int) -> Json | None:
        """A finished run of the same name, marked as changed if its recipe reads otherwise now."""
        found = read_result(self.folder(entry, seed))
        if found is None:
            return None
        changed = any(found[key] != now for key, now in self._identity(entry, seed).items())
        if changed and self.again:
            return None
        return found | {"changed": changed}

    def _train(self, entry: Entry, seed: int) -> Json:
        folder = self.folder(entry, seed)
        (folder / "result.json").unlink(missing_ok=True)
        folder.mkdir(parents=True, exist_ok=True)
        recorder = Recorder()
        result: Json = self._identity(entry, seed) | {
            "taught": self.taught(entry),
            "local": entry.value.local,
        }
        try:
            result |= {"cost": fpe(entry.value)}
            config = self.config(entry, seed)
            if entry.stored:
                self._store(seed)
            hooks = [recorder, *self.hooks(f"{entry.label} ({seed})")]
            state = train(config, None, hooks=hooks)
            result |= {"copied": state.about["start"] is not None}
            if state.progress(config.run) < 1:
                return result | {"status": "stopped"}
            drawn = list(draw(state, self.terms.number))
            result |= {"rows": [row | {"scores": self._scores(x)} for row, x in drawn]}
        except OSError:  # a full disk is no fault of a recipe
            raise
        except Exception as error:
            # one recipe's failure is a result, whatever it is; the others go on
            result |= {"error": f"{type(error).__name__}: {error}", "rows": []}
        else:
            broken = [row["nfe"] for row in result["rows"] if row["scores"] is None]
            if broken:
                result["error"] = f"samples are not finite with {broken[0]} network calls"
            save_file(shown(drawn), folder / "samples.safetensors")
            if self.keep or entry.label == TEACHER:
                checkpoint.save(folder, state, keep=1)
        result |= {"status": "failed" if "error" in result else "done"} | recorder.to_json()
        checkpoint.write_json(folder / "result.json", result)
        return result

    def _scores(self, x: Tensor) -> dict[str, float] | None:
        """Scores of samples, None if they are not finite."""
        return self.quality(x) if bool(x.isfinite().all()) else None


def draw(state: State, number: int) -> Iterator[tuple[Json, Tensor]]:
    """Samples of the averaged weights at every number of steps, and how they were made: the same noise for every recipe."""
    flow_map, about = state.averaged(), state.about["data"]
    device, path = next(flow_map.parameters()).device, flow_map.interpolant
    noise = path.prior((number, *about["shape"]), Generator().manual_seed(0))
    cond = in_turn(about, torch.arange(number))
    recipe = state.objective.recipe
    ways = [("renoise" if recipe.to_data and k > 1 else "jump", k) for k in STEPS]
    ways += [("heun", WALK)] if recipe.local else []
    for sampler, steps in ways:
        done = list[Tensor]()
        with torch.no_grad():
            for rows in torch.arange(number).split(500):
                x, c = noise[rows].to(device), {k: v[rows].to(device) for k, v in cond.items()}
                if sampler == "heun":
                    x = solve(flow_map.velocity, x, uniform(steps), path, HEUN, **c)
                else:
                    x = generate(flow_map, x, uniform(steps), **c)
                done.append(x.cpu())
        nfe = HEUN.evaluations(steps) if sampler == "heun" else steps
        yield {"sampler": sampler, "steps": steps, "nfe": nfe}, torch.cat(done)


def shown(drawn: Sequence[tuple[Json, Tensor]]) -> dict[str, Tensor]:
    """The first samples of every way, for pictures."""
    return {
        f"{row['sampler']}.{row['steps']}": x[: SHOWN if x.ndim > 2 else 50 * SHOWN].float().clone()
        for row, x in drawn
    }


def claim(out: Path, terms: Terms) -> None:
    """Write the terms of a new folder, or make sure that they are those of an old one.

    Raises:
        CheckpointError: If they are not, or the folder holds something else.
    """
    file, asked = out / "settings.json", terms.model_dump(mode="json")
    if not file.exists():
        if out.exists() and any(out.iterdir()):
            raise CheckpointError(f"{out} is not the folder of an arena: choose another --out")
        out.mkdir(parents=True, exist_ok=True)
        checkpoint.write_json(file, asked)
        return
    known = read_terms(out).model_dump(mode="json")
    other = [f"{key} {known[key]} (now {asked[key]})" for key in asked if asked[key] != known[key]]
    if other:
        raise CheckpointError(
            f"{out} was run on other terms: {', '.join(other)}; give those again, or choose another --out"
        )


def read_terms(out: Path) -> Terms:
    """The terms of a folder.

    Raises:
        CheckpointError: If it has none.
    """
    try:
        return Terms.model_validate_json((out / "settings.json").read_text())
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"{out} has no readable settings.json of an arena ({error})"
        ) from error


def read_result(folder: Path) -> Json | None:
    """A finished run, or None."""
    import json

    file = folder / "result.json"
    if not file.exists():
        return None
    try:
        return json.loads(file.read_text())
    except ValueError as error:
        raise CheckpointError(f"{file} is not readable json ({error}); delete it") from error


def results(out: Path) -> list[Json]:
    """Every finished run of a folder, by label and seed."""
    folders = sorted((out / "runs").iterdir()) if (out / "runs").is_dir() else []
    found = [(folder, read_result(folder)) for folder in folders]
    return [result | {"folder": str(folder)} for folder, result in found if result is not None]


def refuse_twins(entries: Sequence[Entry]) -> None:
    """Two contestants of one name would share a folder.

    Raises:
        RecipeError: If there are such, or one is called as the teacher is.
    """
    labels = [entry.label for entry in entries]
    twins = {label for label in labels if labels.count(label) > 1 or label == TEACHER}
    if twins:
        raise RecipeError(f"{', '.join(sorted(twins))} is in the arena twice: name it once")
