"""Reflow: the authors' loss on given pairs, L2."""

from types import SimpleNamespace

import kit
import numpy as np
import torch
from torch_kit import Net, double, images, scripted

double()
info = kit.peer("gnobitab+RectifiedFlow", "ImageGeneration")
kit.absent("sde_lib", "models", "models.utils")
import losses as theirs

rng = np.random.default_rng(36)
w, rows = kit.weights(rng), kit.points(rng, 8, jump=False)


class Theirs(Net):
    """Called with 999 times their time."""

    def forward(self, x, labels):
        return -super().forward(x, 1 - labels / 999, 1 - labels / 999)


net = Theirs(w)
theirs.mutils = SimpleNamespace(get_model_fn=lambda model, train: model)
sde = SimpleNamespace(reflow_flag=True, reflow_t_schedule="uniform", reflow_loss="l2", T=1.0)
torch.rand = scripted(torch.tensor(1 - rows["s"]))
loss = theirs.get_rectified_flow_loss_fn(sde, True, eps=0.0)(
    net, (images(rows["eps"]), images(rows["x_0"]))
)
kit.store(
    "reflow",
    kit.prefixed("student", w) | kit.prefixed("diagonal", rows) | net.result(loss),
    recipe="reflow",
    settings={"stored": True},
    peer=info | {"file": "ImageGeneration/losses.py", "function": "get_rectified_flow_loss_fn"},
    notation="their time is 1 - ours and their velocity minus ours; pairs are given; their least time 1e-3 is 0 here",
)
