"""ECT: the authors' loss and preconditioning, at the second stage."""

import kit
import numpy as np
import torch
from torch_kit import Net, double, images, scripted

double()
info = kit.peer("locuslab+ect")
kit.absent("requests", "psutil")
from training import loss as theirs
from training import networks

STAGE = 1

rng = np.random.default_rng(42)
w = kit.weights(rng)
x_0, eps, z = rng.normal(size=(8, kit.DIMS)), rng.normal(size=(8, kit.DIMS)), rng.normal(size=8)


def time(sigma):
    """Of EDM's grid without its least noise."""
    return (sigma / 80) ** (1 / 7)


class Theirs(Net):
    """Called with log(sigma) / 4; jumps to the data."""

    def forward(self, x, level, class_labels, **kwargs):
        s = time(torch.exp(4 * level))
        return super().forward(x, s, 0 * s)


net = Theirs(w)
networks.Tiny = lambda **kwargs: net
denoiser = networks.ECMPrecond(2, 1, model_type="Tiny").train()
criterion = theirs.ECMLoss()
criterion.update_schedule(STAGE)
torch.randn = scripted(torch.tensor(z).reshape(-1, 1, 1, 1))
torch.randn_like = scripted(images(eps))
loss = criterion(denoiser, images(x_0)).mean()
torch.randn = scripted(torch.tensor(z))
sigma = torch.exp(torch.tensor(z) * criterion.P_std + criterion.P_mean)
ahead = criterion.t_to_r(sigma)
assert 0 < (ahead == 0).sum() < 8  # some rows denoise

s, w_ = time(sigma).numpy(), time(ahead).numpy()
kit.store(
    "easy_consistency_tuning",
    kit.prefixed("student", w)
    | kit.prefixed("shortleg", {"x_0": x_0, "eps": eps, "s": s, "w": w_, "t": np.zeros(8)})
    | net.result(loss),
    recipe="easy_consistency_tuning",
    settings={"c": 1e-13, "sigma_min": 0.0},
    peer=info
    | {
        "file": "training/loss.py, training/networks.py",
        "function": "ECMLoss.__call__, ECMPrecond.forward",
    },
    notation="their sigma and r are our noise levels at s and w; networks are asked for the jump to data; their norm has c = 0",
)
