"""flowmaps: learn a flow map, sample in one to four steps, and see that it is right.

A flow map X(x, s, t) is a network that jumps between any two points of a noise-to-data trajectory; the diffusion or flow
model it comes from is its infinitesimal step. Times are in [0, 1] with 0 = data and 1 = noise; `s` is the source of a jump
and `t` its target.

Names are imported when they are first used, so `flowmaps --help` does not wait for torch.
"""

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from .core import autodiff as autodiff
    from .core import oracle as oracle
    from .core.flow_map import FlowMap as FlowMap
    from .core.flow_map import NetFlowMap as NetFlowMap
    from .core.flow_map import SolvedFlowMap as SolvedFlowMap
    from .core.flow_map import rematch as rematch
    from .core.interpolant import Interpolant as Interpolant
    from .core.interpolant import linear as linear
    from .core.interpolant import trig as trig
    from .core.interpolant import ve as ve
    from .core.interpolant import vp as vp
    from .core.solver import SOLVERS as SOLVERS
    from .core.velocity import NetVelocity as NetVelocity
    from .core.velocity import Velocity as Velocity
    from .learn.guidance import Guidance as Guidance
    from .learn.objective import Objective as Objective
    from .learn.objective import Recipe as Recipe
    from .learn.objective import Term as Term
    from .sample.guidance import CFG as CFG
    from .sample.guidance import Autoguidance as Autoguidance
    from .sample.sample import sample as sample
    from .sample.sample import solve as solve
    from .sample.sample import trajectory as trajectory

_HOMES = {
    "autodiff": "core.autodiff:",
    "oracle": "core.oracle:",
    "FlowMap": "core.flow_map",
    "NetFlowMap": "core.flow_map",
    "SolvedFlowMap": "core.flow_map",
    "rematch": "core.flow_map",
    "Interpolant": "core.interpolant",
    "linear": "core.interpolant",
    "trig": "core.interpolant",
    "ve": "core.interpolant",
    "vp": "core.interpolant",
    "SOLVERS": "core.solver",
    "NetVelocity": "core.velocity",
    "Velocity": "core.velocity",
    "Guidance": "learn.guidance",
    "Objective": "learn.objective",
    "Recipe": "learn.objective",
    "Term": "learn.objective",
    "CFG": "sample.guidance",
    "Autoguidance": "sample.guidance",
    "sample": "sample.sample",
    "solve": "sample.sample",
    "trajectory": "sample.sample",
}
"""Public name -> the module that holds it; a trailing colon marks a module that is itself the name."""

__all__ = ["__version__", *_HOMES]  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'flowmaps' has no attribute {name!r}")
    home = _HOMES[name]
    module = importlib.import_module(f".{home.rstrip(':')}", __name__)
    return module if home.endswith(":") else getattr(module, name)


def __dir__() -> list[str]:
    return sorted(__all__)
