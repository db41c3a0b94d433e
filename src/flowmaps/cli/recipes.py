"""The methods that can be trained, from their own values: nothing here is written by hand.

Examples:
  flowmaps recipes                     the table
  flowmaps recipes --json              the same for programs, with arguments and defaults
  flowmaps train lsd ...               train one
  flowmaps cite lsd                    its BibTeX

velocity from: data (of the samples themselves), self (the model's own), ema (its average), teacher (a trained model).
jvp: training differentiates the network in forward mode. Methods whose only rule is diagonal learn a velocity: they need a
solver to sample, and serve as teachers.
"""

import inspect
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, final

from ..bibliography import references
from .options import parse, to_json
from .words import table

if TYPE_CHECKING:
    from ..learn.objective import Recipe


@final
@dataclass
class Options:
    """Options of `flowmaps recipes`."""

    json: bool = False
    """Print the table as json."""


@final
@dataclass(frozen=True)
class Card:
    """What the table says of a recipe."""

    name: str
    year: int | None
    authors: str
    title: str
    paper: str
    rules: tuple[str, ...]
    velocity_from: tuple[str, ...]
    teacher: bool
    jvp: bool
    jumps: bool
    status: str
    cite: tuple[str, ...]
    summary: str
    arguments: dict[str, Any]


def main(argv: list[str]) -> int:
    """Print the table."""
    options = parse(Options, argv, name="recipes", about=f"{__doc__}")
    from ..recipes import all_recipes

    cards = [card(factory) for factory in all_recipes().values()]
    cards.sort(key=lambda c: (c.year or 0, c.name))
    if options.json:
        to_json([asdict(each) for each in cards])
        return 0
    print(table(HEAD, [_row(each) for each in cards]))
    print(
        "\nstatus: exact = the same numbers as the authors' code; faithful = from the paper; sketch = not yet either."
    )
    return 0


HEAD = ("name", "year", "paper", "rules", "velocity from", "teacher", "jvp", "status")


def _row(c: Card) -> list[str]:
    marks = ["yes" if flag else "-" for flag in (c.teacher, c.jvp)]
    texts = (c.name, str(c.year or ""), c.paper, ", ".join(c.rules), ", ".join(c.velocity_from))
    return [*texts, *marks, c.status]


def card(factory: "Callable[..., Recipe]") -> Card:
    """The card of a recipe, from its value, its signature and its paper's entry."""
    recipe = factory()
    paper = references().get(recipe.cite[0]) if recipe.cite else None
    rules = [type(term.rule).__name__.removesuffix("Rule").lower() for term in recipe.terms]
    about = inspect.getdoc(inspect.getmodule(factory)) or ""
    return Card(
        name=recipe.name,
        year=paper.year if paper else None,
        authors=paper.authors if paper else "",
        title=paper.title if paper else "",
        paper=paper.paper if paper else "",
        rules=tuple(dict.fromkeys(rules)),
        velocity_from=_sources(recipe),
        teacher=recipe.needs_teacher,
        jvp=recipe.needs_jvp,
        jumps=not recipe.local,
        status=recipe.status,
        cite=recipe.cite,
        summary=" ".join(about.partition("\n\n")[0].split()),
        arguments={
            name: argument.default
            if isinstance(argument.default, int | float | str | None)
            else repr(argument.default)
            for name, argument in inspect.signature(factory).parameters.items()
        },
    )


def _sources(recipe: "Recipe") -> tuple[str, ...]:
    order = ("conditional", "self", "ema", "teacher")
    return tuple("data" if s == "conditional" else s for s in order if s in recipe.sources)
