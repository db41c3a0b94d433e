"""RCGM: a training step of the authors' tutorial, order 2, without guidance."""

import kit
import numpy as np
import torch
from torch_kit import Net, double, images

double()
info = kit.peer("inclusionAI+TwinFlow", "tutorials/mnist")
import methodes as theirs

rng = np.random.default_rng(35)
w, ema = kit.weights(rng), kit.weights(rng)
rows = kit.points(rng, 6)
rows["t"][0] = rows["s"][0] - 0.004  # shorter than the first leg
rows["w"] = np.maximum(rows["s"] - 0.01, rows["t"])


class Theirs(Net):
    """Called by name, with labels."""

    def forward(self, x, t, tt, c):
        return super().forward(x, t, tt)


net, average = Theirs(w), Theirs(ema)
method = theirs.RCGM(ema_decay_rate=1.0, estimate_order=2)
method.mod = average
columns = {key: torch.tensor(rows[key]).reshape(-1, 1, 1, 1) for key in "st"}
x, z = images(rows["x_0"]), images(rows["eps"])
given = (1 - columns["s"]) * x + columns["s"] * z, z, columns["s"], columns["t"], None, z - x
method.prepare_inputs = lambda *args: given
loss = method.training_step(net, x, None)

kit.store(
    "rcgm",
    kit.prefixed("student", w)
    | kit.prefixed("ema", ema)
    | kit.prefixed("shortleg", rows)
    | net.result(loss),
    recipe="rcgm",
    settings={},
    peer=info | {"file": "tutorials/mnist/methodes.py", "function": "RCGM.training_step"},
    notation="their (t, tt) are our (s, t), and F is u; the average is given instead of updated first",
)
