"""Lagrangian map distillation (Boffi et al. 2024, arXiv:2406.07507), proposition 3: the teacher's velocity at the endpoint.

Nothing is detached by default, as in the paper; `through="jvp"` detaches the teacher's side, `through="target"` is the
mean-velocity form (AYF-LMD, arXiv:2506.14603). Additions, off by default: `compose` spends a share of the batch on the
compositional rule with the student's own jumps (a second characterisation of the same map, at 5 forward passes and no JVP);
`starts` and `ends` move sources to noise and targets to data; `skew` draws sources from logit-normal(skew / 2, 1.6) and targets
from logit-normal(-skew, 1.6), nearer to where few-step samplers jump and residuals are largest (the audit shows it).
Deviations: none known.
"""

from ..learn.objective import Recipe, Term
from ..learn.rules import Compositional, Lagrangian, Through
from ..learn.times import LogitNormal, SortedPair, Uniform


def lmd(
    through: Through = "all",
    skew: float | None = None,
    starts: float = 0.0,
    ends: float = 0.0,
    compose: float = 0.0,
) -> Recipe:
    r"""$\|\partial_t X(x,s,t) - b_t(X(x,s,t))\|^2$ with the teacher's b."""
    early = Uniform() if skew is None else LogitNormal(skew / 2, 1.6)
    late = None if skew is None else LogitNormal(-skew, 1.6)
    pair = SortedPair(early, target=late, starts=starts, ends=ends)
    distil = Term(rule=Lagrangian("teacher", through=through), times=pair, share=1 - compose)
    join = Term(rule=Compositional("self"), times=pair, share=compose) if compose else None
    terms = (distil, join) if join else (distil,)
    return Recipe(name="lmd", cite=("boffi2024fmm",), terms=terms, status="exact")
