"""Lagrangian map distillation (Boffi et al. 2024, arXiv:2406.07507), proposition 3: the teacher's velocity at the endpoint.

Nothing is detached by default, as in the paper; `through="jvp"` detaches the teacher's side, `through="target"` is the
mean-velocity form (AYF-LMD, arXiv:2506.14603). Deviations: none known.
"""

from ..learn.objective import Recipe, Term
from ..learn.rules import Lagrangian, Through
from ..learn.times import Law, SortedPair, Uniform


def lmd(through: Through = "all", times: Law = Uniform(), ends: float = 0.0) -> Recipe:
    r"""$\|\partial_t X(x,s,t) - b_t(X(x,s,t))\|^2$ with the teacher's b; a share `ends` of jumps spans the path."""
    term = Term(rule=Lagrangian("teacher", through=through), times=SortedPair(times, ends=ends))
    return Recipe(name="lmd", cite=("boffi2024fmm",), terms=(term,))
