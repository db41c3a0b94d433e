"""Saved maps: sampled by diffusers alone as by us, loaded again, refused with a reason, pushed to a stand-in of the hub."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("diffusers", reason="needs the extra: pip install 'flowmaps[diffusers]'")

import diffusers
from safetensors.torch import load_file, save_file
from torch import Tensor

from flowmaps.adapters.carried import Jump
from flowmaps.adapters.diffusers import add_lora, denoiser, flow_map, velocity
from flowmaps.adapters.export import save, start
from flowmaps.core.flow_map import NetFlowMap
from flowmaps.core.interpolant import linear
from flowmaps.sample import sample
from flowmaps.testing.zoo import ZOO

SAMPLER = Path(__file__).with_name("stock_sampler.py")


def student_of(name: str, path=None, lora: int = 0, scheduler=None) -> NetFlowMap:
    """A map whose jumps matter: the embedding of the jump, or LoRA, is no longer zero."""
    specimen = ZOO[name]
    field = velocity(
        specimen.build(),
        scheduler=scheduler or specimen.scheduler(),
        constant=specimen.constant(),
        path=path,
    )
    student = flow_map(field)
    if lora:
        add_lora(student, lora)
    with torch.no_grad():
        for key, weight in student.named_parameters():
            if "lora_B" in key:
                weight.normal_(std=0.1)
        for module in student.modules():
            if isinstance(module, Jump):
                module.last.weight.normal_(std=0.3)
    return student.eval().requires_grad_(False)


def edm(kind: str = "epsilon"):
    return diffusers.EDMEulerScheduler(sigma_data=0.5, prediction_type=kind)


def latent_pipeline(student: NetFlowMap):
    """A Stable Diffusion with a random autoencoder and, as nothing is written, no text encoder."""
    vae = diffusers.AutoencoderKL(
        block_out_channels=(8, 8), down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2, norm_num_groups=4, latent_channels=4,
    )  # fmt: skip
    return diffusers.StableDiffusionPipeline(
        vae=vae, text_encoder=None, tokenizer=None, unet=denoiser(student).model.backbone,
        scheduler=diffusers.PNDMScheduler(**SD), safety_checker=None, feature_extractor=None,
        requires_safety_checker=False,
    )  # fmt: skip


SD = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012, "steps_offset": 1}


# %% name: (student, its pipeline, how the other process samples, its steps)
def cases():
    ddpm = student_of("UNet2D", scheduler=diffusers.DDPMScheduler())
    latent = student_of("SD 1.5 UNet", scheduler=diffusers.PNDMScheduler(**SD))
    return {
        "ddpm": (
            ddpm,
            diffusers.DDPMPipeline(ZOO["UNet2D"].build(), diffusers.DDPMScheduler()),
            "ddpm",
            (1, 4),
        ),
        "latent": (latent, latent_pipeline(latent), "stable_diffusion", (1, 4)),
        "straight": (student_of("DiT", linear()), None, "carried", (1, 5)),
        "lora": (student_of("SDXL UNet", lora=2), None, "carried", (2,)),
        "zero-snr": (
            student_of(
                "PixArt",
                scheduler=diffusers.EulerDiscreteScheduler(
                    **SD,
                    prediction_type="v_prediction",
                    rescale_betas_zero_snr=True,
                    timestep_spacing="trailing",
                ),
            ),
            None,
            "carried",
            (4,),
        ),
        "flux": (student_of("Flux"), None, "carried", (3,)),
        "sd3": (student_of("SD3"), None, "again", (3,)),
        "audio": (student_of("Stable Audio"), None, "carried", (3,)),
        "edm": (student_of("UNet2D", scheduler=edm()), None, "carried", (3,)),
        "edm-v": (student_of("UNet2D", linear(), scheduler=edm("v_prediction")), None, "carried", (3,)),
        "trigflow": (student_of("DiT", scheduler=diffusers.SCMScheduler()), None, "carried", (3,)),
        "any-flow": (student_of("AnyFlow"), None, "any_flow", (1, 3)),
    }  # fmt: skip


NAMES = {
    "ddpm": "UNet2D", "latent": "SD 1.5 UNet", "straight": "DiT", "lora": "SDXL UNet", "zero-snr": "PixArt", "flux": "Flux",
    "sd3": "SD3", "audio": "Stable Audio", "edm": "UNet2D", "edm-v": "UNet2D", "trigflow": "DiT", "any-flow": "AnyFlow",
}  # fmt: skip


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict]:
    """Every case saved, and sampled by another process."""
    work, made = tmp_path_factory.mktemp("export"), cases()
    orders = []
    for name, (student, pipeline, way, steps) in made.items():
        save(student, work / name, pipeline=pipeline)
        specimen, gen = ZOO[NAMES[name]], torch.Generator().manual_seed(7)
        x, cond = specimen.inputs(2, gen)
        tensors = {"noise": x, **cond}
        for key, value in specimen.constant().items():
            parts = (
                {key: value}
                if isinstance(value, Tensor)
                else {f"{key}.{i}": v for i, v in enumerate(value)}
            )
            tensors |= parts
        save_file(tensors, work / f"{name}.safetensors")
        orders.append({"name": name, "way": way, "steps": steps})
    (work / "cases.json").write_text(json.dumps(orders))
    done = subprocess.run(
        [sys.executable, "-W", "ignore", SAMPLER, work], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return {
        name: {
            "student": made[name][0],
            "folder": work / name,
            "noise": load_file(work / f"{name}.safetensors"),
            "stock": load_file(work / f"{name}.out.safetensors"),
        }
        for name in made
    }


def ours(case: dict, student: NetFlowMap, steps: int) -> Tensor:
    cond = {k: v for k, v in case["noise"].items() if k in ZOO[NAMES[case["folder"].name]].cond}
    x, times = start(student, case["noise"]["noise"], steps)
    with torch.no_grad():
        return sample(student, x, times, **cond)


@pytest.mark.parametrize("name", NAMES)
def test_diffusers_alone_draws_our_samples(name: str, drawn: dict) -> None:
    case = drawn[name]
    for steps, theirs in case["stock"].items():
        mine = ours(case, case["student"], int(steps))
        if name == "ddpm":
            mine = (mine / 2 + 0.5).clamp(0, 1)
        d = float((mine - theirs).abs().max() / theirs.abs().max())
        print(name, steps, d)
        assert d < 1e-5
