"""Continuous-time consistency models (Lu & Song 2025, arXiv:2410.11081), Algorithm 1: sCT, or sCD with a teacher.

The tangent of the network's output is normalised and warmed up, the loss weighted by a learned variance of the source time.
`velocity="teacher"` is sCD; `sigma_data` is that of the paper's data, in whose units `c` is; here data has deviation 1.
Deviations: the norm of the tangent is divided by the root of the dimension, as an option of NVIDIA's FastGen does; the warm-up
is a share of the run instead of 10,000 steps.
"""

import math

from ..core.interpolant import trig
from ..core.parametrization import trig_two_time
from ..learn.objective import Recipe, Term
from ..learn.outputs import Trig
from ..learn.ramps import Ramp
from ..learn.rules import VelocitySource
from ..learn.times import NoiseLevel, ToData
from ..learn.weights import LearnedLogVar, TangentNorm


def scm(
    velocity: VelocitySource = "conditional",
    mean: float = -1.0,
    std: float = 1.4,
    sigma_data: float = 0.5,
    c: float = 0.1,
    warmup: float = 0.1,
    channels: int = 128,
) -> Recipe:
    """Jumps to t = 0 from log-normal(mean, std) noise levels; the tangent term grows over a share `warmup` of the run."""
    shift = mean - math.log(sigma_data)
    rule = Trig(velocity, warmup=Ramp(0.0, 1.0, end=warmup) if warmup else None)
    return Recipe(
        name="scm",
        cite=("lu2024scm",),
        terms=(
            Term(
                rule=rule,
                times=ToData(NoiseLevel(shift, std, 0.0, math.inf, path=trig())),
                tangent=TangentNorm(c / sigma_data),
                weight=LearnedLogVar(channels),
            ),
        ),
        interpolant=trig(),
        parametrization=trig_two_time(),
        status="exact",
    )
