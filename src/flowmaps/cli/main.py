"""The entrance: finds the command, and turns what a user can cause into one line on stderr."""

import importlib
import os
import sys
from collections.abc import Callable, Sequence
from typing import cast

from .. import __version__
from ..errors import FlowmapsError
from .words import nearest

COMMANDS = {
    "train": "learn a flow map, or a flow-matching model to distil it from",
    "distill": "make a few-step flow map of a diffusers pipeline",
    "finetune": "teach a few-step map new data without losing its few steps",
    "sample": "draw samples in one step, or in as many as you like",
    "compare": "flow map against the step-by-step walk: quality, time, network calls",
    "evaluate": "score samples: Frechet and kernel distance, precision, recall, classes",
    "audit": "is this map right? residuals over every source and target",
    "steer": "what a model draws, towards a reward: before, after, cost",
    "tune": "fine-tune a map towards a reward, and watch what that costs",
    "invert": "data back to noise, and how well they return",
    "edit": "change the class of data, or walk between two of them",
    "restore": "masked, blurred or shrunk data, with uncertainty",
    "likelihood": "bits per dimension of data under a map",
    "recipes": "the methods that can be trained",
    "pairs": "store a model's trajectories, to learn a map from them",
    "cite": "BibTeX of a method",
    "export": "a map as a graph: ONNX, or torch.export",
    "arena": "recipes on equal terms: same network, data and compute, over seeds",
    "demo": "all of the above on scikit-learn's digits, in a few minutes",
}

_HELP = """\
usage: flowmaps COMMAND ...

Learn a flow map, sample in one to four steps, and see that it is right.

commands:
{commands}

options:
  -h, --help  show this help; every command has its own: flowmaps train --help
  --version   show the version

Three commands from nothing to samples in one step:
  flowmaps train flow_matching --data digits --out runs/teacher --run.steps 4000
  flowmaps train lmd --set.through target --teacher runs/teacher --out runs/map --run.steps 4000
  flowmaps sample runs/map --steps 1 -n 64 --out grid.png
"""


def help_text() -> str:
    """What `flowmaps --help` prints."""
    lines = (f"  {name:<11}{summary}" for name, summary in COMMANDS.items())
    return _HELP.format(commands="\n".join(lines))


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command.

    Args:
        argv: Arguments after the program's name; by default those of the process.

    Returns:
        The exit status: 0 fine, 2 an error that the user can mend, 130 stopped by Ctrl-C.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(help_text(), end="")
        return 0
    if arguments[0] in ("-V", "--version", "version"):
        print(f"flowmaps {__version__}")
        return 0
    return _run(arguments[0], arguments[1:])


def _run(name: str, arguments: list[str]) -> int:
    if name not in COMMANDS:
        return _fail(f"no command is called {name!r}{nearest(name, COMMANDS)}; try flowmaps --help")
    try:
        module = importlib.import_module(f".{name}", __package__)
        return cast("Callable[[list[str]], int]", module.main)(arguments)
    except FlowmapsError as error:
        return _fail(str(error))
    except BrokenPipeError:  # `flowmaps recipes | head`: the reader has what it wanted
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        return _fail(str(error))
    except KeyboardInterrupt:
        print("\nflowmaps: stopped", file=sys.stderr)
        return 130
    except SystemExit as done:  # after `--help` of a command
        return done.code if isinstance(done.code, int) else 0


def _fail(message: str) -> int:
    print("flowmaps: error: " + " ".join(message.split()), file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())
