"""Consistency training, CT (Song et al. 2023, arXiv:2303.01469), Algorithm 3: both points of a step share data and noise.

N(k) grows from 2 to 150 as the square root of the run, uniform on the grid. Deviations: L2 in place of LPIPS; the average that
makes the targets has a constant decay, the published one follows N(k) from 0.9 to 0.999.
"""

from ..core.interpolant import edm
from ..core.parametrization import Boundary
from ..learn.legs import ShortLeg
from ..learn.objective import Recipe, Term
from ..learn.ramps import Count
from ..learn.splits import Neighbours
from ..learn.weights import AtTarget


def consistency_training(start: int = 2, stop: int = 150, ema: float = 0.9) -> Recipe:
    """The grid has N(k) points, from `start` on; `ema` is the decay of the average that makes the targets."""
    path = edm()
    rule = ShortLeg(jump="ema", leg="path", form="velocity")
    times = Neighbours(points=Count(start, stop, "sqrt"))
    return Recipe(
        name="consistency_training",
        cite=("song2023consistency",),
        terms=(Term(rule=rule, times=times, space=AtTarget()),),
        interpolant=path,
        parametrization=Boundary(path),
        ema_target=ema,
        status="exact",
    )
