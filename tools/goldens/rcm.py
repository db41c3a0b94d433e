"""rCM: the consistency half of the authors' code, exact derivative and steep weight."""

from types import SimpleNamespace

import kit
import numpy as np
import torch
from torch_kit import Net, double, scripted

double()
info = kit.peer("NVlabs+rcm")
kit.absent(
    "attrs",
    "megatron",
    "megatron.core",
    *("imaginaire", "imaginaire.config", "imaginaire.lazy_config", "imaginaire.utils"),
    *("imaginaire.utils.ema", "imaginaire.utils.easy_io"),
    *("rcm.conditioner", "rcm.configs", "rcm.configs.defaults", "rcm.configs.defaults.ema"),
    *("rcm.samplers", "rcm.samplers.euler", "rcm.samplers.unipc", "rcm.utils"),
    *(f"rcm.utils.{name}" for name in ("optim_instantiate_dtensor", "checkpointer")),
    *(f"rcm.utils.{name}" for name in ("context_parallel", "dtensor_helper", "fsdp_helper")),
    *(f"rcm.utils.{name}" for name in ("jvp_helper", "misc", "torch_future", "timestep_utils")),
    "rcm.utils.denoiser_scaling",
)
kit.stand_in("imaginaire.model", ImaginaireModel=object)
kit.stand_in("einops", rearrange=lambda x, pattern: x.reshape(-1, 1, 1, 1, 1), repeat=None)
kit.hollow("rcm")
kit.hollow("rcm.models")
from rcm.models import t2v_model_distill_rcm as theirs

SHARE = 1.0  # their warm-up is another one

rng = np.random.default_rng(53)
w, teacher, rows = kit.weights(rng), kit.weights(rng), kit.points(rng, 8)
rows["t"] = np.zeros(8)
nets = {"student": Net(w), "teacher": Net(teacher)}
angle = torch.tensor(rows["s"])[:, None] * torch.pi / 2


def output(x, time, role):
    s = 2 * time / torch.pi
    return nets[role](x, s, s if role == "teacher" else 0 * s)


def denoise(x, time, condition, net_type):
    return SimpleNamespace(F=output(x, time, net_type))


def with_tangent(points, times, condition):
    primals, tangents = zip(points, times, strict=True)
    return torch.func.jvp(lambda x, time: output(x, time, "student"), primals, tangents)


model = SimpleNamespace(
    draw_training_time_G=lambda shape: angle,
    sync=lambda *values: values,
    denoise=denoise,
    student_F_withT=with_tangent,
    config=SimpleNamespace(
        teacher_guidance=1.0, fd_type=0, tangent_warmup=100, loss_scale=100.0, fd_size=1e-4
    ),
)
torch.randn = scripted(torch.tensor(rows["eps"]).reshape(-1, 4, 1, 1, 1))
x_0 = torch.tensor(rows["x_0"]).reshape(-1, 4, 1, 1, 1)
NAME = "T2VDistillModel_rCM"
step = vars(theirs)[NAME]._student_scm_step
_, loss = step(model, (x_0, None, None), int(100 * SHARE))
kit.store(
    "rcm",
    kit.prefixed("student", w)
    | kit.prefixed("teacher", teacher)
    | kit.prefixed("trig", rows)
    | nets["student"].result(loss.mean()),
    recipe="rcm",
    settings={"c": 0.1 / kit.DIMS**0.5},
    local=["teacher"],
    progress=0.1 * SHARE,
    factor=100.0,
    gradient=kit.DIMS**0.5,
    peer=info
    | {
        "file": "rcm/models/t2v_model_distill_rcm.py",
        "function": f"{NAME}._student_scm_step",
    },
    notation="their angle is pi s / 2; they scale by 100, sum over D coordinates and do not divide the norm of the tangent by the "
    "root of D: with c divided by it instead the loss is ours, and the gradient root D times ours; after the warm-up",
)
