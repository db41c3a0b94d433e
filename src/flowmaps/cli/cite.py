"""BibTeX of a method: the paper first, then what it builds on.

Examples:
  flowmaps cite mean_flow              a recipe
  flowmaps cite karras2022edm          a key of the bibliography
  flowmaps cite mean_flow >> paper.bib
"""

from dataclasses import dataclass
from typing import Annotated, final

from tyro.conf import Positional, arg

from ..bibliography import Entry, cited, references
from ..errors import RecipeError
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
    print("\n\n".join(entry.text for entry in entries(name)))
    return 0


def entries(name: str) -> list[Entry]:
    """What is behind a name: an entry of the bibliography, or those that a recipe cites.

    Raises:
        UsageError: If neither is called so, or the recipe cites what nobody knows.
    """
    known = references()
    if name in known:
        return [known[name]]
    from ..recipes import all_recipes

    recipes = all_recipes()
    if name not in recipes:
        near = nearest(name, recipes) or nearest(name, known)
        raise UsageError(f"no recipe is called {name!r}{near}; there are {', '.join(recipes)}")
    try:
        return [cited(source) for source in recipes[name]().cite]
    except RecipeError as error:
        raise UsageError(f"recipe {name!r}: {error}") from error
