r"""A recipe is a sum of terms; an objective is a recipe bound to a student and its companions.

Training has two halves, and they are kept apart. `Recipe.draw` is all the randomness: noise, times, dropped labels,
guidance scales, for the whole (global) batch, on the CPU, from one generator. `Objective.forward` is all the computation:
a pure function of what was drawn. So the same draw can be cut into shards for many processes, the computation can be
compiled or wrapped by DDP as one module (forward-mode derivatives included), and a run resumes bit for bit.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import NamedTuple, final

import torch
from torch import Generator, Tensor, nn

from ..core.flow_map import FlowMap
from ..core.interpolant import Interpolant, linear
from ..core.parametrization import Average, Parametrization
from ..errors import RecipeError
from .guidance import Guidance
from .masks import random_layers, shared_masks, uncompiled
from .pooled import Kept, kept, pooled, together
from .rules import OF_DATA, MapSource, Points, Rule, VelocitySource
from .states import Stored, Trajectories
from .term import Term
from .times import Times
from .weights import LearnedLogVar, LogVar


@final
@dataclass(frozen=True, kw_only=True)
class Recipe:
    """A named method: where it comes from, and the terms that define it.

    Attributes:
        name: The name of its file in `flowmaps.recipes`.
        cite: Keys of `references.bib`, the paper first; a recipe of another package may give BibTeX entries in their place.
        terms: What is minimised. The loss is the sum over terms of share x scale x mean, so shares that add up to 1
            make the mean over the batch.
        interpolant: The path.
        parametrization: How the network is read; "average", or a parametrization on the path.
        guidance: Classifier-free guidance folded into the map, or None.
        ema_target: Decay of the moving average that answers for the source "ema".
        refresh: Shares of the run at which the teacher becomes a copy of the student (progressive distillation).
        local: The network is read at t = s only: an ordinary diffusion model.
        memory: Rows of the steps before that "pooled" velocities are averaged over, beside the batch's own.
        status: "exact" (golden against the authors' code), "faithful" (from the paper), "own" (of this project) or "sketch".
    """

    name: str
    cite: tuple[str, ...]
    terms: tuple[Term, ...]
    interpolant: Interpolant = field(default_factory=linear)
    parametrization: Parametrization = Average()
    guidance: Guidance | None = None
    ema_target: float | None = None
    refresh: tuple[float, ...] = ()
    local: bool = False
    memory: int = 0
    status: str = "faithful"

    def __post_init__(self) -> None:
        if not self.terms:
            raise RecipeError(f"recipe {self.name!r} needs at least one term")
        labels = [term.label for term in self.terms]
        if len(set(labels)) < len(labels):
            raise RecipeError(
                f"the terms of recipe {self.name!r} are called {labels}: give each a name of its own"
            )
        path = getattr(self.parametrization, "interpolant", self.interpolant)
        if path != self.interpolant:
            raise RecipeError(
                f"recipe {self.name!r} lives on {self.interpolant} but its parametrization on {path}; give both one path"
            )
        unguided = [term.label for term in self.terms if getattr(term.rule, "unguided", False)]
        if unguided and self.guidance is not None and not self.guidance.off:
            raise RecipeError(
                f"recipe {self.name!r} learns the law of the data (its terms {unguided}), which is not that of guided "
                "samples: leave guidance out, or switch it off by scale 1 and guide while sampling"
            )
        if "ema" in self.sources and self.ema_target is None:
            raise RecipeError(
                f"recipe {self.name!r} uses the source 'ema': set ema_target, the decay of that average"
            )

    @property
    def sources(self) -> frozenset[str]:
        """Every source of velocities and jumps that the terms name."""
        names = ("velocity", "tangent", "jump", "below")
        found = {getattr(term.rule, name, None) for term in self.terms for name in names}
        found |= {term.state.source for term in self.terms if term.state is not None}
        return frozenset(source for source in found if source is not None)

    @property
    def needs_teacher(self) -> bool:
        """Whether a frozen teacher must be given."""
        return "teacher" in self.sources

    @property
    def needs_jvp(self) -> bool:
        """Whether the network is differentiated in forward mode."""
        taken = [getattr(term.rule, "derivative", None) for term in self.terms]
        return any(derivative is not None and derivative.method == "exact" for derivative in taken)

    @property
    def needs_data(self) -> bool:
        """Whether a term looks at samples of the data set; if none does, noise and a teacher are enough."""
        return any(term.state is None or isinstance(term.state, Stored) for term in self.terms)

    @property
    def needs_trajectories(self) -> bool:
        """Whether the data set must be one of stored trajectories."""
        return any(isinstance(term.state, Stored) for term in self.terms)

    @cached_property
    def to_data(self) -> bool:
        """Whether all its jumps end at clean data, as in consistency models: such maps take several steps by noising again."""
        drawn = (term.times(64, Generator().manual_seed(0), 0.5) for term in self.terms)
        ends = torch.cat([times.t[times.s != times.t] for times in drawn])
        return len(ends) > 0 and not bool(ends.any())

    def draw(
        self,
        x_0: Tensor,
        generator: Generator,
        cond: Mapping[str, Tensor] | None = None,
        progress: float = 0.0,
        stored: Trajectories | None = None,
        before: Kept | None = None,
    ) -> tuple[Points, ...]:
        """All the randomness of one step: the points of every term, on the CPU.

        Args:
            x_0: Data (B, *D).
            generator: CPU generator; it advances.
            cond: Conditioning, tensors with a leading B; `label` is dropped and `scale` drawn if the recipe is guided.
            progress: Share of the run that is done, in [0, 1].
            stored: Trajectories of the data set, if it has them.
            before: Rows of the steps before, for recipes with a `memory`.

        Raises:
            RecipeError: If a term needs stored trajectories and there are none, or independent noise and it is stored.
        """
        drawn: list[Points] = []
        offset = 0
        own = self._pooled_over(x_0, cond or {}, before, stored)
        for term in self.terms:
            count = max(1, round(term.share * len(x_0)))
            rows = torch.arange(offset, offset + count) % len(x_0)
            offset += count
            part = {key: value[rows] for key, value in (cond or {}).items()}
            path = None if stored is None else stored.rows(rows)
            b = self._points(term, x_0[rows], part, generator, progress, path)
            if own is not None and term.pooled:
                none = torch.zeros(count, dtype=torch.bool)
                dropped = none if self.guidance is None else self.guidance.dropped(b.cond)
                b = replace(b, pool=own.pool(rows, dropped))
            drawn.append(b)
        return tuple(drawn)

    def _pooled_over(
        self,
        x_0: Tensor,
        cond: Mapping[str, Tensor],
        before: Kept | None,
        stored: Trajectories | None,
    ) -> Kept | None:
        """The data that velocities are pooled over, if they are: the batch's, then those before."""
        if not any(term.pooled for term in self.terms):
            return None
        if stored is not None and stored.coupled:
            raise RecipeError(
                f"recipe {self.name!r} pools velocities over data, whose noise must be drawn for them, and that of stored "
                "trajectories belongs to them: take velocity='conditional'"
            )
        own = kept(x_0, cond)
        return own if before is None else together([own, before])

    def _points(
        self,
        term: Term,
        x_0: Tensor,
        cond: dict[str, Tensor],
        generator: Generator,
        progress: float,
        stored: Trajectories | None,
    ) -> Points:
        s, w, t = term.times(len(x_0), generator, progress)
        if term.state is not None and term.state.at_noise:
            s = torch.ones_like(s)
        floor = self.interpolant.t_min
        if floor:
            s, w, t = s.clamp(min=floor), w.clamp(min=floor), t.clamp(min=floor)
        eps = torch.randn(x_0.shape, generator=generator)
        if stored is not None and stored.labels is not None and isinstance(term.state, Stored):
            cond = cond | {"label": stored.labels} if "label" in cond else cond
        x, v, end, times = self._place(term, x_0, eps, Times(s, w, t), stored)
        if getattr(term.state, "fresh", False):
            v = torch.randn(x_0.shape, generator=generator)
        scale: Tensor | None = None
        if self.guidance is not None:
            cond, scale = self.guidance.draw(cond, len(x_0), generator)
        progressed = torch.tensor(progress)
        return Points(x, v, times, cond, progressed, scale, _peek(generator), end)

    def _place(
        self, term: Term, x_0: Tensor, eps: Tensor, times: Times, stored: Trajectories | None
    ) -> tuple[Tensor, Tensor, Tensor | None, Times]:
        """Points, their conditional velocity, the end of their trajectory, and their times."""
        if isinstance(term.state, Stored):
            if stored is None:
                raise RecipeError(
                    f"recipe {self.name!r} reads stored trajectories: make them with flowmaps pairs, give data 'pairs:DIR'"
                )
            x, end, times = stored.at(times)
            return x, torch.zeros_like(x), end, times
        full = self.interpolant.sigma(torch.ones(()))
        if stored is not None and stored.coupled:
            eps = stored.points[:, 0] / full
        if term.state is not None:
            return full * eps, torch.zeros_like(eps), None, times
        return *self.interpolant.sample(x_0, eps, times.s), None, times


def _peek(generator: Generator) -> Tensor:
    """A seed from the generator without moving it: runs of networks without dropout stay what they were."""
    ahead = Generator()
    ahead.set_state(generator.get_state())
    return torch.randint(2**62, (), generator=ahead)


class Loss(NamedTuple):
    """The scalar that is minimised, and the mean loss of every term, detached, by name."""

    total: Tensor
    parts: dict[str, Tensor]


@final
class Objective(nn.Module):
    """A recipe bound to a student, and to the teacher and average that it needs.

    Its `forward` is the module that trainers compile and wrap in DDP: the JVPs happen inside it.

    Args:
        recipe: The method.
        student: The flow map that learns.
        teacher: Frozen flow map, or None if the recipe needs none.
        ema: Moving average of the student that answers for the source "ema".

    Raises:
        RecipeError: If a needed companion is missing or the paths differ.
    """

    def __init__(
        self,
        recipe: Recipe,
        student: FlowMap,
        teacher: FlowMap | None = None,
        ema: FlowMap | None = None,
    ) -> None:
        super().__init__()
        if recipe.needs_teacher and teacher is None:
            raise RecipeError(f"recipe {recipe.name!r} learns from a teacher: give one")
        if "ema" in recipe.sources and ema is None:
            raise RecipeError(
                f"recipe {recipe.name!r} needs a moving average of the student: give ema="
            )
        for role, model in (("student", student), ("teacher", teacher)):
            if model is not None and model.interpolant != recipe.interpolant:
                raise RecipeError(
                    f"recipe {recipe.name!r} lives on {recipe.interpolant}, its {role} on {model.interpolant}; "
                    "bring it there with flowmaps.rematch"
                )
        masked = Objective._masked_term
        self._masked = uncompiled(masked) if random_layers(student, ever=True) else masked
        self.recipe = recipe
        self.student = student
        self.teacher = teacher.requires_grad_(False).eval() if teacher is not None else None
        self.ema = ema.requires_grad_(False).eval() if ema is not None else None
        learned = [term.weight for term in recipe.terms if isinstance(term.weight, LearnedLogVar)]
        self.logvar = LogVar(learned[0].channels) if learned else None

    def forward(self, drawn: tuple[Points, ...]) -> Loss:
        """The loss on drawn points."""
        parts: dict[str, Tensor] = {}
        losses: list[Tensor] = []
        evaluate = self._masked if random_layers(self.student) else Objective._term
        for term, points in zip(self.recipe.terms, drawn, strict=True):
            loss, raw = evaluate(self, term, points)
            losses.append(term.share * term.scale * loss)
            parts[term.label] = raw
        return Loss(torch.stack(losses).sum(), parts)

    def _masked_term(self, term: Term, b: Points) -> tuple[Tensor, Tensor]:
        with shared_masks(self.student, b):
            return self._term(term, b)

    def _term(self, term: Term, b: Points) -> tuple[Tensor, Tensor]:
        b = self.prepared(term, b)
        prediction, target = term.rule(self.student, b, self)
        row = term.per_row(prediction, target, b)
        raw = row.detach().mean()
        if isinstance(term.weight, LearnedLogVar):
            assert self.logvar is not None  # built in __init__ from the same terms
            omega = self.logvar(b.times.s, b.times.t)
            return term.weight.loss(row, omega).mean(), raw
        if term.weight is not None:
            row = row * term.weight(self.recipe.interpolant, *term.span(b.times))
        return row.mean(), raw

    def prepared(self, term: Term, b: Points) -> Points:
        """The points that the rule of a term sees: carried by its state, with pooled and guided velocities."""
        if term.state is not None:
            b = term.state(self.student, b, self)
        if b.pool is not None:
            b = replace(b, v=pooled(self.recipe.interpolant, b.x, b.v, b.times.s, b.pool))
        return self._guided(term.rule, b)

    def _guided(self, rule: Rule, b: Points) -> Points:
        guidance = self.recipe.guidance
        uses_data = OF_DATA & {getattr(rule, "velocity", None), getattr(rule, "tangent", None)}
        if guidance is None or guidance.off or b.scale is None or not uses_data:
            return b
        with torch.no_grad():
            return replace(
                b, v=guidance.conditional(self.student, b.v, b.x, b.times.s, b.cond, b.scale)
            )

    def velocity(self, source: VelocitySource, x: Tensor, t: Tensor, b: Points) -> Tensor:
        """`Models.velocity`: the answer of the student's companions; gradients flow to `x` only from a teacher."""
        if source in OF_DATA:
            return b.v
        if source == "teacher":
            teacher = _present(self.teacher)
            if self.recipe.guidance is not None and b.scale is not None:
                return self.recipe.guidance.teacher(teacher, x, t, b.cond, b.scale)
            return teacher.velocity(x, t, **b.cond)
        model = self.student if source == "self" else _present(self.ema)
        with torch.no_grad():
            return model.velocity(x, t, **b.cond)

    def jump(
        self,
        source: MapSource,
        x: Tensor,
        s: Tensor,
        t: Tensor,
        b: Points,
        *,
        through: bool = False,
    ) -> Tensor:
        """`Models.jump`: the mean velocity of a jump by the student, its average or the teacher."""
        model = (
            self.student
            if source == "self"
            else _present(self.ema if source == "ema" else self.teacher)
        )
        with torch.set_grad_enabled(through and torch.is_grad_enabled()):
            return model.mean_velocity(x, s, t, **b.cond)


def _present(model: FlowMap | None) -> FlowMap:
    assert model is not None  # Objective.__init__ refuses a recipe whose companions are missing
    return model
