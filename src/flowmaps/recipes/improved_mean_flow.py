"""Improved MeanFlow (Geng et al. 2025, arXiv:2512.02012), eq. 12 and Algorithm 1: flow matching of a compound prediction.

The JVP moves along the model's own velocity, so the residual at the optimum is that of flow matching (methods.md 2.3).
Deviations: no auxiliary v-head (the velocity is u(x, s, s), the paper's other option); diagonal share exact per batch.
"""

from ..learn.objective import Recipe, Term
from ..learn.rules import DiagonalRule, Eulerian
from ..learn.times import Diagonal, LogitNormal, SortedPair
from ..learn.weights import Adaptive


def improved_mean_flow(
    mean: float = -0.4, std: float = 1.0, diagonal: float = 0.5, p: float = 1.0, c: float = 1e-2
) -> Recipe:
    """As `mean_flow`, with the tangent taken from the model itself."""
    pair = SortedPair(LogitNormal(mean, std))
    return Recipe(
        name="improved_mean_flow",
        cite=("geng2025imf",),
        terms=(
            Term(rule=DiagonalRule(), times=Diagonal(pair), share=diagonal, metric=Adaptive(p, c)),
            Term(
                rule=Eulerian(tangent="self"), times=pair, share=1 - diagonal, metric=Adaptive(p, c)
            ),
        ),
        status="exact",
    )
