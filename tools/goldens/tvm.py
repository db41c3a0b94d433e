"""TVM: the authors' loss and wrapper, without labels and guidance; both of their terms have every row."""

import kit
import numpy as np
import torch
from torch_kit import Net, double, images, scripted

double()
info = kit.peer("lumalabs+tvm")
kit.absent("requests")
kit.hollow("training")
kit.stand_in("training.dit")
from training import loss as theirs
from training import wrapper

rng = np.random.default_rng(9)
w, ema = kit.weights(rng), kit.weights(rng)
jumps = kit.points(rng, 6)
diagonal = kit.points(rng, 6, jump=False) | {"x_0": jumps["x_0"], "eps": jumps["eps"]}


class Theirs(Net):
    """Called with (t, t - s)."""

    def forward(self, x, t, gap, *args, **kwargs):
        return super().forward(x, t, t - gap)


nets = [Theirs(w), Theirs(ema)]
wrapper.Tiny = lambda **kwargs: nets[len(built)]
built = []
built.append(wrapper.TVMWrapper(2, 1, model_type="Tiny", data_type="fp32"))
built.append(wrapper.TVMWrapper(2, 1, model_type="Tiny", data_type="fp32"))
times = [torch.tensor(t).reshape(-1, 1, 1, 1) for t in (jumps["s"], jumps["t"], diagonal["s"])]
criterion = theirs.TVMLoss(cfg=1.0)
criterion.sample_ts = lambda images: times
torch.randn_like = scripted(images(jumps["eps"]))
loss, _ = criterion(built[0], images(jumps["x_0"]), teacher_model=built[1])

kit.store(
    "tvm",
    kit.prefixed("student", w)
    | kit.prefixed("ema", ema)
    | kit.prefixed("diagonal", diagonal)
    | kit.prefixed("lagrangian", jumps)
    | nets[0].result(loss.mean()),
    recipe="tvm",
    settings={},
    factor=2.0,
    peer=info
    | {
        "file": "training/loss.py, training/wrapper.py",
        "function": "TVMLoss.__call__, TVMWrapper.forward",
    },
    notation="their (t, s) are our (s, t), and F is u; they add the means of both terms over the whole batch, we give each half "
    "of it, so their loss is twice ours; float64 where they cast to float32",
)
