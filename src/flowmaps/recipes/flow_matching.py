"""Flow matching (Lipman et al. 2023, arXiv:2210.02747, eq. 14 and 23; rectified flow, arXiv:2209.03003): the baseline.

Learns the velocity alone: an ordinary diffusion model on the linear path. Prefer it as a teacher. Deviations: none.
"""

from ..learn.objective import Recipe, Term
from ..learn.rules import DiagonalRule
from ..learn.times import Diagonal, Law, Uniform


def flow_matching(times: Law = Uniform()) -> Recipe:
    r"""Regress $u(x, t, t)$ on $\varepsilon - x_0$; `times` is uniform in the paper, logit-normal in SD3 (arXiv:2403.03206)."""
    term = Term(rule=DiagonalRule(), times=Diagonal(times))
    return Recipe(
        name="flow_matching",
        cite=("lipman2022flow", "liu2022rectified"),
        terms=(term,),
        local=True,
        status="exact",
    )
