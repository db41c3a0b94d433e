"""What happens beside training: progress, metrics, previews. A hook is a function of an `Event`, and there is no other way in."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, final

from ..errors import CheckpointError
from .run import Run
from .state import State


@final
@dataclass(frozen=True)
class Event:
    """One finished step.

    Attributes:
        state: The run, after the step.
        run: Its description.
        loss: The loss and its parts, averaged over processes, by name.
        lr: Learning rate of the step.
        norm: Gradient norm before clipping.
        rate: Samples per second, lately.
        last: Whether the run ends here.
    """

    state: State
    run: Run
    loss: Mapping[str, float]
    lr: float
    norm: float
    rate: float
    last: bool

    def due(self, every: int) -> bool:
        """Whether the step is a multiple of `every`, or the last."""
        return self.last or self.state.step % every == 0


Hook = Callable[[Event], None]


@final
class Metrics:
    """Writes metrics.jsonl and TensorBoard files under the run's folder, every `log_every` steps.

    Args:
        folder: Of the run.
        step: Where a resumed run begins: TensorBoard then hides what an earlier process wrote after it.
    """

    def __init__(self, folder: Path, step: int = 0) -> None:
        from torch.utils.tensorboard.writer import SummaryWriter

        self.file = folder / "metrics.jsonl"
        self.board = SummaryWriter(folder / "tensorboard", purge_step=step + 1 if step else None)

    def __call__(self, event: Event) -> None:
        if not event.due(event.run.log_every):
            return
        step = event.state.step
        row: dict[str, Any] = {
            "step": step,
            "seconds": round(event.state.seconds, 3),
            "loss": dict(event.loss),
            "lr": event.lr,
            "grad_norm": event.norm,
            "samples_per_second": round(event.rate, 1),
        }
        try:
            self._write(row)
        except OSError as error:
            raise CheckpointError(
                f"the metrics of step {step} could not be written to {self.file} ({error}); "
                "the checkpoints are intact: free some space and resume"
            ) from error

    def _write(self, row: dict[str, Any]) -> None:
        with self.file.open("a") as out:
            out.write(json.dumps(row) + "\n")
        for name, value in row["loss"].items():
            self.board.add_scalar(f"loss/{name}", value, row["step"])
        for name in ("lr", "grad_norm", "samples_per_second"):
            self.board.add_scalar(f"run/{name}", row[name], row["step"])
        self.board.flush()


def trim_metrics(folder: Path, step: int) -> None:
    """Drop the lines of metrics.jsonl after a step: a resumed run writes them again."""
    file = folder / "metrics.jsonl"
    if not file.exists():
        return
    kept: list[str] = []
    for line in file.read_text().splitlines():
        try:
            if json.loads(line)["step"] <= step:
                kept.append(line)
        except (json.JSONDecodeError, KeyError):  # the line that a kill cut short
            continue
    draft = file.with_suffix(".draft")
    draft.write_text("".join(line + "\n" for line in kept))
    draft.replace(file)


@final
class Progress:
    """One line on the terminal: step, loss parts, samples per second, time left. Plain lines where there is no terminal."""

    def __init__(self, title: str, out: IO[str] | None = None, every: float = 10.0) -> None:
        from rich.console import Console

        self.console = Console(
            file=out, highlight=False, markup=False, emoji=False, stderr=out is None
        )
        self.title, self.every, self.last = title, every, 0.0

    def __call__(self, event: Event) -> None:
        seconds = event.state.seconds
        wait = 0.5 if self.console.is_terminal else self.every
        if not event.last and seconds - self.last < wait:
            return
        self.last = seconds
        done = event.state.progress(event.run)
        parts = "  ".join(f"{name} {value:.4g}" for name, value in event.loss.items())
        line = (
            f"{self.title}  step {event.state.step:,}  {done:4.0%}  {parts}  "
            f"{event.rate:,.0f} samples/s  {_left(seconds, done)}"
        )
        if not self.console.is_terminal:  # a log has no width
            self.console.print(line, soft_wrap=True)
            return
        line = line.ljust(self.console.width - 1)  # what a longer line left behind is covered
        end = "\n" if event.last else "\r"
        self.console.print(line, end=end, overflow="ellipsis", no_wrap=True)


def _left(seconds: float, done: float) -> str:
    if done >= 1:
        return f"done in {_clock(seconds)}"
    return f"{_clock(seconds * (1 - done) / max(done, 1e-9))} left"


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
