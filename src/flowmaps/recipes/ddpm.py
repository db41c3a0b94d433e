"""Denoising diffusion (Ho et al. 2020, arXiv:2006.11239, eq. 14): predict the noise on the VP path, unweighted.

Deviations: continuous time (Song et al. 2021, arXiv:2011.13456, eq. 7 and 33) instead of 1,000 steps.
"""

from ..core.interpolant import vp
from ..core.parametrization import Denoised
from ..learn.objective import Recipe, Term
from ..learn.rules import DiagonalRule
from ..learn.times import Diagonal, Law, Uniform
from ..learn.weights import InSpace


def ddpm(times: Law = Uniform(), beta_min: float = 0.1, beta_max: float = 20.0) -> Recipe:
    r"""$E\|\hat\varepsilon-\varepsilon\|^2$, written as the equal velocity loss with weight `InSpace("eps")`."""
    path = vp(beta_min, beta_max)
    return Recipe(
        name="ddpm",
        cite=("ho2020ddpm", "song2020score"),
        terms=(Term(rule=DiagonalRule(), times=Diagonal(times), weight=InSpace("eps")),),
        interpolant=path,
        parametrization=Denoised(path, "eps"),
        local=True,
        status="exact",
    )
