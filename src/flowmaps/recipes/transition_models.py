"""Transition models (Wang et al. 2025, arXiv:2509.04394) and the released code: MeanFlow's rule without forward-mode AD.

The derivative is a central difference along the path of the sample's own data and noise. Half of the batch lies on the
diagonal, a tenth jumps to t = 0. The directional loss, on as in the paper, is biased with targets that are right only on
average (`Cosine`); `cosine=False` drops it. Deviations: no projection loss on pretrained features; guidance targets from the
student, not its average.
"""

from ..core.autodiff import Derivative
from ..core.interpolant import linear
from ..learn.objective import Recipe, Term
from ..learn.rules import DiagonalRule, Eulerian
from ..learn.times import Diagonal, LogitNormal, SortedPair
from ..learn.weights import L2, Adaptive, Cosine, Sum, TangentGap


def transition_models(
    mean: float = -0.4,
    std: float = 1.0,
    diagonal: float = 0.5,
    ends: float = 0.1,
    step: float = 5e-3,
    sigma_data: float = 1.0,
    cosine: bool = True,
) -> Recipe:
    """Weights (tan s - tan t + sigma_data)^(-1/2) and 1 / loss."""
    law = LogitNormal(mean, std)
    pair = SortedPair(law, ends=ends / (1 - diagonal))
    metric = Adaptive(1.0, 1e-5, of=Sum((L2(), Cosine())) if cosine else L2())
    rule = Eulerian(derivative=Derivative("finite", step, linear()))
    return Recipe(
        name="transition_models",
        cite=("wang2025tim",),
        terms=(
            Term(
                rule=DiagonalRule(), times=Diagonal(SortedPair(law)), share=diagonal, metric=metric
            ),
            Term(
                rule=rule,
                times=pair,
                share=1 - diagonal,
                metric=metric,
                weight=TangentGap(sigma_data),
            ),
        ),
        status="exact",
    )
