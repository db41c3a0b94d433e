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
EXPLODING = (
    diffusers.EulerDiscreteScheduler,
    diffusers.HeunDiscreteScheduler,
    diffusers.EDMEulerScheduler,
    diffusers.EDMDPMSolverMultistepScheduler,
)
TABLES = [name for name, specimen in ZOO.items() if not specimen.flow]
FLOWS = [name for name, specimen in ZOO.items() if specimen.flow]


def stock(
    specimen: Specimen, model: nn.Module, scheduler, x: Tensor, steps: int, cond: dict[str, Tensor]
) -> Tensor:
    """What a pipeline of diffusers does; each class's way with times is written out, as in its own pipeline."""
    scheduler.set_timesteps(steps)
    x = x * getattr(scheduler, "init_noise_sigma", 1.0)
    for i, step in enumerate(scheduler.timesteps):
        t = step
        if scheduler.config.get(
            "use_flow_sigmas"
        ):  # its timesteps are cut to integers, away from its own sigmas
            t = scheduler.sigmas[i].double() * scheduler.config["num_train_timesteps"]
        z = scheduler.scale_model_input(x, step) if hasattr(scheduler, "scale_model_input") else x
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
        x = scheduler.step(out, step, x).prev_sample
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
        if isinstance(scheduler, EXPLODING):
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


FLOW_SCHEDULERS = {
    "euler": (lambda: diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0), EULER),
    "flow map euler": (lambda: diffusers.FlowMapEulerDiscreteScheduler(shift=5.0), EULER),
    "dpm++": (
        lambda: diffusers.DPMSolverMultistepScheduler(
            prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0
        ),
        DPMSolverPP(),
    ),
}


@pytest.mark.parametrize("method", FLOW_SCHEDULERS)
@pytest.mark.parametrize("name", FLOWS)
def test_flows(name: str, method: str, gen: torch.Generator) -> None:
    make, solver = FLOW_SCHEDULERS[method]
    specimen, model, x, cond = scene(name, gen)
    assert apart(specimen, model, make(), x, cond, solver) < 1e-4


OTHERS = {
    "v": ({"prediction_type": "v_prediction"}, "ddim"),
    "sample": ({"prediction_type": "sample"}, "ddim"),
    "v, zero terminal SNR": (
        {
            "prediction_type": "v_prediction",
            "rescale_betas_zero_snr": True,
            "timestep_spacing": "trailing",
        },
        "ddim",
    ),
    "v, euler": ({"prediction_type": "v_prediction", "timestep_spacing": "trailing"}, "euler"),
    "v, dpm++, zero terminal SNR": (
        {
            "prediction_type": "v_prediction",
            "rescale_betas_zero_snr": True,
            "timestep_spacing": "trailing",
        },
        "dpm++",
    ),
    "sample, heun": ({"prediction_type": "sample"}, "heun"),
}


@pytest.mark.parametrize("case", OTHERS)
def test_predictions_and_terminal_snr(case: str, gen: torch.Generator) -> None:
    options, method = OTHERS[case]
    make, solver = SCHEDULERS[method]
    specimen, model, x, cond = scene("DiT", gen)
    assert apart(specimen, model, make(**options), x, cond, solver, steps=10) < 1e-4


@pytest.mark.parametrize("method", ["ddim", "euler", "dpm++"])
def test_thirty_steps(method: str, gen: torch.Generator) -> None:
    make, solver = SCHEDULERS[method]
    specimen, model, x, cond = scene("DiT", gen)
    assert (
        apart(specimen, model, make(timestep_spacing="leading"), x, cond, solver, steps=30) < 1e-4
    )


def test_the_cosine_scheduler_of_stable_audio(gen: torch.Generator) -> None:
    """Its solver is stochastic, so the denoised points are compared, over its own grid."""
    pytest.importorskip("torchsde", reason="diffusers needs it for this scheduler")
    specimen, model, x, cond = scene("Stable Audio", gen)
    scheduler, constant = specimen.scheduler(), specimen.constant()
    field = velocity(model, scheduler=scheduler, constant=constant)
    scheduler.set_timesteps(6)
    grid = denoiser(field).schedule.grid(6)
    assert len(grid) == 7
    for sigma, time, t in zip(scheduler.sigmas[:-1], scheduler.timesteps, grid[:-1], strict=True):
        point = sigma * x
        z = scheduler.precondition_inputs(point, sigma)
        with torch.no_grad():
            out = model(z, timestep=time.expand(2).double(), **cond, **constant, return_dict=False)[
                0
            ]
            ours = field.denoise(point * field.interpolant.alpha(t), t, **cond)
        torch.testing.assert_close(
            ours, scheduler.precondition_outputs(point, out, sigma), rtol=1e-4, atol=1e-4
        )


EDM = {
    "euler": (lambda **o: diffusers.EDMEulerScheduler(**o), DDIM()),
    "euler, v, exponential": (
        lambda **o: diffusers.EDMEulerScheduler(
            prediction_type="v_prediction", sigma_schedule="exponential", **o
        ),
        DDIM(),
    ),
    "dpm++": (lambda **o: diffusers.EDMDPMSolverMultistepScheduler(**o), DPMSolverPP()),
}


@pytest.mark.parametrize("sigma_data", [0.5, 1.3])
@pytest.mark.parametrize("method", EDM)
def test_edm(method: str, sigma_data: float, gen: torch.Generator) -> None:
    """Data of any variance, Karras's and exponential levels, both predictions."""
    make, solver = EDM[method]
    specimen, model, x, cond = scene("UNet2D", gen)
    assert apart(specimen, model, make(sigma_data=sigma_data), x, cond, solver, steps=6) < 1e-4


def test_trigflow(gen: torch.Generator) -> None:
    """SCM's scheduler adds noise between its steps, so the denoised points are compared; its points carry the data's scale."""
    _, model, x, cond = scene("DiT", gen)
    scheduler = diffusers.SCMScheduler(sigma_data=0.5)
    field = velocity(model, scheduler=scheduler)
    angles = torch.tensor([1.5, 1.1, 0.4, 0.0])
    scheduler.set_timesteps(3, timesteps=angles, max_timesteps=None, intermediate_timesteps=None)
    for s in scheduler.timesteps[:-1]:
        with torch.no_grad():
            out = model(x, timestep=s.double().expand(2), **cond, return_dict=False)[0][:, :4]
            ours = field.denoise(x, s.double() / (torch.pi / 2), **cond)
        theirs = scheduler.step(0.5 * out, s, 0.5 * x).pred_original_sample / 0.5
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


def test_a_flow_that_trigflow_drives(gen: torch.Generator) -> None:
    """Sana-Sprint's pipeline turns angles into flow times and the flow into TrigFlow's velocity, as written out here."""
    _, model, x, cond = scene("Sana", gen)
    field = velocity(model, scheduler=diffusers.SCMScheduler(), prediction="flow_prediction")
    angle = torch.tensor(1.1, dtype=torch.float64)
    time = angle.sin() / (angle.cos() + angle.sin())
    scale = (time**2 + (1 - time) ** 2).sqrt()
    with torch.no_grad():
        v = model(x * scale, timestep=time.expand(2), **cond, return_dict=False)[0]
        out = ((1 - 2 * time) * x * scale + (1 - 2 * time + 2 * time**2) * v) / scale
        ours = field.denoise(x * scale, time, **cond)
    torch.testing.assert_close(ours, angle.cos() * x - angle.sin() * out, rtol=1e-6, atol=1e-6)
