# %% [markdown]
# # Back to noise, and an edit on the way down
# A flow map goes both ways. Where does a datum come from, what is lost on the round trip, and what happens if it comes down
# under another condition? First a learned map, that errs; then two laws between which the right edit is known.

# %%
import os

import torch

import flowmaps
from flowmaps.control.edit import edit, interpolate, sdedit
from flowmaps.control.invert import BDIA, FixedPoint, Jump, Ode, invert, noise_statistics
from flowmaps.core.oracle import Gaussian
from flowmaps.data import load
from flowmaps.nets import MLP
from flowmaps.recipes import get
from flowmaps.train import Run, fit

fast = bool(os.environ.get("FLOWMAPS_FAST"))
moons = load("toy:moons")

# %% A map of both directions, of which a share of the rows goes up and has to come back.
flow_map = flowmaps.NetFlowMap(MLP((2,), width=64))
recipe = get("psd", both=True, back=0.2, channels=0)
flow_map = fit(recipe, flow_map, moons, Run(steps=200 if fast else 2000, lr=2e-3)).averaged()
x = moons.batch(torch.arange(500))[0]

# %% Five ways up. All but the last come back by jumps; it keeps the last two points and comes back exactly.
ways = {
    "one jump": Jump(1),
    "eight jumps": Jump(8),
    "eight jumps, each corrected once": FixedPoint(8, iterations=2, jump=True),
    "32 Heun steps, eight jumps back": Ode(32),
    "four steps of jumps both ways": BDIA(4),
}
for name, way in ways.items():
    found = invert(flow_map, x, way, back=8 if isinstance(way, Ode) else None)
    calls, size = found.cost.equivalents / len(x), noise_statistics(found.x)["size"]
    print(f"{name}: {found.error.mean():.2%} lost in {calls:.0f} calls; noise of size {size:.2f}")
assert float(found.error.max()) < 1e-3


# %% Two laws under one condition, exact: an edit from pure noise is the transport of one into the other.
class Two(flowmaps.FlowMap):
    """A flow map with a condition of its own: which law."""

    interpolant = flowmaps.linear()
    laws = tuple(
        Gaussian(torch.tensor(mean), torch.tensor(std), flowmaps.linear())
        for mean, std in (([-2.0, 0.5], [0.6, 1.0]), ([1.5, 0.0], [0.3, 0.4]))
    )

    def mean_velocity(self, x, s, t, *, label):
        a, b = (law.flow_map.mean_velocity(x, s, t) for law in self.laws)
        return torch.where((label == 0)[:, None], a, b)


def told(x):
    """The mean, to two digits."""
    return [round(value, 2) for value in x.mean(0).tolist()]


two, (a, b) = Two(), Two.laws
x = a.sample(200, torch.Generator().manual_seed(0))
source, target = ({"label": torch.full((len(x),), k)} for k in (0, 1))
for time in (0.3, 0.7, 1.0):
    found = edit(two, x, source, target, time=time)
    print(f"edited from t = {time}: mean {told(found.x)}, {found.cost.forward // len(x)} calls")
torch.testing.assert_close(found.x, b.mean + b.std / a.std * (x - a.mean), rtol=0, atol=1e-4)

# %% Without an inversion: noise the data and jump back. And from one datum to another, around the circle of their noises.
noised = sdedit(two, x, time=0.5, generator=torch.Generator().manual_seed(1), **target)
print(f"noised to t = .5 and back: mean {told(noised.x)}")
walk = interpolate(two, x[:100], x[100:], frames=5, **{k: v[:100] for k, v in source.items()})
torch.testing.assert_close(walk.x[[0, -1]], torch.stack([x[:100], x[100:]]), rtol=0, atol=1e-4)
