"""Lagrangian self-distillation (Boffi et al. 2025, arXiv:2505.18825), Algorithm 1: no teacher, gradient through the JVP.

The reduction is the released code's: the mean over the batch, of which 3/4 lies on the diagonal. `through="target"` is the
variant that the paper suggests and does not use: the mean velocity regressed on the detached right-hand side, which costs no
backward pass through the JVP. Deviations: none known.
"""

from ..learn.objective import Recipe, Term
from ..learn.rules import DiagonalRule, Lagrangian, Through
from ..learn.times import Diagonal, SortedPair, Uniform
from ..learn.weights import LearnedLogVar


def lsd(
    diagonal: float = 0.75,
    channels: int = 128,
    through: Through = "jvp",
    starts: float = 0.0,
) -> Recipe:
    r"""Flow matching on a share `diagonal`; on the rest $\partial_t X = v(X)$, `starts` of it from noise."""
    weight = LearnedLogVar(channels)
    return Recipe(
        name="lsd",
        cite=("boffi2025lsd",),
        terms=(
            Term(rule=DiagonalRule(), times=Diagonal(Uniform()), share=diagonal, weight=weight),
            Term(
                rule=Lagrangian("self", through=through),
                times=SortedPair(Uniform(), starts=starts),
                share=1 - diagonal,
                weight=weight,
            ),
        ),
    )
