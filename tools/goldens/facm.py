"""FACM: the authors' loss with a teacher, no guidance; both of their tasks have every row."""

from types import SimpleNamespace

import kit
import numpy as np
import torch
from torch_kit import CHANNELS, Net, double, images, scripted

double()
info = kit.peer("ali-vilab+FACM")
kit.stand_in("utils", mean_flat=lambda x: x.flatten(1).mean(1))
import losses as theirs

rng = np.random.default_rng(10)
w, teacher = kit.weights(rng), kit.weights(rng)
jumps = kit.points(rng, 6)
jumps["t"] = np.zeros(6)
diagonal = jumps | {"w": jumps["s"], "t": jumps["s"]}


class Theirs(Net):
    """Called with data at time 1."""

    r_embedder = True

    def forward(self, x, t, r, y):
        return -super().forward(x, 1 - t, 1 - r)

    def disable_fused_attn(self):
        pass

    enable_fused_attn = disable_fused_attn


net, frozen = Theirs(w), Theirs(teacher)
criterion = theirs.FACMLoss()
criterion.sample_t = lambda *args, **kwargs: torch.tensor(1 - jumps["s"]).reshape(-1, 1, 1, 1)
torch.randn_like = scripted(images(jumps["eps"], CHANNELS))
loss, *_ = criterion(
    None,
    net,
    net,
    None,
    images(jumps["x_0"], CHANNELS),
    0,
    model_kwargs={"y": torch.zeros(6, dtype=torch.long)},
    args=SimpleNamespace(t_type="default", cfgw=1.0, distill=True, glow=0.0, ghigh=1.0, p=0.5),
    freezed_teacher=frozen,
)

kit.store(
    "facm",
    kit.prefixed("student", w)
    | kit.prefixed("teacher", teacher)
    | kit.prefixed("diagonal", diagonal)
    | kit.prefixed("eulerian", jumps)
    | net.result(loss),
    recipe="facm",
    settings={},
    local=["teacher"],
    factor=2.0,
    peer=info | {"file": "losses.py", "function": "FACMLoss.__call__"},
    notation="their times are 1 - ours and their velocity minus ours; the tasks are told apart by their second time; they add "
    "the means of both tasks over the whole batch, we give each half of it, so their loss is twice ours",
)
