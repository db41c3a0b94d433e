"""A term of a loss: a rule, where it must hold, and how its error is measured."""

from dataclasses import dataclass
from typing import final

from torch import Tensor

from ..errors import RecipeError
from .rules import Points, Rule
from .states import State
from .times import TimeLaw, Times
from .weights import L2, LearnedLogVar, Metric, Space, TangentTransform, TimeWeight


@final
@dataclass(frozen=True, kw_only=True)
class Term:
    """A rule on a law of times, measured.

    Attributes:
        rule: What must hold.
        times: Where it must hold.
        share: Fraction of the batch that is spent on the term, in (0, 1].
        metric: Prediction and target (B, *D) to loss (B,).
        weight: Weight of the times (B,), or a learned one.
        tangent: Transform of prediction - target before the metric.
        space: What prediction and target are read as first; mean velocities, or what the rule gives, by default.
        scale: Factor of the whole term, beside its share.
        name: What logs call it; by default the rule's name.
        state: Where its points come from; by default from the path between data and noise.
    """

    rule: Rule
    times: TimeLaw
    share: float = 1.0
    metric: Metric = L2()
    weight: TimeWeight | LearnedLogVar | None = None
    tangent: TangentTransform | None = None
    space: Space | None = None
    scale: float = 1.0
    name: str = ""
    state: State | None = None

    def __post_init__(self) -> None:
        _check_state(self.rule, self.state)
        if not 0 < self.share <= 1:
            raise RecipeError(f"share is a fraction of the batch in (0, 1]; got {self.share}")
        if self.tangent is not None and getattr(self.rule, "through", "target") != "target":
            raise RecipeError(
                "a tangent transform acts on a detached target: the rule must have through='target'"
            )

    @property
    def label(self) -> str:
        return self.name or type(self.rule).__name__.removesuffix("Rule").lower()

    @property
    def pooled(self) -> bool:
        """Whether it asks for velocities that are averaged over data."""
        return "pooled" in (
            getattr(self.rule, "velocity", None),
            getattr(self.rule, "tangent", None),
        )

    def span(self, times: Times) -> tuple[Tensor, Tensor]:
        """The two times that its weight sees: of the jump, or of its first leg."""
        return times.s, times.w if getattr(self.weight, "first_leg", False) else times.t

    def per_row(self, prediction: Tensor, target: Tensor, b: Points) -> Tensor:
        """Loss per row (B,), before weights, of both sides of the rule at the points `b`."""
        s, _, t = b.times
        if self.space is not None:
            prediction, target = (self.space(side, b.x, s, t) for side in (prediction, target))
        if self.tangent is not None:
            held = prediction.detach()
            target = held - self.tangent(held - target, s, t)
        return self.metric(prediction, target)


def _check_state(rule: Rule, state: State | None) -> None:
    """Whether a rule finds at the points of a state what it asks for."""
    asked = {getattr(rule, "velocity", None), getattr(rule, "tangent", None)}
    if "conditional" in asked and state is not None and not state.conditional:
        raise RecipeError(
            f"{type(rule).__name__} asks for the conditional velocity, which the points of {state} do not have; "
            "take the velocity from 'teacher' or 'self', or the points from data"
        )
    if "pooled" in asked and (state is not None or "conditional" in asked):
        raise RecipeError(
            f"{type(rule).__name__} asks for the pooled velocity, which is that of points between data and noise that was drawn "
            f"for them; got state={state}, velocities {sorted(map(str, asked))}: take 'conditional', or leave the state out"
        )
    if getattr(rule, "needs_end", False) and (state is None or not state.knows_end):
        raise RecipeError(
            f"{type(rule).__name__} regresses on the end of a trajectory, which {state or 'data'} does not know; "
            "give the term state=Trajectory() or Stored()"
        )
