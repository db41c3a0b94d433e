"""What is missing is said in one sentence, with how to give it."""

import importlib
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("diffusers", reason="needs the extra: pip install 'flowmaps[diffusers]'")

import diffusers

from flowmaps.adapters.diffusers import Schedule, flow_map, schedule, velocity
from flowmaps.core.flow_map import NetFlowMap
from flowmaps.errors import AdapterError, MissingExtraError
from flowmaps.testing.zoo import ZOO


def saved(folder: Path) -> Path:
    """A DDPM pipeline as its users have it."""
    scheduler = diffusers.DDPMScheduler()
    diffusers.DDPMPipeline(ZOO["UNet2D"].build(), scheduler).save_pretrained(folder)
    return folder


def test_a_folder_a_pipeline_and_a_model_are_one(tmp_path: Path, gen: torch.Generator) -> None:
    folder = saved(tmp_path)
    pipeline = diffusers.DDPMPipeline.from_pretrained(folder)
    x, _ = ZOO["UNet2D"].inputs(2, gen)
    with torch.no_grad():
        fields = (
            velocity(folder),
            velocity(pipeline),
            velocity(pipeline.unet, scheduler=pipeline.scheduler),
        )
        one, two, three = (field.velocity(x, 0.4) for field in fields)
        student = flow_map(str(folder))
        assert torch.equal(one, two)
        assert torch.equal(two, three)
        assert torch.equal(one, student.velocity(x, 0.4))


def test_the_velocity_is_the_pipelines_prediction(tmp_path: Path, gen: torch.Generator) -> None:
    """Timestep 400 is time 0.401, and there the network is told 400 to the bit, in float32 too."""
    pipeline = diffusers.DDPMPipeline.from_pretrained(saved(tmp_path))
    field = velocity(pipeline)
    x, _ = ZOO["UNet2D"].inputs(2, gen)
    for n in (0, 1, 400, 998, 999):
        t = torch.full((2,), (n + 1) / 1000)
        with torch.no_grad():
            assert torch.equal(field.output(x, t, t), pipeline.unet(x, n, return_dict=False)[0])


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda p: p / "nothing", "neither a folder nor a pipeline"),
        (lambda p: p, "neither model_index.json"),
        (lambda p: (p / "model_index.json").write_text("{") and p, "not readable as JSON"),
        (
            lambda p: (p / "config.json").write_text('{"recipe": "psd"}') and p,
            "is a run of flowmaps.* train RECIPE --teacher",
        ),
        (
            lambda p: (
                (p / "model_index.json").write_text('{"_class_name": "X", "vae": [null, null]}')
                and p
            ),
            "X, which diffusers",
        ),
        (
            lambda p: (
                (p / "model_index.json").write_text(
                    '{"_class_name": "X", "unet": ["diffusers", "UNet2DModel"]}'
                )
                and p
            ),
            "cannot be loaded as UNet2DModel",
        ),
    ],
)
def test_folders(make, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(AdapterError, match=words):
        velocity(make(tmp_path))


def test_a_broken_weight_file(tmp_path: Path) -> None:
    folder = saved(tmp_path)
    weights = folder / "unet" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(
        AdapterError, match=r"unet cannot be loaded as UNet2DModel .*: save it again"
    ):
        velocity(folder)


def test_a_model_without_its_scheduler() -> None:
    with pytest.raises(AdapterError, match=r"UNet2DModel alone does not say .* pass scheduler="):
        velocity(ZOO["UNet2D"].build())


def test_schedulers() -> None:
    with pytest.raises(AdapterError, match=r"EDMEulerScheduler knows .* got 'sample'"):
        schedule(diffusers.EDMEulerScheduler(), "sample")
    with pytest.raises(AdapterError, match=r"TrigFlow's scheduler.* got prediction 'epsilon'"):
        schedule(diffusers.SCMScheduler(), "epsilon")
    with pytest.raises(
        AdapterError, match="noise schedule of ScoreSdeVeScheduler is not known: pass scheduler="
    ):
        schedule(diffusers.ScoreSdeVeScheduler())
    with pytest.raises(AdapterError, match=r"zero terminal SNR.*v_prediction"):
        schedule(diffusers.DDIMScheduler(rescale_betas_zero_snr=True))
    with pytest.raises(AdapterError, match="prediction_type 'trigflow'"):
        schedule(diffusers.DDIMScheduler(), "trigflow")
    with pytest.raises(AdapterError, match="predict the flow; got prediction 'sample'"):
        schedule(diffusers.FlowMatchEulerDiscreteScheduler(), "sample")
    assert isinstance(schedule(diffusers.DDPMScheduler()), Schedule)


def test_conditioning(gen: torch.Generator) -> None:
    specimen = ZOO["SD3"]
    field = velocity(specimen.build(), scheduler=specimen.scheduler())
    x, cond = specimen.inputs(2, gen)
    with pytest.raises(
        AdapterError,
        match=r"SD3Transformer2DModel takes no conditioning prompt; it takes .*pooled_projections",
    ):
        field.velocity(x, 0.5, **cond, prompt=torch.zeros(2))
    with pytest.raises(
        AdapterError, match=r"SD3Transformer2DModel failed .* not given .*pooled_projections"
    ):
        field.velocity(x, 0.5, encoder_hidden_states=cond["encoder_hidden_states"])
    unet = ZOO["SD 1.5 UNet"]
    with pytest.raises(
        AdapterError, match="UNet2DConditionModel needs the conditioning encoder_hidden_states"
    ):
        velocity(unet.build(), scheduler=unet.scheduler()).velocity(x, 0.5)


def test_what_is_no_denoiser() -> None:
    scheduler = diffusers.DDPMScheduler()
    with pytest.raises(
        AdapterError, match=r"Linear is no denoiser .* lacks an argument `timestep`"
    ):
        velocity(torch.nn.Linear(2, 2), scheduler=scheduler)
    with pytest.raises(AdapterError, match="object has no denoiser"):
        velocity(object(), scheduler=scheduler)
    with pytest.raises(AdapterError, match="holds no model of diffusers, but Identity"):
        flow_map(NetFlowMap(torch.nn.Identity()))


def test_a_missing_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    name = "flowmaps.adapters.diffusers"
    monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr("importlib.util.find_spec", lambda package: None)
    with pytest.raises(MissingExtraError, match=r"accelerate: pip install 'flowmaps\[diffusers\]'"):
        importlib.import_module(name)
