"""Progressive self-distillation (Boffi et al. 2025, arXiv:2505.18825), sec. 3.3: one jump is two; no JVP at all.

`split="uniform"` is PSD-U, `split="midpoint"` PSD-M, in the preconditioned (mean-velocity) form. `anchor="teacher"` takes the
diagonal from a teacher instead of from data, and `channels=0` drops the learned weight: both make it `split_mean_flow`
(Guo et al. 2025, arXiv:2507.16884) with a longer diagonal. Additions, off by default: `skew`, `starts` and `ends`, as in `lmd`;
`both` for jumps up as well, from data to noise, and a share `back` of the rows that go up and back (iCD, arXiv:2406.14539), between
any two times or, with `jumps=(1, 8)`, as samplers of one and of eight equal jumps do; `predict="x0"`.
Deviations: the learned weight has a floor, 0.1; without it (`floor=0`, as published) agreement with itself may drive out the
data (CHANGELOG.md).
"""

from collections.abc import Sequence
from functools import partial
from typing import Literal

from ..errors import RecipeError
from ..learn.endpoints import Return
from ..learn.jumps import EqualJumps
from ..learn.objective import Recipe, Term
from ..learn.rules import Compositional, DiagonalRule
from ..learn.times import Diagonal, Fixed, Uniform, Upwards, skewed
from ..learn.weights import LearnedLogVar, read_as


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
    jumps: Sequence[int] = (),
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
    if jumps and not back:
        raise RecipeError(f"jumps={jumps} is of the rows that go up and back: it needs back > 0")
    weight = LearnedLogVar(channels, floor=floor) if channels else None
    law = Uniform() if split == "uniform" else Fixed(0.5)
    down = skewed(skew, starts, ends, split=law)
    pair = skewed(skew, starts, ends, split=law, both=both)
    away = Upwards(EqualJumps(tuple(jumps)) if jumps else down)
    reading, space = read_as(predict)
    term = partial(Term, weight=weight, space=space)
    anchored = term(rule=DiagonalRule(anchor), times=Diagonal(Uniform()), share=diagonal)
    composed = term(rule=Compositional("self"), times=pair, share=1 - diagonal - back)
    returns = (Term(rule=Return(), times=away, share=back, weight=weight),) if back else ()
    return Recipe(
        name="psd",
        cite=("boffi2025lsd", *(("starodubcev2024icd",) if back else ())),
        terms=(anchored, composed, *returns),
        parametrization=reading,
        status="exact",
    )
