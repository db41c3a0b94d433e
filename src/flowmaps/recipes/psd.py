"""Progressive self-distillation (Boffi et al. 2025, arXiv:2505.18825), sec. 3.3: one jump is two; no JVP at all.

`split="uniform"` is PSD-U, `split="midpoint"` PSD-M, in the preconditioned (mean-velocity) form. `anchor="teacher"` takes the
diagonal from a teacher instead of from data, and `channels=0` drops the learned weight: both make it `split_mean_flow`
(Guo et al. 2025, arXiv:2507.16884) with a longer diagonal. Additions, off by default: `skew`, `starts` and `ends`, as in `lmd`;
`both` for jumps up as well, from data to noise, and a share `back` of the rows that go up and back (iCD, arXiv:2406.14539), between
any two times or, with `levels`, by jumps of length 1, 1/2, 1/4, ... as samplers of few steps make them; `predict="x0"`.
Deviations: the learned weight has a floor, 0.1; without it (`floor=0`, as published) agreement with itself may drive out the
data (CHANGELOG.md).
"""

from functools import partial
from typing import Literal

from ..core.interpolant import linear
from ..core.parametrization import Average, Denoised
from ..errors import RecipeError
from ..learn.endpoints import Return
from ..learn.jumps import Dyadic
from ..learn.objective import Recipe, Term
from ..learn.rules import Compositional, DiagonalRule
from ..learn.times import Diagonal, Fixed, Uniform, Upwards, skewed
from ..learn.weights import ClippedTime, LearnedLogVar


def psd(
    split: Literal["uniform", "midpoint"] = "uniform",
    diagonal: float = 0.75,
    channels: int = 128,
    floor: float = 0.1,
    anchor: Literal["conditional", "teacher"] = "conditional",
    skew: float | None = None,
    starts: float = 0.0,
    ends: float = 0.0,
    both: bool = False,
    back: float = 0.0,
    levels: int = 0,
    predict: Literal["velocity", "x0"] = "velocity",
) -> Recipe:
    """Flow matching on a share `diagonal`, up and back on a share `back`, the compositional rule on the rest.

    With `predict="x0"` the network is read as the image, so that a map that `default` learned may go on from there.
    """
    if back and not both:
        raise RecipeError(f"back={back} goes up and down: it needs both=True")
    if both and predict == "x0":
        raise RecipeError(
            "both=True learns jumps up from data, of which a network that predicts the image says nothing: predict='velocity'"
        )
    if levels and not back:
        raise RecipeError(f"levels={levels} is of the rows that go up and back: it needs back > 0")
    weight = LearnedLogVar(channels, floor=floor) if channels else None
    law = Uniform() if split == "uniform" else Fixed(0.5)
    down = skewed(skew, starts, ends, split=law)
    pair = skewed(skew, starts, ends, split=law, both=both)
    away = Upwards(Dyadic(levels) if levels else down)
    image = predict == "x0"
    # as `default` has it: the error of the velocity is divided by s
    space = ClippedTime(0.05) if image else None
    term = partial(Term, weight=weight, space=space)
    anchored = term(rule=DiagonalRule(anchor), times=Diagonal(Uniform()), share=diagonal)
    jumps = term(rule=Compositional("self"), times=pair, share=1 - diagonal - back)
    returns = (Term(rule=Return(), times=away, share=back, weight=weight),) if back else ()
    return Recipe(
        name="psd",
        cite=("boffi2025lsd", *(("starodubcev2024icd",) if back else ())),
        terms=(anchored, jumps, *returns),
        parametrization=Denoised(linear(), "x0") if image else Average(),
        status="exact",
    )
