"""What a control cost: network forwards and backwards, JVPs, rewards, decodes, seconds and memory, counted and never guessed.

Every control opens a `Budget`, looks at map and reward through it (`watch`, `score`), and returns the `Cost` with its result.
Counts are of rows: one network call on a batch of 64 is 64 forwards, so that batching changes no number. A map that is
integrated, guided or steered is counted where its networks are called, not where it is asked.
"""

import time
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self, cast, final, runtime_checkable

import torch
from torch import Tensor
from torch.autograd import forward_ad

from ..core.flow_map import FlowMap, RematchedFlowMap, SolvedFlowMap
from ..core.velocity import Velocity
from ..errors import ControlError
from ..sample.guidance import CFG, Autoguidance
from .rewards import Decoded, Reward, scored


@final
@dataclass(frozen=True)
class Cost:
    """What was spent, in rows.

    Attributes:
        forward: Forward passes of networks.
        backward: Backward passes through networks.
        jvp: Directional derivatives carried along forward passes (which are counted as well).
        reward: Rewards.
        reward_backward: Gradients of rewards.
        decode: Latents decoded for a reward.
        seconds: Wall-clock time.
        peak_bytes: Most memory taken beyond what was taken before; None where the system does not say (CPU away from Linux).
    """

    forward: int = 0
    backward: int = 0
    jvp: int = 0
    reward: int = 0
    reward_backward: int = 0
    decode: int = 0
    seconds: float = 0.0
    peak_bytes: int | None = None

    @property
    def equivalents(self) -> int:
        """Forward-pass equivalents of the networks: a backward pass is two, a JVP one more."""
        return self.forward + 2 * self.backward + self.jvp

    def __add__(self, other: "Cost") -> "Cost":
        mine, theirs = asdict(self), asdict(other)
        peaks = [p for p in (mine.pop("peak_bytes"), theirs.pop("peak_bytes")) if p is not None]
        summed = {key: value + theirs[key] for key, value in mine.items()}
        return Cost(**summed, peak_bytes=max(peaks, default=None))

    def as_dict(self) -> dict[str, float | None]:
        """Plain values, with `equivalents`, for json."""
        return {**asdict(self), "equivalents": self.equivalents}


@dataclass(frozen=True, eq=False)
class Result:
    """What every control returns; those that know more return a subclass.

    Attributes:
        x: Samples (N, *D).
        cost: What they cost, all together.
        reward: Their rewards (N,), where there was a reward.
    """

    x: Tensor
    cost: Cost
    reward: Tensor | None = None


@runtime_checkable
class Composite(Protocol):
    """A flow map made of other maps or rewards: it rebuilds itself from watched ones."""

    def watched(self, budget: "Budget") -> FlowMap: ...


@final
class Budget:
    """A ledger: counts what goes through it while it is open, and knows how much of a limit is left.

    Args:
        limit: Forward-pass equivalents that may be spent; None is no limit. A control asks `affords` before it spends.

    Example:
        >>> from flowmaps.testing.worlds import gaussian
        >>> with Budget() as budget:
        ...     ends = budget.watch(gaussian().flow_map)(torch.zeros(5, 3).double(), 1.0, 0.0)
        >>> budget.cost.forward
        5
    """

    def __init__(self, limit: float | None = None) -> None:
        if limit is not None and not limit > 0:
            raise ControlError(f"a budget is a positive number of forward passes; got {limit}")
        self.limit = limit
        self.counts: Counter[str] = Counter()
        self._began = self._ended = 0.0
        self._before = self._peak = 0

    def __enter__(self) -> Self:
        _Memory.note()
        _OPEN.append(self)
        self._before = self._peak = _Memory.now()
        _Memory.reset()
        self._ended, self._began = 0.0, time.perf_counter()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self._ended = time.perf_counter()
        _Memory.note()
        _OPEN.remove(self)

    @property
    def cost(self) -> Cost:
        """What was spent so far."""
        until = self._ended or time.perf_counter()
        seconds = until - self._began if self._began else 0.0
        if self in _OPEN:
            _Memory.note()
        peak = max(0, self._peak - self._before) if _Memory.known() else None
        return Cost(**self.counts, seconds=seconds, peak_bytes=peak)

    @property
    def left(self) -> float:
        """Forward-pass equivalents that remain."""
        return float("inf") if self.limit is None else self.limit - Cost(**self.counts).equivalents

    def affords(self, equivalents: float) -> bool:
        """Whether so many more fit."""
        return equivalents <= self.left

    def watch(self, flow_map: FlowMap) -> FlowMap:
        """The same map, counted."""
        if isinstance(flow_map, Composite):
            return flow_map.watched(self)
        if isinstance(flow_map, SolvedFlowMap):
            field = self.velocity(flow_map.field)
            return SolvedFlowMap(field, flow_map.interpolant, flow_map.solver, flow_map.steps)
        if isinstance(flow_map, RematchedFlowMap):
            return RematchedFlowMap(self.watch(flow_map.base), flow_map.interpolant)
        if isinstance(flow_map, CFG | Autoguidance):
            return flow_map.over(self.watch)
        return _Watched(flow_map, self)

    def velocity(self, field: Velocity) -> Velocity:
        """The same velocity, counted."""

        def counted(x: Tensor, t: Tensor, **cond: Any) -> Tensor:
            return self.called(field(x, t, **cond), "forward", "backward", "jvp")

        return counted

    def score(self, reward: Reward) -> Reward:
        """The same reward, counted and looked at (`flowmaps.control.rewards.scored`)."""
        return Scored(reward, self)

    def called(self, out: Tensor, forward: str, backward: str, jvp: str = "") -> Tensor:
        """Write down a call by what came out of it, (B, ...), and its backward pass when that happens."""
        self.counts[forward] += rows(out)
        tangent = forward_ad.unpack_dual(out).tangent if jvp and _dual() else None
        if tangent is not None:
            self.counts[jvp] += rows(tangent)
        if out.requires_grad:
            out = out.view_as(out)  # a hook of its own, also where the map returns its input
            out.register_hook(lambda g: self.counts.update({backward: rows(g)}))
        return out


def rows(x: Tensor) -> int:
    """Rows of a batch, times what `torch.vmap` hides."""
    base, functorch = x, cast("Any", torch)._C._functorch
    while functorch.is_functorch_wrapped_tensor(base):
        base = functorch.get_unwrapped(base)
    return len(x) * (base.numel() // max(x.numel(), 1))


def _dual() -> bool:
    """Whether a forward-mode derivative is being taken."""
    return cast("int", forward_ad._current_level) >= 0  # pyright: ignore[reportPrivateUsage]


@final
class Scored:
    """A reward that is counted and looked at; `reward` is the reward itself."""

    def __init__(self, reward: Reward, budget: Budget) -> None:
        self.reward, self.budget = reward, budget

    def __call__(self, x: Tensor) -> Tensor:
        inner = self.reward
        if isinstance(inner, Decoded):
            self.budget.counts["decode"] += rows(x)
            x, inner = inner.decode(x), inner.reward
        return self.budget.called(scored(inner, x), "reward", "reward_backward")


@final
class _Watched(FlowMap):
    def __init__(self, flow_map: FlowMap, budget: Budget) -> None:
        super().__init__()
        self.flow_map, self.budget = flow_map, budget
        self.interpolant, self.to_data = flow_map.interpolant, flow_map.to_data

    def mean_velocity(self, x: Tensor, s: Tensor, t: Tensor, **cond: Any) -> Tensor:
        u = self.flow_map.mean_velocity(x, s, t, **cond)
        return self.budget.called(u, "forward", "backward", "jvp")


_OPEN: list[Budget] = []


class _Memory:
    """The high-water mark of memory: CUDA's allocator, or on Linux the process. One mark for all, so open budgets share it."""

    @staticmethod
    def known() -> bool:
        return torch.cuda.is_available() or Path("/proc/self/clear_refs").exists()

    @staticmethod
    def now() -> int:
        return torch.cuda.memory_allocated() if torch.cuda.is_available() else _status("VmRSS")

    @staticmethod
    def reset() -> None:
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()
        elif _Memory.known():
            try:
                Path("/proc/self/clear_refs").write_text("5")  # resets the mark, nothing else
            except OSError:  # a sandbox without it: the mark is then that of the process
                return

    @staticmethod
    def note() -> None:
        if not _OPEN:
            return
        cuda = torch.cuda.is_available()
        mark = torch.cuda.max_memory_allocated() if cuda else _status("VmHWM")
        for budget in _OPEN:
            budget._peak = max(budget._peak, mark)  # pyright: ignore[reportPrivateUsage]


def _status(key: str) -> int:
    file = Path("/proc/self/status")
    if not file.exists():
        return 0
    lines = file.read_text(encoding="ascii", errors="replace").splitlines()
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith(key)), 0)
