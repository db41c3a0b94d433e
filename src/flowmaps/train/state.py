"""What a run is at a step: the one mutable thing of the package."""

import copy
from dataclasses import dataclass, field
from typing import Any, final

import torch
from torch import Generator, Tensor

from ..core.flow_map import FlowMap, NetFlowMap
from ..errors import TrainingError
from ..learn.objective import Objective, Recipe
from .ema import Average
from .run import Run


@final
@dataclass
class State:
    """Everything that training changes.

    Attributes:
        step: Optimiser steps done.
        seconds: Wall-clock time spent training, over all resumes.
        objective: Recipe, student, teacher and target average.
        averages: Moving averages of the student.
        optimizer: AdamW.
        generator: Source of noise and times, on the CPU.
        about: What is needed to rebuild the models; saved beside the weights.
    """

    step: int
    seconds: float
    objective: Objective
    averages: list[Average]
    optimizer: torch.optim.Optimizer
    generator: Generator
    about: dict[str, Any] = field(default_factory=dict[str, Any])

    @property
    def student(self) -> FlowMap:
        return self.objective.student

    def progress(self, run: Run) -> float:
        """Share of the run that is done, in [0, 1]."""
        timed = self.seconds / run.seconds if run.seconds else 0.0
        return min(1.0, max(self.step / run.steps, timed))

    def averaged(self, index: int = 0) -> FlowMap:
        """A copy of the student with the weights of one of its averages, in evaluation mode."""
        model = copy.deepcopy(self.student)
        if self.averages:
            self.averages[index].copy_to(model)
        return model.eval().requires_grad_(False)

    def refresh_teacher(self) -> None:
        """The student becomes the teacher (progressive distillation)."""
        self.objective.teacher = copy.deepcopy(self.student).requires_grad_(False).eval()

    def tensors(self) -> dict[str, Tensor]:
        """Every tensor of the state by a flat name: what `load_tensors` takes back."""
        named = {f"student.{k}": v for k, v in self.student.state_dict().items()}
        for i, average in enumerate(self.averages):
            named |= {f"ema.{i}.{k}": v for k, v in average.weights.items()}
        # a solved or rematched teacher is rebuilt by its owner, as one from a pipeline's folder; a former student is not
        rebuilt = not isinstance(self.objective.teacher, NetFlowMap) or "pipeline" in self.about
        kept = not rebuilt or self.about.get("refreshed")
        for role in ("teacher", "ema", "logvar"):
            module = getattr(self.objective, role)
            if module is not None and (role != "teacher" or kept):
                prefix = "target" if role == "ema" else role
                named |= {f"{prefix}.{k}": v for k, v in module.state_dict().items()}
        for i, slots in self.optimizer.state_dict()["state"].items():
            named |= {f"optimizer.{i}.{k}": torch.as_tensor(v) for k, v in slots.items()}
        return named | {"generator": self.generator.get_state()}

    def load_tensors(self, named: dict[str, Tensor], refreshed: bool) -> None:
        """Put back what `tensors` gave. `refreshed`: the teacher is a former student."""
        self.student.load_state_dict(under(named, "student"))
        for i, average in enumerate(self.averages):
            average.load(under(named, f"ema.{i}"))
        if refreshed:
            self.refresh_teacher()
        for prefix, role in (("teacher", "teacher"), ("target", "ema"), ("logvar", "logvar")):
            module, weights = getattr(self.objective, role), under(named, prefix)
            if module is not None and weights:
                module.load_state_dict(weights)
        self._load_optimizer(under(named, "optimizer"))
        self.generator.set_state(named["generator"])

    def _load_optimizer(self, flat: dict[str, Tensor]) -> None:
        slots: dict[int, dict[str, Tensor]] = {}
        for key, value in flat.items():
            index, name = key.split(".", 1)
            slots.setdefault(int(index), {})[name] = value
        groups = self.optimizer.state_dict()["param_groups"]
        self.optimizer.load_state_dict({"state": slots, "param_groups": groups})


def under(named: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The entries below a prefix, without it."""
    return {
        key[len(prefix) + 1 :]: value
        for key, value in named.items()
        if key.startswith(prefix + ".")
    }


def new_state(
    recipe: Recipe, student: FlowMap, run: Run, teacher: FlowMap | None, about: dict[str, Any]
) -> State:
    """A run before its first step. The student is trained in place; the teacher is frozen in place.

    Raises:
        TrainingError: If the student has nothing to learn with.
    """
    if not any(p.requires_grad for p in student.parameters()):
        raise TrainingError(
            "no parameter of the student requires a gradient; maps from `flowmaps.train.load` come frozen: "
            "call flow_map.requires_grad_(True) first"
        )
    own = {id(p) for p in student.parameters()}
    if teacher is not None and any(id(p) in own for p in teacher.parameters()):
        teacher = copy.deepcopy(teacher)  # freezing it would freeze the student
    target = copy.deepcopy(student) if recipe.ema_target is not None else None
    with torch.random.fork_rng(
        devices=[]
    ):  # a learned weight draws its start from the global generator
        torch.default_generator.manual_seed(run.seed)
        objective = Objective(recipe, student, teacher, target)
    learned = [p for p in objective.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(
        learned, lr=run.lr, betas=(0.9, run.beta2), weight_decay=run.weight_decay, fused=True
    )
    generator = Generator().manual_seed(run.seed)
    return State(
        0, 0.0, objective, [Average(student, r) for r in run.ema], optimizer, generator, about
    )
