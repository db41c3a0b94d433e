"""Decoupled MeanFlow (Lee et al. 2025, arXiv:2510.24474) and the released loss: MeanFlow under a learned log-Cauchy.

Flow matching and MeanFlow on halves of the batch. `target_mean` and `target_std` belong to the second time, the pair is
sorted. The paper's network, early blocks at s and late blocks at t, is `DiT(..., split=)`, its guidance `Recipe.guidance`.
Deviations: the variance is learned by a network of the two times, not by the map's own.
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
        status="exact",
    )
