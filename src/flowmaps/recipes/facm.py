"""Flow-anchored consistency models (Peng et al. 2025, arXiv:2507.03738) and the released loss: a consistency model kept a flow.

Half of the batch anchors the velocity, half learns jumps to t = 0 whose target is clipped and relaxed near the data.
`velocity="conditional"` learns from data; the cosine part of the anchor is then biased, `Cosine` says why. Deviations: the
two tasks are told apart by (s, s) and (s, 0), the paper's other option, not by label ranges; each has rows of its own.
"""

import math

from ..core.interpolant import trig
from ..learn.objective import Recipe, Term
from ..learn.rules import DiagonalRule, Eulerian, VelocitySource
from ..learn.times import Diagonal, NoiseLevel, ToData
from ..learn.weights import L2, Adaptive, Clip, Cosine, Relax, Rise, Sum


def facm(
    velocity: VelocitySource = "teacher",
    mean: float = -0.8,
    std: float = 1.6,
    clip: float = 1.0,
    relax: float = 0.5,
    p: float = 0.5,
    c: float = 1e-3,
) -> Recipe:
    """Guidance 1.75 of the paper: `Guidance({"label": classes}, Fixed(1.75), high=0.875)`."""
    law = NoiseLevel(mean, std, 0.0, math.inf, path=trig())
    return Recipe(
        name="facm",
        cite=("peng2025facm",),
        terms=(
            Term(
                rule=DiagonalRule(velocity),
                times=Diagonal(law),
                share=0.5,
                metric=Sum((L2(), Cosine())),
            ),
            Term(
                rule=Eulerian(velocity),
                times=ToData(law),
                share=0.5,
                metric=Adaptive(p, c, of=L2()),
                weight=Rise(),
                tangent=Relax(relax, of=Clip(clip)),
            ),
        ),
        status="exact",
    )
