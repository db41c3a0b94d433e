# %% [markdown]
# # What was it that we saw?
# A signal is measured half, and noisily. A flow map's law says what it can have been: draws of the posterior, and how far to
# trust them. In this world the answer is known, so we can look.

# %%
import os

import torch

import flowmaps
from flowmaps.control.operators import Mask
from flowmaps.control.restore import NoiseMAP, NoisePosterior, PiGDM, coverage, restore
from flowmaps.core.oracle import Gaussian, Rotated

fast = bool(os.environ.get("FLOWMAPS_FAST"))
count, draws = (60, 19) if fast else (400, 99)

# %% Smooth signals of 16 points: independent cosines, the slow ones strong.
k = torch.arange(16, dtype=torch.float64)
basis = torch.cos(torch.pi * (k[:, None] + 0.5) * k / 16)
basis = basis / basis.norm(dim=0)
world = Rotated(
    Gaussian(torch.zeros_like(k), 2 * torch.exp(-k / 3) + 0.02, flowmaps.linear()), basis
)
generator = torch.Generator().manual_seed(0)
truth = world.sample(count, generator)

# %% Every second point is seen, with noise. Any linear function would do here: torch finds its adjoint.
sigma, see = 0.1, Mask((k % 2 == 0).double())
y = see(truth) + sigma * torch.randn(truth.shape, generator=generator, dtype=truth.dtype)

# %% The posterior in closed form.
prior = basis @ torch.diag((2 * torch.exp(-k / 3) + 0.02) ** -2) @ basis.T
covariance = torch.linalg.inv(prior + torch.diag(see.keep) / sigma**2)
mean = see(y) @ covariance / sigma**2

# %% Three ways to it, with any flow map.
methods = {
    "guided flow": (PiGDM(10 if fast else 24, iterations=16, latest=0.995), draws),
    "likeliest noise": (NoiseMAP(100), 1),
    "chains in noise": (NoisePosterior(40 if fast else 150), draws),
}
for name, (method, number) in methods.items():
    found = restore(
        world.flow_map, y, see, sigma, shape=(16,), method=method, draws=number, generator=generator
    )
    error = (found.mean - mean).square().mean().sqrt()
    line = f"{name}: mean off by {error:.3f}, {found.cost.equivalents / count:.0f} calls per signal"
    if number > 1:
        seen = found.x - found.mean
        spread = (seen.square().mean() / covariance.diagonal().mean()).sqrt()
        covered = coverage(found.x, truth)
        line += f", spread {spread:.2f} of the exact one, covers {covered[0.68]:.0%} of 68 %"
        line += f" and {covered[0.95]:.0%} of 95 %"
    print(line)
    assert torch.isfinite(found.x).all()
