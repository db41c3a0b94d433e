"""Trajectories of a model, to be learned from again and again: they cost a walk each, once."""

import torch
from torch import Tensor

from ..core.flow_map import FlowMap
from ..core.solver import HEUN, Solver
from ..core.velocity import Velocity
from ..data.batches import seeded
from ..data.pairs import PairData
from ..errors import DataError
from ..sample.grids import grid


@torch.no_grad()
def make_pairs(
    teacher: FlowMap,
    n: int,
    shape: tuple[int, ...],
    *,
    times: int = 2,
    steps: int = 32,
    solver: Solver = HEUN,
    spacing: str = "uniform",
    classes: tuple[str, ...] = (),
    field: Velocity | None = None,
    seed: int = 0,
    batch: int = 256,
) -> PairData:
    """Walk a teacher from noise to data, n times, and keep the points at some of the times.

    Args:
        teacher: The model; its path is walked.
        n: Trajectories. Trajectory i depends on `seed` and i alone.
        shape: Shape of a sample.
        times: Points kept of each, noise and sample included, evenly among the steps.
        steps: Steps of the solver.
        solver: Its method.
        spacing: Grid of the steps, one of `flowmaps.sample.GRIDS`.
        classes: Names of the classes that the teacher takes as `label`; all in turn.
        field: Velocity to walk in place of the teacher's own, such as a guided one.
        seed: Of the noise.
        batch: Rows at a time.

    Raises:
        DataError: If more points are asked for than there are.
    """
    if not 2 <= times <= steps + 1 or n < 1:
        raise DataError(
            f"expected n >= 1 and 2 to {steps + 1} times for {steps} steps; got n={n}, times={times}"
        )
    path = teacher.interpolant
    every = torch.linspace(0, steps, times).round().long()
    clock = grid(spacing, steps, path)
    device = next((p.device for p in teacher.parameters()), torch.device("cpu"))
    labels = torch.arange(n) % len(classes) if classes else None
    kept: list[Tensor] = []
    for start in range(0, n, batch):
        rows = range(start, min(start + batch, n))
        noise = torch.cat([path.prior((1, *shape), seeded("pairs", seed, i)) for i in rows])
        x = noise.to(device)
        cond = {} if labels is None else {"label": labels[start : rows.stop].to(device)}
        walk = solver.integrate(field or teacher.velocity, x, clock.to(x), path, **cond)
        points = [x, *walk]
        kept.append(torch.stack([points[i] for i in every.tolist()], 1).cpu())
    name = f"{n} trajectories at {times} times"
    return PairData(name, torch.cat(kept), clock[every].float(), labels, classes)
