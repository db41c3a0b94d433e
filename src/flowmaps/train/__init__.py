"""Training that one can leave alone. Names are imported when they are first used: `Config` and `Run` need no torch."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .checkpoint import Checkpoint as Checkpoint
    from .checkpoint import load as load
    from .hooks import Event as Event
    from .hooks import Hook as Hook
    from .loop import fit as fit
    from .run import Config as Config
    from .run import GuidanceConfig as GuidanceConfig
    from .run import Run as Run
    from .setup import prepare as prepare
    from .setup import train as train
    from .state import State as State

_HOMES = {
    "Checkpoint": "checkpoint",
    "load": "checkpoint",
    "Event": "hooks",
    "Hook": "hooks",
    "fit": "loop",
    "Config": "run",
    "GuidanceConfig": "run",
    "Run": "run",
    "prepare": "setup",
    "train": "setup",
    "State": "state",
}

__all__ = [*_HOMES]  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'flowmaps.train' has no attribute {name!r}")
    return getattr(importlib.import_module(f".{_HOMES[name]}", __name__), name)
