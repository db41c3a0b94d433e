"""LSD, PSD and ESD: the authors' code (Boffi, Albergo, Vanden-Eijnden), every term with its learned weight.

Their LSD and ESD terms with a teacher in the place of the velocity are LMD and EMD, which the same authors published without
code: `stopgrad_type` "convex" is LMD with through="jvp" and EMD with through="all", "none" is LMD with through="all".
"""

import math
from typing import Any

import jax.numpy as jnp
import kit
import numpy as np
from jax_kit import net, result
from ml_collections import ConfigDict

info = kit.peer("nmboffi+flow-maps", "py")
kit.absent("tensorflow", "tensorflow_datasets")
from common import flow_map, interpolant, losses, network_utils

ROWS, CHANNELS = 4, 6


class Theirs(network_utils.FlowMapMLP):
    """Their network class, whose calc_b and endpoint are kept; phi and weight are ours, data at time 1, velocity reversed."""

    def setup(self) -> None:
        self.student = self.get_variable("params", "student")
        self.logvar = self.get_variable("params", "logvar", None)

        self.teacher = self.get_variable("params", "teacher", None)

    def calc_b(self, t: Any, x: Any, *args: Any, **kwargs: Any) -> Any:
        if self.teacher is None:
            return super().calc_b(t, x, *args, **kwargs)
        time = 1 - jnp.asarray(t)
        return -net(self.teacher, x[None], time, time)[0]

    def calc_weight(self, s: Any, t: Any) -> Any:
        here = (jnp.reshape(1 - s, 1), jnp.reshape(1 - t, 1))
        own = 0.0 if self.logvar is None else kit.logvar(self.logvar, *here, jnp)[0]
        return own + math.log(kit.DIMS)

    def calc_phi(self, s: Any, t: Any, x: Any, *args: Any, **kwargs: Any) -> Any:
        return -net(self.student, x[None], 1 - jnp.asarray(s), 1 - jnp.asarray(t))[0]


network_utils.setup_network = lambda config: Theirs(config=config)


def golden(name: str, seed: int, loss_type: str, stopgrad: str, psd: str | None = None) -> None:
    """One loss type of their `setup_loss`, half of the rows on the diagonal."""
    rng = np.random.default_rng(seed)
    parameters = {"student": kit.weights(rng), "logvar": kit.logvar_weights(rng, CHANNELS)}
    diagonal, jumps = kit.points(rng, ROWS, jump=False), kit.points(rng, ROWS)
    if psd == "midpoint":
        jumps["w"] = (jumps["s"] + jumps["t"]) / 2
    rows = kit.joined(diagonal, jumps)
    s, u, t = (1 - rows[key] for key in "swt")
    h = np.concatenate([np.zeros(ROWS), ((t - u)[ROWS:] / (t - s)[ROWS:])])
    cfg = ConfigDict(
        {"training": {"loss_type": loss_type, "stopgrad_type": stopgrad, "psd_type": psd}}
    )
    cfg.optimization = ConfigDict({"diag_fraction": 0.5})
    cfg.problem = ConfigDict({"interp_type": "linear"})
    theirs = losses.setup_loss(
        cfg, flow_map.FlowMap(ConfigDict()), interpolant.setup_interpolant(cfg)
    )
    keys = np.zeros((2 * ROWS, 2), np.uint32)
    frozen = {"params": {"flow_map": parameters}}

    def loss(p: Any) -> Any:
        own = {"params": {"flow_map": p}}
        labels = np.zeros(2 * ROWS)
        return theirs(own, frozen, rows["eps"], rows["x_0"], labels, s, t, u, h, keys)

    label = {"lsd": "lagrangian", "psd": "compositional", "esd": "eulerian"}[loss_type]
    kit.store(
        name,
        kit.prefixed("student", parameters["student"])
        | kit.prefixed("logvar", parameters["logvar"])
        | kit.prefixed("diagonal", diagonal)
        | kit.prefixed(label, jumps)
        | result(loss, parameters),
        recipe=loss_type,
        settings={"diagonal": 0.5, "channels": CHANNELS, "floor": 0.0}
        | ({"split": psd} if psd else {}),
        offset=math.log(kit.DIMS),
        peer=info | {"file": "py/common/losses.py", "function": f"setup_loss, {loss_type}_term"},
        notation="their times are 1 - ours and their velocity is minus ours; they sum squares over the D coordinates where we "
        "average, so their log-variance is ours + log D, and their loss is ours + log D; "
        f"stopgrad_type {stopgrad!r}",
    )


def distilled(
    name: str, seed: int, loss_type: str, stopgrad: str, recipe: str, through: str
) -> None:
    """One of their terms, off the diagonal, with a teacher's velocity."""
    rng = np.random.default_rng(seed)
    student, teacher = kit.weights(rng), kit.weights(rng)
    rows = kit.points(rng, ROWS)
    s, t = 1 - rows["s"], 1 - rows["t"]
    cfg = ConfigDict({"training": {"loss_type": loss_type, "stopgrad_type": stopgrad}})
    cfg.optimization = ConfigDict({"diag_bs": 0})
    cfg.problem = ConfigDict({"interp_type": "linear"})
    theirs = losses.setup_loss(
        cfg, flow_map.FlowMap(ConfigDict()), interpolant.setup_interpolant(cfg)
    )
    none = np.zeros(ROWS)

    def loss(p: Any) -> Any:
        own = {"params": {"flow_map": p | {"teacher": teacher}}}
        keys = np.zeros((ROWS, 2), np.uint32)
        return theirs(own, own, rows["eps"], rows["x_0"], none, s, t, none, none, keys)

    kit.store(
        name,
        kit.prefixed("student", student)
        | kit.prefixed("teacher", teacher)
        | kit.prefixed("lagrangian" if recipe == "lmd" else "eulerian", rows)
        | result(loss, {"student": student}),
        recipe=recipe,
        settings={"through": through},
        offset=math.log(kit.DIMS),
        peer=info | {"file": "py/common/losses.py", "function": f"setup_loss, {loss_type}_term"},
        notation="their times are 1 - ours and their velocity is minus ours; a teacher answers for their velocity; the constant "
        "weight log D turns their sum over D coordinates into our mean and adds log D; "
        f"stopgrad_type {stopgrad!r}",
    )


golden("lsd", 11, "lsd", "convex")
golden("psd_uniform", 12, "psd", "convex", "uniform")
golden("psd_midpoint", 13, "psd", "convex", "midpoint")
golden("esd", 14, "esd", "full")
distilled("lmd", 15, "lsd", "none", "lmd", "all")
distilled("lmd_jvp", 16, "lsd", "convex", "lmd", "jvp")
distilled("emd", 17, "esd", "convex", "emd", "all")
