"""Progressive flow map matching (Boffi et al. 2024, PFMM, arXiv:2406.07507): jumps of a frozen map, two by two, become one.

Starts from a map of short jumps (`flow_map_matching`, or a diffusion model, whose jumps are solver steps) and doubles its reach in
every stage; then the student becomes the frozen map. Deviations: several stages in one run, where the paper distils k jumps into
one; the mean-velocity form, which drops the factor (t - s)^2 of the endpoints'.
"""

from ..learn.jumps import Within
from ..learn.objective import Recipe, Term
from ..learn.rules import Compositional


def progressive_flow_map_matching(stages: int = 5, band: float = 0.0625) -> Recipe:
    """Stage i learns the jumps |s - t| <= `band` 2^i, and the last one all, from two halves by the frozen map."""
    term = Term(rule=Compositional("teacher"), times=Within(band, stages=stages))
    return Recipe(
        name="progressive_flow_map_matching",
        cite=("boffi2024fmm",),
        terms=(term,),
        refresh=tuple(i / stages for i in range(1, stages)),
    )
