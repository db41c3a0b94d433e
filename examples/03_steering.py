# %% [markdown]
# # Steering: a reward of your own, in ten lines
# Any function from samples (B, ...) to one number each. `tempered_smc` samples p(x) exp(beta r(x)) with it, exactly for the
# map's own law, and says how sure it is; `steer` follows its gradient; `best_of_n` is what both have to beat.

# %%
import os

import torch

import flowmaps
from flowmaps.control.noise import optimize_noise
from flowmaps.control.search import best_of_n
from flowmaps.control.smc import tempered_smc
from flowmaps.control.steer import Tweedie, steer
from flowmaps.core.oracle import Product
from flowmaps.sample import uniform

n = 400 if os.environ.get("FLOWMAPS_FAST") else 4000

# %% A map to steer: here of two coordinates with two modes each, exact; a trained one from `flowmaps.train.load` does as well.
two = torch.full((2, 2), 0.5)
flow_map = Product(
    two, torch.tensor([[-2.0, -1.0], [2.0, 1.5]]), 0.4 * two, flowmaps.linear()
).flow_map


# %% The ten lines.
def reward(x):
    """High near the circle of radius 2.5 and to the right; any tensor code, any black box."""
    return x[:, 0] - 2 * (x.norm(dim=1) - 2.5).square()


generator = torch.Generator().manual_seed(0)
noise = flow_map.interpolant.prior((n, 2), generator)
out = tempered_smc(flow_map, reward, noise, beta=1.0, generator=generator)
print(
    f"tilt: mean reward {out.weights @ out.reward.double():.3f}, log Z {out.log_z:.3f} +- {out.log_z_error:.3f}"
)
print(
    f"cost: {out.cost.equivalents / n:.0f} forwards per particle; trouble: {out.degenerate or 'none seen'}"
)

# %% The same law by reweighting many samples: they agree, or one of the two is wrong.
many = flow_map(flow_map.interpolant.prior((20 * n, 2), generator), 1.0, 0.0)
weights = torch.softmax(reward(many), 0)
exact = torch.logsumexp(reward(many), 0) - torch.tensor(20.0 * n).log()
print(f"before: mean reward {reward(many).mean():.3f}")
print(f"by reweighting {20 * n:,} samples: {weights @ reward(many):.3f}, log Z {exact:.3f}")
assert abs(float(exact) - out.log_z) < 5 * out.log_z_error + 0.05

# %% Optimisers go further than the tilt, at the price of another law: say which one you use.
leaned = steer(flow_map, reward, noise[:200], uniform(16), value=Tweedie())
best = best_of_n(flow_map, reward, noise[:200], 8)
climbed = optimize_noise(flow_map, reward, noise[:200], steps=10)
ways = {"leaning on the denoised mean": leaned, "best of 8": best, "climbing in the noise": climbed}
for name, found in ways.items():
    cost = found.cost.equivalents / len(found.x)
    print(f"{name}: mean reward {found.reward.mean():.3f}, {cost:.0f} forwards per sample")
assert float(best.reward.mean()) > float(reward(many).mean())
