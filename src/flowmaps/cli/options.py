"""Typed options: tyro reads them, and every mistake becomes one line that names the nearest valid option."""

import contextlib
import dataclasses
import io
import re
import sys
from collections.abc import Iterator, Sequence
from difflib import SequenceMatcher
from typing import Any, TypeVar

import tyro
from pydantic import BaseModel, ValidationError

from ..errors import FlowmapsError
from .words import first_process, nearest

T = TypeVar("T")


class UsageError(FlowmapsError, ValueError):
    """A command line that is not understood."""


def parse(
    kind: type[T],
    argv: Sequence[str],
    *,
    name: str,
    about: str,
    usage: str = "",
    default: T | None = None,
) -> T:
    """Options of a command, from its arguments.

    Args:
        kind: A dataclass whose fields are the options.
        argv: Arguments after the command's name.
        name: The command.
        usage: What comes first in the line of usage and is taken out of `argv` by the command itself.
        about: Its description and examples, shown by `--help`.
        default: Values to start from.

    Raises:
        UsageError: For an unknown option or a value that does not fit.
    """

    def read() -> tuple[T, list[str]]:
        config = (tyro.conf.AvoidSubcommands, tyro.conf.FlagCreatePairsOff)
        given: dict[str, Any] = {} if default is None else {"default": default}
        return tyro.cli(
            kind,
            prog=f"flowmaps {name} {usage}".strip(),
            description=about,
            args=list(argv),
            config=config,
            return_unknown_args=True,
            **given,
        )

    if {"-h", "--help"} & set(argv):
        if not first_process():
            raise SystemExit(0)
        read()
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said), contextlib.redirect_stdout(said):
            value, unknown = read()
    except SystemExit as stopped:
        raise UsageError(f"{_plain(said.getvalue())}; see flowmaps {name} --help") from stopped
    if unknown:
        raise UsageError(_unknown(unknown[0], name, sorted(flags(kind))))
    return value


def flags(kind: type[Any], prefix: str = "--") -> Iterator[str]:
    """The options of a dataclass or a pydantic model as they are written, nested ones with dots."""
    if issubclass(kind, BaseModel):
        fields = [(key, each.annotation, each.default) for key, each in kind.model_fields.items()]
    else:
        fields = [
            (_spelled(each), each.type, each.default)
            for each in dataclasses.fields(kind)
            if _POSITIONAL not in getattr(each.type, "__metadata__", ())
        ]
    for name, annotation, default in fields:
        inner = _model(annotation)
        if inner is not None and default is None and name in _CLOSED:
            continue
        if inner is not None:
            yield from flags(inner, f"{prefix}{name}." if name else prefix)
        else:
            yield prefix + ("no-" if default is True else "") + name.replace("_", "-")


_CLOSED = (
    "student",
    "change",
)  # groups that are None by default, which tyro does not enter: other commands fill them
_POSITIONAL: Any = tyro.conf.Positional[str].__metadata__[0]  # pyright: ignore


def _spelled(field: dataclasses.Field[Any]) -> str:
    for note in getattr(field.type, "__metadata__", ()):
        name = getattr(note, "name", None)
        if isinstance(name, str):
            return name
    return field.name


def _model(annotation: object) -> type[BaseModel] | None:
    """The pydantic model in `Model`, `Annotated[Model, ...]` or `Model | None`."""
    for each in (annotation, *getattr(annotation, "__args__", ())):
        if isinstance(each, type) and issubclass(each, BaseModel):
            return each
    return None


def _unknown(token: str, name: str, known: list[str]) -> str:
    if not token.startswith("-"):
        return f"{token!r} was not expected here; see flowmaps {name} --help"
    flag = token.partition("=")[0]

    def likeness(other: str) -> float:
        pairs = ((flag, other), (flag.lstrip("-"), other.rpartition(".")[2].lstrip("-")))
        return max(SequenceMatcher(None, *pair).ratio() for pair in pairs)

    best = max(known, key=likeness)
    near = f" (did you mean {best!r}?)" if likeness(best) > 0.5 else ""
    return f"no option is called {flag}{near}; see flowmaps {name} --help"


def _plain(boxed: str) -> str:
    """The message inside tyro's box, as one line: a title, a rule, the message, a rule, a reference to the help."""
    lines = [line.strip("│| ") for line in boxed.splitlines()]
    blocks: list[list[str]] = [[]]
    for line in lines:
        if line.startswith(("╭", "╰")) or (line and set(line) <= {"─", "-"}):
            blocks.append([])
        else:
            blocks[-1].append(line)
    blocks = [block for block in blocks if any(block)]
    # the title is a block of its own where the box is drawn in ASCII
    words = blocks[0] if "╭" in boxed or len(blocks) < 2 else blocks[1]
    text = " ".join(words)
    missing = re.match(r"Missing from [\w ]+: (\S+) (?:[A-Z]+ )?(.*?)\.? \(required\)", text)
    if missing is not None:
        return f"{missing[1]} is missing: {missing[2][:1].lower()}{missing[2][1:]}"
    invalid = re.search(
        r"Error parsing (\S+): \d+ validation errors? for \S+ (\S+) (.*?) \[type=\S+ input_value=(.*?), input_type",
        text,
    )
    if invalid is None:
        return text.removeprefix("Error parsing ")
    place, field, why, value = invalid.groups()
    spot = ".".join([*place.split(".")[1:], field])
    return f"--{spot.replace('_', '-')}: {why[:1].lower()}{why[1:]}; got {value}"


def explained(error: ValidationError, model: type[BaseModel]) -> str:
    """The first mistake of a configuration in one line: which field, what came, what is near."""
    first = error.errors()[0]
    place = ".".join(str(part) for part in first["loc"])
    if first["type"] == "extra_forbidden":
        known = [flag.removeprefix("no-").replace("-", "_") for flag in flags(model, "")]
        return f"no field is called {place!r}{nearest(place, known)}"
    message = first["msg"]
    return f"{place}: {message[:1].lower()}{message[1:]}; got {first['input']!r}"


def integers(text: str, option: str) -> tuple[int, ...]:
    """Positive whole numbers with commas between them.

    Raises:
        UsageError: If it is something else.

    Example:
        >>> integers("1,2,4", "--steps")
        (1, 2, 4)
    """
    parts = text.replace(" ", "").split(",")
    if not all(part.isdigit() and int(part) > 0 for part in parts):
        raise UsageError(f"{option} takes positive numbers such as 1,2,4; got {text!r}")
    return tuple(sorted({int(part) for part in parts}))


def to_json(value: object) -> None:
    """Print a value as json, alone on stdout."""
    import json

    print(json.dumps(value, indent=1, ensure_ascii=False), file=sys.stdout)
