"""Consistency training: the authors' loss, L2, with an average for the target."""

import kit
import numpy as np
import torch
from torch_kit import Net, double, images

double()
info = kit.peer("openai+consistency_models")
kit.absent("piq", "torchvision", "torchvision.transforms", "blobfile", "mpi4py")
kit.hollow("cm")
kit.stand_in("cm.dist_util")
from cm import karras_diffusion as theirs

POINTS = 12

rng = np.random.default_rng(41)
w, ema = kit.weights(rng), kit.weights(rng)
index = np.append(rng.integers(0, POINTS - 2, 7), POINTS - 2)  # the last one ends at the boundary
x_0, eps = rng.normal(size=(8, kit.DIMS)), rng.normal(size=(8, kit.DIMS))
s, w_ = 1 - index / (POINTS - 1), 1 - (index + 1) / (POINTS - 1)
rows = {"x_0": x_0, "eps": eps, "s": s, "w": w_, "t": np.zeros(8)}


def time(noise_level):
    """Of EDM's grid."""
    low, high = 0.002 ** (1 / 7), 80 ** (1 / 7)
    return (torch.exp(noise_level / 7) - low) / (high - low)


class Theirs(Net):
    """Called with 250 log sigma; jumps to the data."""

    def forward(self, x, level):
        s = time(level / 250)
        return super().forward(x, s, 0 * s)


net, average = Theirs(w), Theirs(ema)
diffusion = theirs.KarrasDenoiser(weight_schedule="uniform", distillation=True, loss_norm="l2")
torch.randint = lambda *args, **kwargs: torch.tensor(index)
loss = diffusion.consistency_losses(
    net, images(x_0), POINTS, target_model=average, noise=images(eps)
)["loss"].mean()

kit.store(
    "consistency_training",
    kit.prefixed("student", w)
    | kit.prefixed("ema", ema)
    | kit.prefixed("shortleg", rows)
    | net.result(loss),
    recipe="consistency_training",
    settings={},
    peer=info | {"file": "cm/karras_diffusion.py", "function": "KarrasDenoiser.consistency_losses"},
    notation="their index i of N is our time 1 - i / (N - 1); networks are asked for the jump to data",
)
