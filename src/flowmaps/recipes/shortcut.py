"""Shortcut models (Frans et al. 2024, arXiv:2410.12557), eq. 4-5 and the released code: jumps of dyadic length, halved.

Targets come from a moving average and are clipped at 4, as in the code; 1/8 of the batch is bootstrapped (the code; the
paper's text says 1/4). Deviations: the network sees (s, t), not (t, log2 of the jump), so the two halves of the
shortest jump are asked for as jumps of 2^-7, where the code asks its flow-matching token; no guidance of the shortest jumps; the
code's paths keep 1e-5 of noise in the data.
"""

from ..learn.jumps import Dyadic
from ..learn.objective import Recipe, Term
from ..learn.rules import Compositional, DiagonalRule
from ..learn.times import Diagonal, Uniform


def shortcut(
    levels: int = 7, bootstrap: float = 0.125, ema: float = 0.999, clip: float | None = 4.0
) -> Recipe:
    """Flow matching, and on a share `bootstrap` two jumps of half the length make one."""
    return Recipe(
        name="shortcut",
        cite=("frans2024shortcut",),
        terms=(
            Term(rule=DiagonalRule(), times=Diagonal(Uniform()), share=1 - bootstrap),
            Term(rule=Compositional("ema", clip=clip), times=Dyadic(levels), share=bootstrap),
        ),
        ema_target=ema,
        status="exact",
    )
