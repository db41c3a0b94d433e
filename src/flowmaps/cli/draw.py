"""Drawing samples for the commands: a checkpoint, a way to go from noise to data, and noise that only seed and number decide."""

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import torch
from torch import Tensor

from ..control.budget import Budget
from ..core.flow_map import FlowMap
from ..core.solver import SOLVERS
from ..data import Conditioned, Data
from ..data import load as load_data
from ..data.batches import seeded
from ..data.captions import Captioned, in_turn
from ..data.encoded import encoded
from ..data.text import encoder
from ..sample import CFG, GRIDS, Autoguidance, generate, grid, solve
from ..train import checkpoint
from ..train.machine import choose
from ..train.run import Run
from .options import UsageError
from .words import nearest, say


@final
@dataclass(frozen=True)
class Way:
    """How noise becomes data: jumps of the flow map, or a walk along its velocity with a solver."""

    steps: int
    solver: str | None = None
    grid: str = "uniform"

    def __post_init__(self) -> None:
        if self.solver is not None and self.solver not in SOLVERS:
            raise UsageError(
                f"no solver is called {self.solver!r}{nearest(self.solver, SOLVERS)}; there are {', '.join(SOLVERS)}"
            )
        if self.grid not in GRIDS:
            raise UsageError(
                f"no grid is called {self.grid!r}{nearest(self.grid, GRIDS)}; there are {', '.join(GRIDS)}"
            )
        if self.steps < 1:
            raise UsageError(f"--steps is at least 1; got {self.steps}")

    @property
    def nfe(self) -> int | None:
        """Network calls per sample; None where the solver decides."""
        return self.steps if self.solver is None else SOLVERS[self.solver].evaluations(self.steps)

    def __str__(self) -> str:
        plural = "s" * (self.steps > 1)
        return f"{self.steps} {self.solver or 'jump'}{' step' * (self.solver is not None)}{plural}"

    def __call__(self, flow_map: FlowMap, x: Tensor, **cond: Tensor) -> Tensor:
        """Carry noise (B, *D) to data."""
        path = flow_map.interpolant
        times = grid(self.grid, self.steps, path)
        with torch.no_grad():
            if self.solver is None:
                return generate(flow_map, x, times, **cond)
            return solve(flow_map.velocity, x, times, path, SOLVERS[self.solver], **cond)


@final
@dataclass(frozen=True)
class Model:
    """A checkpoint that can be drawn from."""

    saved: checkpoint.Checkpoint
    device: str

    @property
    def flow_map(self) -> FlowMap:
        return self.saved.flow_map

    @property
    def about(self) -> dict[str, Any]:
        return self.saved.about

    @property
    def local(self) -> bool:
        """Whether it is a model of velocities, which cannot jump."""
        return bool(self.about["flow_map"]["local"])

    @property
    def recipe(self) -> str:
        return str(self.about["recipe"]["name"])

    @property
    def guided(self) -> bool:
        """Whether the guidance scale is an input."""
        return bool((self.about["flow_map"]["net"] or {}).get("guided"))

    def noise(self, seed: int, start: int, stop: int) -> Tensor:
        """Noise of the samples start..stop-1: sample i depends on (seed, i) and nothing else."""
        return self.noises(seed, range(start, stop))

    def noises(self, seed: int, numbers: Iterable[int]) -> Tensor:
        """Noise of samples by their numbers."""
        prior, shape = self.flow_map.interpolant.prior, (1, *self.saved.shape)
        return torch.cat([prior(shape, seeded("noise", seed, i)) for i in numbers]).to(self.device)

    def told(self, rows: Tensor) -> dict[str, Tensor]:
        """What samples of these numbers (B,) are told if nothing is asked for: classes, or captions it knows, in turn."""
        return in_turn(self.about["data"], rows)

    def read(self, prompts: Sequence[str]) -> dict[str, Tensor]:
        """Prompts as the network is told them, with a leading N.

        Raises:
            UsageError: If it was trained without captions.
        """
        settings = self.about["data"].get("text")
        if settings is None:
            raise UsageError(f"{self.saved.path} was trained without captions: leave out --prompt")
        reader = encoder(settings)
        for prompt in prompts:
            if reader.count(prompt) > reader.length:
                say(
                    f"note: a prompt has {reader.count(prompt):,} words or signs; the first {reader.length} are read"
                )
        if "" in prompts and not self.dropped:
            say(
                "note: this model was never told nothing (--guidance.dropout); expect little of an empty prompt"
            )
        return reader(prompts)

    @property
    def dropped(self) -> bool:
        """Whether conditions were dropped in training, so that it knows what nothing is."""
        return bool((self.about.get("config") or {}).get("guidance"))

    def told_as(self, data: Data, n: int) -> dict[str, Tensor]:
        """What `n` samples are told that are held against data: what its first rows are told, or classes in turn."""
        rows = torch.arange(n)
        return self.told_of(data, rows) if isinstance(data, Conditioned) else self.told(rows)

    def told_of(self, data: Data, rows: Tensor) -> dict[str, Tensor]:
        """What the network is told of rows (B,) of data, on its device."""
        names = self.about["data"].get("conditions", ["label"] * bool(self.saved.classes))
        if not names:
            return {}
        labels = None if isinstance(data, Conditioned) else data.batch(rows)[1]
        found = {} if labels is None else {"label": labels}
        if isinstance(data, Conditioned):
            found = data.conditions(rows)
        missing = set(names) - set(found)
        if missing:
            raise UsageError(
                f"{data.name} does not tell {missing.pop()}, which {self.saved.path} was trained with: give other --data"
            )
        return {name: found[name].to(self.device) for name in names}

    def class_number(self, name: str) -> int:
        """The number of a class from its name or number.

        Raises:
            UsageError: If there is no such class.
        """
        classes = self.saved.classes
        if not classes:
            raise UsageError(f"{self.saved.path} was trained without classes: leave out --class")
        if name in classes:
            return classes.index(name)
        if name.isdigit() and int(name) < len(classes):
            return int(name)
        raise UsageError(
            f"no class is called {name!r}{nearest(name, classes)}; there are {', '.join(classes)}"
        )

    def guide(
        self,
        scale: float | None,
        way: Way,
        *,
        weak: "Model | None" = None,
        interval: tuple[float, float] | None = None,
        negative: str | None = None,
    ) -> tuple[FlowMap, dict[str, float]]:
        """The map and extra conditioning for a guidance scale, away from nothing, a negative prompt, or a weaker model.

        Raises:
            UsageError: If the model was not trained for it.
        """
        if scale is None:
            if (weak, interval, negative) != (None, None, None):
                raise UsageError(
                    "--autoguide, --interval and --negative say how to guide: give --scale too"
                )
            return self.flow_map, {}
        low, high = interval or (0.0, 1.0)
        if not 0 <= low < high <= 1:
            raise UsageError(f"--interval is 0 <= LOW < HIGH <= 1; got {low:g} {high:g}")
        if weak is not None:
            self._check_weak(weak, way)
            return Autoguidance(self.flow_map, weak.flow_map, scale, low=low, high=high), {}
        if self.guided and interval:
            raise UsageError(
                "this map was trained with its interval folded in: leave out --interval, or train with --guidance.low, .high"
            )
        if self.guided and negative is None:
            return self.flow_map, {"scale": scale}
        if self.dropped and way.solver is not None and self.about["data"].get("conditions"):
            return CFG(self.flow_map, scale, self._nothing(negative), low=low, high=high), {}
        raise UsageError(
            "this map does not take a guidance scale: train with --guidance.max-scale 4, or walk a model that was trained "
            "with dropped labels (--guidance.scale 1 --solver heun), or away from a weaker one (--autoguide CKPT)"
            if negative is None
            else "guidance that is folded into a map leads away from the empty prompt: to be guided away from --negative, walk a "
            "model that was trained with dropped captions (--solver heun --steps 32)"
        )

    def _nothing(self, negative: str | None) -> dict[str, Any]:
        """What guidance leads away from: no class, or a negative prompt, which may be empty."""
        if negative is None and self.saved.classes:
            return {"label": len(self.saved.classes)}
        return {name: value[0] for name, value in self.read([negative or ""]).items()}

    def _check_weak(self, weak: "Model", way: Way) -> None:
        here, there = self.saved, weak.saved
        if (there.shape, there.classes) != (here.shape, here.classes):
            raise UsageError(
                f"--autoguide takes a model of the same data: {there.path} draws {there.shape} of {len(there.classes)} classes, "
                f"{here.path} {here.shape} of {len(here.classes)}"
            )
        if way.solver is None:
            raise UsageError(
                "--autoguide guides velocities, not jumps: walk, with --solver heun --steps 16"
            )


@final
@dataclass(frozen=True)
class Drawn:
    """Samples (N, *D) on the CPU, their classes, the seconds that the model took, and network calls per sample."""

    x: Tensor
    labels: Tensor | None
    seconds: float
    nfe: float


def open_model(path: Path | str, ema: str = "0") -> Model:
    """The model of a run or checkpoint; `ema` is the number of a moving average, or "raw".

    Raises:
        UsageError: For another `ema`.
        CheckpointError: As `flowmaps.train.load`.
    """
    if ema != "raw" and not ema.isdigit():
        raise UsageError(f"--ema is the number of a moving average (0, 1, ...) or raw; got {ema!r}")
    device = choose(Run()).device  # pyright: ignore[reportCallIssue]
    average = None if ema == "raw" else int(ema)
    return Model(checkpoint.load(path, ema=average, device=device), device)


def draw(
    model: Model,
    way: Way,
    n: int,
    *,
    seed: int = 0,
    told: Mapping[str, Tensor] | None = None,
    each: int | None = None,
    scale: float | None = None,
    weak: Model | None = None,
    interval: tuple[float, float] | None = None,
    negative: str | None = None,
    batch: int = 64,
) -> Drawn:
    """`n` samples. Batches are always full and then cut, so that n = 8 gives the first 8 of n = 64 to the last bit.

    They are told `told` (n, ...), by name, or by default what `model.told` says. With `each` the noises 0..each-1 come again and
    again, so that every prompt gets the same; by default every sample has its own.
    """
    flow_map, extra = model.guide(scale, way, weak=weak, interval=interval, negative=negative)
    budget = Budget()
    flow_map = budget.watch(flow_map)
    found: list[Tensor] = []
    seconds = 0.0
    for start in range(0, n, batch):
        rows = torch.arange(start, start + batch)
        x = model.noises(seed, (rows if each is None else rows % each).tolist())
        cond = _rows(model, told, rows) | {
            name: torch.full((batch,), value, device=x.device) for name, value in extra.items()
        }
        began = time.perf_counter()
        found.append(model.saved.decode(way(flow_map, x, **cond)).cpu())
        seconds += time.perf_counter() - began
    calls = budget.counts["forward"] / sum(map(len, found))
    labels = (model.told(torch.arange(n)) if told is None else told).get("label")
    return Drawn(torch.cat(found)[:n], labels, seconds, calls)


def _rows(model: Model, told: Mapping[str, Tensor] | None, rows: Tensor) -> dict[str, Tensor]:
    """What samples of these numbers are told, on the model's device."""
    here = model.told(rows) if told is None else {k: v[rows % len(v)] for k, v in told.items()}
    return {name: value.to(model.device) for name, value in here.items()}


def data_of(model: Model, name: str | None = None, split: str = "train") -> Data:
    """The data that a model was trained on, or others of the same shape.

    Raises:
        UsageError: If they are unknown or of another shape.
        DataError: If they are missing or broken.
    """
    about = model.about["data"]
    chosen = name or about["name"]
    if not chosen:
        raise UsageError(f"{model.saved.path} does not say what it was trained on: give --data")
    data = load_data(chosen, size=about.get("size"), split=split)
    if "text" in about and isinstance(data, Captioned):
        data = data.read_by(encoder(about["text"]))
    data = encoded(data, about.get("codec"))
    if data.shape != model.saved.shape:
        raise UsageError(
            f"{chosen} has samples of shape {data.shape}, the model of shape {model.saved.shape}: give --data that fits"
        )
    return data
