"""Dropout under control: the evaluations of a rule share their masks, and the masks come from the run's own generator.

A rule compares two or more evaluations of one network. If each drew masks of its own, target and prediction would differ
even at the optimum, by an amount that a short leg divides by its length (methods.md 7; consistency models, EDM and
FACM restore the generator's state for the same reason). And masks from torch's global generator could not be resumed.
"""

from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import TypeVar, cast

import torch
from torch import nn
from torch.nn.modules.dropout import _DropoutNd  # pyright: ignore[reportPrivateUsage]  # the base of all of torch's

from .rules import Points

F = TypeVar("F", bound=Callable[..., object])


def random_layers(module: nn.Module, *, ever: bool = False) -> list[str]:
    """The parts in training mode that draw random numbers: dropout layers, and modules with a positive "drop..." number.

    So `nn.MultiheadAttention.dropout` and stochastic depth's `drop_prob` are seen, and any `dropout_p` of one's own.
    With `ever`, those in evaluation mode as well.

    Example:
        >>> random_layers(nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.1), nn.Dropout(0.0)))
        ['1']
    """
    return [
        name for name, part in module.named_modules() if (ever or part.training) and _drops(part)
    ]


# what torch.compiler.assume_constant_result sets; calling it would import the compiler, a second, for everybody
setattr(random_layers, "_dynamo_marked_constant", True)  # noqa: B010


def _drops(module: nn.Module) -> bool:
    own = {name: value for name, value in vars(module).items() if "drop" in name}
    if isinstance(module, _DropoutNd):
        own["p"] = module.p
    return any(isinstance(value, float) and value > 0 for value in own.values())


def uncompiled(function: F) -> F:
    """The function, which a compiler leaves alone, or refuses if it may not."""
    why = "dropout in compiled code cannot be seeded, so the evaluations of a rule would not share their masks"
    return cast(F, torch.compiler.disable(function, reason=why))


@contextmanager
def shared_masks(student: nn.Module, points: Points) -> Generator[None]:
    """Within this block every evaluation of the student's networks draws the random numbers of `points.seed`.

    Afterwards the global generators are what they were. The networks of a flow map are its children.
    """
    number, device = int(points.seed), points.x.device
    hooks = [
        child.register_forward_pre_hook(lambda module, given: _reseed(number))
        for child in student.children()
        if random_layers(child)
    ]
    try:
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            yield
    finally:
        for hook in hooks:
            hook.remove()


def _reseed(number: int) -> None:
    torch.manual_seed(number)  # noqa: TID251  # dropout takes no generator; `shared_masks` forks the global one
