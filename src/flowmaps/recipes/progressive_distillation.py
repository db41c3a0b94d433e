"""Progressive distillation (Salimans & Ho 2022, arXiv:2202.00512), Algorithm 2: one step of the student is two of the teacher.

The grid halves `stages - 1` times down to one step; after every stage the student becomes the teacher. Loss: truncated SNR.
`path="cosine"` is the paper's schedule and a network that predicts data. Deviations: the student is a two-time network (it
keeps the longer grids), by default on the linear path, read as a mean velocity; the SNR is capped at 100.
"""

from typing import Literal

from ..core.interpolant import linear, trig
from ..core.parametrization import Average, Denoised
from ..learn.jumps import HalvingGrid
from ..learn.objective import Recipe, Term
from ..learn.rules import Compositional
from ..learn.weights import MaxSNR


def progressive_distillation(
    stages: int = 6, path: Literal["linear", "cosine"] = "linear"
) -> Recipe:
    """Stage i has $2^{stages-1-i}$ steps; the first teacher is the given one."""
    term = Term(rule=Compositional("teacher"), times=HalvingGrid(stages), weight=MaxSNR())
    return Recipe(
        name="progressive_distillation",
        cite=("salimans2022progressive",),
        terms=(term,),
        interpolant=linear() if path == "linear" else trig(),
        parametrization=Average() if path == "linear" else Denoised(trig()),
        refresh=tuple(i / stages for i in range(1, stages)),
        status="exact",
    )
