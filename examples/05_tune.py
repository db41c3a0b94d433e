# %% [markdown]
# # Teach a model what you want
# Three ways to fine-tune towards a reward, on a law whose tilt is known: two heaps of points, and a wish for the right one.
# A tuning is a recipe, so the loop that trains a flow map tunes it as well.

# %%
import copy
import os

import torch

import flowmaps
from flowmaps.control.rewards import Scaled
from flowmaps.control.tune import backprop, nft, tilt
from flowmaps.control.tune_watch import Examiner
from flowmaps.core.oracle import Product
from flowmaps.nets import MLP
from flowmaps.train import Run, fit

fast = bool(os.environ.get("FLOWMAPS_FAST"))
half = torch.tensor([[0.5, 1.0], [0.5, 1e-9]])
world = Product(
    half, torch.tensor([[-1.0, 0.0], [1.0, 0.0]]), torch.full((2, 2), 0.35), flowmaps.linear()
)


# %% What is learned from: draws of the law. Tuning by a black box never looks at them; it counts them.
class Heaps:
    name, shape, classes = "heaps", (2,), ()

    def __init__(self) -> None:
        self.x = world.sample(20_000, torch.Generator().manual_seed(0)).float()

    def __len__(self) -> int:
        return len(self.x)

    def batch(self, index):
        return self.x[index], None


def run(steps: int, lr: float) -> Run:
    steps = 10 if fast else steps
    return Run(steps=steps, batch=256, lr=lr, ema=(0.1,), precision="fp32", compile="no")


data, base = Heaps(), flowmaps.NetFlowMap(MLP((2,), 64, 3))
base = fit(flowmaps.recipes.get("psd", channels=0), base, data, run(1500, 2e-3)).averaged()


# %% A reward of your own: any function of samples. The tilt asks for it in natural units.
def right(x: torch.Tensor) -> torch.Tensor:
    return x[:, 0]


noise = torch.randn(2000, 2, generator=torch.Generator().manual_seed(1))
examiner = Examiner(base, {"right": right, "up": lambda x: x[:, 1]}, noise)
wish = Scaled(right, 1.0)
methods = {
    "nft": (nft(right, beta=0.2, adaptive=False), 50, 5e-4),
    "tilt": (tilt(wish, rounds=2), 600, 1e-3),
    "backprop": (backprop(wish, output=2.0), 200, 1e-3),
}

# %% What the tilt is: the right heap has weight 1 / (1 + e^-2), and each heap moves by its variance.
share = 1 / (1 + torch.tensor(-2.0).exp())
print(f"exact tilt: {share:.3f} of the points on the right, mean {2 * share - 1 + 0.35**2:.3f}")

# %% Each leaves a map that is still a map, or says that it does not.
for name, (recipe, steps, lr) in methods.items():
    student = copy.deepcopy(base).requires_grad_(True)
    state = fit(recipe, student, data, run(steps, lr), teacher=base)
    tuned = state.averaged()
    found, x = examiner(tuned), examiner.draw(tuned, 1)
    print(
        f"{name}: {float((x[:, 0] > 0).float().mean()):.3f} on the right, mean {found.rewards['right'][0]:.3f}, held out "
        f"{found.rewards['up'][0]:+.3f}, divergence {found.kl_reward:.2f} to {found.kl_path:.2f} nats, one jump is "
        f"{found.disagree[0]:.2f} spreads from four"
    )
    assert torch.isfinite(x).all()
