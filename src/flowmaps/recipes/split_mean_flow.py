"""SplitMeanFlow (Guo et al. 2025, arXiv:2507.16884): a teacher's velocity on the diagonal, one jump is two elsewhere; no JVP.

`diagonal` is the paper's flow ratio, at least 1/2: below it the map collapses. `anchor="conditional"` learns without a teacher,
`psd` without its learned variance. Deviations: none known.
"""

from typing import Literal

from ..learn.objective import Recipe, Term
from ..learn.rules import Compositional, DiagonalRule
from ..learn.times import Diagonal, SortedPair, Uniform


def split_mean_flow(
    diagonal: float = 0.5, anchor: Literal["conditional", "teacher"] = "teacher"
) -> Recipe:
    r"""$u(x,s,s) = b_s$ on a share `diagonal`, $u$ against two detached jumps, split at U(0, 1), on the rest."""
    return Recipe(
        name="split_mean_flow",
        cite=("guo2025splitmeanflow",),
        terms=(
            Term(rule=DiagonalRule(anchor), times=Diagonal(Uniform()), share=diagonal),
            Term(rule=Compositional("self"), times=SortedPair(Uniform()), share=1 - diagonal),
        ),
    )
