r"""The project's choice from data alone (flowmaps 2026): published parts that the arena chose, without forward-mode derivatives.

Short legs along the velocity of the data, in place of the derivative of MeanFlow (Geng et al. 2025, arXiv:2505.13447), as in
alpha-Flow and SoFlow but of a fixed fiftieth of the jump; that velocity is a stable target (Xu et al. 2023, arXiv:2302.00670), the
mean over the data of the batch and of the steps before by their posterior, so what is left of its variance is that of the map.
Transition models' times (Wang et al. 2025, arXiv:2509.04394), with a fifth of the rows jumping to clean data; and an adaptive
metric that is gentle, c = 1 in mean squares, for a small c forgets hard rows. The network predicts the image, as in pixel MeanFlow
(Lu et al. 2026, arXiv:2601.22158): what it would have to predict of the noise it cannot see through wide patches.
Deviations: the combination is the project's own; what its parts give is measured in benchmarks/arena-digits.json.
"""

from typing import Literal

from ..learn.legs import ShortLeg
from ..learn.objective import Recipe, Term
from ..learn.rules import DiagonalRule
from ..learn.times import Diagonal, Fixed, LogitNormal, SortedPair
from ..learn.weights import L2, Adaptive, read_as


def default(
    mean: float = -0.4,
    std: float = 1.0,
    diagonal: float = 0.5,
    starts: float = 0.0,
    ends: float = 0.2,
    leg: float = 0.02,
    c: float = 1.0,
    velocity: Literal["pooled", "conditional"] = "pooled",
    memory: int = 1024,
    predict: Literal["x0", "velocity"] = "x0",
    floor: float = 0.05,
) -> Recipe:
    """Flow matching on a share `diagonal`; of all rows, a share `starts` jumps from noise and a share `ends` to clean data.

    With `predict="velocity"` it reads a network as flow matching does, and may start at its weights; with "x0" the error of the
    velocity, which is divided by s, counts less below s = `floor`.
    """
    law, metric = LogitNormal(mean, std), Adaptive(1.0, c, of=L2())
    jumps = SortedPair(
        law, split=Fixed(leg), starts=starts / (1 - diagonal), ends=ends / (1 - diagonal)
    )
    reading, space = read_as(predict, floor)
    anchor = Term(
        rule=DiagonalRule(velocity),
        times=Diagonal(SortedPair(law)),
        share=diagonal,
        metric=metric,
        space=space,
    )
    move = Term(
        rule=ShortLeg(velocity), times=jumps, share=1 - diagonal, metric=metric, space=space
    )
    return Recipe(
        name="default",
        cite=("geng2025meanflow", "xu2023stable", "lu2026pmf", "wang2025tim"),
        terms=(anchor, move),
        parametrization=reading,
        memory=memory if velocity == "pooled" else 0,
        status="own",
    )
