"""Consistency mid-training (Hu et al. 2025, CMT, arXiv:2509.24526): regress the map on the teacher's own trajectories.

Nothing is bootstrapped and nothing differentiated: the target is where the teacher's solver arrives. `to_data` regresses jumps to
clean data only (its consistency form), otherwise any two points of a trajectory are joined (its mean-velocity form). With
`stored` the data set holds the trajectories (`flowmaps pairs`) and a step costs what flow matching costs. Deviations: plain L2 in
place of LPIPS, and uniform times rather than the solver's grid; the paper goes on with another method afterwards.
"""

from ..core.solver import DPMSolverPP, Solver
from ..learn.endpoints import Endpoint
from ..learn.objective import Recipe, Term
from ..learn.states import Stored, Trajectory
from ..learn.times import SortedPair, ToData, Uniform


def cmt(
    stored: bool = False,
    to_data: bool = False,
    steps: int = 16,
    solver: Solver = DPMSolverPP(),
    starts: float = 0.0,
    ends: float = 0.0,
) -> Recipe:
    """The teacher takes `steps` steps of `solver`, half of them to the source; `starts`, `ends` are shares of s = 1 and t = 0."""
    walk = Trajectory(solver, before=steps // 2, after=steps - steps // 2)
    pair = SortedPair(Uniform(), starts=starts, ends=ends)
    term = Term(
        rule=Endpoint(),
        times=ToData(Uniform()) if to_data else pair,
        state=Stored() if stored else walk,
    )
    return Recipe(name="cmt", cite=("hu2025cmt",), terms=(term,))
