"""Reflow (Liu et al. 2022, arXiv:2209.03003), algorithm 1: flow matching on the pairs (noise, sample) that a teacher couples.

Straightens the teacher's trajectories: the result is another diffusion model, whose few Euler steps are better. `distill` learns
the one jump from noise to sample instead, by L2 (its LPIPS is left out). With `stored` the data set holds the pairs (`flowmaps
pairs`); otherwise the teacher makes them while training. Rounds: train again with the result as the teacher.
Deviations: Heun's method with a fixed number of steps in place of an adaptive Runge-Kutta.
"""

from ..core.solver import HEUN, Solver
from ..learn.endpoints import Endpoint
from ..learn.objective import Recipe, Term
from ..learn.rules import DiagonalRule
from ..learn.states import Coupled, Stored, Trajectory
from ..learn.times import Diagonal, Fixed, Law, ToData, Uniform


def reflow(
    distill: bool = False,
    stored: bool = False,
    steps: int = 16,
    solver: Solver = HEUN,
    times: Law = Uniform(),
) -> Recipe:
    """The law of `times` is uniform in the paper; the teacher takes `steps` steps of `solver`."""
    if distill:
        jump = Stored() if stored else Trajectory(solver, before=0, after=steps)
        term = Term(rule=Endpoint(), times=ToData(Fixed(1.0)), state=jump)
    else:
        pairs = None if stored else Coupled(solver, steps)
        term = Term(rule=DiagonalRule(), times=Diagonal(times), state=pairs)
    return Recipe(
        name="reflow", cite=("liu2022rectified",), terms=(term,), local=not distill, status="exact"
    )
