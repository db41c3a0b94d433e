r"""FreeFlow (Tong et al. 2025, arXiv:2511.19428), its prediction half: distillation from noise alone, no data.

$u(\epsilon,1,t)$ regresses on $v_\phi(X(\epsilon,1,t),t) + (1-t)\,\partial_t u(\epsilon,1,t)$, detached, with adaptive weights; a
guided teacher comes by `Recipe.guidance`. Deviations: the correction half (a variational score distillation with an online critic
of the student's samples) is left out.
"""

from ..learn.objective import Recipe, Term
from ..learn.rules import Lagrangian
from ..learn.states import Prior
from ..learn.times import Diagonal, Law, Uniform
from ..learn.weights import L2, Adaptive


def free_flow(p: float = 1.0, c: float = 1e-3, times: Law = Uniform()) -> Recipe:
    """`times` is the law of the target; the loss is divided by its own power `p`."""
    term = Term(
        rule=Lagrangian("teacher", through="target"),
        times=Diagonal(times),
        state=Prior(),
        metric=Adaptive(p, c, of=L2()),
    )
    return Recipe(name="free_flow", cite=("tong2025freeflow",), terms=(term,))
