"""The named methods, one file each. A new file in this folder is found, tested, listed and cited; nothing else is edited.

Other packages add methods through the entry-point group `flowmaps.recipes`: a name and a function that returns a `Recipe`,
or a module that holds a function of that name.
"""

import importlib
import inspect
import pkgutil
from collections.abc import Callable
from difflib import get_close_matches
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from ..errors import RecipeError
from ..learn.objective import Recipe

RecipeFactory = Callable[..., Recipe]


def all_recipes() -> dict[str, RecipeFactory]:
    """Every recipe by name: the function of each file of this folder that carries the file's name, then entry points."""
    names = sorted(module.name for module in pkgutil.iter_modules(__path__))
    found: dict[str, RecipeFactory] = {
        name: getattr(importlib.import_module(f"{__name__}.{name}"), name) for name in names
    }
    return found | {point.name: _load(point) for point in entry_points(group="flowmaps.recipes")}


def _load(point: EntryPoint) -> RecipeFactory:
    """What an entry point names: a function, or a module that looks like a file of this folder."""
    named = point.load()
    return getattr(named, point.name) if inspect.ismodule(named) else named


def get(name: str, **settings: Any) -> Recipe:
    """A recipe by name, with some of its arguments set.

    Raises:
        RecipeError: For an unknown name or argument; it names the nearest one.

    Example:
        >>> get("mean_flow", diagonal=0.5).terms[0].share
        0.5
    """
    known = all_recipes()
    if name not in known:
        raise RecipeError(
            f"no recipe is called {name!r}{_nearest(name, known)}; there are {', '.join(known)}"
        )
    arguments = inspect.signature(known[name]).parameters
    for key in settings:
        if key not in arguments:
            raise RecipeError(
                f"recipe {name!r} has no argument {key!r}{_nearest(key, arguments)}; it has {', '.join(arguments)}"
            )
    return known[name](**settings)


def _nearest(name: str, known: Any) -> str:
    close = get_close_matches(name, list(known), n=1, cutoff=0.4)
    return f" (did you mean {close[0]!r}?)" if close else ""
