"""rCM (Zheng et al. 2025, arXiv:2510.08431), its consistency half: sCM's distillation with a steeper weight, no learned variance.

`semi` is the half-width of a finite difference in time (the released code's 1e-4), for embeddings of time too steep to be
differentiated; None is the exact derivative. Deviations: the score-distillation half (DMD with a trained critic) is missing;
the norm of the tangent is divided by the root of the dimension; the warm-up is a share of the run instead of 1,000 steps and
grows the whole tangent, where the released code leaves the network's derivative at full size.
"""

import math

from ..core.autodiff import EXACT, Derivative
from ..core.interpolant import trig
from ..core.parametrization import trig_two_time
from ..learn.objective import Recipe, Term
from ..learn.outputs import Trig
from ..learn.ramps import Ramp
from ..learn.times import NoiseLevel, ToData
from ..learn.weights import TangentNorm


def rcm(
    mean: float = -0.8,
    std: float = 1.6,
    sigma_data: float = 1.0,
    c: float = 0.1,
    warmup: float = 0.1,
    semi: float | None = None,
) -> Recipe:
    """As `scm` with a teacher; sources from the paper's default law for images."""
    rule = Trig(
        "teacher",
        derivative=EXACT if semi is None else Derivative("semi", semi),
        warmup=Ramp(0.0, 1.0, end=warmup) if warmup else None,
        steep=True,
    )
    shift = mean - math.log(sigma_data)
    times = ToData(NoiseLevel(shift, std, 0.0, math.inf, path=trig()))
    return Recipe(
        name="rcm",
        cite=("zheng2025rcm", "lu2024scm"),
        terms=(Term(rule=rule, times=times, tangent=TangentNorm(c)),),
        interpolant=trig(),
        parametrization=trig_two_time(),
        status="exact",
    )
