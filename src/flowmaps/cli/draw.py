"""Drawing samples for the commands: a checkpoint, a way to go from noise to data, and noise that only seed and number decide."""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import torch
from torch import Tensor

from ..control.budget import Budget
from ..core.flow_map import FlowMap
from ..core.solver import SOLVERS
from ..data import Data
from ..data import load as load_data
from ..data.batches import seeded
from ..sample import CFG, GRIDS, Autoguidance, grid, sample, solve
from ..train import checkpoint
from ..train.machine import choose
from ..train.run import Run
from .options import UsageError
from .words import nearest


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
                return sample(flow_map, x, times, **cond)
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
        prior, shape = self.flow_map.interpolant.prior, (1, *self.saved.shape)
        rows = [prior(shape, seeded("noise", seed, i)) for i in range(start, stop)]
        return torch.cat(rows).to(self.device)

    def labels(self, start: int, stop: int, only: int | None = None) -> Tensor | None:
        """Classes of the samples start..stop-1: one class, or all in turn; None for a map without classes."""
        if not self.saved.classes:
            return None
        numbers = torch.arange(start, stop) % len(self.saved.classes)
        return torch.full_like(numbers, only) if only is not None else numbers

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
    ) -> tuple[FlowMap, dict[str, float]]:
        """The map and extra conditioning for a guidance scale, away from nothing or from a weaker model.

        Raises:
            UsageError: If the model was not trained for it.
        """
        if scale is None:
            if weak or interval:
                raise UsageError("--autoguide and --interval say how to guide: give --scale too")
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
        if self.guided:
            return self.flow_map, {"scale": scale}
        dropped = bool((self.about.get("config") or {}).get("guidance"))
        if dropped and way.solver is not None and self.saved.classes:
            null = {"label": len(self.saved.classes)}
            return CFG(self.flow_map, scale, null, low=low, high=high), {}
        raise UsageError(
            "this map does not take a guidance scale: train with --guidance.max-scale 4, or walk a model that was trained "
            "with dropped labels (--guidance.scale 1 --solver heun), or away from a weaker one (--autoguide CKPT)"
        )

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
    only: int | None = None,
    scale: float | None = None,
    weak: Model | None = None,
    interval: tuple[float, float] | None = None,
    batch: int = 64,
) -> Drawn:
    """`n` samples. Batches are always full and then cut, so that n = 8 gives the first 8 of n = 64 to the last bit."""
    flow_map, extra = model.guide(scale, way, weak=weak, interval=interval)
    budget = Budget()
    flow_map = budget.watch(flow_map)
    found: list[Tensor] = []
    seconds = 0.0
    for start in range(0, n, batch):
        x, labels = (
            model.noise(seed, start, start + batch),
            model.labels(start, start + batch, only),
        )
        cond = {key: torch.full((batch,), value, device=x.device) for key, value in extra.items()}
        if labels is not None:
            cond["label"] = labels.to(x.device)
        began = time.perf_counter()
        found.append(way(flow_map, x, **cond).cpu())
        seconds += time.perf_counter() - began
    calls = budget.counts["forward"] / sum(map(len, found))
    return Drawn(torch.cat(found)[:n], model.labels(0, n, only), seconds, calls)


def data_of(model: Model, name: str | None = None) -> Data:
    """The data that a model was trained on, or others of the same shape.

    Raises:
        UsageError: If they are unknown or of another shape.
        DataError: If they are missing or broken.
    """
    about = model.about["data"]
    chosen = name or about["name"]
    if not chosen:
        raise UsageError(f"{model.saved.path} does not say what it was trained on: give --data")
    data = load_data(chosen, size=about.get("size"))
    if data.shape != model.saved.shape:
        raise UsageError(
            f"{chosen} has samples of shape {data.shape}, the model of shape {model.saved.shape}: give --data that fits"
        )
    return data
