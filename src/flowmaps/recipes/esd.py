"""Eulerian self-distillation (Boffi et al. 2025, arXiv:2505.18825), sec. 4 and appendix: the advection is detached.

Fine in low dimension; the authors found it unstable on images, where `mean_flow` is the Eulerian method to take.
The reduction is the released code's, the mean over the batch. Deviations: the learned weight has a floor,
0.1; without it (`floor=0`, as published) agreement with itself may drive out the data (CHANGELOG.md).
"""

from ..learn.objective import Recipe, Term
from ..learn.rules import DiagonalRule, Eulerian
from ..learn.times import Diagonal, SortedPair, Uniform
from ..learn.weights import LearnedLogVar


def esd(diagonal: float = 0.75, channels: int = 128, floor: float = 0.1) -> Recipe:
    r"""Flow matching on a share `diagonal`, $\partial_s X + \mathrm{sg}[\nabla X\,v] = 0$ on the rest."""
    weight = LearnedLogVar(channels, floor=floor)
    return Recipe(
        name="esd",
        cite=("boffi2025lsd",),
        terms=(
            Term(rule=DiagonalRule(), times=Diagonal(Uniform()), share=diagonal, weight=weight),
            Term(
                rule=Eulerian("self", through="partial"),
                times=SortedPair(Uniform()),
                share=1 - diagonal,
                weight=weight,
            ),
        ),
        status="exact",
    )
