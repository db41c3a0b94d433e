"""Shortcut models: the targets of the authors' code, on a grid of eight steps; half of the batch is bootstrapped."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import kit
import numpy as np
from jax_kit import images, net, result

jnp.float32 = jnp.float64  # their times, in double precision
info = kit.peer("kvfrans+shortcut-models")
import targets_shortcut as theirs

GRID, FLOOR = 8, 1e-5  # their sigma_min, written as 1e-5 in their code

rng = np.random.default_rng(4)
w, ema = kit.weights(rng), kit.weights(rng)
ema["W2"] *= 4  # so that points and targets reach their clip of 4
data, noise = 2 * rng.normal(size=(8, kit.DIMS)), 2 * rng.normal(size=(8, kit.DIMS))
flags = SimpleNamespace(
    batch_size=8,
    model={"bootstrap_every": 2, "denoise_timesteps": GRID, "bootstrap_dt_bias": 0}
    | {"bootstrap_ema": 1, "bootstrap_cfg": 0, "class_dropout_prob": 0.0, "num_classes": 1},
)


def averaged(x, t, size, labels, train):
    """The average, asked for jumps of 2^-size from their time t."""
    return -net(ema, x, 1 - t, 1 - t - 2.0**-size)


jax.random.normal = lambda key, shape: images(noise)[: shape[0]]
state = SimpleNamespace(call_model_ema=averaged)
x_t, v_t, t, size, *_ = theirs.get_targets(
    flags, jax.random.key(5), state, images(data), np.zeros(8, int)
)
assert float(jnp.abs(v_t[:4]).max()) == 4  # the clip is seen
jump = jnp.where(size == np.log2(GRID), 0.0, 2.0**-size)


def loss(p):
    v = -net(p["student"], x_t, 1 - t, 1 - t - jump)
    return jnp.mean(jnp.mean((v - v_t) ** 2, axis=(1, 2, 3)))


# x_t = (1 - (1 - FLOOR) t) noise + t data is the plain path from data + FLOOR noise to noise
order = np.array([0, 1, 2, 3, 0, 1, 2, 3])
s, gap = np.asarray(1 - t), np.asarray(jump)
rows = {"x_0": (data + FLOOR * noise)[order], "eps": noise[order], "s": s, "w": s - gap / 2}
rows["t"] = s - gap
kit.store(
    "shortcut",
    kit.prefixed("student", w)
    | kit.prefixed("ema", ema)
    | kit.prefixed("compositional", {key: value[:4] for key, value in rows.items()})
    | kit.prefixed("diagonal", {key: value[4:] for key, value in rows.items()})
    | result(loss, {"student": w}),
    recipe="shortcut",
    settings={"levels": 3, "bootstrap": 0.5},
    peer=info
    | {
        "file": "targets_shortcut.py",
        "function": "get_targets; the mean square of train.py's loss_fn",
    },
    notation="their time is 1 - ours, their velocity minus ours, and a size k is the jump 2^-k; the smallest size of the grid "
    "is the diagonal for the student, and the jump itself where the average is asked; data is shifted by their 1e-5 of noise",
)
