"""Lagrangian self-distillation (Boffi et al. 2025, arXiv:2505.18825), Algorithm 1: no teacher, gradient through the JVP.

The reduction is the released code's: the mean over the batch, of which 3/4 lies on the diagonal. `through="target"` is the
variant that the paper suggests and does not use: the mean velocity regressed on the detached right-hand side, which costs no
backward pass through the JVP. Additions, off by default: `compose`, `skew`, `starts` and `ends`, as in `lmd`.
Deviations: the learned weight has a floor, 0.1; without it (`floor=0`, as published) agreement with itself may drive out the
data (CHANGELOG.md).
"""

from ..learn.objective import Recipe, Term
from ..learn.rules import Compositional, DiagonalRule, Lagrangian, Through
from ..learn.times import Diagonal, Uniform, skewed
from ..learn.weights import LearnedLogVar


def lsd(
    diagonal: float = 0.75,
    channels: int = 128,
    floor: float = 0.1,
    through: Through = "jvp",
    skew: float | None = None,
    starts: float = 0.0,
    ends: float = 0.0,
    compose: float = 0.0,
) -> Recipe:
    r"""Flow matching on a share `diagonal`, $\partial_t X = v(X)$ on the rest, weighted by a learned variance."""
    weight = LearnedLogVar(channels, floor=floor)
    pair = skewed(skew, starts, ends)
    anchor = Term(rule=DiagonalRule(), times=Diagonal(Uniform()), share=diagonal, weight=weight)
    rest = 1 - diagonal - compose
    move = Term(rule=Lagrangian("self", through=through), times=pair, share=rest, weight=weight)
    join = (
        Term(rule=Compositional("self"), times=pair, share=compose, weight=weight)
        if compose
        else None
    )
    terms = (anchor, move, join) if join else (anchor, move)
    return Recipe(name="lsd", cite=("boffi2025lsd",), terms=terms, status="exact")
