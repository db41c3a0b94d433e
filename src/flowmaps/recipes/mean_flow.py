"""MeanFlow (Geng et al. 2025, arXiv:2505.13447), Algorithm 1, eq. 22: the Eulerian rule learned from data alone.

Deviations: the share of samples with t = s is exact in every batch instead of drawn, which saves their JVPs; guidance is
`Recipe.guidance` (its sec. 4.2 with kappa = 1 - 1/scale).
"""

from ..learn.objective import Recipe, Term
from ..learn.rules import DiagonalRule, Eulerian
from ..learn.times import Diagonal, LogitNormal, SortedPair
from ..learn.weights import Adaptive


def mean_flow(
    mean: float = -0.4, std: float = 1.0, diagonal: float = 0.75, p: float = 1.0, c: float = 1e-3
) -> Recipe:
    """Times are logit-normal(mean, std), a share `diagonal` with t = s; adaptive weight of power p and constant c."""
    pair = SortedPair(LogitNormal(mean, std))
    return Recipe(
        name="mean_flow",
        cite=("geng2025meanflow",),
        terms=(
            Term(rule=DiagonalRule(), times=Diagonal(pair), share=diagonal, metric=Adaptive(p, c)),
            Term(rule=Eulerian(), times=pair, share=1 - diagonal, metric=Adaptive(p, c)),
        ),
        status="exact",
    )
