# %% [markdown]
# # A flow map of a world that is known in closed form
# Learn a two-time network from samples alone, then hold it against the exact map.

# %%
import os

import torch

import flowmaps
from flowmaps.core.oracle import Product
from flowmaps.nets import MLP
from flowmaps.recipes import get
from flowmaps.sample import sample, uniform

fast = bool(os.environ.get("FLOWMAPS_FAST"))
steps = 60 if fast else 3000

# %% Two independent coordinates, each with two modes: the exact map preserves quantiles.
world = Product(
    weights=torch.tensor([[0.3, 0.6], [0.7, 0.4]]),
    means=torch.tensor([[-1.5, 1.0], [0.8, -1.2]]),
    stds=torch.tensor([[0.4, 0.3], [0.5, 0.6]]),
    interpolant=flowmaps.linear(),
)

# %% MeanFlow: the Eulerian rule, from data alone.
recipe = get("mean_flow", diagonal=0.5, p=0.0)
torch.manual_seed(0)
flow_map = flowmaps.NetFlowMap(MLP((2,), width=128, depth=3))
objective = flowmaps.Objective(recipe, flow_map)
optimizer = torch.optim.AdamW(objective.parameters(), lr=2e-3)
schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
generator = torch.Generator().manual_seed(0)
for _ in range(steps):
    loss = objective(recipe.draw(world.sample(512, generator), generator))
    optimizer.zero_grad()
    loss.total.backward()
    optimizer.step()
    schedule.step()

# %% One call against the closed form, on noise that it has not seen.
noise = world.interpolant.prior((4096, 2), torch.Generator().manual_seed(1))
exact = world.flow_map(noise.double(), 1.0, 0.0).float()
with torch.no_grad():
    for count in (1, 2, 4):
        error = (sample(flow_map, noise, uniform(count)) - exact).square().mean() / exact.var()
        print(f"{count} step(s): relative RMS error {error.sqrt():.3f}")
assert torch.isfinite(error)
