# %% [markdown]
# # How likely is it?
# A flow map is a change of variables, so it knows densities: by its velocity (exactly, or with random probes), or by the
# Jacobians of a few jumps. Here the answer is known. Then the use of it: what does a learned map think does not belong?

# %%
import os

import torch

import flowmaps
from flowmaps.control.likelihood import ByJumps, ByOde, log_prob
from flowmaps.core.oracle import Product, Rotated
from flowmaps.data import load
from flowmaps.nets import MLP
from flowmaps.recipes import get
from flowmaps.train import Run, fit

fast = bool(os.environ.get("FLOWMAPS_FAST"))
generator = torch.Generator().manual_seed(0)

# %% Four modes in the plane, turned; exact, in float64.
modes = torch.tensor([[[0.5, 0.5], [-1.0, -0.7], [0.5, 0.5]], [[0.5, 0.5], [1.2, 0.9], [0.4, 0.6]]])
turn = torch.tensor([[0.8, -0.6], [0.6, 0.8]]).double()
world = Rotated(Product(*modes.double().unbind(1), flowmaps.linear()), turn)
x = world.sample(50, generator)
truth = world.world.density(x @ turn, torch.zeros(50).double()).log().sum(1)
ways = {
    "64 Heun steps": ByOde(64),
    "64 Heun steps, one random probe": ByOde(64, probes=1),
    "one jump": ByJumps(1),
    "four jumps": ByJumps(4),
}
for name, way in ways.items():
    found = log_prob(world.flow_map, x, way, generator=generator)
    off, calls = (found.log_prob - truth).abs().mean(), found.cost.equivalents / len(x)
    print(f"{name}: off by {off:.1e} nats, {calls:.0f} calls a datum")
assert float((found.log_prob - truth).abs().max()) < 1e-5

# %% A learned map: points of its data against points beside them. `bits` are per dimension.
moons = load("toy:moons")
recipe, net = get("psd", both=True, back=0.2), MLP((2,), width=64)
run = Run(steps=200 if fast else 2000, lr=2e-3)
flow_map = fit(recipe, flowmaps.NetFlowMap(net), moons, run).averaged()
inside = moons.batch(torch.arange(300))[0]
outside = 1.5 * torch.randn(inside.shape, generator=generator)
told = {
    name: [log_prob(flow_map, points, way) for points in (inside, outside)]
    for name, way in (("velocity", ByOde(32)), ("two jumps", ByJumps(2)))
}
for name, (near, far) in told.items():
    sure = (near.log_prob[:, None] > far.log_prob).float().mean()
    print(
        f"by the {name}: {near.bits().mean():.2f} bits on data, {far.bits().mean():.2f} beside them; a datum is the likelier "
        f"of the two in {sure:.0%}; round trip {near.round_trip.mean():.1%}"
    )
    assert float(sure) > 0.6
