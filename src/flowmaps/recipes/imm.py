r"""Inductive moment matching (Zhou et al. 2025, IMM, arXiv:2503.07565): jumps from s and from nearby w have one law.

Groups of particles share their times; the maximum mean discrepancy of a Laplace kernel compares them. One particle and the kernel
-|x - y|^2 would give consistency training. The path is linear and the network a mean velocity, as for its ImageNet models.
Deviations: guidance is left to the sampler; a group may mix labels; jumps shorter than 0.01 share one kernel width.
"""

from ..core.interpolant import linear
from ..learn.jumps import Inductive
from ..learn.objective import Recipe, Term
from ..learn.particles import Grouped, InductiveWeight, KernelDistance, Moments


def imm(group: int = 4, k: float = 12.0, a: int = 1, b: float = 5.0, high: float = 0.994) -> Recipe:
    r"""`group` particles; w lies $2^{-k}$ of the range of $\sigma/\alpha$ below s; `a`, `b`: the weight's; times end at `high`."""
    path = linear()
    term = Term(
        rule=Moments(),
        times=Grouped(Inductive(path, high, k), group),
        metric=KernelDistance(group),
        weight=InductiveWeight(a, b),
    )
    return Recipe(name="imm", cite=("zhou2025imm",), terms=(term,), interpolant=path)
