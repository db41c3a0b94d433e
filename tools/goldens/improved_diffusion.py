"""DDPM: OpenAI's port of the authors' TensorFlow code, on twenty steps of the continuous schedule."""

import kit
import numpy as np
import torch
from torch_kit import Net, images

info = kit.peer("openai+improved-diffusion")
from improved_diffusion import gaussian_diffusion as theirs

STEPS = 20

rng = np.random.default_rng(5)
w = kit.weights(rng)
rows = kit.points(rng, 8, jump=False)
index = rng.integers(0, STEPS, 8)
grid = np.arange(STEPS + 1) / STEPS
area = 0.1 * grid + (20.0 - 0.1) * grid**2 / 2
diffusion = theirs.GaussianDiffusion(
    betas=-np.expm1(area[:-1] - area[1:]),
    model_mean_type=theirs.ModelMeanType.EPSILON,
    model_var_type=theirs.ModelVarType.FIXED_LARGE,
    loss_type=theirs.LossType.MSE,
)
# their coefficients are cast to float32 where they are looked up
theirs._extract_into_tensor = lambda a, t, shape: torch.from_numpy(a)[t].reshape(-1, 1, 1, 1)
net = Net(w)


def eps(x, steps):
    time = (steps + 1) / STEPS
    return net(x, time, time)


terms = diffusion.training_losses(
    eps, images(rows["x_0"]), torch.tensor(index), noise=images(rows["eps"])
)
s = grid[index + 1]
kit.store(
    "ddpm",
    kit.prefixed("student", w)
    | kit.prefixed("diagonal", rows | {"s": s, "w": s, "t": s})
    | net.result(terms["loss"].mean()),
    recipe="ddpm",
    settings={},
    peer=info
    | {
        "file": "improved_diffusion/gaussian_diffusion.py",
        "function": "GaussianDiffusion.training_losses",
    },
    notation="their step i of N is our time (i + 1) / N; their betas are those of our continuous schedule on that grid; "
    "coefficients are looked up in float64",
)
