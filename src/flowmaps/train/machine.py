"""What the machine is good at, and what was chosen because of it."""

import os
import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import final

import torch

from ..core.flow_map import FlowMap
from ..errors import TrainingError
from ..learn.masks import random_layers
from .run import Run

COMPILE_SECONDS = (
    1200.0  # compiling costs 1-3 minutes on two cores: repaid after some twenty minutes of training
)
COMPILE_STEPS = 20_000


@final
@dataclass(frozen=True)
class Choice:
    """How a run is executed.

    Attributes:
        device: "cpu", "cuda" or "mps".
        bf16: Whether matrix products run in bfloat16.
        compiled: Whether the loss is compiled.
        reason: One sentence that says so.
    """

    device: str
    bf16: bool
    compiled: bool
    reason: str


def has_bf16_units(device: str) -> bool:
    """Whether the device multiplies bfloat16 matrices faster than float32 ones."""
    if device == "cuda":
        return torch.cuda.get_device_capability()[0] >= 8  # Ampere and later
    info = Path("/proc/cpuinfo")
    return device == "cpu" and info.exists() and "amx_bf16" in info.read_text()


def choose(run: Run) -> Choice:
    """Resolve every "auto" of a run for this machine.

    Raises:
        TrainingError: If the machine has no such device.
    """
    device = _device(run.device)
    units = has_bf16_units(device)
    bf16 = run.precision == "bf16" or (run.precision == "auto" and units)
    compiled = run.compile == "yes" or (run.compile == "auto" and _worth_compiling(run))
    why = {True: "it has matrix units for bfloat16", False: "no bfloat16 matrix units were found"}[
        units
    ]
    reason = (
        f"{device}, {'bfloat16' if bf16 else 'float32'} ({why if run.precision == 'auto' else 'as asked'}), "
        f"{'compiled' if compiled else 'not compiled'} "
        f"({'as asked' if run.compile != 'auto' else 'long run' if compiled else 'short run or no C++ compiler'})"
    )
    return Choice(device, bf16, compiled, reason)


def _device(asked: str) -> str:
    there = {
        "cpu": True,
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available(),
    }
    if asked == "auto":
        return "cuda" if there["cuda"] else "cpu"
    if asked not in there:
        raise TrainingError(
            f"device must be auto, cpu, cuda or mps; got {asked!r} (one GPU of several is chosen by CUDA_VISIBLE_DEVICES)"
        )
    if not there[asked]:
        raise TrainingError(
            f"device {asked!r} was asked for, but torch {torch.__version__} finds none on this machine; "
            "use device=auto, or a build of torch that knows the device"
        )
    return asked


def _worth_compiling(run: Run) -> bool:
    long = run.seconds >= COMPILE_SECONDS if run.seconds else run.steps >= COMPILE_STEPS
    return long and shutil.which(os.environ.get("CXX", "g++")) is not None


def wide_enough(student: FlowMap) -> None:
    """Refuse a student whose weights would lose what they learn."""
    narrow = [n for n, p in student.named_parameters() if p.requires_grad and p.dtype.itemsize < 4]
    if narrow:
        raise TrainingError(
            f"the weights of the student are in half precision (first {narrow[0]!r}), where an optimizer's small steps and a "
            "moving average's are rounded away: use flow_map.float() with precision=bf16, which keeps float32 weights"
        )


def compilable(choice: Choice, run: Run, student: FlowMap) -> Choice:
    """The choice, without the compiler where nobody asked for it and it would take the masks of dropout away."""
    if not choice.compiled or not random_layers(student):
        return choice
    if run.compile == "yes":
        raise TrainingError(
            "a loss whose network has dropout cannot be compiled, as the evaluations of a rule would not share their masks; "
            f"use compile=no, or no dropout in {random_layers(student)[0]!r}"
        )
    return replace(choice, compiled=False)
