"""MeanFlow: the loss of the authors' PyTorch code."""

from types import SimpleNamespace

import kit
import numpy as np
import torch
from torch_kit import Net, images, scripted

info = kit.peer("Gsunshine+py-meanflow", "meanflow")
from models import meanflow as theirs

P, C = 0.75, 1e-3

rng = np.random.default_rng(1)
w = kit.weights(rng)
diagonal, jumps = kit.points(rng, 2, jump=False), kit.points(rng, 6)
rows = kit.joined(diagonal, jumps)


class Theirs(Net):
    """Called with (t, h) as its times; augmentation is off."""

    def forward(self, z, times, aug_cond):
        t, h = times
        return super().forward(z, t, t - h)


args = SimpleNamespace(norm_p=P, norm_eps=C, ema_decay=0.9, ema_decays=[])
model = theirs.MeanFlow(lambda: Theirs(w), args, {})
theirs.sample_two_timesteps = lambda *a, **k: (torch.tensor(rows["s"]), torch.tensor(rows["t"]))
theirs.torch.randn_like = scripted(images(rows["eps"]))
loss = model.forward_with_loss(images(rows["x_0"]), None)

kit.store(
    "mean_flow",
    kit.prefixed("student", w)
    | kit.prefixed("diagonal", diagonal)
    | kit.prefixed("eulerian", jumps)
    | model.net.result(loss),
    recipe="mean_flow",
    settings={"diagonal": 0.25, "p": P, "c": C},
    peer=info | {"file": "meanflow/models/meanflow.py", "function": "MeanFlow.forward_with_loss"},
    notation="their (t, r) are our (s, t), and u is the same; squares are summed over coordinates in both",
)
