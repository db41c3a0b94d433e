r"""Flow map matching (Boffi et al. 2024, FMM, arXiv:2406.07507): a map of both directions from data alone, there and back.

$\|\partial_s X(X(x_s,s,t),t,s) - \dot x_s\|^2 + \|X(X(x_s,s,t),t,s) - x_s\|^2$: the velocity is asked for at the sample itself, so
no teacher and no bootstrap is needed. The authors train on short jumps, |s - t| <= `band`, and extend them with
`progressive_flow_map_matching`. Deviations: the band is 1 by default, which is every jump; the authors' code leaves the second
square of their equation out (`place` near 0).
"""

from ..learn.endpoints import Inverse
from ..learn.jumps import Within
from ..learn.objective import Recipe, Term


def flow_map_matching(band: float = 1.0, place: float = 1.0) -> Recipe:
    """`place` weighs the second square."""
    term = Term(rule=Inverse(place=place), times=Within(band, both=True))
    return Recipe(name="flow_map_matching", cite=("boffi2024fmm",), terms=(term,), status="exact")
