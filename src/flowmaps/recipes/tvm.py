"""Terminal velocity matching (Zhou et al. 2025, arXiv:2511.19797) and the released code: LSD against an average.

The velocity at the end of a jump is that of a moving average of the student, the gradient goes through the JVP. The gap is
drawn first, so no jump has length 0, where the rule would be flow matching with a biased target. Deviations: each of the two
losses has half of the batch instead of all of it; no scaled parametrisation and no 1 / scale^2 weight for guidance.
"""

from ..learn.jumps import GapThenTarget
from ..learn.objective import Recipe, Term
from ..learn.rules import DiagonalRule, Lagrangian
from ..learn.times import Diagonal, LogitNormal


def tvm(
    gap_mean: float = -0.8,
    gap_std: float = 1.0,
    mean: float = -0.4,
    std: float = 1.0,
    ema: float = 0.99,
) -> Recipe:
    """Gaps logit-normal(gap_mean, gap_std), targets truncated logit-normal(mean, std), the law of flow matching as well."""
    pair = GapThenTarget(LogitNormal(gap_mean, gap_std), mean, std)
    return Recipe(
        name="tvm",
        cite=("zhou2025tvm",),
        terms=(
            Term(rule=DiagonalRule(), times=Diagonal(LogitNormal(mean, std)), share=0.5),
            Term(rule=Lagrangian("ema"), times=pair, share=0.5),
        ),
        ema_target=ema,
        status="exact",
    )
