"""Truncated consistency models, TCM (Lee et al. 2024, arXiv:2410.14895), stage 2: noise levels above `cut` alone.

The teacher is the consistency model of stage 1 (`easy_consistency_tuning`): frozen, it answers below `cut`. A quarter of the
batch sits at the cut, where the teacher is the target (weight 0.1), the rest above it, on a Student-t law of log noise.
Deviations: stages of the shrinking step run over stage 2 as they do in ECT, which the authors resume at stage 1's last.
"""

from dataclasses import replace

from ..core.interpolant import edm
from ..core.parametrization import Boundary
from ..learn.legs import ShortLeg
from ..learn.objective import Recipe, Term
from ..learn.splits import Tuning
from ..learn.times import NoiseLevel
from ..learn.weights import AtTarget, Huber, PerLeg


def truncated_consistency(
    cut: float = 1.0,
    boundary: float = 0.25,
    scale: float = 0.1,
    stages: int = 8,
    c: float = 1e-8,
) -> Recipe:
    """`cut` is the noise level t'; a share `boundary` of the rows lies at it, `scale` weighs them."""
    path = edm()
    rule = ShortLeg(leg="path", form="velocity", below="teacher", boundary=cut)
    above = NoiseLevel(0.0, 0.2, low=cut, freedom=0.01)
    at = NoiseLevel(0.0, 0.2, low=cut, high=cut)
    inside = Term(
        rule=rule,
        times=Tuning(above, stages, limit=0.999),
        share=1 - boundary,
        space=AtTarget(),
        metric=Huber(c),
        weight=PerLeg(),
        scale=1 / (1 - boundary),
        name="above",
    )
    cut_off = replace(
        inside,
        times=Tuning(at, stages, limit=0.999),
        share=boundary,
        scale=scale / boundary,
        name="boundary",
    )
    return Recipe(
        name="truncated_consistency",
        cite=("lee2024tcm",),
        terms=(inside, cut_off),
        interpolant=path,
        parametrization=Boundary(path),
    )
