"""Classes of diffusers with a second time of their own: switched on, the teacher at the start, differentiable, saved, sampled."""

from pathlib import Path

import pytest
import torch

pytest.importorskip("diffusers", reason="needs the extra: pip install 'flowmaps[diffusers]'")

import diffusers

from flowmaps.adapters.diffusers import denoiser, flow_map, velocity
from flowmaps.adapters.export import load, save, start
from flowmaps.core.flow_map import NetFlowMap
from flowmaps.errors import AdapterError
from flowmaps.sample import sample
from flowmaps.testing.fitness import fitness
from flowmaps.testing.zoo import TWO_TIME

S, T = torch.tensor([0.7, 0.301]), torch.tensor([0.2, 0.9])
ADDED = ("Flux3", "HunyuanVideo15")
"""The second embedding is added and begins at zero: the map is the teacher's velocity at every target."""


def scheduler(name: str):
    if name == "ACE-Step":  # as its pipeline wants it: timesteps are shares of 1
        return diffusers.FlowMatchEulerDiscreteScheduler(num_train_timesteps=1, shift=1.0)
    return TWO_TIME[name].scheduler()


def teacher(name: str, dtype: torch.dtype = torch.float32) -> NetFlowMap:
    specimen = TWO_TIME[name]
    return velocity(specimen.build(dtype), scheduler=scheduler(name), constant=specimen.constant())


@pytest.mark.parametrize("name", TWO_TIME)
def test_it_starts_as_the_teacher(name: str, gen: torch.Generator) -> None:
    field = teacher(name)
    student = flow_map(field)
    assert type(denoiser(student).model).__name__ == TWO_TIME[name].kind
    assert denoiser(student).second in ("timestep_r", "target_timestep")
    x, cond = TWO_TIME[name].inputs(2, gen)
    with torch.no_grad():
        diagonal = student.velocity(x, S, **cond)
        torch.testing.assert_close(diagonal, field.velocity(x, S, **cond), rtol=1e-6, atol=1e-6)
        far = student.output(x, S, T, **cond)
    assert torch.equal(far, diagonal) or name not in ADDED


@pytest.mark.parametrize("name", TWO_TIME)
def test_the_times_are_told_as_its_pipeline_tells_them(
    name: str, gen: torch.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    student = flow_map(teacher(name))
    model, heard = denoiser(student).model, {}
    forward = type(model).forward

    def listening(self, *args, **kwargs):
        heard.update(kwargs)
        return forward(self, *args, **kwargs)

    monkeypatch.setattr(denoiser(student), "model", model)
    monkeypatch.setattr(model, "forward", lambda *a, **k: listening(model, *a, **k))
    x, cond = TWO_TIME[name].inputs(2, gen)
    with torch.no_grad():
        student.output(x, S, T, **cond)
    unit = 1000 if name.startswith("Hunyuan") else 1
    torch.testing.assert_close(heard["timestep"], unit * S)
    torch.testing.assert_close(heard[denoiser(student).second], unit * T)


# Flux3 norms its queries in float32
@pytest.mark.filterwarnings("ignore:Mismatch dtype between input and weight:UserWarning")
@pytest.mark.parametrize("name", TWO_TIME)
def test_derivatives(name: str, gen: torch.Generator) -> None:
    student = flow_map(teacher(name, torch.float64))
    x, cond = TWO_TIME[name].inputs(2, gen, torch.float64)
    found = fitness(student, x, cond, gen)
    assert found.jvp < 1e-5
    assert found.gradient < 1e-4


@pytest.mark.parametrize("name", TWO_TIME)
def test_saved_and_sampled(name: str, gen: torch.Generator, tmp_path: Path) -> None:
    student = flow_map(teacher(name)).requires_grad_(False)
    for parameter in denoiser(student).model.parameters():
        if not bool(parameter.any()):
            torch.nn.init.normal_(parameter, std=0.05)
    save(student, tmp_path / "map")
    again = load(tmp_path / "map", constant=TWO_TIME[name].constant())
    x, cond = TWO_TIME[name].inputs(2, gen)
    mine = sample(student, *start(student, x, 3), **cond)
    torch.testing.assert_close(sample(again, *start(again, x, 3), **cond), mine)
    pipeline = diffusers.DiffusionPipeline.from_pretrained(tmp_path / "map", trust_remote_code=True)
    pipeline.set_progress_bar_config(disable=True)
    given = {**cond, **TWO_TIME[name].constant()}
    theirs = pipeline(num_inference_steps=3, latents=x, **given).samples
    torch.testing.assert_close(theirs, mine, rtol=1e-5, atol=1e-5)


def test_a_pipeline_that_tells_one_time_only(tmp_path: Path) -> None:
    student = flow_map(teacher("ACE-Step"))
    pipeline = diffusers.DDPMPipeline(denoiser(student).model, diffusers.DDPMScheduler())
    with pytest.raises(AdapterError, match=r"DDPMPipeline tells AceStep.* one time only"):
        save(student, tmp_path / "map", pipeline=pipeline)
