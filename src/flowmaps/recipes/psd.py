"""Progressive self-distillation (Boffi et al. 2025, arXiv:2505.18825), sec. 3.3: one jump is two; no JVP at all.

`split="uniform"` is PSD-U, `split="midpoint"` PSD-M, in the preconditioned (mean-velocity) form. Deviations: none known.
"""

from typing import Literal

from ..learn.objective import Recipe, Term
from ..learn.rules import Compositional, DiagonalRule
from ..learn.times import Diagonal, Fixed, SortedPair, Uniform
from ..learn.weights import LearnedLogVar


def psd(
    split: Literal["uniform", "midpoint"] = "uniform", diagonal: float = 0.75, channels: int = 128
) -> Recipe:
    """Flow matching on a share `diagonal`, the compositional rule on the rest."""
    weight = LearnedLogVar(channels)
    pair = SortedPair(Uniform(), split=Uniform() if split == "uniform" else Fixed(0.5))
    return Recipe(
        name="psd",
        cite=("boffi2025lsd",),
        terms=(
            Term(rule=DiagonalRule(), times=Diagonal(Uniform()), share=diagonal, weight=weight),
            Term(rule=Compositional("self"), times=pair, share=1 - diagonal, weight=weight),
        ),
    )
