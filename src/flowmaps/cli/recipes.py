"""The methods that can be trained, from their own values: nothing here is written by hand.

Examples:
  flowmaps recipes                     the table
  flowmaps recipes lsd mean_flow       these alone
  flowmaps recipes --json              the same for programs, with arguments and defaults
  flowmaps train lsd ...               train one
  flowmaps cite lsd                    its BibTeX

velocity from: data (of the samples themselves), self (the model's own), ema (its average), teacher (a trained model).
In brackets where the points come from, if not from data: prior (pure noise), trajectory (of the teacher), coupled (pairs that
it makes), on-policy (the model's own), stored.
jvp: training differentiates the network in forward mode.
cost: forward passes per training sample, counted by running the loss (forward and backward 3, derivative 1 more, backward
through it 6 in all). Methods whose only rule is diagonal learn a velocity: they need a solver to sample, and serve as teachers.
"""

import inspect
import re
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Annotated, Any, final

from tyro.conf import Positional, arg

from ..bibliography import Entry, cited
from ..errors import RecipeError
from .options import UsageError, parse, to_json
from .words import nearest, table

if TYPE_CHECKING:
    from ..learn.objective import Recipe


@final
@dataclass
class Options:
    """Options of `flowmaps recipes`."""

    names: Annotated[Positional[tuple[str, ...]], arg(metavar="[NAME ...]")] = ()
    """Recipes; by default all."""
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
    where: str
    rules: tuple[str, ...]
    velocity_from: tuple[str, ...]
    points: tuple[str, ...]
    teacher: bool
    jvp: bool
    jumps: bool
    cost: float
    calls: dict[str, float]
    status: str
    cite: tuple[str, ...]
    summary: str
    deviations: str
    arguments: dict[str, Any]


def main(argv: list[str]) -> int:
    """Print the table."""
    options = parse(Options, argv, name="recipes", about=f"{__doc__}")
    from ..recipes import all_recipes

    known = all_recipes()
    for name in options.names:
        if name not in known:
            raise UsageError(f"no recipe is called {name!r}{nearest(name, known)}")
    cards = [card(known[name]) for name in options.names or known]
    cards.sort(key=lambda c: (c.year or 0, c.name))
    if options.json:
        to_json([asdict(each) for each in cards])
        return 0
    print(table(HEAD, [_row(each) for each in cards]))
    print(
        "\nstatus: exact = the numbers of the authors' code; faithful = from the paper; own = this project's; sketch = neither."
    )
    return 0


HEAD = ("name", "year", "arXiv", "rules", "velocity from (points)", "jvp", "cost", "status")


def _row(c: Card) -> list[str]:
    paper = re.sub(r"^arXiv:|^https?://|(?<=[a-z])/.*$", "", c.paper)
    places = ", ".join(c.points)
    sources = ", ".join(c.velocity_from) + f" ({places})" * (places != "data")
    texts = (c.name, str(c.year or ""), paper, ", ".join(c.rules), sources)
    return [*texts, "yes" if c.jvp else "-", f"{c.cost:.3g}", c.status]


def card(factory: "Callable[..., Recipe]") -> Card:
    """The card of a recipe, from its value, its signature and its paper's entry."""
    from ..learn.cost import count, fpe

    recipe = factory()
    paper = _paper(recipe)
    rules = [type(term.rule).__name__.removesuffix("Rule").lower() for term in recipe.terms]
    about = inspect.getdoc(inspect.getmodule(factory)) or ""
    return Card(
        name=recipe.name,
        year=paper.year if paper else None,
        authors=paper.authors if paper else "",
        title=paper.title if paper else "",
        paper=paper.paper if paper else "",
        where=_where(about),
        rules=tuple(dict.fromkeys(rules)),
        velocity_from=_sources(recipe),
        points=_points(recipe),
        teacher=recipe.needs_teacher,
        jvp=recipe.needs_jvp,
        jumps=not recipe.local,
        cost=fpe(recipe),
        calls=count(recipe).calls,
        status=recipe.status,
        cite=recipe.cite,
        summary=" ".join(about.partition("\n\n")[0].split()),
        deviations=" ".join(about.partition("Deviations: ")[2].split()),
        arguments={
            name: argument.default
            if isinstance(argument.default, int | float | str | None)
            else getattr(argument.default, "name", None) or repr(argument.default)
            for name, argument in inspect.signature(factory).parameters.items()
        },
    )


def _paper(recipe: "Recipe") -> Entry | None:
    """The first work that it cites; the table has room for recipes that cite what we do not know."""
    try:
        return cited(recipe.cite[0]) if recipe.cite else None
    except RecipeError:
        return None


def _sources(recipe: "Recipe") -> tuple[str, ...]:
    order = ("conditional", "pooled", "self", "ema", "teacher")
    names = {"conditional": "data", "pooled": "pooled data"}
    return tuple(names.get(s, s) for s in order if s in recipe.sources)


def _points(recipe: "Recipe") -> tuple[str, ...]:
    """Where the points of the terms come from."""
    states = [term.state for term in recipe.terms]
    names = [
        re.sub(r"(?<!^)([A-Z])", r"-\1", type(s).__name__).lower() if s else "data" for s in states
    ]
    return tuple(dict.fromkeys(names))


def _where(about: str) -> str:
    """What a docstring names of its paper: equations, algorithms, sections, in its first paragraph.

    Example:
        >>> _where("MeanFlow (Geng et al. 2025, arXiv:2505.13447), Algorithm 1, eq. 22: learned from data.")
        'Algorithm 1, eq. 22'
    """
    first = " ".join(about.partition("\n\n")[0].split())
    part = r"(?:[Aa]lgorithms? \d+|eqs?\. [\d\- and,]*\d|sec(?:s|tions?)?\.? [\d.]*\d|[Pp]roposition \d+|appendix(?: [A-Z])?)"
    return ", ".join(re.findall(part, first))
