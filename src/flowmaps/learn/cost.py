r"""What a recipe costs: network calls per training sample, counted by running its own objective on a network that counts.

The unit is one forward pass without a graph; every call of a network (student, average or teacher) is one of

| kind | call | units |
|---|---|---|
| F | forward, nothing flows back | 1 |
| J | forward with its forward-mode derivative, nothing flows back | 2 |
| FB | forward whose value carries gradient, and its backward pass | 3 |
| JF | forward with a derivative of which only the value carries gradient | 4 |
| JB | forward with a derivative, and the backward pass through that | 6 |

(methods.md 2.5). A term counts by its share of the batch, and a call by the rows that it sees; recipes that change while they
train are averaged over the run. What a library adds without a network (metrics, kernels, coordinate transforms) costs nothing.
"""

from collections import defaultdict
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, final

import torch
from torch import Generator, Tensor, nn
from torch.autograd import forward_ad

from ..core.flow_map import NetFlowMap
from .objective import Objective, Recipe
from .states import Trajectories

UNITS: dict[str, float] = {"F": 1, "J": 2, "FB": 3, "JF": 4, "JB": 6}
"""Forward-pass equivalents of every kind of call."""

_FIRST = (0.0, 0.5, 1.0)
_ALL = tuple((i + 0.5) / 20 for i in range(20))  # if the cost changes in the course of a run
_ROWS, _CALLS = 256, 1024


@final
@dataclass(frozen=True)
class Cost:
    """Calls per training sample.

    Attributes:
        calls: Mean number of calls per sample, by who is called and how, such as {"student FB": 1.0, "teacher F": 2.0}.
        terms: Forward-pass equivalents of every term, by its label, weighted by its share.
    """

    calls: dict[str, float]
    terms: dict[str, float]

    @property
    def fpe(self) -> float:
        """Forward-pass equivalents per training sample."""
        return sum(self.terms.values())


def fpe(recipe: Recipe) -> float:
    """Forward-pass equivalents per training sample, rounded to 1e-3: what equal compute is measured in.

    Example:
        >>> from flowmaps import recipes
        >>> fpe(recipes.get("flow_matching"))
        3.0
    """
    return round(count(recipe).fpe, 3)


def count(recipe: Recipe) -> Cost:
    """Calls of every kind, found by running every term of the recipe at a few moments of training. Counted once per recipe."""
    try:
        return _cached(recipe)
    except TypeError:  # a part of somebody else's that cannot be hashed
        return _count(recipe)


@lru_cache(maxsize=512)
def _cached(recipe: Recipe) -> Cost:
    return _count(recipe)


def _count(recipe: Recipe) -> Cost:
    calls: defaultdict[str, float] = defaultdict(float)
    terms: dict[str, float] = {}
    for term in recipe.terms:
        alone = replace(recipe, terms=(replace(term, share=1.0),))
        seen = [_calls(alone, progress) for progress in _FIRST]
        if any(found != seen[0] for found in seen):
            seen = [_calls(alone, progress) for progress in _ALL]
        units = 0.0
        for found in seen:
            for kind, number in found.items():
                calls[kind] += term.share * number / len(seen)
                units += UNITS[kind.split()[1]] * number / len(seen)
        terms[term.label] = term.share * units
    return Cost({kind: round(number, 6) for kind, number in sorted(calls.items())}, terms)


def _calls(recipe: Recipe, progress: float) -> dict[str, float]:
    """Calls per row of a recipe of one term, on random numbers."""
    generator = Generator().manual_seed(0)
    marks = nn.Parameter(torch.zeros(2, _CALLS))
    log: list[_Call] = []
    maps = {
        role: NetFlowMap(
            _Counting(role, log, marks),
            recipe.interpolant,
            recipe.parametrization,
            local=recipe.local,
        )
        for role in ("student", "teacher", "ema")
    }
    with torch.random.fork_rng(
        devices=[]
    ):  # a learned weight draws its start from the global generator
        objective = Objective(recipe, **maps)
    marks.requires_grad_(True)  # an objective freezes the parameters of its companions
    x_0 = torch.randn(_ROWS, 4, generator=generator)
    labels = torch.zeros(_ROWS, dtype=torch.long)
    cond = {"label": labels} if recipe.guidance else {}
    path = Trajectories(x_0[:, None].repeat(1, 3, 1), torch.tensor([1.0, 0.5, 0.0]))
    drawn = recipe.draw(x_0, generator, cond, progress, path if recipe.needs_trajectories else None)
    objective(drawn).total.backward()
    reached = marks.grad if marks.grad is not None else torch.zeros_like(marks)
    found: defaultdict[str, float] = defaultdict(float)
    for i, call in enumerate(log):
        value, slope = (bool(g != 0) for g in reached[:, i])
        found[f"{call.role} {_kind(call.dual, value, slope)}"] += call.rows / len(drawn[0].x)
    return found


def _kind(dual: bool, value: bool, slope: bool) -> str:
    if not dual:
        return "FB" if value else "F"
    return "JB" if slope else "JF" if value else "J"


@final
@dataclass(frozen=True)
class _Call:
    role: str
    dual: bool
    rows: int


@final
class _Counting(nn.Module):
    """A smooth function of point and times that writes down its calls.

    Call i is multiplied by 1 + marks[0, i], and marks[1, i] stands before a number whose value is 0 and whose derivative is
    not: which of the two has a gradient afterwards tells whether anything flowed back, and whether through the derivative.
    """

    def __init__(self, role: str, log: list[_Call], marks: nn.Parameter) -> None:
        super().__init__()
        self.role, self.log, self.marks = role, log, marks

    def forward(self, x: Tensor, s: Tensor, t: Tensor, **cond: Any) -> Tensor:
        i = len(self.log)
        phase = x.sum(1) + 0.7 * s - 0.4 * t
        dual = forward_ad.unpack_dual(phase)
        self.log.append(_Call(self.role, dual.tangent is not None, len(x)))
        still = phase - dual.primal
        out = 0.3 * x + torch.sin(phase + 0.1 * i + 0.3)[:, None]
        # a companion is frozen: it has a backward pass only if its input carries gradient
        marks = self.marks if self.role == "student" or x.requires_grad else self.marks.detach()
        return out * (1 + marks[0, i]) + (marks[1, i] * still)[:, None]
