"""Lagrangian map distillation (Boffi et al. 2024, arXiv:2406.07507), proposition 3: the teacher's velocity at the endpoint.

Nothing is detached by default, as in the paper; `through="jvp"` detaches the teacher's side, `through="target"` is the
mean-velocity form (AYF-LMD, arXiv:2506.14603). Additions, off by default: `compose` spends a share of the batch on the
compositional rule with the student's own jumps (a second characterisation of the same map, at 5 forward passes and no JVP);
`skew`, `starts` and `ends` move sources towards noise and targets towards data (`flowmaps.learn.times.skewed`).
Deviations: none known.
"""

from ..learn.objective import Recipe, Term
from ..learn.rules import Compositional, Lagrangian, Through
from ..learn.times import skewed


def lmd(
    through: Through = "all",
    skew: float | None = None,
    starts: float = 0.0,
    ends: float = 0.0,
    compose: float = 0.0,
) -> Recipe:
    r"""$\|\partial_t X(x,s,t) - b_t(X(x,s,t))\|^2$ with the teacher's b."""
    pair = skewed(skew, starts, ends)
    distil = Term(rule=Lagrangian("teacher", through=through), times=pair, share=1 - compose)
    join = Term(rule=Compositional("self"), times=pair, share=compose) if compose else None
    terms = (distil, join) if join else (distil,)
    return Recipe(name="lmd", cite=("boffi2024fmm",), terms=terms, status="exact")
