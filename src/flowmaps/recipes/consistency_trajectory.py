"""Consistency trajectory models, CTM (Kim et al. 2023, arXiv:2310.02279), eq. 9: two ways to t, compared at the data.

The teacher's Heun steps lead from s to w, the average from w to t; both ends are carried to t = 0 by the average, through which
the gradient passes. Denoising anchors the diagonal. Deviations: no GAN (the paper's best results need it) and no LPIPS, so the
losses are mean squares with the constant weight `anchor`; s and w are `steps` cells of the grid apart at most, crossed in that
many Heun steps (the paper: up to all 17).
"""

from ..core.interpolant import edm
from ..core.parametrization import Boundary
from ..learn.legs import ShortLeg
from ..learn.objective import Recipe, Term
from ..learn.rules import DiagonalRule
from ..learn.splits import GridTriple
from ..learn.times import Diagonal, NoiseLevel
from ..learn.weights import InSpace


def consistency_trajectory(
    points: int = 18, steps: int = 4, ema: float = 0.999, share: float = 0.5, anchor: float = 1.0
) -> Recipe:
    """A share `share` of the rows learns jumps on a grid of `points` noise levels, the rest denoises."""
    path = edm()
    rule = ShortLeg("teacher", "ema", leg="heun", steps=steps, form="data")
    noise = Diagonal(NoiseLevel(-1.2, 1.2))
    denoise = Term(
        rule=DiagonalRule(),
        times=noise,
        share=1 - share,
        weight=InSpace("x0"),
        scale=anchor,
    )
    return Recipe(
        name="consistency_trajectory",
        cite=("kim2023ctm",),
        terms=(Term(rule=rule, times=GridTriple(points, steps), share=share), denoise),
        interpolant=path,
        parametrization=Boundary(path, sigma_min=0.0),
        ema_target=ema,
    )
