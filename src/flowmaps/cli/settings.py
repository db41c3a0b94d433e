"""`--set.diagonal 0.5`: the arguments of a recipe from the command line, checked against its signature."""

from collections.abc import Callable, Iterator
from typing import Any, get_type_hints

import yaml
from pydantic import TypeAdapter, ValidationError

from .options import UsageError


def take(argv: list[str]) -> tuple[dict[str, Any], list[str]]:
    """The settings among the arguments, and the arguments without them.

    Raises:
        UsageError: For a setting without a value, or one that cannot be read.

    Example:
        >>> take(["--set.p", "0.5", "--data", "digits"])
        ({'p': 0.5}, ['--data', 'digits'])
    """
    found: dict[str, Any] = {}
    rest: list[str] = []
    words = iter(argv)
    for word in words:
        flag, equals, value = word.partition("=")
        if flag != "--set" and not flag.startswith("--set."):
            rest.append(word)
            continue
        text = value if equals else next(words, None)
        if text is None:
            raise UsageError(f"{flag} needs a value, such as --set.diagonal 0.5")
        found |= dict(_pairs(flag, text))
    return found, rest


def _pairs(flag: str, text: str) -> Iterator[tuple[str, Any]]:
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise UsageError(f"{flag} {text!r} is not understood; quote it as json") from error
    if flag != "--set":
        yield flag.removeprefix("--set.").replace("-", "_"), value
    elif isinstance(value, dict):
        yield from value.items()
    else:
        raise UsageError(f"--set takes json such as '{{\"diagonal\": 0.5}}'; got {text!r}")


def checked(recipe: str, settings: dict[str, Any]) -> dict[str, Any]:
    """Settings with the types of the recipe's arguments; unknown names are left for `recipes.get` to refuse.

    Raises:
        UsageError: For a value of another type, or an argument that is no plain value.
    """
    from ..recipes import all_recipes

    factory = all_recipes().get(recipe)
    return settings if factory is None else typed(recipe, factory, settings)


def typed(recipe: str, factory: Callable[..., Any], settings: dict[str, Any]) -> dict[str, Any]:
    """Settings with the types of a function's arguments, as they are where it names none; as `checked`."""
    hints = get_type_hints(factory)
    return {
        key: _typed(recipe, key, value, hints[key]) if key in hints else value
        for key, value in settings.items()
    }


def _typed(recipe: str, key: str, value: object, hint: Any) -> object:  # noqa: ANN401  # any annotation
    parts = getattr(hint, "__args__", (hint,))
    if not all(p in (int, float, bool, str, type(None)) or isinstance(p, str) for p in parts):
        raise UsageError(f"--set.{key}: a Python value, which {recipe} takes from Python only")
    try:
        return TypeAdapter(hint).validate_python(value)
    except ValidationError as error:
        why = error.errors()[0]["msg"]
        raise UsageError(f"--set.{key}: {why[:1].lower()}{why[1:]}; got {value!r}") from error
