"""Rectified MeanFlow (Zhang et al. 2025, Re-MeanFlow, arXiv:2511.23342): MeanFlow on the pairs of one reflow.

On coupled pairs the conditional velocity is nearly the marginal one, so MeanFlow's target has little variance. Sources follow a
U-shaped law, gaps a logit-normal one, and jumps that nearly reach the data end there. With `stored` the data set holds the pairs
(`flowmaps pairs`); otherwise the teacher makes them while training. Deviations: Heun's method in place of EDM's sampler with
autoguidance; the pairs of the longest distance are not dropped.
"""

from ..core.solver import HEUN, Solver
from ..learn.jumps import SourceThenGap
from ..learn.objective import Recipe, Term
from ..learn.rules import DiagonalRule, Eulerian
from ..learn.states import Coupled
from ..learn.times import Diagonal, LogitNormal, UShaped
from ..learn.weights import L2, Adaptive


def rectified_mean_flow(
    stored: bool = False,
    steps: int = 16,
    solver: Solver = HEUN,
    diagonal: float = 0.75,
    p: float = 2.0,
    c: float = 1e-3,
) -> Recipe:
    """A share `diagonal` has t = s; adaptive weight of power p and constant c; the teacher takes `steps` steps."""
    sources = UShaped(4.0)
    jumps = SourceThenGap(sources, LogitNormal(-0.4, 1.0))
    pairs = None if stored else Coupled(solver, steps)
    metric = Adaptive(p, c, of=L2())
    return Recipe(
        name="rectified_mean_flow",
        cite=("zhang2025remeanflow", "geng2025meanflow"),
        terms=(
            Term(
                rule=DiagonalRule(),
                times=Diagonal(sources),
                share=diagonal,
                metric=metric,
                state=pairs,
            ),
            Term(rule=Eulerian(), times=jumps, share=1 - diagonal, metric=metric, state=pairs),
        ),
        status="exact",
    )
