# %% [markdown]
# # From diffusers and back
# A DDPM that is trained as diffusers' own example trains one, a flow map of its folder, and samples that diffusers draws alone.
# The real run, with its figures, is `benchmarks/diffusers_run.py`. Needs the extra: `pip install 'flowmaps[diffusers]'`.

# %%
import os
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path

if find_spec("diffusers") is None:
    sys.exit(print("left out: pip install 'flowmaps[diffusers]' first"))

import diffusers
import torch

from flowmaps.cli.main import main
from flowmaps.data import load

fast = bool(os.environ.get("FLOWMAPS_FAST"))
steps = 3 if fast else 1500
place = Path(tempfile.mkdtemp())
digits = load("digits")
x, _ = digits.batch(torch.arange(len(digits)))

# %% A teacher: noise is predicted, the schedule is DDPM's, and a pipeline is saved.
torch.manual_seed(0)
unet = diffusers.UNet2DModel(
    sample_size=8, in_channels=1, out_channels=1, layers_per_block=1, block_out_channels=(16, 32), norm_num_groups=8,
    down_block_types=("DownBlock2D",) * 2, up_block_types=("UpBlock2D",) * 2, add_attention=False,
)  # fmt: skip
scheduler = diffusers.DDPMScheduler()
optimizer = torch.optim.AdamW(unet.parameters(), 1e-3)
for _ in range(steps):
    clean = x[torch.randint(len(x), (128,))]
    noise, t = torch.randn_like(clean), torch.randint(0, 1000, (128,))
    guess = unet(scheduler.add_noise(clean, noise, t), t, return_dict=False)[0]
    torch.nn.functional.mse_loss(guess, noise).backward()
    optimizer.step()
    optimizer.zero_grad()
diffusers.DDPMPipeline(unet, scheduler).save_pretrained(place / "ddpm")

# %% Its flow map, by one command.
settings = [f"--run.steps={steps}", "--run.lr=1e-3", f"--run.batch={4 if fast else 64}"]
command = ["distill", f"--teacher={place}/ddpm", "--data=digits", f"--out={place}/map", *settings]
assert main(command) == 0

# %% What diffusers makes of the folder: its own DDPMPipeline, in one step instead of a thousand.
pipeline = diffusers.DiffusionPipeline.from_pretrained(
    f"{place}/map/distilled", trust_remote_code=True
)
pipeline.set_progress_bar_config(disable=True)
images = pipeline(16, num_inference_steps=1, output_type="np").images
print(type(pipeline).__mro__[2].__name__, images.shape)
assert images.shape == (16, 8, 8, 1)
