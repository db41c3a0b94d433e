"""Samples saved maps with diffusers only: flowmaps cannot be imported in this process. Run by test_export.py."""

import itertools
import json
import os
import sys
from pathlib import Path

os.environ |= {"HF_HUB_OFFLINE": "1", "HF_MODULES_CACHE": str(Path(sys.argv[1]) / "modules")}
sys.modules["flowmaps"] = None  # import flowmaps: ModuleNotFoundError

import diffusers  # noqa: E402
import torch  # noqa: E402
from diffusers.utils import logging  # noqa: E402
from safetensors.torch import load_file, save_file  # noqa: E402

logging.disable_progress_bar()
torch.set_num_threads(1)


def carried(folder, noise, steps, cond):
    pipeline = diffusers.DiffusionPipeline.from_pretrained(folder, trust_remote_code=True)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline(num_inference_steps=steps, latents=noise, **cond).samples


def again(folder, noise, steps, cond):
    """Loaded, saved by diffusers, loaded."""
    pipeline = diffusers.DiffusionPipeline.from_pretrained(folder, trust_remote_code=True)
    pipeline.save_pretrained(f"{folder}-again")
    return carried(f"{folder}-again", noise, steps, cond)


def ddpm(folder, noise, steps, cond):
    """The pipeline draws its noise itself; seed 7 gave ours."""
    pipeline = diffusers.DiffusionPipeline.from_pretrained(folder, trust_remote_code=True)
    assert isinstance(pipeline, diffusers.DDPMPipeline)
    assert type(pipeline).__call__ is diffusers.DDPMPipeline.__call__
    pipeline.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(7)
    out = pipeline(len(noise), generator, num_inference_steps=steps, output_type="np").images
    return torch.from_numpy(out).movedim(-1, 1).contiguous()


def stable_diffusion(folder, noise, steps, cond):
    pipeline = diffusers.StableDiffusionPipeline.from_pretrained(
        folder, trust_remote_code=True, text_encoder=None, tokenizer=None
    )
    assert type(pipeline).__call__ is diffusers.StableDiffusionPipeline.__call__
    pipeline.set_progress_bar_config(disable=True)
    return pipeline(
        prompt_embeds=cond["encoder_hidden_states"], latents=noise, num_inference_steps=steps,
        guidance_scale=1.0, output_type="latent",
    ).images  # fmt: skip


def any_flow(folder, noise, steps, cond):
    """No code but diffusers' own, trusted or not."""
    model = diffusers.AnyFlowTransformer3DModel.from_pretrained(folder, subfolder="flow_map")
    scheduler = diffusers.FlowMapEulerDiscreteScheduler.from_pretrained(
        folder, subfolder="scheduler"
    )
    scheduler.set_timesteps(steps)
    times, x = [*scheduler.timesteps, torch.zeros(())], noise
    for t, r in itertools.pairwise(times):
        told = {
            name: value.float().expand(x.shape[:2])
            for name, value in (("timestep", t), ("r_timestep", r))
        }
        out = model(x, **told, **cond, return_dict=False)[0]
        x = scheduler.step(out, t, x, r_timestep=r).prev_sample
    return x


work = Path(sys.argv[1])
for case in json.loads((work / "cases.json").read_text()):
    tensors = load_file(work / f"{case['name']}.safetensors")
    noise = tensors.pop("noise")
    for name in {key[:-2] for key in tensors if key.endswith(".0")}:
        tensors[name] = tuple(tensors.pop(f"{name}.{i}") for i in range(2))
    ways = {way.__name__: way for way in (carried, again, ddpm, stable_diffusion, any_flow)}
    if "text_embeds" in tensors:  # as StableDiffusionXLPipeline packs them
        tensors["added_cond_kwargs"] = {k: tensors.pop(k) for k in ("text_embeds", "time_ids")}
    with torch.no_grad():
        out = {
            str(steps): ways[case["way"]](str(work / case["name"]), noise, steps, tensors)
            for steps in case["steps"]
        }
    save_file(out, work / f"{case['name']}.out.safetensors")
