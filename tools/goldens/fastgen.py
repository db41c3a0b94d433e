"""sCM: NVIDIA's code (the authors released none), from data and from a teacher, on data of deviation 1/2."""

import sys
from types import SimpleNamespace

import kit
import numpy as np
import torch
from torch_kit import LogVar, Net, double, images, scripted

double()
info = kit.peer("NVlabs+FastGen")
kit.absent("diffusers", "fastgen.utils.logging_utils")
precision = dict.fromkeys(("float64", "float32", "bfloat16"), torch.float64)
kit.stand_in("fastgen.utils.basic_utils", PRECISION_MAP=precision, convert_cfg_to_dict=None)
for package in ("fastgen", "fastgen.methods", "fastgen.methods.consistency_model"):
    kit.hollow(package)
kit.hollow("fastgen.networks")
kit.stand_in("fastgen.utils", expand_like=lambda t, x: t.reshape(-1, *[1] * (x.ndim - 1)))
sys.modules["fastgen.utils"].__path__ = []
sys.modules["fastgen.utils"].logging_utils = sys.modules["fastgen.utils.logging_utils"]
sys.modules["fastgen.methods"].CMModel = object
from fastgen.methods.consistency_model import sCM as theirs
from fastgen.networks import noise_schedule

DEVIATION, CHANNELS, SHARE = 0.5, 6, 0.35


class Trig(Net):
    """Called in TrigFlow's angles, at points divided by the deviation of the data; the jump to data if not local."""

    logvar = None
    noise_scheduler = noise_schedule.TrigNoiseSchedule()

    def forward(self, x, angle, condition=None, return_logvar=False, return_x0_pred=False):
        s = 2 * angle / torch.pi
        out = super().forward(x / DEVIATION, s, s if self.logvar is None else 0 * s)
        return (out, self.logvar(s, 0 * s)[:, None], None) if return_logvar else out


def golden(name, seed, distil):
    rng = np.random.default_rng(seed)
    w, weights, teacher = kit.weights(rng), kit.logvar_weights(rng, CHANNELS), kit.weights(rng)
    rows = kit.points(rng, 8)
    rows["t"] = np.zeros(8)
    net = Trig(w)
    net.logvar = LogVar(weights)
    angle = torch.tensor(rows["s"]) * torch.pi / 2
    model = theirs.SCMModel.__new__(theirs.SCMModel)
    model.net_trigflow, model.teacher_trigflow = net, Trig(teacher)
    edm = SimpleNamespace(sigma=lambda t: DEVIATION * torch.tan(t), alpha=torch.ones_like)
    model.net = SimpleNamespace(noise_scheduler=edm)
    model.sigma_data, model.device, model.precision_amp_jvp = DEVIATION, torch.device("cpu"), None
    model.sample_t_cfg = SimpleNamespace(quantize=False)
    model.config = SimpleNamespace(guidance_scale=None)
    model.loss_config = SimpleNamespace(
        use_cd=distil,
        use_jvp_finite_diff=False,
        tangent_warmup_steps=100,
        tangent_warmup_const=0.1,
        g_norm_spatial_invariance=True,
        prior_weighting_enabled=False,
        divide_x_0_spatial_dim=False,
    )
    torch.randn_like = scripted(images(rows["eps"]))
    loss, *_ = model._compute_scm_loss(
        DEVIATION * images(rows["x_0"]), angle, iteration=int(100 * SHARE)
    )
    kit.store(
        name,
        kit.prefixed("student", w)
        | kit.prefixed("teacher", teacher)
        | kit.prefixed("logvar", weights)
        | kit.prefixed("trig", rows)
        | net.result(loss.mean(), net.logvar),
        recipe="scm",
        settings={"channels": CHANNELS, "velocity": "teacher" if distil else "conditional"},
        local=["teacher"],
        progress=0.1 * SHARE,
        peer=info
        | {
            "file": "fastgen/methods/consistency_model/sCM.py",
            "function": "SCMModel._compute_scm_loss",
        },
        notation="their angle is pi s / 2, their points are ours times 1/2; norm of the tangent divided by the root of D "
        "(g_norm_spatial_invariance), no prior weight, no division by D; warm-up at 0.35",
    )


golden("scm", 51, False)
golden("scm_teacher", 52, True)
