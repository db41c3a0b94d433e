r"""The project's choice from data alone (flowmaps 2026): published parts that the arena chose, without forward-mode derivatives.

The compound of improved MeanFlow (Geng et al. 2025, arXiv:2512.02012), whose derivative moves along the model's own velocity, as
a central difference; times, weight of the gap and jumps to t = 0 of transition models (Wang et al. 2025, arXiv:2509.04394);
and an adaptive metric that is gentle, c = 1 in mean squares, for a small c forgets hard rows.
Deviations: the combination is the project's own; what its parts give is measured in benchmarks/arena-digits.json.
"""

from ..core.autodiff import Derivative
from ..learn.objective import Recipe, Term
from ..learn.rules import DiagonalRule, Eulerian
from ..learn.times import Diagonal, LogitNormal, SortedPair
from ..learn.weights import L2, Adaptive, TangentGap


def default(
    mean: float = -0.4,
    std: float = 1.0,
    diagonal: float = 0.5,
    ends: float = 0.1,
    step: float = 5e-3,
    c: float = 1.0,
    sigma_data: float = 1.0,
) -> Recipe:
    """Flow matching on a share `diagonal`; a share `ends` of all rows jumps to clean data."""
    law, metric = LogitNormal(mean, std), Adaptive(1.0, c, of=L2())
    rule = Eulerian(tangent="self", derivative=Derivative("finite", step))
    anchor = Term(
        rule=DiagonalRule(), times=Diagonal(SortedPair(law)), share=diagonal, metric=metric
    )
    move = Term(
        rule=rule,
        times=SortedPair(law, ends=ends / (1 - diagonal)),
        share=1 - diagonal,
        metric=metric,
        weight=TangentGap(sigma_data),
    )
    return Recipe(
        name="default", cite=("geng2025imf", "wang2025tim"), terms=(anchor, move), status="own"
    )
