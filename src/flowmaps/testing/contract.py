"""The exam that every recipe takes, ours and other people's: is it well formed, is it right, does it learn.

    from flowmaps.testing.contract import exam
    report = exam(my_recipe)
    assert not report.problems and report.error < 0.2

*Right* means that the exact flow map is a stationary point: at it, the gradient of the loss is zero in expectation. It is
measured on a rotated Gaussian, whose posterior is symmetric; with skewed posteriors an adaptive or Huber metric moves the
minimum even of a correct rule. *Learns* means a one-step map of a two-dimensional mixture, judged against the exact map.

Methods that step (a solver's trajectory, a finite difference, a finite jump) are right in the limit of fine steps only. They
are not excused: parts that step have a method `finer(factor)`, and with halved and quartered steps the gradient must be zero
within its error, or fall as a first-order method's does. A wrong rule's gradient does not fall.

Recipes that change while they train are judged over the run and at its end, where the bias of a warm-up hides nothing.
Recipes that couple data to noise (`Coupled`, reflow) learn another map, of straight lines: theirs is the truth then.
"""

import inspect
import time
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass, field, fields, is_dataclass, replace
from typing import Any, final

import torch
from torch import Generator, Tensor, nn

from ..core.autodiff import Derivative
from ..core.flow_map import FlowMap, NetFlowMap, SolvedFlowMap
from ..core.interpolant import Interpolant
from ..core.oracle import Rotated
from ..core.parametrization import Parametrization
from ..core.solver import HEUN
from ..learn.objective import Objective, Recipe
from ..learn.points import map_points
from ..learn.rules import Points
from ..learn.states import Coupled, Trajectories
from ..sample.grids import log_snr
from ..sample.sample import solve
from . import worlds

STANDARD_ERRORS = 5.0
"""Bound on the mean gradient at the exact map: with 40 batches Student's t exceeds it once in 80,000 exams."""

FALL = 1.7
"""By how much halved steps must lessen the mean gradient of a method that steps; first order gives 2, second 4.

To the power of the rule's `fall`, where its error carries the length of its step: then even a wrong one's lessens."""


@final
@dataclass(frozen=True)
class Report:
    """What an exam found.

    Attributes:
        name: The recipe.
        problems: Sentences, empty when the recipe is well formed and right.
        drift: Norm of the mean gradient at the exact map, in its standard errors; at the finest steps that were needed.
        bias: The norm itself, for steps 1, 2, 4, ... times finer; one number for methods that do not step.
        error: Root mean square error of the learned map, relative to the spread of the exact one: of one step, or, for a
            local recipe, of 64 Heun steps.
        one_step: The same for one step, whatever the recipe.
        seconds: Duration of the training.
    """

    name: str
    problems: tuple[str, ...] = field(default=())
    drift: float = 0.0
    bias: tuple[float, ...] = ()
    error: float = 0.0
    one_step: float = 0.0
    seconds: float = 0.0


def exam(
    factory: Callable[..., Recipe], *, steps: int = 600, batch: int = 512, seed: int = 0
) -> Report:
    """Examine the recipe that `factory()` returns.

    Args:
        factory: A function that can be called without arguments, named as its recipe.
        steps: Training steps; 0 skips the training.
        batch: Rows per step.
        seed: Of everything random.
    """
    recipe = factory()
    problems = [*_form(factory, recipe)]
    drift, bias = refined_stationarity(recipe, seed)
    if drift > STANDARD_ERRORS:
        falls = ", ".join(f"{norm:.2g}" for norm in bias)
        problems.append(
            f"the exact flow map is no stationary point: its mean gradient is {drift:.1f} standard errors from zero"
            + (f", and does not vanish with finer steps: {falls}" if len(bias) > 1 else "")
        )
    if not steps:
        return Report(recipe.name, tuple(problems), drift, bias)
    world = worlds.rotated(recipe.interpolant, torch.float32)
    began = time.perf_counter()
    student = learn(recipe, world, steps, batch, seed)
    seconds = time.perf_counter() - began
    one_step, walked = errors(student, recipe.interpolant, seed)
    error = walked if recipe.local else one_step
    return Report(recipe.name, tuple(problems), drift, bias, error, one_step, seconds)


def _form(factory: Callable[..., Recipe], recipe: Recipe) -> list[str]:
    """What is wrong with a recipe as a value."""
    name = getattr(factory, "__name__", "?")
    required = [
        key
        for key, value in inspect.signature(factory).parameters.items()
        if value.default is inspect.Parameter.empty
    ]
    checks = (
        (recipe.name == name, f"the recipe is called {recipe.name!r}, its function {name!r}"),
        (not required, f"the arguments {required} have no defaults"),
        (bool(recipe.cite), "the recipe cites nothing"),
        (" at 0x" not in repr(recipe), f"the recipe prints an address: {recipe!r}"),
        (recipe == factory(), "two calls of the factory give different recipes"),
        (
            recipe.status in ("exact", "faithful", "own", "sketch"),
            f"unknown status {recipe.status!r}",
        ),
        (bool(inspect.getdoc(factory)), "the factory has no docstring"),
    )
    return [message for good, message in checks if not good]


@final
class _Nudged(nn.Module):
    """The network that gives a map `u + phi(theta)` under a parametrization; phi is linear in theta, which starts at 0."""

    def __init__(self, exact: FlowMap, parametrization: Parametrization, size: int) -> None:
        super().__init__()
        self.exact = exact
        self.parametrization = parametrization
        self.theta = nn.Parameter(torch.zeros(5, size, size, dtype=torch.float64))

    def forward(self, z: Tensor, s: Tensor, t: Tensor, **cond: Any) -> Tensor:
        p = self.parametrization
        x = z / p.network_input(torch.ones_like(z), s)  # the input scaling is linear
        a, b, c, d, e = self.theta
        times = torch.stack([torch.ones_like(s), t], -1) @ e[:2]
        nudge = x @ a + s[:, None] * (x @ b) + t[:, None] * (x @ c) + torch.sin(x @ (e + 1)) @ d
        u = self.exact.mean_velocity(x, s, t) + nudge + times
        # the mean velocity is affine in the output, element by element: two evaluations invert it
        zero, one = (p.mean_velocity(torch.full_like(x, k), x, s, t) for k in (0.0, 1.0))
        return (u - zero) / (one - zero)


def stationarity(
    recipe: Recipe, generator: Generator, batches: int = 40, batch: int = 256
) -> float:
    """Norm of the mean gradient at the exact map over the norm of its standard errors.

    Rules without noise at the optimum have gradients of rounding size: 1e-6 is added to the standard error.
    """
    mean, error = _gradient(recipe, generator, batches, batch)
    return mean / error


def refined_stationarity(recipe: Recipe, seed: int = 0) -> tuple[float, tuple[float, ...]]:
    """`stationarity`, with steps 1, 2 and 4 times finer until it holds; at the end of the run as well if the recipe changes.

    Returns the drift, 0 if the gradient fell by FALL (to the power of the rule's `fall`) with both refinements, and the norms of
    the mean gradients: of the whole run, or of its end if that is worse.
    """
    moments = (None, 1.0) if _changes(recipe) else (None,)
    return max((_refined(recipe, seed, moment) for moment in moments), key=lambda it: it[0])


def _changes(recipe: Recipe) -> bool:
    """Whether the end of a run differs from its start."""
    first, last = (_gradient(recipe, Generator().manual_seed(3), 2, 64, p)[0] for p in (0.0, 1.0))
    return first != last


def _refined(recipe: Recipe, seed: int, progress: float | None) -> tuple[float, tuple[float, ...]]:
    """`refined_stationarity` of one moment of training, or of all of it."""
    mean, error = _gradient(recipe, Generator().manual_seed(seed), 40, 256, progress)
    drift, norms = mean / error, [mean]
    # an error that carries the length of its step falls with it, right or wrong: what is right falls faster
    power = max(getattr(term.rule, "fall", 1) for term in recipe.terms)
    # where noise is no matter, a few batches tell the bias
    batches = 40 if drift < 10 * STANDARD_ERRORS else 8
    for factor in (2, 4):
        finer_recipe = finer(recipe, factor)
        if drift <= STANDARD_ERRORS or finer_recipe == recipe:
            return drift, tuple(norms)
        mean, error = _gradient(finer_recipe, Generator().manual_seed(seed), batches, 256, progress)
        drift = mean / error
        norms.append(mean)
        if mean > norms[-2] / FALL**power:
            return drift, tuple(norms)
    return (drift if drift <= STANDARD_ERRORS else 0.0), tuple(norms)


def finer(part: Any, factor: int) -> Any:  # noqa: ANN401  # a recipe, and any part of one
    """The same with `factor` times finer steps: parts with a method `finer` make themselves so, others are searched."""
    if isinstance(part, Derivative):
        return part if part.method == "exact" else replace(part, step=part.step / factor)
    if hasattr(part, "finer"):
        return part.finer(factor)
    if type(part) is tuple:
        return tuple(finer(each, factor) for each in part)  # pyright: ignore[reportUnknownVariableType]
    if not is_dataclass(part) or isinstance(part, type):
        return part
    old = {f.name: getattr(part, f.name) for f in fields(part) if f.init}
    new = {name: finer(each, factor) for name, each in old.items()}
    return part if all(new[name] is old[name] for name in old) else replace(part, **new)


def _gradient(
    recipe: Recipe, generator: Generator, batches: int, batch: int, progress: float | None = None
) -> tuple[float, float]:
    """Norm of the mean gradient at the map that the recipe is after, and of its standard error; None is the whole run."""
    world = Rotated(worlds.plane(recipe.interpolant), worlds.rotation(0.6))
    coupled = any(isinstance(term.state, Coupled) for term in recipe.terms)
    truth = Straight(world) if coupled else world.flow_map
    net = _Nudged(truth, recipe.parametrization, 2)
    student = NetFlowMap(net, recipe.interpolant, recipe.parametrization, local=recipe.local)
    objective = Objective(recipe, student, teacher=world.flow_map, ema=truth)
    gradients: list[Tensor] = []
    for i in range(batches):
        x_0 = world.sample(batch, generator)
        stored = (
            trajectories(world.flow_map, batch, generator, x_0.dtype)
            if recipe.needs_trajectories
            else None
        )
        now = i / batches if progress is None else progress
        drawn = recipe.draw(x_0, generator, _labels(recipe, batch), now, stored)
        loss = objective(tuple(_wide(b) for b in drawn)).total
        gradients.append(torch.autograd.grad(loss, net.theta)[0].flatten())
    g = torch.stack(gradients)
    if not bool(g.isfinite().all()):
        return float("inf"), 1.0
    return float(g.mean(0).norm()), float(g.std(0).norm() / batches**0.5 + 1e-6)


def trajectories(
    flow_map: FlowMap, n: int, generator: Generator, dtype: torch.dtype, count: int = 9
) -> Trajectories:
    """What a data set of trajectories holds, by an exact map of points in the plane: n of them at equal times."""
    times = torch.linspace(1, flow_map.interpolant.t_min, count)
    noise = flow_map.interpolant.prior((n, 2), generator).to(dtype)
    return Trajectories(torch.stack([flow_map(noise, 1.0, t) for t in times.tolist()], 1), times)


@final
class Straight(FlowMap):
    r"""The map of straight lines between the noise and the data of a turned Gaussian world: reflow's fixed point.

    Coupled as the world's own flow couples them, $x_0 = m + A\varepsilon$ with $A$ symmetric and positive, points of one
    line are $\alpha_t m + (\alpha_t A + \sigma_t)\varepsilon$, and lines do not cross.
    """

    def __init__(self, world: Rotated) -> None:
        super().__init__()
        self.world, self.interpolant = world, world.interpolant

    def mean_velocity(self, x: Tensor, s: Tensor, t: Tensor, **cond: Any) -> Tensor:
        zero, one = torch.zeros_like(s), torch.ones_like(s)
        path, turn = self.interpolant, self.world.rotation
        centre = self.world.endpoint(torch.zeros_like(x), one, zero)
        # columns of A in the world's own axes, where it is diagonal
        spread = (self.world.endpoint(torch.ones_like(x) @ turn.T, one, zero) - centre) @ turn
        c = path.at(s, x)
        eps = ((x - c.alpha * centre) @ turn / (c.alpha * spread + c.sigma)) @ turn.T
        x_0 = centre + (eps @ turn * spread) @ turn.T
        dalpha, dsigma = path.secant(s, t)
        return dalpha[:, None] * x_0 + dsigma[:, None] * eps


def _wide(b: Points) -> Points:
    """Float64, times as well: maps are quotients of differences of times."""
    return map_points(lambda value: value.double() if value.is_floating_point() else value, b)


def _classes(recipe: Recipe) -> int:
    return int(recipe.guidance.null["label"]) if recipe.guidance else 0


def _labels(recipe: Recipe, batch: int) -> dict[str, Tensor]:
    return {"label": torch.arange(batch) % _classes(recipe)} if recipe.guidance else {}


def _rows(
    recipe: Recipe, world: Rotated, batch: int, generator: Generator
) -> Callable[[], tuple[Tensor, Trajectories | None]]:
    """Rows of a step: fresh data, or, for recipes that read trajectories, some of a stored few thousand."""
    if not recipe.needs_trajectories:
        return lambda: (world.sample(batch, generator), None)
    bank = trajectories(world.flow_map, 4096, generator, torch.float32)

    def some() -> tuple[Tensor, Trajectories]:
        chosen = bank.rows(torch.randint(len(bank.points), (batch,), generator=generator))
        return chosen.points[:, -1], chosen

    return some


def learn(recipe: Recipe, world: Rotated, steps: int, batch: int, seed: int) -> FlowMap:
    """Train a small network and return its moving average: Adam, cosine, both averages, and the teacher's refreshments."""
    generator = Generator().manual_seed(seed)
    guided = recipe.guidance is not None and recipe.guidance.conditioned
    net = _Small(_classes(recipe), guided, seed)
    student = NetFlowMap(net, recipe.interpolant, recipe.parametrization, local=recipe.local)
    shadow = deepcopy(student)
    target = deepcopy(student) if recipe.ema_target is not None else None
    # the exact velocity, as a one-time diffusion model: its jumps are steps of a solver, as those of a real teacher
    teacher: FlowMap = NetFlowMap(
        lambda x, s, t, **cond: world.velocity(x, s), recipe.interpolant, local=True
    )
    if any(getattr(term.rule, "below", None) == "teacher" for term in recipe.terms):
        # the map of an earlier stage: it jumps
        teacher = SolvedFlowMap(world.velocity, recipe.interpolant, HEUN, steps=8)
    with torch.random.fork_rng(devices=[]):  # the learned variance has random features
        torch.random.manual_seed(seed)
        objective = Objective(recipe, student, teacher if recipe.needs_teacher else None, target)
    trained = [p for p in objective.parameters() if p.requires_grad]
    optimizer = torch.optim.Adam(trained, lr=2e-3, betas=(0.9, 0.99), foreach=True)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    waiting = list(recipe.refresh)
    rows = _rows(recipe, world, batch, generator)
    for step in range(steps):
        progress = step / steps
        while waiting and progress >= waiting[0]:
            waiting.pop(0)
            objective.teacher = deepcopy(student).requires_grad_(False)
        x_0, stored = rows()
        drawn = recipe.draw(x_0, generator, _labels(recipe, batch), progress, stored)
        optimizer.zero_grad()
        objective(drawn).total.backward()
        nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        schedule.step()
        _follow(shadow, student, 0.98, step)
        if target is not None and recipe.ema_target is not None:
            _follow(target, student, recipe.ema_target, step)
    return shadow


@final
class _Small(nn.Module):
    """Three layers on the point and sines of both times: what learns fastest on one thread. Labels and scales are inputs."""

    def __init__(self, classes: int, guided: bool, seed: int, width: int = 96) -> None:
        super().__init__()
        self.classes, self.guided = classes, guided
        size = 2 + 16 + (classes + 1 if classes else 0) + int(guided)
        with torch.random.fork_rng(
            devices=[]
        ):  # initial weights from the seed; the global generator is left as it was
            torch.random.manual_seed(seed)
            self.layers = nn.ModuleList(nn.Linear(n, width) for n in (size, width, width))
            self.last = nn.Linear(width, 2)

    def forward(
        self,
        x: Tensor,
        s: Tensor,
        t: Tensor,
        *,
        label: Tensor | None = None,
        scale: Tensor | None = None,
    ) -> Tensor:
        phase = torch.stack([s, s - t], -1)[..., None] * 2.0 ** torch.arange(4)
        parts = [x, phase.sin().flatten(1), phase.cos().flatten(1)]
        if self.classes:
            chosen = torch.full(s.shape, self.classes) if label is None else label
            parts.append(nn.functional.one_hot(chosen, self.classes + 1).to(x.dtype))
        if self.guided:
            parts.append((torch.ones_like(s) if scale is None else scale).log()[:, None])
        h = torch.cat(parts, 1)
        for layer in self.layers:
            h = nn.functional.silu(layer(h))
        return self.last(h)


@torch.no_grad()
def _follow(average: FlowMap, student: FlowMap, decay: float, step: int) -> None:
    decay = min(decay, (1 + step) / (10 + step))
    for old, new in zip(average.parameters(), student.parameters(), strict=True):
        old.lerp_(new, 1 - decay)


@torch.no_grad()
def errors(flow_map: FlowMap, path: Interpolant, seed: int, n: int = 2000) -> tuple[float, float]:
    """Relative errors of one step and of 64 Heun steps on the diagonal, against the exact map from t = 1 to 0."""
    noise = path.prior((n, 2), Generator().manual_seed(seed + 1))
    one, zero = torch.ones(n, dtype=torch.float64), torch.zeros(n, dtype=torch.float64)
    exact = worlds.rotated(path).endpoint(noise.double(), one, zero)
    jumped = flow_map(noise, 1.0, 0.0)
    walked = solve(flow_map.velocity, noise, log_snr(64, path), path, HEUN)
    spread = (exact - exact.mean(0)).square().mean()
    one_step, many = ((end - exact).square().mean() / spread for end in (jumped, walked))
    return float(one_step.sqrt()), float(many.sqrt())
