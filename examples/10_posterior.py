# %% [markdown]
# # What can this noise become?
# At a noisy point the denoised mean is a blur of everything that it can become. A posterior map draws the possibilities
# themselves, each in one call of a map, and needs no training: any denoiser contains it (the GLASS identity).

# %%
import os

import torch

import flowmaps
from flowmaps.control.posterior import posterior_draws, posterior_map, transition
from flowmaps.core.oracle import Product

fast = bool(os.environ.get("FLOWMAPS_FAST"))
n = 2000 if fast else 20_000
generator = torch.Generator().manual_seed(0)

# %% Modes at -1 and 1.2, and a point in between at t = .6: both are possible.
modes = torch.tensor([[0.4], [0.6]]), torch.tensor([[-1.0], [1.2]]), torch.full((2, 1), 0.3)
world = Product(*(numbers.double() for numbers in modes), flowmaps.linear())
posterior = posterior_map(world.flow_map, steps=8 if fast else 32)
x, t = torch.tensor([[0.05]]).double(), 0.6
draws = posterior_draws(posterior, x, t, n, generator=generator)[:, 0]

# %% Bayes, on a grid, is the answer.
grid = torch.linspace(-4, 4, 4001, dtype=torch.float64)[:, None]
prior = world.density(grid, torch.zeros(len(grid)).double()).log().sum(1)
weights = torch.softmax(prior - (x - (1 - t) * grid)[:, 0].square() / (2 * t**2), 0)
mean = float(weights @ grid[:, 0])
right = float(weights[grid[:, 0] > 0].sum())
print(f"denoised mean {mean:.3f}; mean of the draws {draws.mean():.3f}")
print(f"right mode: {right:.1%} by Bayes, {(draws > 0).double().mean():.1%} of the draws")
between = (draws.abs() < 0.2).double().mean()
print(f"draws within .2 of the middle, where the mean lies and no datum does: {between:.1%}")
assert abs(float((draws > 0).double().mean()) - right) < 4 * (right * (1 - right) / n) ** 0.5 + 0.01

# %% A chain of such draws, each noised again, keeps the law at every time: a sampler with randomness, in a few calls.
z = world.flow_map.interpolant.prior((n, 1), generator).double()
for s, t in ((1.0, 0.7), (0.7, 0.4), (0.4, 0.1)):
    z = transition(posterior, z, s, t, generator=generator)
exact = 0.9 * world.sample(n, generator) + 0.1 * torch.randn((n, 1), generator=generator).double()
print(
    f"at t = .1: mean {z.mean():.3f} (law {exact.mean():.3f}), deviation {z.std():.3f} ({exact.std():.3f})"
)
assert abs(float(z.std() - exact.std())) < 0.05
