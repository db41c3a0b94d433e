"""The tiny network for peers in JAX, and its gradients."""

import itertools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import kit
import numpy as np

jax.config.update("jax_enable_x64", True)

# names that peers use and newer versions of JAX dropped
_clip = jnp.clip
jnp.clip = lambda x, min=None, max=None, a_min=None, a_max=None: _clip(
    x, a_min if min is None else min, a_max if max is None else max
)


def net(f: Any, x: Any, s: Any, t: Any, label: Any = None) -> Any:
    """`kit.forward` for points of any shape with a leading B, and times with B numbers."""
    flat = x.reshape(x.shape[0], -1)
    return kit.forward(f, flat, s.reshape(-1), t.reshape(-1), jnp, label).reshape(x.shape)


def images(x: Any) -> Any:
    """(B, 4) as (B, 2, 2, 1)."""
    return jnp.asarray(x).reshape(-1, 2, 2, 1)


def column(t: Any) -> Any:
    """(B,) as (B, 1, 1, 1)."""
    return jnp.asarray(t).reshape(-1, 1, 1, 1)


def scripted(*values: Any) -> Callable[..., Any]:
    """A stand-in for a random function: gives these draws, in this order, then starts again."""
    waiting = itertools.cycle([jnp.asarray(value) for value in values])
    return lambda *args, **kwargs: next(waiting)


def result(loss: Callable[[Any], Any], parameters: dict[str, Any]) -> kit.Arrays:
    """Loss and gradients, as arrays to store; parameters by role, gradients of "student" without a prefix."""
    value, grads = jax.value_and_grad(loss)(parameters)
    assert value.dtype == jnp.float64
    arrays = {"loss": np.asarray(value)}
    for role, tree in grads.items():
        prefix = "grad" if role == "student" else f"grad.{role}"
        arrays |= kit.prefixed(prefix, {k: np.asarray(g) for k, g in tree.items()})
    return arrays
