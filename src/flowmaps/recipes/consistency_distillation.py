"""Consistency distillation, CD (Song et al. 2023, arXiv:2303.01469), Algorithm 2: one Heun step of a teacher, then a frozen jump.

Grid of `points` noise levels, equal in EDM's time. Defaults: N = 40 and mu = 0.95 are ImageNet-64's.
Deviations: L2 in place of LPIPS, which is a network that the user would have to give; Heun's step is one of the grid's time, the
authors' one of the noise level.
"""

from ..core.interpolant import edm
from ..core.parametrization import Boundary
from ..learn.legs import Leg, ShortLeg
from ..learn.objective import Recipe, Term
from ..learn.splits import Neighbours
from ..learn.weights import AtTarget


def consistency_distillation(points: int = 40, ema: float = 0.95, leg: Leg = "heun") -> Recipe:
    """`points` is N; `ema` the decay mu of the average that makes the targets."""
    path = edm()
    rule = ShortLeg("teacher", "ema", leg=leg, form="velocity")
    term = Term(rule=rule, times=Neighbours(points=points), space=AtTarget())
    return Recipe(
        name="consistency_distillation",
        cite=("song2023consistency",),
        terms=(term,),
        interpolant=path,
        parametrization=Boundary(path),
        ema_target=ema,
    )
