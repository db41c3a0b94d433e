# %% [markdown]
# # Your own network, your own data
# Any `net(x, s, t, **cond)` works, and so does any object with `__len__` and `batch(index)`. This one learns labelled points
# and writes checkpoints that `load` reads back.

# %%
import os
import tempfile

import torch
from torch import nn

import flowmaps
from flowmaps.recipes import get
from flowmaps.sample import sample, uniform
from flowmaps.train import Run, fit, load

fast = bool(os.environ.get("FLOWMAPS_FAST"))


class Net(nn.Module):
    """A plain MLP on (x, s, s - t, one-hot label). The jump s - t is formed inside, so that derivatives see it."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(7, 96), nn.SiLU(), nn.Linear(96, 96), nn.SiLU(), nn.Linear(96, 2)
        )

    def forward(self, x, s, t, label=None):
        one_hot = nn.functional.one_hot(label, 3).to(x)
        return self.layers(torch.cat([x, s[:, None], (s - t)[:, None], one_hot], -1))


class Rings:
    """Three rings; the class is the radius."""

    def __init__(self, n: int = 6000) -> None:
        g = torch.Generator().manual_seed(0)
        self.labels = torch.randint(0, 3, (n,), generator=g)
        angle = 6.2832 * torch.rand(n, generator=g)
        radius = 0.5 * (1 + self.labels) + 0.05 * torch.randn(n, generator=g)
        self.x = torch.stack([radius * angle.cos(), radius * angle.sin()], -1)

    def __len__(self) -> int:
        return len(self.x)

    def batch(self, index):
        return self.x[index], self.labels[index]


# %%
torch.manual_seed(0)
flow_map = flowmaps.NetFlowMap(Net())
about = {"data": {"name": "rings", "shape": [2], "classes": ["small", "middle", "large"]}}
with tempfile.TemporaryDirectory() as folder:
    run = Run(steps=50 if fast else 4000, batch=512, lr=2e-3, precision="fp32")
    fit(get("psd"), flow_map, Rings(), run, out=folder, about=about)
    trained = load(folder, net=Net()).flow_map

# %%
labels = torch.arange(3).repeat_interleave(500)
noise = trained.interpolant.prior((1500, 2), torch.Generator().manual_seed(1))
with torch.no_grad():
    radius = sample(trained, noise, uniform(2), label=labels).norm(dim=1)
for k in range(3):
    print(f"class {k}: radius {radius[labels == k].mean():.2f}, wanted {0.5 * (1 + k):.2f}")
assert torch.isfinite(radius).all()
