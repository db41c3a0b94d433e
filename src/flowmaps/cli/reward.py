"""Rewards by name, for the commands that ask for one: those that come along, and a function of the user's own."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from .options import UsageError

if TYPE_CHECKING:
    from ..control.rewards import Reward
    from .draw import Model

NAMES = "brightness, symmetry, loudness, class:NAME or FILE.py:NAME"


def reward_named(text: str, model: "Model", classifier: Path | None) -> "Reward":
    """The reward that a name stands for, on samples of the model.

    Raises:
        UsageError: If there is no such reward, class, file or function.
    """
    from ..control.rewards import Brightness, ClassLogProb, Loudness, Symmetry

    simple: dict[str, Callable[[], Reward]] = {
        "brightness": Brightness,
        "symmetry": Symmetry,
        "loudness": Loudness,
    }
    if text in simple:
        return simple[text]()
    kind, _, name = text.partition(":")
    if kind == "class":
        if classifier is None or not name:
            raise UsageError(f"--reward {text} needs a class and --classifier FILE")
        from ..metrics import load_classifier

        net = load_classifier(classifier).to(model.device).requires_grad_(False)
        number = int(name) if not model.saved.classes and name.isdigit() else None
        return ClassLogProb(net, model.class_number(name) if number is None else number)
    file, _, name = text.rpartition(":")
    if not file.endswith(".py"):
        raise UsageError(f"a reward is {NAMES}; got {text!r}")
    return own(Path(file), name)


def own(file: Path, name: str) -> "Reward":
    """A function of a file of the user's.

    Raises:
        UsageError: If there is no such file or function.
    """
    from importlib.util import module_from_spec, spec_from_file_location

    if not file.is_file():
        raise UsageError(f"there is no file {file}")
    spec = spec_from_file_location(file.stem, file)
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    if not callable(getattr(module, name, None)):
        raise UsageError(f"{file} has no function {name!r}")
    return getattr(module, name)
