"""Pixel MeanFlow: the authors' JAX code, u(x, s, s) in place of the auxiliary head, no guidance, no perceptual loss."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import kit
import numpy as np
from jax_kit import column, images, net, result, scripted

info = kit.peer("Lyy-iiis+pMF")
kit.stand_in("models")
kit.stand_in("models.pmfDiT", pmfDiT=None)
import sys

sys.modules["models"].pmfDiT = sys.modules["models.pmfDiT"]
import pmf as theirs

rng = np.random.default_rng(32)
w = kit.weights(rng)
diagonal, jumps = kit.points(rng, 4, jump=False), kit.points(rng, 4)
rows = kit.joined(diagonal, jumps)


class Tiny(nn.Module):
    """Predicts data, answers with velocities; the second is u(x, s, s), and, where it is trained, its target: a loss of zero."""

    num_classes: int
    eval: bool

    def __call__(self, x, t, h, omega, t_min, t_max, y):
        f = self.get_variable("params", "student")
        trained = Tiny.calls % 3 == 2  # after both calls of their guidance_fn
        Tiny.calls += 1
        v = images(rows["eps"] - rows["x_0"])
        if not trained:
            v = (x - net(f, x, t, t)) / column(t)
        return (x - net(f, x, t, t - h)) / column(t), v


Tiny.calls = 0
theirs.pmfDiT.Tiny = Tiny
theirs.pixelMeanFlow.dtype = jnp.float64
mask = column(np.arange(8) < 4)
theirs.pixelMeanFlow.sample_tr = lambda self, bz: (column(rows["s"]), column(rows["t"]), mask)
theirs.pixelMeanFlow.sample_cfg_scale = lambda self, bz, **kwargs: jnp.ones((bz, 1, 1, 1))
model = theirs.pixelMeanFlow("Tiny", num_classes=3, norm_p=1.0, norm_eps=0.01)
jax.random.normal = scripted(images(rows["eps"]))


def loss(p):
    variables, key = {"params": {"net": p}}, {"gen": jax.random.key(0)}
    labels = np.zeros(8, np.int32)
    return model.apply(variables, images(rows["x_0"]), labels, method="forward", rngs=key)[0]


kit.store(
    "pixel_mean_flow",
    kit.prefixed("student", w)
    | kit.prefixed("diagonal", diagonal)
    | kit.prefixed("eulerian", jumps)
    | result(loss, {"student": w}),
    recipe="pixel_mean_flow",
    settings={},
    peer=info | {"file": "pmf.py", "function": "pixelMeanFlow.forward"},
    notation="their (t, r) are our (s, t), and u is the same, (x - prediction) / s, at s above their clip of 0.05; their auxiliary "
    "head answers u(x, s, s) where it is asked for the tangent, and its own target where it is trained, so its loss is 0",
)
