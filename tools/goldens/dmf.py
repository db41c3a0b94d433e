"""Decoupled MeanFlow: the authors' loss, without labels and guidance, the learned variance in the place of their network's."""

import kit
import numpy as np
import torch
from torch_kit import LogVar, Net, double, images, scripted

double()
info = kit.peer("kyungmnlee+dmf")
import loss as theirs

CHANNELS = 6

rng = np.random.default_rng(21)
w, weights = kit.weights(rng), kit.logvar_weights(rng, CHANNELS)
jumps = kit.points(rng, 5)
diagonal = kit.points(rng, 5, jump=False) | {"x_0": jumps["x_0"]}
logvar = LogVar(weights)


class Theirs(Net):
    """The output and its log-variance."""

    def forward(self, x, t, r, y, return_logvar):
        return super().forward(x, t, r), logvar(t, r)


net = Theirs(w)
criterion = theirs.DMFLoss(cfg_prob=0.0)
times = [torch.tensor(t).reshape(-1, 1, 1, 1) for t in (diagonal["s"], jumps["s"], jumps["t"])]
criterion.sample_times = lambda bsz: times
torch.randn_like = scripted(images(diagonal["eps"]), images(jumps["eps"]))
loss, _ = criterion(net, net, images(jumps["x_0"]), torch.zeros(5, dtype=torch.long))

kit.store(
    "decoupled_mean_flow",
    kit.prefixed("student", w)
    | kit.prefixed("logvar", weights)
    | kit.prefixed("diagonal", diagonal)
    | kit.prefixed("eulerian", jumps)
    | net.result(loss.mean(), logvar),
    recipe="decoupled_mean_flow",
    settings={"channels": CHANNELS},
    peer=info | {"file": "loss.py", "function": "DMFLoss.__call__"},
    notation="their (t, r) are our (s, t), and u is the same; data is shared by both terms, noise is not",
)
