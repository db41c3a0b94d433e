"""Align Your Flow, Eulerian (Sabour et al. 2025, arXiv:2506.14603), AYF-EMD: distillation with a normalised, warmed-up tangent.

The factor of the derivative grows to `r_max` < 1 and stays there, which keeps a pull towards the teacher's velocity, and so a
bias that vanishes with 1 - r_max. Deviations: uniform pairs (the paper's law of times could not be checked); the warm-up is a
share of the run; autoguidance is the teacher's own matter (give one that is guided); no adversarial stage.
"""

from ..learn.objective import Recipe, Term
from ..learn.ramps import Ramp
from ..learn.rules import Eulerian
from ..learn.times import Law, SortedPair, Uniform
from ..learn.weights import TangentNorm


def ayf_emd(
    times: Law = Uniform(), r_max: float = 0.99, warmup: float = 0.1, c: float = 0.1
) -> Recipe:
    r"""$g = u - b_s - r\,(t-s)(\partial_s u + \nabla u\,b_s)$, then $g/(\|g\|+c)$; `warmup` is a share of the run, 0 for none."""
    ramp = Ramp(0.0 if warmup else r_max, r_max, end=warmup or 1.0)
    term = Term(
        rule=Eulerian("teacher", warmup=ramp), times=SortedPair(times), tangent=TangentNorm(c)
    )
    return Recipe(name="ayf_emd", cite=("sabour2025ayf",), terms=(term,))
