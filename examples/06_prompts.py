# %% [markdown]
# # Prompts
# Pictures with captions teach a map to draw what it is told. The pictures are colour emoji with their Unicode names, from the
# font of Debian's fonts-noto-color-emoji; where it is not installed, scenes of coloured shapes that the package draws itself.
# Minutes on a GPU draw something; a laptop shows how it is done.

# %%
import os

import torch

from flowmaps.data import load
from flowmaps.data.text import encoder
from flowmaps.errors import DataError
from flowmaps.report.images import told_grid
from flowmaps.sample import sample, uniform
from flowmaps.train import Config, GuidanceConfig, Run, prepare
from flowmaps.train.loop import fit

fast = bool(os.environ.get("FLOWMAPS_FAST"))
try:
    name = load("emoji").name
except DataError as error:
    print(error)
    name = "shapes"

# %% [markdown]
# The bytes of the captions are read by two small transformer blocks inside the network, trained along: `prepare` sees that the
# data have captions. `GuidanceConfig` drops a tenth of them, so that the empty prompt is known, too.

# %%
config = Config(
    recipe="default",
    data=name,
    net="dit-tiny" if fast else "dit-base",
    patch=8 if fast else 4,
    guidance=GuidanceConfig(dropout=0.1),
    run=Run(steps=3 if fast else 50_000, batch=16 if fast else 256),
)
parts = prepare(config)
state = fit(parts.recipe, parts.flow_map, parts.data, config.run, about=parts.about)

# %% [markdown]
# What a prompt is to the network is written beside the weights, as `about["data"]["text"]`. One jump draws it.

# %%
prompts = ["tomato", "face with tears of joy", "a small red circle above a blue square"]
read = encoder(parts.about["data"]["text"])
told = read(prompts)["text"].repeat_interleave(4, 0)
noise = torch.randn(len(told), *parts.data.shape, generator=torch.Generator().manual_seed(0))
with torch.no_grad():
    x = sample(state.averaged(), noise, uniform(1), text=told)
picture = told_grid(list(zip(prompts, x.chunk(len(prompts)), strict=True)))
if not fast:
    picture.save("prompts.png")
print(picture.size)
