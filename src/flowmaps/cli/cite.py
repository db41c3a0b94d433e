"""BibTeX of a method: the paper first, then what it builds on.

Examples:
  flowmaps cite mean_flow              a recipe
  flowmaps cite karras2022edm          a key of the bibliography
  flowmaps cite mean_flow >> paper.bib
"""

from dataclasses import dataclass
from typing import Annotated, final

from tyro.conf import Positional, arg

from ..bibliography import references
from .options import UsageError, parse
from .words import nearest


@final
@dataclass
class Options:
    """Options of `flowmaps cite`."""

    name: Annotated[Positional[str], arg(metavar="NAME")]
    """A recipe (`flowmaps recipes` lists them) or a key of the bibliography."""


def main(argv: list[str]) -> int:
    """Print the entries."""
    name = parse(Options, argv, name="cite", about=f"{__doc__}").name
    print("\n\n".join(references()[key].text for key in keys(name)))
    return 0


def keys(name: str) -> tuple[str, ...]:
    """The keys behind a name: its own, or those of the recipe.

    Raises:
        UsageError: If neither is called so.
    """
    known = references()
    if name in known:
        return (name,)
    from ..recipes import all_recipes

    recipes = all_recipes()
    if name not in recipes:
        near = nearest(name, recipes) or nearest(name, known)
        raise UsageError(f"no recipe is called {name!r}{near}; there are {', '.join(recipes)}")
    found = recipes[name]().cite
    missing = [key for key in found if key not in known]
    if missing:
        raise UsageError(f"{name} cites {', '.join(missing)}, which the bibliography does not have")
    return found
