"""Whole trajectories in float64: diffusers' own loop (model, scheduler.step) against our samplers on the path read off it."""

import pytest
import torch

pytest.importorskip("diffusers", reason="needs the extra: pip install 'flowmaps[diffusers]'")

import diffusers
from torch import Tensor, nn

from flowmaps.adapters.diffusers import denoiser, velocity
from flowmaps.core.interpolant import ve
from flowmaps.core.solver import DDIM, EULER, HEUN, DPMSolverPP
from flowmaps.sample import solve
from flowmaps.testing.zoo import ZOO, Specimen

# diffusers 0.42 under numpy 2
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

BETAS = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
TABLES = [name for name, specimen in ZOO.items() if not specimen.flow]
FLOWS = [name for name, specimen in ZOO.items() if specimen.flow]


def stock(
    specimen: Specimen, model: nn.Module, scheduler, x: Tensor, steps: int, cond: dict[str, Tensor]
) -> Tensor:
    """What a pipeline of diffusers does; each class's way with times is written out, as in its own pipeline."""
    scheduler.set_timesteps(steps)
    x = x * getattr(scheduler, "init_noise_sigma", 1.0)
    for t in scheduler.timesteps:
        z = scheduler.scale_model_input(x, t) if hasattr(scheduler, "scale_model_input") else x
        times = {"timestep": t.expand(len(x))}
        if specimen.kind == "FluxTransformer2DModel":
            times = {"timestep": t.expand(len(x)) / 1000}
        if specimen.kind == "AnyFlowTransformer3DModel":
            times = dict.fromkeys(("timestep", "r_timestep"), t.expand(len(x), x.shape[1]))
        added = {k: v for k, v in cond.items() if k in ("text_embeds", "time_ids")}
        plain = {k: v for k, v in cond.items() if k not in added}
        out = model(
            z,
            **times,
            **plain,
            **({"added_cond_kwargs": added} if added else {}),
            return_dict=False,
        )[0]
        out = out[:, : x.shape[1]] if out.shape[1] == 2 * x.shape[1] else out
        x = scheduler.step(out, t, x).prev_sample
    return x


def scene(name: str, gen: torch.Generator):
    specimen = ZOO[name]
    model = specimen.build(torch.float64)
    x, cond = specimen.inputs(2, gen, torch.float64)
    return specimen, model, x, cond


def apart(specimen, model, scheduler, x, cond, solver, steps=4) -> float:
    """Largest difference of the two end points, on the scale of the stock one's."""
    field = velocity(model, scheduler=scheduler, constant=specimen.constant())
    with torch.no_grad():
        theirs = stock(specimen, model, scheduler, x, steps, cond | specimen.constant())
        grid = denoiser(field).schedule.grid(steps)
        start = x * getattr(scheduler, "init_noise_sigma", 1.0)
        if isinstance(
            scheduler, diffusers.EulerDiscreteScheduler | diffusers.HeunDiscreteScheduler
        ):
            start = start * field.interpolant.alpha(grid[0])  # their points are x / alpha
        if solver is HEUN and not specimen.flow:
            ours = karras_heun(field, model, scheduler, specimen, start, grid, cond)
        else:
            ours = solve(field.velocity, start, grid, field.interpolant, solver, **cond)
    return float((ours - theirs).abs().max() / theirs.abs().max())


def karras_heun(field, model, scheduler, specimen, start, grid, cond):
    """Heun's method in sigma / alpha, the last step Euler's: the variance-exploding path of the same model."""
    ratio = field.interpolant.sigma(grid) / field.interpolant.alpha(grid)
    path = ve(float(ratio[0]))
    field = velocity(model, scheduler=scheduler, constant=specimen.constant(), path=path)
    times = ratio / ratio[0]
    x = solve(field.velocity, start * (1 + ratio[0] ** 2).sqrt(), times[:-1], path, HEUN, **cond)
    return solve(field.velocity, x, times[-2:], path, EULER, **cond)


SCHEDULERS = {
    "ddim": (lambda **o: diffusers.DDIMScheduler(**BETAS, clip_sample=False, **o), DDIM()),
    "ddim, not to one": (
        lambda **o: diffusers.DDIMScheduler(
            **BETAS, clip_sample=False, set_alpha_to_one=False, steps_offset=1, **o
        ),
        DDIM(),
    ),
    "euler": (lambda **o: diffusers.EulerDiscreteScheduler(**BETAS, **o), DDIM()),
    "euler, karras": (
        lambda **o: diffusers.EulerDiscreteScheduler(**BETAS, use_karras_sigmas=True, **o),
        DDIM(),
    ),
    "heun": (lambda **o: diffusers.HeunDiscreteScheduler(**BETAS, **o), HEUN),
    "dpm++": (lambda **o: diffusers.DPMSolverMultistepScheduler(**BETAS, **o), DPMSolverPP()),
}


@pytest.mark.parametrize("method", SCHEDULERS)
@pytest.mark.parametrize("name", TABLES)
def test_tables_of_alphas(name: str, method: str, gen: torch.Generator) -> None:
    specimen, model, x, cond = scene(name, gen)
    make, solver = SCHEDULERS[method]
    d = apart(specimen, model, make(), x, cond, solver)
    print(name, method, d)
    assert d < 1e-4
