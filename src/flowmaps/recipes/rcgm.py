"""RCGM, recursive consistent generation (Sun & Lin 2025; code in arXiv:2512.05150): one short leg and N frozen ones.

By the authors' tutorial in TwinFlow's repository. The short leg, 0.01 long, follows the conditional velocity, the average makes
the other `legs`, equal in time; g is clipped at 1 per coordinate. Sources are uniform, targets uniform below them.
Deviations: the average's decay has the trainer's warm-up, not its own; guidance is `Recipe.guidance`.
"""

from ..learn.legs import ShortLeg
from ..learn.objective import Recipe, Term
from ..learn.splits import FixedLeg
from ..learn.times import Downwards
from ..learn.weights import Clip


def rcgm(legs: int = 2, length: float = 0.01, ema: float = 0.99, clip: float = 1.0) -> Recipe:
    """`legs` is the order N; `length` that of the first leg."""
    term = Term(
        rule=ShortLeg(jump="ema", legs=legs),
        times=FixedLeg(Downwards(), length),
        tangent=Clip(clip),
    )
    return Recipe(name="rcgm", cite=("sun2025rcgm",), terms=(term,), ema_target=ema, status="exact")
