"""Easy consistency tuning, ECT (Geng et al. 2024, arXiv:2406.14548): from denoising to consistency by shrinking the step.

Starts as denoising (w = 0), its own diffusion pre-training, and shrinks the gap to w in every stage. The loss is the norm of
the difference (c = 1e-8 keeps its gradient finite), weighted by one over the step of noise (`weight="leg"`, the released code)
or by EDM's weight (`weight="snr"`). Deviations: at t = 0 data keep noise of deviation `sigma_min`, 0 in the code, which makes a
finer grid of what matters (dropout is the network's).
"""

from typing import Literal

from ..core.interpolant import edm
from ..core.parametrization import Boundary
from ..learn.legs import ShortLeg
from ..learn.objective import Recipe, Term
from ..learn.splits import Tuning
from ..learn.times import NoiseLevel
from ..learn.weights import AtTarget, EDMWeight, Huber, PerLeg


def easy_consistency_tuning(
    stages: int = 8,
    q: float = 2.0,
    mean: float = -1.1,
    std: float = 2.0,
    weight: Literal["leg", "snr"] = "leg",
    c: float = 1e-8,
    sigma_min: float = 0.002,
) -> Recipe:
    """Log noise levels are normal(mean, std); the gap shrinks by q in every stage."""
    path = edm(sigma_min)
    term = Term(
        rule=ShortLeg(leg="path", form="velocity"),
        times=Tuning(NoiseLevel(mean, std, path=path), stages, q, path=path),
        space=AtTarget(),
        metric=Huber(c),
        weight=PerLeg() if weight == "leg" else EDMWeight(),
    )
    return Recipe(
        name="easy_consistency_tuning",
        cite=("geng2024ect",),
        terms=(term,),
        interpolant=path,
        parametrization=Boundary(path, sigma_min=sigma_min),
        status="exact",
    )
