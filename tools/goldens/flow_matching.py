"""Flow matching: an epoch of one batch of the authors' training loop, with the gradient taken where they would take it."""

from types import SimpleNamespace

import kit
import numpy as np
import torch
from torch_kit import Net, images, scripted

info = kit.peer("facebookresearch+flow_matching", ".", "examples/image")
kit.absent("torchmetrics", "models", "training.grad_scaler")
kit.stand_in("models.ema", EMA=type("EMA", (), {}))


class Meter:
    """Their running mean, which nothing reads."""

    def to(self, *args, **kwargs):
        return self

    def reset(self):
        pass

    def update(self, value):
        self.last = value

    def compute(self):
        return self.last


kit.stand_in("torchmetrics.aggregation", MeanMetric=Meter)
from training import train_loop as theirs

rng = np.random.default_rng(6)
w = kit.weights(rng)
rows = kit.points(rng, 8, jump=False)


class Theirs(Net):
    """Called with their time."""

    def forward(self, x, t, extra):
        return -super().forward(x, 1 - t, 1 - t)


net, seen = Theirs(w), []
torch.rand = scripted(torch.ones(1), torch.tensor(1 - rows["s"]))
torch.randn_like = scripted(images(rows["eps"]))
theirs.train_one_epoch(
    net,
    [((images(rows["x_0"]) + 1) / 2, torch.zeros(8))],
    SimpleNamespace(zero_grad=lambda: None, param_groups=[{"lr": 0.0}]),
    SimpleNamespace(step=lambda: None),
    torch.device("cpu"),
    0,
    lambda loss, *args, **kwargs: seen.append(loss),
    SimpleNamespace(
        accum_iter=1,
        discrete_flow_matching=False,
        class_drop_prob=0.0,
        skewed_timesteps=False,
        test_run=False,
    ),
)
kit.store(
    "flow_matching",
    kit.prefixed("student", w) | kit.prefixed("diagonal", rows) | net.result(seen[0]),
    recipe="flow_matching",
    settings={},
    peer=info | {"file": "examples/image/training/train_loop.py", "function": "train_one_epoch"},
    notation="their time is 1 - ours and their velocity minus ours; images in [0, 1] are scaled to our data in their loop",
)
