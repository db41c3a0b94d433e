"""MeanFlow with its guidance: the authors' JAX code, kappa = 0.6 (a scale of 2.5), two labels dropped."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import kit
import numpy as np
from jax_kit import column, images, net, result, scripted

info = kit.peer("Gsunshine+meanflow")
import meanflow as theirs

CLASSES, DROPPED = 3, 2
DIAGONAL = 3  # of eight rows: 3/8

rng = np.random.default_rng(2)
w = kit.weights(rng, CLASSES)
diagonal, jumps = kit.points(rng, DIAGONAL, jump=False), kit.points(rng, 8 - DIAGONAL)
rows = kit.joined(diagonal, jumps)
labels = rng.integers(0, CLASSES, 8)


class Tiny(nn.Module):
    """Called with (t, h)."""

    class_dropout_prob: float

    def __call__(self, x, t, h, y, train, key):
        return net(self.get_variable("params", "student"), x, t, t - h, y)


theirs.models_dit.Tiny = Tiny
theirs.MeanFlow.dtype = jnp.float64
theirs.MeanFlow.sample_tr = lambda self, bz: (column(rows["s"]), column(rows["t"]))
model = theirs.MeanFlow("Tiny", {}, CLASSES, omega=1.0, kappa=0.6, norm_p=1.0, norm_eps=0.01)
jax.random.normal = scripted(images(rows["eps"]))
jax.random.uniform = scripted(np.where(np.arange(8) < DROPPED, 0.0, 1.0))


def loss(p):
    variables, key = {"params": {"net": p}}, {"gen": jax.random.key(0)}
    return model.apply(variables, images(rows["x_0"]), labels, method="forward", rngs=key)[0]


seen = np.where(np.arange(8) < DROPPED, CLASSES, labels)
scale = np.where(np.arange(8) < DROPPED, 1.0, 2.5)
drawn = {
    f"{term}.{key}": value[part]
    for term, part in (("diagonal", slice(0, DIAGONAL)), ("eulerian", slice(DIAGONAL, 8)))
    for key, value in (("cond.label", seen), ("scale", scale))
}
kit.store(
    "mean_flow_guided",
    kit.prefixed("student", w)
    | kit.prefixed("diagonal", diagonal)
    | kit.prefixed("eulerian", jumps)
    | drawn
    | result(loss, {"student": w}),
    recipe="mean_flow",
    settings={"diagonal": DIAGONAL / 8, "p": 1.0, "c": 0.01},
    guidance={"classes": CLASSES, "scale": 2.5},
    peer=info | {"file": "meanflow.py", "function": "MeanFlow.forward"},
    notation="their (t, r) are our (s, t), and u is the same; omega = 1 and kappa = 1 - 1/scale",
)
