r"""Distillation that keeps the law of the data (flowmaps 2026): follow a teacher's trajectories, and be spread as the data are.

On single trajectories the Lagrangian rule before its limit (AYF-LMD, Sabour et al. 2025, arXiv:2506.14603): the short last leg is
a Heun step of the teacher, so no forward-mode derivative is needed. On whole laws the energy distance (Sejdinovic et al. 2013,
arXiv:1207.6076) between endpoints and data, for jumps to data from pure noise and from half-way: it returns the variance
that least squares loses. The law of a guided teacher's samples is not that of the data: guidance needs `laws=0`, the legs alone.
Deviations: the combination is the project's own; what it gives is measured in benchmarks/digits.json.
"""

from functools import partial
from typing import Literal

from ..learn.legs import LastLeg
from ..learn.objective import Recipe, Term
from ..learn.particles import EnergyDistance, Grouped, PushForward
from ..learn.rules import DiagonalRule
from ..learn.splits import LastGap
from ..learn.times import Diagonal, Either, ToData, Uniform, skewed
from ..learn.weights import read_as


def push_forward(
    leg: float = 0.1,
    skew: float | None = 1.8,
    starts: float = 0.2,
    ends: float = 0.2,
    laws: float = 1.0,
    half: float = 0.12,
    strength: float = 2.0,
    diagonal: float = 0.0,
    predict: Literal["velocity", "x0"] = "velocity",
) -> Recipe:
    """Legs up to `leg`; laws are compared on the share `laws` of the rows, in the share `half` of steps from half-way.

    With `laws=0` they are not compared, and the teacher may be guided.
    With a `diagonal` there is no teacher: that share of the rows learns the velocity from data, the others follow it, and laws
    are those of samples with their classes.
    With `predict="x0"` the network is read as the image, so that a map that `default` learned may go on from there, with itself
    as its teacher.
    """
    reading, space = read_as(predict)
    term = partial(Term, space=space)
    follow = term(
        rule=LastLeg("self" if diagonal else "teacher"),
        times=LastGap(skewed(skew, starts, ends), leg),
        share=1 - diagonal,
    )
    terms = (follow,)
    if diagonal:
        anchor = term(rule=DiagonalRule(), times=Diagonal(Uniform()), share=diagonal)
        terms = (anchor, follow)
    if laws:
        law = Term(
            rule=PushForward(told=4.0 if diagonal else 0.0),
            times=Grouped(ToData(Either(1.0, 0.5, half))),
            metric=EnergyDistance(),
            share=laws,
            scale=strength,
            name="law",
        )
        terms = (*terms, law)
    return Recipe(
        name="push_forward",
        cite=("sabour2025ayf", "sejdinovic2013energy"),
        terms=terms,
        parametrization=reading,
        status="own",
    )
