"""alpha-Flow (Zhang et al. 2025, arXiv:2510.20771), eq. 8: a first leg that shrinks from the whole jump to MeanFlow's limit.

The leg's share alpha falls from 1 (trajectory flow matching) to 0 (the JVP) along a sigmoid of temperature 25 between the shares
`begin` and `end` of the run; values within 5e-3 of either are snapped to it. With alpha's own adaptive weight, of the mean square,
the loss is that of u - T undivided. Deviations: the share of samples with t = s is exact in every batch instead of drawn; the
released code multiplies finite legs by alpha once more, which the paper's division by alpha cancels; targets are not clamped.
"""

from ..core.autodiff import EXACT
from ..learn.legs import ShortLeg
from ..learn.objective import Recipe, Term
from ..learn.ramps import Sigmoid
from ..learn.rules import DiagonalRule
from ..learn.splits import FirstLeg
from ..learn.times import Diagonal, LogitNormal, SortedPair
from ..learn.weights import L2, Adaptive


def alpha_flow(
    mean: float = -0.4,
    std: float = 1.0,
    diagonal: float = 0.25,
    begin: float = 0.0,
    end: float = 1.0,
    floor: float = 5e-3,
    c: float = 1e-3,
) -> Recipe:
    """Times are logit-normal(mean, std), a share `diagonal` with t = s."""
    pair = SortedPair(LogitNormal(mean, std))
    legs = FirstLeg(pair, Sigmoid(begin, end, floor=floor))
    rule = ShortLeg(form="velocity", derivative=EXACT)
    metric = Adaptive(1.0, c, of=L2())
    return Recipe(
        name="alpha_flow",
        cite=("zhang2025alphaflow",),
        terms=(
            Term(rule=DiagonalRule(), times=Diagonal(pair), share=diagonal, metric=metric),
            Term(rule=rule, times=legs, share=1 - diagonal, metric=metric),
        ),
        status="exact",
    )
