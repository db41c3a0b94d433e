r"""Where the points of a term come from, if not from the path between data and noise.

`Recipe.draw` gives a term with a state the pure noise $\sigma_1\varepsilon$ instead of a point of the path, and the state
carries it to the source time: it computes and draws nothing, so a step remains a pure function of what was drawn. Data are
not used then, unless the state says so; labels still come from them. A state that noises what it makes has an attribute
`fresh = True` and finds a second, independent noise in place of the velocity `Points.v`.

    Prior        the noise itself, s = 1
    Trajectory   a numerical trajectory of the teacher, at s and at t
    Coupled      data replaced by where the teacher takes this noise: x_0, and the path from there to the noise (reflow)
    OnPolicy     the student's own jumps from noise to s, detached
    Stored       as Trajectory, read from a data set of trajectories instead of computed

A term regresses on the conditional velocity only where there is one (`conditional`: the path, and coupled pairs); a rule that
wants the endpoint $x_t$ (`Points.end`) needs a state that knows it (`knows_end`). `Term` refuses anything else.
"""

import itertools
from dataclasses import dataclass, replace
from typing import ClassVar, Protocol, final

import torch
from torch import Tensor

from ..core.flow_map import FlowMap
from ..core.shape import like
from ..core.solver import HEUN, Solver
from ..errors import RecipeError
from .rules import MapSource, Models, Points
from .times import Times


class State(Protocol):
    """A source of points. Its fields are its settings; what follows is the same for all values of a class.

    Attributes:
        source: Who is asked for velocities or jumps, or None.
        conditional: Whether `Points.v` is a conditional velocity of the points afterwards.
        knows_end: Whether `Points.end` is known afterwards.
    """

    source: ClassVar[MapSource | None]
    conditional: ClassVar[bool]
    knows_end: ClassVar[bool]

    @property
    def at_noise(self) -> bool:
        """Whether every source time is 1, whatever the law of times says."""
        ...

    def __call__(self, f: FlowMap, b: Points, models: Models) -> Points:
        """From points at pure noise to points at the source times, detached. `f` is the student."""
        ...


@final
@dataclass(frozen=True)
class Prior:
    """Pure noise: the only points that a sampler is sure to visit, and data are not needed (BOOT, FreeFlow)."""

    source: ClassVar[MapSource | None] = None
    conditional: ClassVar[bool] = False
    knows_end: ClassVar[bool] = False

    @property
    def at_noise(self) -> bool:
        return True

    def __call__(self, f: FlowMap, b: Points, models: Models) -> Points:
        return b


@final
@dataclass(frozen=True)
class Trajectory:
    """One numerical trajectory of the teacher from noise: `before` steps to s, then `after` steps on to the endpoint at t.

    Attributes:
        solver: Its method; steps are equal in time.
        before: Steps from noise to the source; 0 stays at noise, s = 1.
        after: Steps from source to target.

    Raises:
        RecipeError: If there is no step after the source.

    Source:
        Hu et al. 2025 (CMT, arXiv:2509.24526); Liu et al. 2022 (arXiv:2209.03003), distillation of pairs, with before = 0.
    """

    solver: Solver = HEUN
    before: int = 8
    after: int = 8
    source: ClassVar[MapSource | None] = "teacher"
    conditional: ClassVar[bool] = False
    knows_end: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.before < 0 or self.after < 1:
            raise RecipeError(
                f"a trajectory has before >= 0 and after >= 1 steps; got {self.before} and {self.after}"
            )

    @property
    def at_noise(self) -> bool:
        return self.before == 0

    def finer(self, factor: int) -> "Trajectory":
        """With `factor` times as many steps."""
        return replace(self, before=self.before * factor, after=self.after * factor)

    @torch.no_grad()
    def __call__(self, f: FlowMap, b: Points, models: Models) -> Points:
        s, _, t = b.times
        legs = [s[None]]
        if self.before:
            legs = [torch.ones_like(s) + (s - 1) * _shares(self.before, s)]
        legs.append(s + (t - s) * _shares(self.after, s)[1:])
        points = [b.x, *_integrate(self.solver, f, b, models, torch.cat(legs))]
        return replace(b, x=points[self.before], end=points[-1])


@final
@dataclass(frozen=True)
class Coupled:
    """Pairs of noise and the sample that the teacher makes of it, in place of independent ones: reflow, made while training.

    With stored pairs (`flowmaps pairs`, data "pairs:DIR") no state is needed: their noise is the drawn noise.

    Attributes:
        solver: Method that takes noise to data.
        steps: Its steps, equal in time.

    Source:
        Liu et al. 2022 (arXiv:2209.03003), algorithm 1.
    """

    solver: Solver = HEUN
    steps: int = 16
    source: ClassVar[MapSource | None] = "teacher"
    conditional: ClassVar[bool] = True
    knows_end: ClassVar[bool] = False

    @property
    def at_noise(self) -> bool:
        return False

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise RecipeError(f"coupled pairs need steps >= 1; got {self.steps}")

    def finer(self, factor: int) -> "Coupled":
        """With `factor` times as many steps."""
        return replace(self, steps=self.steps * factor)

    @torch.no_grad()
    def __call__(self, f: FlowMap, b: Points, models: Models) -> Points:
        path, s = f.interpolant, b.times.s
        times = (1 - _shares(self.steps, s)).expand(-1, len(s)).clamp(min=path.t_min)
        *_, x_0 = _integrate(self.solver, f, b, models, times)
        x, v = path.sample(x_0, b.x / like(path.sigma(torch.ones_like(s)), b.x), s)
        return replace(b, x=x, v=v)


@final
@dataclass(frozen=True)
class OnPolicy:
    """Where the student itself arrives at s, from noise, in a number of equal jumps; detached.

    Its points are those of its own sampling, errors included (Ross et al. 2011, arXiv:1011.0686, on why that matters).
    """

    jumps: int = 1
    source: ClassVar[MapSource | None] = "self"
    conditional: ClassVar[bool] = False
    knows_end: ClassVar[bool] = False

    @property
    def at_noise(self) -> bool:
        return False

    def __post_init__(self) -> None:
        if self.jumps < 1:
            raise RecipeError(f"an on-policy state makes jumps >= 1; got {self.jumps}")

    @torch.no_grad()
    def __call__(self, f: FlowMap, b: Points, models: Models) -> Points:
        s, x = b.times.s, b.x
        grid = torch.ones_like(s) + (s - 1) * _shares(self.jumps, s)
        for a, c in itertools.pairwise(grid):
            x = x + like(c - a, x) * models.jump("self", x, a, c, b)
        return replace(b, x=x)


@final
@dataclass(frozen=True)
class Stored:
    """Points of stored trajectories: the drawn times are moved to the nearest stored ones, with s above t; no teacher is asked.

    Needs a data set of trajectories at three times or more (`flowmaps pairs --times K`, data "pairs:DIR"); for jumps from
    noise to data alone, two times are enough.
    """

    source: ClassVar[MapSource | None] = None
    conditional: ClassVar[bool] = False
    knows_end: ClassVar[bool] = True

    @property
    def at_noise(self) -> bool:
        return False

    def __call__(self, f: FlowMap, b: Points, models: Models) -> Points:
        return b


@final
@dataclass(frozen=True, eq=False)
class Trajectories:
    """Rows of a data set of trajectories: of every sample, the noise it came from and points on the way.

    Attributes:
        points: (B, K, *D), from noise to data.
        times: Their times (K,), decreasing from 1.
        labels: Their classes (B,), if the model was conditioned on them.
        coupled: Whether they end in the rows of data that are drawn with them, whose noise is theirs then.

    Raises:
        RecipeError: If the times are not such, or not as many as points.
    """

    points: Tensor
    times: Tensor
    labels: Tensor | None = None
    coupled: bool = True

    def __post_init__(self) -> None:
        falling = bool((self.times.diff() < 0).all()) and bool(self.times[0] == 1)
        if self.points.shape[1] != len(self.times) or len(self.times) < 2 or not falling:
            raise RecipeError(
                f"trajectories are (B, K, *D) at K >= 2 times that fall from 1; got {tuple(self.points.shape)} at "
                f"{self.times.tolist()}"
            )

    def rows(self, index: Tensor) -> "Trajectories":
        """Some of the rows."""
        labels = None if self.labels is None else self.labels[index]
        return replace(self, points=self.points[index], labels=labels)

    def at(self, times: Times) -> tuple[Tensor, Tensor, Times]:
        """The points at the stored times nearest to s and t, these kept apart, and those times; w moves along."""
        s, w, t = times
        last = len(self.times) - 1
        early = (s[:, None] - self.times).abs().argmin(1).clamp(max=last - 1)
        late = torch.maximum((t[:, None] - self.times).abs().argmin(1), early + 1)
        rows = torch.arange(len(s))
        a, c = self.times[early], self.times[late]
        share = torch.where(s == t, 0.5, (w - s) / torch.where(s == t, 1.0, t - s))
        middle = a + (c - a) * share
        return self.points[rows, early], self.points[rows, late], Times(a, middle, c)


def _shares(steps: int, s: Tensor) -> Tensor:
    """0, 1/steps, ..., 1 as a column (steps + 1, 1)."""
    return torch.linspace(0, 1, steps + 1, dtype=s.dtype, device=s.device)[:, None]


def _integrate(
    solver: Solver, f: FlowMap, b: Points, models: Models, times: Tensor
) -> list[Tensor]:
    """The teacher's points at times[1:] (K, B), from `b.x` at times[0]."""
    return list(
        solver.integrate(
            lambda x, t, **cond: models.velocity("teacher", x, t, b), b.x, times, f.interpolant
        )
    )
