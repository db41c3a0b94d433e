"""Flow matching (Lipman et al. 2023, arXiv:2210.02747, eq. 14 and 23; rectified flow, arXiv:2209.03003): the baseline.

Learns the velocity alone: an ordinary diffusion model on the linear path. Prefer it as a teacher. Data of many dimensions show
what they are through much noise: there a `mean` of 1 and a `std` of 2.5 spend time where it is decided. Deviations: none.
"""

from ..learn.objective import Recipe, Term
from ..learn.rules import DiagonalRule
from ..learn.times import Diagonal, Law, LogitNormal, Uniform


def flow_matching(times: Law = Uniform(), mean: float | None = None, std: float = 1.0) -> Recipe:
    r"""Regress $u(x, t, t)$ on $\varepsilon - x_0$; `times` is uniform in the paper.

    With a `mean`, times are logit-normal(mean, std) instead (SD3, arXiv:2403.03206, sec. 3.1).
    """
    law = times if mean is None else LogitNormal(mean, std)
    term = Term(rule=DiagonalRule(), times=Diagonal(law))
    return Recipe(
        name="flow_matching",
        cite=("lipman2022flow", "liu2022rectified"),
        terms=(term,),
        local=True,
        status="exact",
    )
