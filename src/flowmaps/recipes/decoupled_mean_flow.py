"""Decoupled MeanFlow (Lee et al. 2025, arXiv:2510.24474) and the released loss: MeanFlow under a learned log-Cauchy.

Flow matching and MeanFlow on halves of the batch. `target_mean` and `target_std` belong to the second time, the pair is
sorted. Guidance of the paper's kind: `Recipe.guidance`. Deviations: the split of the network (early blocks see s, late
blocks t) is the network's matter and not part of the recipe; the variance is learned per pair of times, not by the network.
"""

from ..learn.objective import Recipe, Term
from ..learn.rules import DiagonalRule, Eulerian
from ..learn.times import Diagonal, LogitNormal, SortedPair
from ..learn.weights import LearnedLogVar


def decoupled_mean_flow(
    mean: float = 0.4,
    std: float = 1.0,
    target_mean: float = -1.2,
    target_std: float = 1.0,
    cauchy: float = 1e-2,
    channels: int = 128,
) -> Recipe:
    """Flow matching at logit-normal(0, 1), MeanFlow on the sorted pair; both measured by log(L + c e^w)."""
    weight = LearnedLogVar(channels, cauchy)
    pair = SortedPair(LogitNormal(mean, std), target=LogitNormal(target_mean, target_std))
    return Recipe(
        name="decoupled_mean_flow",
        cite=("lee2025dmf",),
        terms=(
            Term(rule=DiagonalRule(), times=Diagonal(LogitNormal()), share=0.5, weight=weight),
            Term(rule=Eulerian(), times=pair, share=0.5, weight=weight),
        ),
    )
