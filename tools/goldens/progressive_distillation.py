"""Progressive distillation: the authors' code (a copy with comments added) on the paper's cosine schedule, at four steps."""

import jax
import jax.numpy as jnp
import kit
import numpy as np
from jax_kit import images, net, result, scripted

info = kit.peer("L-Justice1998+Progressive_Distillation")
kit.absent("PIL")
kit.hollow("diffusion_distillation")
from diffusion_distillation import dpm as theirs

STEPS = 4

rng = np.random.default_rng(8)
w, teacher = kit.weights(rng), kit.weights(rng)
x_0, eps = rng.normal(size=(8, kit.DIMS)), rng.normal(size=(8, kit.DIMS))
index = np.array([1, 2, 3, 1, 2, 3, 2, 3])  # not 0: at clean data our limit of the SNR differs


def time(logsnr):
    """Of the schedule alpha = cos(pi t / 2), sigma = sin(pi t / 2)."""
    return jnp.arctan(jnp.exp(-logsnr / 2)) * 2 / jnp.pi


jax.random.normal, jax.random.randint = scripted(images(eps)), scripted(index)


def loss(p):
    def student(z, logsnr):
        return net(p["student"], z, time(logsnr), time(logsnr) - 1 / STEPS)

    model = theirs.Model(
        student,
        mean_type="x",
        logvar_type="fixed_large",
        logvar_coeff=0.0,
        target_model_fn=lambda z, logsnr: net(teacher, z, time(logsnr), time(logsnr)),
    )
    return model.training_losses(
        x=images(x_0),
        rng=jax.random.key(0),
        logsnr_schedule_fn=lambda t: -2 * jnp.log(jnp.tan(jnp.pi * t / 2)),
        num_steps=STEPS,
        mean_loss_weight_type="snr_trunc",
    )["loss"].mean()


s = (index + 1) / STEPS
rows = {"x_0": x_0, "eps": eps, "s": s, "w": s - 0.5 / STEPS, "t": s - 1 / STEPS}
kit.store(
    "progressive_distillation",
    kit.prefixed("student", w)
    | kit.prefixed("teacher", teacher)
    | kit.prefixed("compositional", rows)
    | result(loss, {"student": w}),
    recipe="progressive_distillation",
    settings={"path": "cosine"},
    local=["teacher"],
    peer=info | {"file": "diffusion_distillation/dpm.py", "function": "Model.training_losses"},
    notation="their time u is our s, on the cosine path; networks predict x_0 in both",
)
