"""Rectified MeanFlow: the authors' loss on given pairs of data and noise, without labels and guidance."""

import kit
import numpy as np
import torch
from torch_kit import Net, double, images

double()
info = kit.peer("Xinxi-Zhang+Re-MeanFlow")
import meanflow as theirs

rng = np.random.default_rng(31)
w = kit.weights(rng)
diagonal, jumps = kit.points(rng, 6, jump=False), kit.points(rng, 2)
rows = kit.joined(diagonal, jumps)


class Theirs(Net):
    """Called with labels."""

    def forward(self, x, t, r, y):
        return super().forward(x, t, r)


net = Theirs(w)
method = theirs.MeanFlow(net)
times = torch.tensor(rows["s"]), torch.tensor(rows["t"])
method.sample_t_and_r_re2_truncate = lambda *args: (*times, None)
labels = torch.zeros(8, dtype=torch.long)
loss = method.loss_edm(images(rows["x_0"]), labels, images(rows["eps"]))["loss"]

kit.store(
    "rectified_mean_flow",
    kit.prefixed("student", w)
    | kit.prefixed("diagonal", diagonal)
    | kit.prefixed("eulerian", jumps)
    | net.result(loss),
    recipe="rectified_mean_flow",
    settings={"stored": True},
    peer=info | {"file": "meanflow.py", "function": "MeanFlow.loss_edm"},
    notation="their (t, r) are our (s, t), and u is the same; pairs are given",
)
