"""Improved consistency training, iCT (Song & Dhariwal 2023, arXiv:2310.14189): CT without an average in the target.

Grids double from 10 to 1280 steps in equal stages, noise levels are a discretised lognormal(-1.1, 2), the metric is
pseudo-Huber with c = 0.00054 sqrt(D) and the weight one over the step of noise. Deviations: none known (dropout is the network's).
"""

from ..core.interpolant import edm
from ..core.parametrization import Boundary
from ..learn.legs import ShortLeg
from ..learn.objective import Recipe, Term
from ..learn.ramps import Count
from ..learn.splits import Neighbours
from ..learn.times import NoiseLevel
from ..learn.weights import AtTarget, Huber, PerLeg


def improved_consistency_training(
    start: int = 10, stop: int = 1280, mean: float = -1.1, std: float = 2.0, c: float = 0.00054
) -> Recipe:
    """Log noise levels are normal(mean, std) on a grid of `start` to `stop` steps."""
    path = edm()
    term = Term(
        rule=ShortLeg(leg="path", form="velocity"),
        times=Neighbours(NoiseLevel(mean, std), Count(start, stop)),
        space=AtTarget(),
        metric=Huber(c),
        weight=PerLeg(),
    )
    return Recipe(
        name="improved_consistency_training",
        cite=("song2023ict",),
        terms=(term,),
        interpolant=path,
        parametrization=Boundary(path),
    )
