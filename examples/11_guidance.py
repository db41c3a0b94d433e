# %% [markdown]
# # One checkpoint, any guidance scale
# Guidance leads away from what a model draws when it is told nothing (or from what a weaker model draws). It acts on
# velocities, so it costs a walk; a map can learn it with the scale as an input, and then one jump has it.

# %%
import os
from dataclasses import replace

import torch

import flowmaps
from flowmaps.core.oracle import Gaussian
from flowmaps.core.solver import HEUN
from flowmaps.data import TensorData
from flowmaps.learn.guidance import Guidance
from flowmaps.learn.times import LogUniform
from flowmaps.nets import MLP
from flowmaps.recipes import get
from flowmaps.sample import CFG, Autoguidance, solve, uniform
from flowmaps.train import Run, fit

fast = bool(os.environ.get("FLOWMAPS_FAST"))


# %% Exact: away from a weaker model, a wider Gaussian. A walk ends at deviation s^w s'^(1-w): no product of densities has it.
def model(mean, std):
    law = Gaussian(torch.tensor([mean]), torch.tensor([std]), flowmaps.linear())
    return flowmaps.NetFlowMap(lambda x, s, t: law.velocity(x, s), flowmaps.linear(), local=True)


strong, weak, noise = model(1.3, 0.6), model(0.2, 1.4), torch.tensor([[0.0], [1.0]])
for scale in (1.0, 1.5, 2.5):
    for name, low in (("always", 0.0), ("while t > .5", 0.5)):
        guided = Autoguidance(strong, weak, scale, low=low)
        start, end = solve(guided.velocity, noise, uniform(200), flowmaps.linear(), HEUN)[:, 0]
        print(f"scale {scale} {name}: mean {start:.3f}, deviation {end - start:.3f}")
        if low == 0.0:
            wanted = torch.tensor(0.6**scale * 1.4 ** (1 - scale))
            torch.testing.assert_close(end - start, wanted, rtol=0.02, atol=0)


# %% Learned: three overlapping classes on a line; 3 stands for "nothing is told".
label = torch.arange(3000) % 3
spread = 0.7 * torch.randn(3000, 1, generator=torch.Generator().manual_seed(0))
data = TensorData("line", (label - 1.0)[:, None] + spread, label, ("left", "middle", "right"))
told = Guidance({"label": 3}, LogUniform(1.0, 3.0), dropout=0.2)
recipe = replace(get("psd", channels=0, diagonal=0.5), guidance=told)
net = MLP((1,), width=64, classes=3, guided=True)
run = Run(steps=200 if fast else 2500, batch=256, lr=2e-3)
flow_map = fit(recipe, flowmaps.NetFlowMap(net), data, run).averaged()

# %% One jump at each scale; a walk along the field that it learned, which it agrees with; and the walk along the unguided
# velocity, guided as it goes. The learned field is behind the last: learned from data, every pass leaves 1 - 1/scale of its error.
n = 2000
noise, right = torch.randn(n, 1, generator=torch.Generator().manual_seed(1)), torch.full((n,), 2)


def walk(velocity, scale):
    """32 Heun steps from the same noises, for the class on the right."""
    told = {"label": right, "scale": torch.full((n,), scale)}
    return solve(velocity, noise, uniform(32), flow_map.interpolant, HEUN, **told)


for scale in (1.0, 2.0, 3.0):
    ends = {
        "one jump": flow_map(noise, 1.0, 0.0, label=right, scale=torch.full((n,), scale)),
        "walk along its guided field": walk(flow_map.velocity, scale),
        "guided walk": walk(CFG(flow_map, scale, {"label": 3}).velocity, 1.0),
    }
    print(f"scale {scale}, the class itself 1.00 +- 0.70")
    for name, x in ends.items():
        print(f"  {name}: {x.mean():.2f} +- {x.std():.2f}")
    jump, own, _ = ends.values()
    assert float((jump - own).square().mean().sqrt()) < (1.0 if fast else 0.3)
assert float(jump.mean()) > 1.0
