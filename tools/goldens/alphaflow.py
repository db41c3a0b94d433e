"""alpha-Flow: the authors' loss at alpha = 0, and its finite leg at alpha = 0.3.

Only the text of the repository's files could be had: loss.py holds what AlphaFlowLoss calls of src/training/loss.py.
"""

from types import SimpleNamespace

import kit
import numpy as np
import torch
from torch_kit import Net, double, images, scripted

double()
info = kit.peer("snap-research+alphaflow")
import loss as theirs


class Theirs(Net):
    """Called by name, with conditions."""

    def forward(self, x, sigma_next, sigma, return_extra_output, **kwargs):
        out = super().forward(x, sigma, sigma_next)
        return (out, None) if return_extra_output else out


def golden(name, seed, alpha, diagonals, **facts):
    rng = np.random.default_rng(seed)
    w = kit.weights(rng)
    jumps = kit.points(rng, 6)
    jumps["w"] = jumps["s"] + alpha * (jumps["t"] - jumps["s"])
    diagonal = kit.points(rng, 2, jump=False)
    rows, net = kit.joined(diagonal, jumps) if diagonals else jumps, Theirs(w)
    s, w_, t = (torch.tensor(rows[key]).reshape(-1, 1, 1, 1, 1) for key in "swt")
    method = theirs.AlphaFlowLoss()
    method.cfg = SimpleNamespace(clamp_utgt=1e9, adaptive_loss_weight_eps=1e-3)
    method._maybe_encode = lambda net, x, cond: x
    method.sample_traj_params = lambda *args: (s, t, s - w_, alpha)
    method.apply_noise = lambda x, noise, sigma, net: (1 - sigma) * x + noise
    method._compute_velocity_cfg = lambda velocity, **kwargs: velocity
    x_0, eps = (images(rows[key], (1, 4, 1, 1)) for key in ("x_0", "eps"))
    torch.randn_like = scripted(eps)
    loss = method.forward(net, x_0, torch.zeros(len(x_0)))
    kit.store(
        name,
        kit.prefixed("student", w)
        | kit.prefixed("diagonal", diagonal)
        | kit.prefixed("shortleg", jumps)
        | net.result(loss.mean()),
        recipe="alpha_flow",
        settings={},
        peer=info | {"file": "src/training/loss.py", "function": "AlphaFlowLoss.forward"},
        **facts,
    )


words = "their (t, t_next) are our (s, t), and u is the same; no guidance, no clamp"
golden("alpha_flow", 61, 0.0, True, notation=words + "; alpha = 0")
golden(
    "alpha_flow_leg",
    62,
    0.3,
    False,
    factor=0.3,
    terms=["shortleg"],
    notation=words
    + "; finite legs have the factor alpha = 0.3 in their code, 1 in the paper and here",
)
