"""Where the steps of a walk along a discrete schedule belong: equal steps of time against equal steps of log-SNR.

    python benchmarks/vp_grid.py       seconds; needs flowmaps[diffusers]

An exact mixture in the plane on the path of two published tables; mean distance of the ends of 16 steps from those of 4,096.
Results: benchmarks/vp_grid.json.
"""

import json
from pathlib import Path

import torch
from diffusers import DDPMScheduler

from flowmaps.adapters.schedule import schedule
from flowmaps.core.solver import DDIM, HEUN, DPMSolverPP
from flowmaps.sample import grid, solve
from flowmaps.testing.worlds import mixture

STABLE = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
TABLES = {"Stable Diffusion": STABLE, "DDPM": {}}
WALKS = {"DDIM": DDIM(), "DPM-Solver++": DPMSolverPP()}


def main() -> None:
    """Walk and write the json."""
    rows = []
    for table, settings in TABLES.items():
        path = schedule(DDPMScheduler(**settings), "epsilon").path
        velocity = mixture(path).velocity
        noise = torch.randn(
            2000, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64
        )
        truth = solve(velocity, noise, grid("log_snr", 4096, path), path, HEUN)
        for name, solver in WALKS.items():
            errors = {
                kind: float(
                    (solve(velocity, noise, grid(kind, 16, path), path, solver) - truth)
                    .norm(dim=-1)
                    .mean()
                )
                for kind in ("uniform", "log_snr")
            }
            rows.append({"table": table, "solver": name, "steps": 16, **errors})
            print(rows[-1])
    Path(__file__).with_suffix(".json").write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
