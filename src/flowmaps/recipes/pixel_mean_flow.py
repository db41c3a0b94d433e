"""Pixel MeanFlow (Lu et al. 2026, arXiv:2601.22158) and the released code: improved MeanFlow with a network that predicts images.

`features`, a network of yours (see `Perceptual`), adds the perceptual loss on the predicted image at sources below `until`,
with weight `perceptual` (0.4 for LPIPS, 0.1 for ConvNeXt in the paper). Deviations: no auxiliary v-head; the clip of 1/s at
`floor` acts on the error and not inside the derivative, where it would bias it; the perceptual term has rows of its own;
no uniform pairs (10% in some of the paper's runs); noise scale 1.
"""

from collections.abc import Callable

from torch import Tensor

from ..core.interpolant import linear
from ..core.parametrization import Denoised
from ..learn.objective import Recipe, Term
from ..learn.outputs import Towards
from ..learn.rules import DiagonalRule, Eulerian
from ..learn.times import Diagonal, LogitNormal, SortedPair
from ..learn.weights import Adaptive, AtData, Before, ClippedTime, Perceptual


def pixel_mean_flow(
    mean: float = 0.8,
    std: float = 0.8,
    diagonal: float = 0.5,
    p: float = 1.0,
    c: float = 1e-2,
    floor: float = 0.05,
    features: Callable[[Tensor], Tensor | tuple[Tensor, ...]] | None = None,
    perceptual: float = 0.4,
    until: float = 0.8,
) -> Recipe:
    r"""As `improved_mean_flow`, on the output $\hat x = x - s\,u$."""
    pair, metric, space = SortedPair(LogitNormal(mean, std)), Adaptive(p, c), ClippedTime(floor)
    rest = 1 - diagonal
    anchor = Term(
        rule=DiagonalRule(), times=Diagonal(pair), share=diagonal, metric=metric, space=space
    )
    jump = Term(rule=Eulerian(tangent="self"), times=pair, share=rest, metric=metric, space=space)
    terms = (anchor, jump)
    if features is not None:
        sharp = Adaptive(p, c, of=Perceptual(features))
        terms += (
            Term(
                rule=Towards(),
                times=pair,
                metric=sharp,
                weight=Before(until),
                space=AtData(linear()),
                scale=perceptual,
            ),
        )
    return Recipe(
        name="pixel_mean_flow",
        cite=("lu2026pmf",),
        terms=terms,
        parametrization=Denoised(linear(), "x0"),
        status="exact",
    )
