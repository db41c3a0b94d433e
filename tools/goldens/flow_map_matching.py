"""Flow map matching and its progressive form: the authors' code, whose first has the equation of speeds alone."""

import jax
import jax.numpy as jnp
import kit
import numpy as np
from jax_kit import net, result
from ml_collections import ConfigDict

info = kit.peer("jc-bao+flow_map_matching_public", "py")
kit.stand_in("common.network_utils", setup_network=None)
import sys

import flax.linen as nn

common = sys.modules["common.network_utils"]
kit.hollow("common")
sys.modules["common"].network_utils = common
from common import flow_map, interpolant, losses

ROWS, GAP = 6, 0.3


class Theirs(nn.Module):
    """What their map mixes with the point: the point plus the mean velocity, data at time 1."""

    def __call__(self, s, t, x, label, train):
        f = self.get_variable("params", "weights")
        return x - net(f, x[None], 1 - jnp.asarray(s), 1 - jnp.asarray(t))[0]


common.setup_network = lambda config: Theirs()
path = interpolant.Interpolant(lambda t: 1 - t, lambda t: t, lambda t: -1.0, lambda t: 1.0)
model = flow_map.FlowMap(ConfigDict())
keys = np.zeros((2, 2), np.uint32)


def wrapped(f):
    return {"params": {"network": {"weights": f}}}


def speeds():
    rng = np.random.default_rng(33)
    w, rows = kit.weights(rng), kit.points(rng, ROWS)
    rows["s"][::2], rows["t"][::2] = rows["t"][::2].copy(), rows["s"][::2].copy()

    def loss(p):
        def one(eps, x_0, s, t):
            return losses.lagrangian(
                wrapped(p["student"]), eps, x_0, 0, 1 - t, 1 - s, keys, interp=path, X=model
            )

        return jax.vmap(one)(rows["eps"], rows["x_0"], rows["s"], rows["t"]).mean()

    kit.store(
        "flow_map_matching",
        kit.prefixed("student", w) | kit.prefixed("inverse", rows) | result(loss, {"student": w}),
        recipe="flow_map_matching",
        settings={"place": 1e-14},
        factor=2.0 * kit.DIMS,
        peer=info | {"file": "py/common/losses.py", "function": "lagrangian"},
        notation="their times are 1 - ours and their velocity minus ours; they sum the D squares of the speeds, we average 2 D "
        "squares of speeds and places; their code has no equation of places, here it has weight 1e-14; both directions",
    )


def halves():
    rng = np.random.default_rng(34)
    w, teacher, rows = kit.weights(rng), kit.weights(rng), kit.points(rng, ROWS)
    rows["s"] = rng.uniform(0.4, 0.9, ROWS)
    rows["w"], rows["t"] = rows["s"] - GAP / 2, rows["s"] - GAP

    def loss(p):
        def one(eps, x_0, s, t):
            return losses.distill(
                wrapped(p["student"]),
                eps,
                x_0,
                0,
                1 - s,
                1 - t,
                keys,
                wrapped(teacher),
                interp=path,
                X=model,
            )

        return jax.vmap(one)(rows["eps"], rows["x_0"], rows["s"], rows["t"]).mean()

    kit.store(
        "progressive_flow_map_matching",
        kit.prefixed("student", w)
        | kit.prefixed("teacher", teacher)
        | kit.prefixed("compositional", rows)
        | result(loss, {"student": w}),
        recipe="progressive_flow_map_matching",
        settings={},
        exact=False,
        factor=kit.DIMS * GAP**2,
        peer=info | {"file": "py/common/losses.py", "function": "distill"},
        notation="their times are 1 - ours; they compare endpoints and sum, we compare mean velocities and average, which is the "
        "same up to D (t - s)^2: all jumps here are 0.3 long, and the recipe is not exact",
    )


speeds()
halves()
