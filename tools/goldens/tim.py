"""Transition models: the authors' schedule on the linear path, with and without the directional loss."""

import kit
import numpy as np
import torch
from torch_kit import CHANNELS, Net, double, images

double()
info = kit.peer("WZDTHU+TiM")
kit.hollow("tim")
kit.hollow("tim.schedulers")
kit.stand_in("tim.models")
kit.stand_in("tim.models.utils")
kit.stand_in(
    "tim.models.utils.funcs", expand_t_like_x=lambda t, x: t.reshape(-1, *[1] * (x.ndim - 1))
)
from tim.schedulers import transition as theirs
from tim.schedulers import transports


class Theirs(Net):
    """Features are none, and agree with any."""

    def forward(self, x, t, r, return_zs=True, jvp=False):
        out = super().forward(x, t, r)
        return (out, torch.ones(len(x), 1)) if return_zs else out


def golden(name, seed, cosine):
    rng = np.random.default_rng(seed)
    w = kit.weights(rng)
    diagonal, jumps = kit.points(rng, 4, jump=False), kit.points(rng, 4)
    jumps["t"][-1] = 0.0
    rows, net = kit.joined(diagonal, jumps), Theirs(w)
    schedule = theirs.TransitionSchedule(
        transports.OT_FM(), weight_time_type="sqrt", weight_time_tangent=True
    )
    times = torch.tensor(rows["s"]), torch.tensor(rows["t"])
    schedule.sample_t_and_r = lambda **kwargs: (*times, 4)
    x, z = (images(rows[key], CHANNELS) for key in ("x_0", "eps"))
    loss, *_ = schedule(net, net, net, 8, x, z, {}, cosine, torch.ones(8, 1))
    kit.store(
        name,
        kit.prefixed("student", w)
        | kit.prefixed("diagonal", diagonal)
        | kit.prefixed("eulerian", jumps)
        | net.result(loss),
        recipe="transition_models",
        settings={"cosine": cosine},
        peer=info
        | {"file": "tim/schedulers/transition.py", "function": "TransitionSchedule.__call__"},
        notation="their (t, r) are our (s, t), and F is u; no projection loss, no guidance",
    )


golden("transition_models", 22, False)
golden("transition_models_cosine", 23, True)
