r"""What in a network spoils the training of a flow map, found by a few evaluations, and what to do about it.

Every rule but flow matching compares evaluations of a network, and half of them differentiate it in forward mode. Both ask
more of a network than sampling does: see `HAZARDS` for the list and methods.md 7 for the sources.
"""

from collections.abc import Iterator
from copy import deepcopy
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor

from ..core.autodiff import along_source, along_target
from ..core.flow_map import FlowMap
from ..core.shape import Time, as_time
from ..errors import DerivativeError
from ..learn.masks import random_layers
from .identity import jvp_check, layer_norm_trap

STEEP = 50.0
"""Tangent of the time, relative to the output, per unit of time: above it, it drowns the tangent of the point.

The networks of `flowmaps.nets` have 0.3 to 3, those with sines of 1000 s several hundred.
"""
ROUGH = 0.1
"""Relative error of a derivative in bfloat16 above which it is no direction to learn from; ours have 0.01."""
JUMP = 0.2
"""Relative change of the mean velocity between t = s and t = s - 1e-4 above which the two are different functions."""


@final
@dataclass(frozen=True)
class Hazard:
    """One thing that was found.

    Attributes:
        name: One of `HAZARDS`.
        found: What was measured, in words.
        advice: What to do.
    """

    name: str
    found: str
    advice: str

    def __str__(self) -> str:
        return f"{self.found}: {self.advice}."


HAZARDS = {
    "layer_norm": "sampling is safe, and so is training with through='target'; for through='jvp', 'partial' or 'all' write "
    "it with mean and rsqrt, or use flowmaps.nets.embed.rms_norm",
    "attention": "call F.scaled_dot_product_attention and leave the choice of kernel to flowmaps, which takes the math kernel "
    "for derivatives only; or train by finite differences, derivative=Derivative('finite')",
    "forward_mode": "these residuals are by finite differences; write the operation from elementary ones, or train with "
    "derivative=Derivative('finite')",
    "derivative": "do not train it with a rule that takes a derivative; look for an autograd.Function whose jvp is wrong, or a "
    "detached time",
    "time_frequency": "lower the largest frequency of the time embedding (flowmaps.nets.embed uses 16; times are not "
    "multiplied by 1000), or normalise the tangent (TangentNorm)",
    "bf16_derivative": "train with precision=fp32, or keep time embedding and norms in float32",
    "dropout": "flowmaps seeds it and shares its masks among the evaluations of a rule, but cannot compile it; without a need "
    "for it set it to 0",
    "hidden_noise": "the evaluations of a rule would differ by this noise: make it a module with a dropout probability (an "
    "attribute that contains 'drop'), so that flowmaps sees and seeds it, or remove it",
    "batch_statistics": "rows of different times and guidance would mix, and shards of a batch differ: use group norm or "
    "rms_norm",
    "diagonal": "form the jump s - t inside the network without dividing by it: u(x, s, s) is the velocity, and every "
    "recipe trains it or builds on it",
}
"""What `hazards` looks for, and the advice."""


def hazards(flow_map: FlowMap, x: Tensor, s: Time, t: Time, **cond: Any) -> tuple[Hazard, ...]:
    """What in this network spoils the training of a flow map.

    Args:
        flow_map: Any flow map; it is left as it is.
        x: Points (B, *D), B of at least 2, some 32.
        s: Source times in (0, 1).
        t: Target times in (0, 1).
        cond: Conditioning, tensors with a leading B.

    Example:
        >>> from flowmaps.core.flow_map import NetFlowMap
        >>> norm = torch.nn.LayerNorm(3)
        >>> trapped = NetFlowMap(lambda x, s, t: norm(x) * (1 + s - t)[:, None])
        >>> [found.name for found in hazards(trapped, torch.randn(8, 3), 0.7, 0.2)]
        ['layer_norm']
    """
    # away from the ends, where a path's own coefficients may be steep
    source, target = (as_time(time, x).clamp(0.1, 0.9) for time in (s, t))
    probe = _Probe(deepcopy(flow_map).eval(), x, source, target, cond)
    checks = (_norms, _forward_mode, _diagonal, _noise, _batch)
    found: list[Hazard] = []
    with torch.no_grad():
        for check in checks:
            found += [Hazard(name, words, HAZARDS[name]) for name, words in check(probe)]
    return tuple(found)


@final
@dataclass(frozen=True)
class _Probe:
    flow_map: FlowMap
    x: Tensor
    s: Tensor
    t: Tensor
    cond: dict[str, Any]

    def mean(self, x: Tensor, s: Tensor, t: Tensor) -> Tensor:
        return self.flow_map.mean_velocity(x, s, t, **self.cond)

    def here(self) -> Tensor:
        return self.mean(self.x, self.s, self.t)


Found = Iterator[tuple[str, str]]


def _norms(p: _Probe) -> Found:
    if layer_norm_trap(p.flow_map, p.x, p.s, p.t, **p.cond):
        yield (
            "layer_norm",
            "the network calls F.layer_norm or a relative, whose gradient through a forward-mode derivative is silently "
            "wrong (pytorch issue 196700)",
        )


def _forward_mode(p: _Probe) -> Found:
    """Whether it can be differentiated, rightly, without drowning in the time, and in bfloat16."""
    try:
        check = jvp_check(p.flow_map, p.x, p.s, p.t, **p.cond)
    except DerivativeError as error:
        attention = any(word in str(error) for word in ("attention", "flash", "sdpa"))
        why = str(error).partition("(")[2].partition(";")[0].rstrip(")")
        yield (
            "attention" if attention else "forward_mode",
            f"the network has no forward-mode derivative ({why})",
        )
        return
    if not check.agrees:
        yield (
            "derivative",
            f"the network's forward-mode derivative is off finite differences by {check.source:.2g} along the source and "
            f"{check.target:.2g} along the target",
        )
    steep = time_tangent(p.flow_map, p.x, p.s, p.t, **p.cond)
    if steep > STEEP:
        yield (
            "time_frequency",
            f"moving a time by 0.01 moves the output by {steep / 100:.2g} times its own size",
        )
    rough = bf16_error(p.flow_map, p.x, p.s, p.t, **p.cond)
    if not rough <= ROUGH:
        yield "bf16_derivative", f"its derivative in bfloat16 is off by {rough:.2g}"


def time_tangent(flow_map: FlowMap, x: Tensor, s: Time, t: Time, **cond: Any) -> float:
    r"""The size of the time's tangent, $\max(\|\partial_s u\|, \|\partial_t u\|) / \|u\|$, per unit of time."""
    source, target = as_time(s, x), as_time(t, x)

    def mean(x: Tensor, s: Tensor, t: Tensor) -> Tensor:
        return flow_map.mean_velocity(x, s, t, **cond)

    u, at_source = along_source(mean, x, source, target, torch.zeros_like(x))
    at_target = along_target(mean, x, source, target)[1]
    size = max(_rms(u), torch.finfo(x.dtype).tiny)
    return max(_rms(at_source), _rms(at_target)) / size


def bf16_error(flow_map: FlowMap, x: Tensor, s: Time, t: Time, **cond: Any) -> float:
    """Relative error of the derivative along the map's own velocity under bfloat16 autocast."""
    source, target = as_time(s, x), as_time(t, x)
    v = flow_map.velocity(x, source, **cond)

    def slope() -> Tensor:
        return along_source(
            lambda x, s, t: flow_map.mean_velocity(x, s, t, **cond), x, source, target, v
        )[1]

    exact = slope()
    with torch.autocast(x.device.type, torch.bfloat16):
        narrow = slope()
    # a map that hardly bends has no derivative to lose
    least = 1e-3 * _rms(flow_map.mean_velocity(x, source, target, **cond))
    return _rms(narrow - exact) / max(_rms(exact), least, torch.finfo(x.dtype).tiny)


def _diagonal(p: _Probe) -> Found:
    """The mean velocity at t = s exists and is what it is next to it."""
    on, off = p.mean(p.x, p.s, p.s), p.mean(p.x, p.s, p.s - 1e-4)
    change = _rms(on - off) / max(_rms(off), torch.finfo(p.x.dtype).tiny)
    if not bool(on.isfinite().all()):
        yield "diagonal", "at s = t the map is not the identity: its mean velocity is not finite"
    elif not change <= JUMP:
        yield (
            "diagonal",
            f"the mean velocity jumps by {change:.2g} of its size between t = s - 0.0001 and t = s",
        )


def _noise(p: _Probe) -> Found:
    """Two evaluations in training mode with other random numbers."""
    training = deepcopy(p.flow_map).train()
    names = random_layers(training)
    changed = _rms(_seeded(training, p, 1) - _seeded(training, p, 2)) / max(_rms(p.here()), 1e-30)
    if changed > 0 and names:
        first = names[0].removeprefix("net.") or "the network"
        yield (
            "dropout",
            f"dropout is active in training ({first}; it moves the output by {changed:.2g})",
        )
    elif changed > 0:
        yield (
            "hidden_noise",
            f"the network draws random numbers that move its output by {changed:.2g}",
        )


def _seeded(flow_map: FlowMap, p: _Probe, seed: int) -> Tensor:
    devices = [p.x.device] if p.x.device.type == "cuda" else []
    with torch.random.fork_rng(devices):
        torch.manual_seed(seed)  # noqa: TID251  # dropout takes no generator; the global one is forked
        return flow_map.mean_velocity(p.x, p.s, p.t, **p.cond)


def _batch(p: _Probe) -> Found:
    """Whether a row depends on the others, in training."""
    training = deepcopy(p.flow_map).train()
    half = len(p.x) // 2
    rows = {key: value[:half] for key, value in p.cond.items()}

    def alone() -> Tensor:
        few = _Probe(training, p.x[:half], p.s[:half], p.t[:half], rows)
        return _still(few)

    apart = _rms(_still(_Probe(training, p.x, p.s, p.t, p.cond))[:half] - alone())
    if half and apart > 1e-3 * max(_rms(p.here()), 1e-30):
        yield (
            "batch_statistics",
            f"a row's output depends on the other rows of its batch (by {apart / max(_rms(p.here()), 1e-30):.2g})",
        )


def _still(p: _Probe) -> Tensor:
    """The mean velocity in training mode without dropout."""
    for module in p.flow_map.modules():
        if isinstance(module, torch.nn.modules.dropout._DropoutNd):  # pyright: ignore[reportPrivateUsage]
            module.eval()
    return _seeded(p.flow_map, p, 1)


def _rms(value: Tensor) -> float:
    return float(value.double().square().mean().sqrt())
