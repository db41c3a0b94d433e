"""SoFlow, solution flow models (Luo et al. 2025, arXiv:2512.15657): finite first legs that decay exponentially, no JVP.

The share of the leg in the jump falls from 0.1 to 0.002 over the run; 3/4 of the batch learn the velocity. The quotient of the
two endpoints by the length of the leg is `ShortLeg`'s slope, and the authors' linearised loss has half the gradient of
its adaptively weighted square (hence `scale`). Deviations: guidance is `Recipe.guidance`, without their decay at high noise.
"""

from ..learn.legs import ShortLeg
from ..learn.objective import Recipe, Term
from ..learn.ramps import Decay
from ..learn.rules import DiagonalRule
from ..learn.splits import FirstLeg
from ..learn.times import Diagonal, LogitNormal, SortedPair
from ..learn.weights import L2, Adaptive


def so_flow(
    diagonal: float = 0.75, start: float = 0.1, stop: float = 0.002, p: float = 1.0, c: float = 0.01
) -> Recipe:
    """The leg's share goes from `start` to `stop`; adaptive weight of power p and constant c on mean squares."""
    pair = SortedPair(LogitNormal(0.2, 0.8), target=LogitNormal(-1.0, 0.8))
    metric = Adaptive(p, c, of=L2())
    times = Diagonal(LogitNormal(-0.2, 1.0))
    return Recipe(
        name="so_flow",
        cite=("luo2025soflow",),
        terms=(
            Term(rule=DiagonalRule(), times=times, share=diagonal, metric=metric),
            Term(
                rule=ShortLeg(),
                times=FirstLeg(pair, Decay(start, stop)),
                share=1 - diagonal,
                scale=0.5,
                metric=metric,
            ),
        ),
        status="exact",
    )
