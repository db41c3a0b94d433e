r"""BOOT (Gu et al. 2023, arXiv:2306.05544), bootstrapping from noise, without data: the endpoint follows the teacher's velocity.

The source is always pure noise; t falls from 1 to 0, and $u$ regresses on the teacher's velocity at $X(\epsilon,1,t)$ less a
finite difference in t. `through="jvp"` sends gradient through the difference too: physics-informed distillation (Tee et al. 2024,
PID, arXiv:2411.08378). Deviations: central difference; mean velocity on the linear path in place of the signal ODE on the VP path;
no LPIPS (PID); no separate boundary loss, as X(x, 1, 1) = x by construction.
"""

from typing import Literal

from ..core.autodiff import Derivative
from ..learn.objective import Recipe, Term
from ..learn.rules import Lagrangian
from ..learn.states import Prior
from ..learn.times import Diagonal, Law, Uniform


def boot(
    through: Literal["target", "jvp"] = "target", step: float = 5e-3, times: Law = Uniform()
) -> Recipe:
    """`times` is the law of the target; `step` the half-width of the difference."""
    rule = Lagrangian("teacher", through=through, derivative=Derivative("finite", step))
    term = Term(rule=rule, times=Diagonal(times), state=Prior())
    return Recipe(name="boot", cite=("gu2023boot", "tee2024pid"), terms=(term,))
