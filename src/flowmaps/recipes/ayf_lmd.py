"""Align Your Flow, Lagrangian (Sabour et al. 2025, arXiv:2506.14603), AYF-LMD: map distillation with the derivative detached.

The authors found it stable in the plane and too smooth on images, where `ayf_emd` is theirs to take. Deviations: as `ayf_emd`,
whose settings it shares.
"""

from ..learn.objective import Recipe, Term
from ..learn.ramps import Ramp
from ..learn.rules import Lagrangian
from ..learn.times import Law, SortedPair, Uniform
from ..learn.weights import TangentNorm


def ayf_lmd(
    times: Law = Uniform(), r_max: float = 0.99, warmup: float = 0.1, c: float = 0.1
) -> Recipe:
    r"""$g = u - b_t(X) + r\,(t-s)\,\partial_t u$, then $g/(\|g\|+c)$."""
    ramp = Ramp(0.0 if warmup else r_max, r_max, end=warmup or 1.0)
    rule = Lagrangian("teacher", through="target", warmup=ramp)
    term = Term(rule=rule, times=SortedPair(times), tangent=TangentNorm(c))
    return Recipe(name="ayf_lmd", cite=("sabour2025ayf",), terms=(term,))
