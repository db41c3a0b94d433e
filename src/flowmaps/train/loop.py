"""The training loop. There is one in the package, and it is `fit`."""

import math
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Protocol, final

import torch
from torch import Tensor, nn

from ..core.autodiff import compiled
from ..core.flow_map import FlowMap, NetFlowMap
from ..data.base import Conditioned
from ..data.pairs import Accompanied, PairData
from ..errors import CheckpointError, DataError, TrainingError
from ..learn.masks import shared_masks
from ..learn.objective import Loss, Objective, Points, Recipe, Term
from ..learn.points import move, shard
from ..learn.states import Trajectories
from ..learn.weights import LearnedLogVar
from . import checkpoint
from .distributed import Group, join
from .ema import span_of, warmed
from .hooks import Event, Hook, Metrics, Progress, trim_metrics
from .interrupt import Stop, interruptible
from .machine import Choice, choose, compilable, wide_enough
from .memory import Memory
from .run import Run
from .state import State, new_state


class Data(Protocol):
    """What is learned from: rows by index (`flowmaps.data` has readers)."""

    def __len__(self) -> int: ...

    def batch(self, index: Tensor) -> tuple[Tensor, Tensor | None]:
        """Samples (B, *D) float32 and labels (B,) int64 or None."""
        ...


def fit(
    recipe: Recipe,
    flow_map: FlowMap,
    data: Data,
    run: Run,
    *,
    teacher: FlowMap | None = None,
    out: str | Path | None = None,
    resume: bool = False,
    hooks: Sequence[Hook] = (),
    about: dict[str, Any] | None = None,
    order: Callable[[int], Tensor] | None = None,
) -> State:
    """Train a flow map by a recipe, in place.

    Args:
        recipe: The method.
        flow_map: The student.
        data: What it learns from.
        run: How long and how.
        teacher: Frozen flow map, for recipes that need one.
        out: Folder of checkpoints, metrics and previews; without it nothing is written.
        resume: Continue the newest checkpoint of `out`, bit for bit on the same machine.
        hooks: Functions of an `Event`, called after every step on the first process.
        about: What to write beside the weights; `flowmaps.train.prepare` fills it. By default shape and classes are those
            that the data names, and labels of named classes reach the network as `label`.
        order: Rows of step k (batch,); by default an epoch shuffle that depends on `run.seed` and k only.

    Returns:
        The state at the end, or at the step where Ctrl-C or SIGTERM stopped it (then `state.step < run.steps`).

    Raises:
        TrainingError: If a loss or a gradient is not finite (it names the step, the term and the times), if the machine
            has no such device, or the student nothing to learn with.
        CheckpointError: If `out` holds another run, or a checkpoint cannot be read or written.
    """
    wide_enough(flow_map)
    flow_map.to_data = recipe.to_data
    choice = compilable(choose(run), run, flow_map.train())
    group = join(choice.device)
    state = new_state(
        recipe,
        flow_map.to(choice.device).train(),
        run,
        _to(teacher, choice),
        _about(recipe, flow_map, data, run, about),
    )
    state.objective.to(choice.device)
    folder = Path(out) if out is not None else None
    if folder is not None:
        _open(folder, state, group, resume)
    elif resume:
        raise CheckpointError("resume=True continues the run in out=, which was not given")
    loop = _Loop(state, recipe, data, run, choice, group, order or _shuffle(len(data), run))
    with interruptible() as stop, _watchers(folder, state, group, hooks) as watchers:
        loop.run_to_end(stop, folder, watchers)
    flow_map.eval()
    return state


def _open(folder: Path, state: State, group: Group, resume: bool) -> None:
    """Claim the folder of a run; load the newest checkpoint or write the configuration."""

    def claim() -> None:
        checkpoint.claim(folder, resuming=resume)
        if not (folder / "config.json").exists():
            config = state.about.get("config", {"run": state.about["run"]})
            checkpoint.write_json(folder / "config.json", config)

    _together(group, claim)
    if resume and checkpoint.complete(folder / "checkpoints"):
        checkpoint.resume(folder, state)
    if resume and group.first:
        trim_metrics(folder, state.step)


def _together(group: Group, act: Callable[[], object]) -> None:
    """The first process acts on the disk, the others wait for it; all raise if it could not."""
    problem: CheckpointError | None = None
    if group.first:
        try:
            act()
        except CheckpointError as error:
            problem = error
    if group.any(problem is not None):
        raise problem or CheckpointError(
            "the first process stopped at its folder; its message says why"
        )


@contextmanager
def _watchers(
    folder: Path | None, state: State, group: Group, hooks: Sequence[Hook]
) -> Generator[Sequence[Hook]]:
    """The hooks of this process: all on the first one, with metrics if there is a folder, none on the others."""
    if folder is None or not group.first:
        yield hooks if group.first else ()
        return
    metrics = Metrics(folder, state.step)
    try:
        yield [*hooks, metrics]
    finally:
        metrics.board.close()


def _to(teacher: FlowMap | None, choice: Choice) -> FlowMap | None:
    return None if teacher is None else teacher.to(choice.device)


def _about(
    recipe: Recipe, flow_map: FlowMap, data: Data, run: Run, about: dict[str, Any] | None
) -> dict[str, Any]:
    told = {key: list(getattr(data, key, ())) for key in ("shape", "classes")}
    told = {"name": getattr(data, "name", ""), **told, **(about or {}).get("data", {})}
    names = list(data.null) if isinstance(data, Conditioned) else ["label"] * bool(told["classes"])
    net = checkpoint.describe_map(flow_map, None) if isinstance(flow_map, NetFlowMap) else None
    described = {"flow_map": net, "recipe": {"name": recipe.name, "value": repr(recipe)}}
    described |= (about or {}) | {"data": {"conditions": names} | told}
    return described | {"run": run.model_dump(), "averages": list(run.ema)}


def _shuffle(n: int, run: Run) -> Callable[[int], Tensor]:
    from ..data.batches import Sampler

    return Sampler(n, run.batch, run.seed).at


@final
class _Loop:
    def __init__(
        self,
        state: State,
        recipe: Recipe,
        data: Data,
        run: Run,
        choice: Choice,
        group: Group,
        order: Callable[[int], Tensor],
    ) -> None:
        self.state, self.recipe, self.data, self.run = state, recipe, data, run
        self.choice, self.group, self.order = choice, group, order
        self.loss = self._executable()
        self.began = time.perf_counter() - state.seconds
        self.lately: list[tuple[int, float]] = []
        self.tried = False
        self.memory = Memory(recipe.memory, run.batch, lambda step: self._rows(self.order(step)))

    def _executable(self) -> nn.Module:
        """The objective as it is run: compiled if that was chosen, wrapped by DDP if there are several processes."""
        loss: nn.Module = self.state.objective
        if self.choice.compiled:
            loss = compiled(loss)
        return self.group.wrap(loss)

    def run_to_end(self, stop: Stop, folder: Path | None, hooks: Sequence[Hook]) -> None:
        """Steps until the run is done or stopped, with hooks and checkpoints."""
        run = self.run
        while self.state.progress(run) < 1:
            event = self.step(stop)
            for hook in hooks:
                hook(event)
            if folder is not None and event.due(run.save_every):
                _together(self.group, partial(checkpoint.save, folder, self.state, keep=run.keep))
            if event.last:
                break
        self.group.barrier()

    def step(self, stop: Stop) -> Event:
        """One step: learning rate, draw, loss, finite?, backward, clip, step, averages."""
        state, run = self.state, self.run
        progress = state.progress(run)
        lr = learning_rate(run, state.step, progress)
        for parameters in state.optimizer.param_groups:
            parameters["lr"] = lr
        drawn = self.draw(progress)
        self._try_eagerly(drawn)
        with self._autocast():
            loss: Loss = self.loss(drawn)
        self._check(loss, drawn)
        state.optimizer.zero_grad(set_to_none=True)
        loss.total.backward()
        norm = nn.utils.clip_grad_norm_(self._trained(), run.clip)
        self._check_gradient(norm, drawn)
        state.optimizer.step()
        state.step += 1
        state.seconds = self.group.same(time.perf_counter() - self.began)
        self._average()
        self._refresh(progress)
        stopped = self.group.any(bool(stop.signal))
        return self._event(loss, lr, float(norm), last=stopped or state.progress(run) >= 1)

    def draw(self, progress: float) -> tuple[Points, ...]:
        """The points of this process for this step, on its device."""
        state, index = self.state, self.order(self.state.step)
        x_0, cond = self._rows(index)
        stored = self._trajectories(index)
        if self.run.flip and stored is not None:
            raise DataError("flip would take samples off their stored trajectories; leave it out")
        flipped, before = self._flipped(x_0), self.memory.before(state.step, self._flipped)
        drawn = self.recipe.draw(flipped, state.generator, cond, progress, stored, before)
        self.memory.add(x_0, cond)
        if self.group.world > 1:
            drawn = tuple(shard(points, self.group.rank, self.group.world) for points in drawn)
        return tuple(move(points, self.choice.device) for points in drawn)

    def _rows(self, index: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Samples, and what the network is told of them, of all that the data tell."""
        x_0, labels = self.data.batch(index)
        told = {} if labels is None else {"label": labels}
        if isinstance(self.data, Conditioned):
            told = self.data.conditions(index)
        return x_0, {name: told[name] for name in self.state.about["data"]["conditions"]}

    def _flipped(self, x_0: Tensor) -> Tensor:
        """Half of the images mirrored, at random, if the run asks for it."""
        if not self.run.flip:
            return x_0
        if x_0.ndim != 4:
            raise DataError(
                f"flip mirrors images (C, H, W); got samples of shape {tuple(x_0.shape[1:])}"
            )
        mirrored = torch.rand(len(x_0), generator=self.state.generator) < 0.5
        return torch.where(mirrored.reshape(-1, *(1,) * (x_0.ndim - 1)), x_0.flip(-1), x_0)

    def _trajectories(self, index: Tensor) -> Trajectories | None:
        """Those that the data consist of, or those beside them, which are shuffled on their own."""
        if isinstance(self.data, PairData):
            return Trajectories(*self.data.trajectory(index))
        if isinstance(self.data, Accompanied):
            rows = _shuffle(len(self.data.side), self.run)(self.state.step)
            return Trajectories(*self.data.side.trajectory(rows), coupled=False)
        return None

    def _try_eagerly(self, drawn: tuple[Points, ...]) -> None:
        """Once before it is compiled: a compiled loss cannot look for the operations whose derivatives are wrong."""
        if self.choice.compiled and not self.tried:
            with torch.no_grad(), self._autocast():
                self.state.objective(drawn)
        self.tried = True

    def _autocast(self) -> AbstractContextManager[Any]:
        # cached casts made under no_grad would cut the graph of the pass that is trained
        return torch.autocast(
            self.choice.device, torch.bfloat16, enabled=self.choice.bf16, cache_enabled=False
        )

    def _trained(self) -> list[nn.Parameter]:
        return [p for p in self.state.objective.parameters() if p.requires_grad]

    def _check(self, loss: Loss, drawn: tuple[Points, ...]) -> None:
        bad = not bool(torch.isfinite(loss.total))
        if self.group.any(bad):
            why = _explain(self.state.objective, drawn) if bad else " in another process"
            raise TrainingError(f"the loss is not finite at step {self.state.step}{why}")

    def _check_gradient(self, norm: Tensor, drawn: tuple[Points, ...]) -> None:
        """A gradient can be infinite where the loss is not; one step with it would destroy weights and averages."""
        if bool(torch.isfinite(norm)):
            return
        named = self.state.objective.named_parameters()
        bad = [n for n, p in named if p.grad is not None and not torch.isfinite(p.grad).all()]
        raise TrainingError(
            f"the gradient is not finite at step {self.state.step} though the loss is; first in {(bad or ['its norm'])[0]}; "
            f"{_INTACT}. Look for a root or a quotient whose derivative is infinite where its value is not"
        )

    def _average(self) -> None:
        state = self.state
        for average in state.averages:
            average.update(state.student, state.step)
        target, decay = state.objective.ema, self.recipe.ema_target
        if target is not None and decay is not None:
            decay = warmed(decay, state.step)
            span = span_of(1 - decay) if decay < 1 else 1
            if state.step % span:
                return
            with torch.no_grad():
                pairs = zip(target.parameters(), state.student.parameters(), strict=True)
                for old, new in pairs:
                    old.lerp_(new, 1 - decay**span)

    def _refresh(self, before: float) -> None:
        """Progressive distillation: the teacher becomes the student when progress passes one of `recipe.refresh`."""
        after = self.state.progress(self.run)
        if any(before < mark <= after for mark in self.recipe.refresh):
            self.state.refresh_teacher()
            self.state.about["refreshed"] = True
            self.loss = self._executable()

    def _event(self, loss: Loss, lr: float, norm: float, *, last: bool) -> Event:
        names = ["total", *loss.parts]
        values = self.group.mean(
            torch.stack([loss.total.detach(), *loss.parts.values()]).float().cpu()
        )
        self.lately = [*self.lately[-20:], (self.state.step, self.state.seconds)]
        (step, seconds), span = self.lately[0], self.lately[-1]
        rate = (span[0] - step) * self.run.batch / max(span[1] - seconds, 1e-9)
        return Event(
            self.state,
            self.run,
            dict(zip(names, values.tolist(), strict=True)),
            lr,
            norm,
            rate,
            last,
        )


def learning_rate(run: Run, step: int, progress: float) -> float:
    """The rate of a step: linear warm-up, then the schedule in the progress of the run."""
    peak = run.lr * min(1.0, (step + 1) / max(run.warmup, 1))
    if run.schedule == "cosine":
        return peak * 0.5 * (1 + math.cos(math.pi * progress))
    return peak * (1 - progress) if run.schedule == "linear" else peak


_INTACT = "nothing was updated, and the last checkpoint is intact"


def _explain(objective: Objective, drawn: tuple[Points, ...]) -> str:
    """Which term and which times made the loss non-finite, found by computing the rows again, term by term."""
    with torch.no_grad():
        for term, b in zip(objective.recipe.terms, drawn, strict=True):
            with shared_masks(objective.student, b):
                bad = ~torch.isfinite(_rows(objective, term, b))
            if bad.any():
                times = ", ".join(
                    f"(s={s:.4f}, t={t:.4f})"
                    for s, t in zip(
                        b.times.s[bad][:3].tolist(), b.times.t[bad][:3].tolist(), strict=True
                    )
                )
                return (
                    f": term {term.label!r}, {int(bad.sum())} of {len(bad)} rows, first at times {times}; {_INTACT}. "
                    "Lower the learning rate, or clip or normalise the tangent"
                )
    return (
        f", but every term is finite when computed again in full precision; {_INTACT}. Use precision=fp32, "
        "or look for a network or guidance that is not finite itself"
    )


def _rows(objective: Objective, term: Term, b: Points) -> Tensor:
    """The weighted loss of every row (B,)."""
    b = objective.prepared(term, b)
    row = term.per_row(*term.rule(objective.student, b, objective), b)
    if isinstance(term.weight, LearnedLogVar):
        return row + objective.logvar(b.times.s, b.times.t) if objective.logvar is not None else row
    return (
        row
        if term.weight is None
        else row * term.weight(objective.recipe.interpolant, *term.span(b.times))
    )


__all__ = ["Data", "Event", "Hook", "Progress", "fit", "learning_rate"]
