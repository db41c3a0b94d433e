"""Plant faults in core/ and learn/, one at a time, and see whether a test notices.

    python tools/mutants.py                         all that is not known yet (hours; Ctrl-C and go on later)
    python tools/mutants.py learn/rules.py          one file, or a folder
    python tools/mutants.py --seconds 600 --seed 3  a random sample within a time limit
    python tools/mutants.py --list learn/rules.py   what would be planted

A fault is a change of the syntax tree: a flipped sign, a dropped factor, swapped times, another number, a flipped comparison
or condition, a removed detach or no_grad, swapped branches of `where`, a function exchanged for its sister. Source and tests
are copied to a temporary folder; a fault is written there, and the tests of its stages run in a forked process, in order and
until one fails. benchmarks/mutants.json keeps what is known: a dead fault stays dead while its file is unchanged, a survivor
is tried again when a test changed. Survivors keep the `reason` that was written beside them by hand.
"""

import argparse
import ast
import contextlib
import hashlib
import itertools
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
PACKAGE, STORE = ROOT / "src" / "flowmaps", ROOT / "benchmarks" / "mutants.json"
FOLDERS = ("core", "learn")
# what needs other machines' patience: training, launchers, compilers
SLOW = "not exam and not learns and not resume and not compiled and not inductor and not one_graph"
COMMON = ["tests/core/test_hazards.py", "tests/learn/test_proof.py"]

PAIRS = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Div,
    ast.Div: ast.Mult,
    ast.Pow: ast.Mult,
}
FLIPS = {
    ast.Lt: ast.GtE, ast.GtE: ast.Lt, ast.Gt: ast.LtE, ast.LtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq,
    ast.Is: ast.IsNot, ast.IsNot: ast.Is, ast.In: ast.NotIn, ast.NotIn: ast.In,
}  # fmt: skip
SISTERS = {"sin": "cos", "minimum": "maximum", "amin": "amax", "ones_like": "zeros_like", "alpha": "sigma", "s": "t",
           "dalpha": "dsigma", "x_0": "eps", "mean": "sum"}  # fmt: skip
SISTERS |= {b: a for a, b in SISTERS.items()}
QUIET = (ast.Raise, ast.Assert, ast.JoinedStr, ast.Import, ast.ImportFrom)


@dataclass(frozen=True)
class Fault:
    """One change of one file."""

    key: str
    line: int
    source: str
    change: str
    code: str


def places(tree: ast.AST) -> Iterator[tuple[ast.AST, str, int | None, ast.AST]]:
    """Every node that may be changed, with its parent, field and index."""
    for field, value in ast.iter_fields(tree):
        if field in ("annotation", "returns", "decorator_list", "type_params"):
            continue
        for index, node in enumerate(value) if isinstance(value, list) else [(None, value)]:
            if isinstance(node, ast.AST) and not isinstance(node, QUIET) and not protocol(node):
                yield tree, field, index, node
                yield from places(node)


def protocol(node: ast.AST) -> bool:
    """Whether a node is a protocol, whose body never runs."""
    bases = node.bases if isinstance(node, ast.ClassDef) else []
    return any(isinstance(base, ast.Name) and base.id == "Protocol" for base in bases)


def variants(node: ast.AST) -> Iterator[tuple[str, ast.AST]]:
    """What may stand in the place of a node."""
    if isinstance(node, ast.expr):
        yield from numbers(node)
    match node:
        case ast.Compare(left, [op], right) if type(op) in FLIPS:
            yield "comparison", ast.Compare(left, [FLIPS[type(op)]()], right)
        case ast.BoolOp(op, values):
            yield (
                "condition",
                ast.BoolOp(ast.Or() if isinstance(op, ast.And) else ast.And(), values),
            )
        case ast.withitem(ast.Call(ast.Attribute(_, "no_grad"))):
            free = ast.parse("torch.enable_grad()", mode="eval").body
            yield "undetached", ast.withitem(free, None)
        case ast.Call(ast.Attribute(value, "detach"), []):
            yield "undetached", value
        case ast.Call():
            yield from calls(node)
        case _:
            pass


def numbers(node: ast.expr) -> Iterator[tuple[str, ast.AST]]:
    """Other operators, factors, signs, constants and coefficients."""
    match node:
        case ast.BinOp(left, op, right) if type(op) in PAIRS:
            yield "operator", ast.BinOp(left, PAIRS[type(op)](), right)
            if isinstance(op, ast.Mult | ast.Div):
                yield "dropped right", left
            if isinstance(op, ast.Mult):
                yield "dropped left", right
        case ast.UnaryOp(ast.USub() | ast.Not(), operand):
            yield "sign" if isinstance(node.op, ast.USub) else "condition", operand
        case ast.Constant(bool(value)):
            yield "constant", ast.Constant(not value)
        case ast.Constant(int(value) | float(value)):
            yield "constant", ast.Constant(value + 1)
        case ast.Attribute(value, name, ctx) if name in SISTERS and isinstance(ctx, ast.Load):
            yield "sister", ast.Attribute(value, SISTERS[name], ctx)
        case _:
            pass


def calls(node: ast.Call) -> Iterator[tuple[str, ast.AST]]:
    """Calls with times, or branches, in another order."""
    named = [arg.id if isinstance(arg, ast.Name) else "" for arg in node.args]
    for i, pair in enumerate(itertools.pairwise(named)):
        if set(pair) <= {"s", "w", "t"} and pair[0] != pair[1]:
            args = [*node.args[:i], node.args[i + 1], node.args[i], *node.args[i + 2 :]]
            yield "swapped times", ast.Call(node.func, args, node.keywords)
    if isinstance(node.func, ast.Attribute) and node.func.attr == "where" and len(node.args) == 3:
        a, b, c = node.args
        yield "swapped branches", ast.Call(node.func, [a, c, b], node.keywords)


def faults(path: Path) -> list[Fault]:
    """Every fault of a file."""
    text = path.read_text()
    lines, tree = text.splitlines(), ast.parse(text)
    seen: Counter[str] = Counter()
    found: list[Fault] = []
    for parent, field, index, node in [*places(tree)]:
        line = getattr(node, "lineno", getattr(parent, "lineno", 1))
        for kind, new in variants(node):
            old = ast.unparse(node)
            change = f"{kind}: {old} -> {ast.unparse(new)}"
            source = lines[line - 1].strip()
            seen[source + change] += 1
            named = f"{path.relative_to(PACKAGE)}|{source}|{change}|{seen[source + change]}"
            key = hashlib.sha1(named.encode(), usedforsecurity=False).hexdigest()[:10]
            put(parent, field, index, new)
            found.append(
                Fault(key, line, source, change, ast.unparse(ast.fix_missing_locations(tree)))
            )
            put(parent, field, index, node)
    return found


def put(parent: ast.AST, field: str, index: int | None, node: ast.AST) -> None:
    """Set a node."""
    if index is None:
        setattr(parent, field, node)
    else:
        getattr(parent, field)[index] = node


def stages(root: Path, path: Path) -> list[list[str]]:
    """Test files by likeliness of a kill, the fast ones of the file itself first."""
    folder, stem = path.parent.name, path.stem
    names = {"core": {"parametrization": "maps", "flow_map": "maps", "velocity": "maps"}}
    own = f"tests/{folder}/test_{names.get(folder, {}).get(stem, stem)}.py"
    layer = sorted(str(p.relative_to(root)) for p in (root / "tests" / folder).glob("test_*.py"))
    late = ["tests/recipes/test_contract.py"]
    if folder == "core":
        late = ["tests/learn/test_rules.py", "tests/metrics/test_identity.py", *late]
    rest = [name for name in [*layer, *COMMON, *late] if name != own]
    there = [[name] for name in dict.fromkeys([own, *rest]) if (root / name).exists()]
    return there


class Bench:
    """The temporary copy, and the forked processes that test it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        hide = shutil.ignore_patterns("__pycache__", "*.pyc", "runs", "results")
        for name in ("src", "tests", "benchmarks", "tools", "docs"):
            shutil.copytree(ROOT / name, folder / name, ignore=hide)
        for name in ("pyproject.toml", "README.md", "CONTRIBUTING.md", "Makefile"):
            shutil.copy(ROOT / name, folder / name)
        os.environ |= {
            "PYTHONPATH": str(folder / "src"), "PYTHONDONTWRITEBYTECODE": "1", "OMP_NUM_THREADS": "1",
        }  # fmt: skip
        self.limits: dict[str, float] = {}
        self.skipped: list[str] = []

    def run(self, tests: list[str], limit: float) -> tuple[int, float]:
        """Exit status of pytest on some files (-9 when it took too long), and seconds."""
        began, pid = time.monotonic(), os.fork()
        if pid == 0:
            os.setsid()
            status = 70
            try:
                first = " ".join(tests) not in self.limits
                status = child(self.folder, tests, self.skipped, first)
            finally:
                os._exit(status)
        while time.monotonic() - began < limit:
            done, status = os.waitpid(pid, os.WNOHANG)
            if done:
                return os.waitstatus_to_exitcode(status), time.monotonic() - began
            time.sleep(0.02)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        return -9, time.monotonic() - began

    def baseline(self, tests: list[str]) -> None:
        """How long the tests take without a fault bounds how long they may with one; those that fail are left out, loudly."""
        key = " ".join(tests)
        if key in self.limits:
            return
        failed = self.folder / "failed.txt"
        failed.write_text("")
        status, seconds = self.run(tests, 900)
        if status not in (0, 1, 5):  # 5: nothing was selected
            sys.exit(f"the tests of {key} do not run (status {status}): mend them first")
        self.limits[key] = 5 * seconds + 20
        self.skipped += failed.read_text().split("\n")[:-1]
        if status == 1:
            print(f"left out, as they fail without any fault: {self.skipped}", flush=True)

    def kill(self, path: Path, fault: Fault) -> str:
        """The first test file that notices a fault, or nothing."""
        target = self.folder / "src" / "flowmaps" / path.relative_to(PACKAGE)
        original = target.read_text()
        for tests in stages(self.folder, path):
            self.baseline(tests)
            target.write_text(fault.code)
            try:
                status, _ = self.run(tests, self.limits[" ".join(tests)])
            finally:
                target.write_text(original)
            if status not in (0, 5):
                return " ".join(tests) + (" (took too long)" if status == -9 else "")
        return ""


class Note:
    """A plugin of pytest that writes down what fails."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def pytest_runtest_logreport(self, report: Any) -> None:  # noqa: ANN401
        """Note the test."""
        if report.failed:
            with self.path.open("a") as out:
                out.write(report.nodeid + "\n")


def child(folder: Path, tests: list[str], skipped: list[str], first: bool) -> int:
    """Run pytest quietly in this process, on the copy; the `first` time until the end, noting what fails."""
    import pytest

    quiet = os.open(os.devnull, os.O_WRONLY)
    for stream in (1, 2):
        os.dup2(quiet, stream)
    os.chdir(folder)
    sys.path.insert(0, str(folder / "src"))
    import flowmaps

    if not str(flowmaps.__file__).startswith(str(folder)):
        return 71
    options = [
        "-q",
        "-p",
        "no:cacheprovider",
        "-k",
        SLOW,
        *(f"--deselect={name}" for name in skipped),
    ]
    if first:
        return int(pytest.main([*options, *tests], plugins=[Note(folder / "failed.txt")]))
    return int(pytest.main(["-x", *options, *tests]))


def digest(paths: list[Path]) -> str:
    """One name for the contents of files."""
    sums = [hashlib.sha1(p.read_bytes(), usedforsecurity=False).hexdigest() for p in sorted(paths)]
    return hashlib.sha1("".join(sums).encode(), usedforsecurity=False).hexdigest()[:10]


def sources(asked: list[str]) -> list[Path]:
    """The files that are meant: by default all of `FOLDERS`."""
    found: list[Path] = []
    for name in asked or FOLDERS:
        path = PACKAGE / name.removeprefix("src/flowmaps/")
        found += sorted(path.glob("*.py")) if path.is_dir() else [path]
    return [path for path in found if path.name != "__init__.py"]


def known(store: dict[str, Any], path: Path, tests: str) -> dict[str, Any]:
    """The entry of a file, without what is known no longer."""
    name, state = str(path.relative_to(PACKAGE)), digest([path])
    entry = store.setdefault(name, {"state": state, "tests": tests, "dead": [], "survivors": []})
    changed = entry["state"] != state
    if changed:
        entry |= {"state": state, "dead": []}  # survivors stay, for their reasons
    for survivor in entry["survivors"]:
        survivor["stale"] = changed or entry["tests"] != tests
    entry["tests"] = tests
    return entry


def write(store: dict[str, Any]) -> None:
    """Save what is known, with a summary."""
    files = {k: v for k, v in sorted(store.items()) if k != "summary"}
    dead = sum(len(entry["dead"]) for entry in files.values())
    alive = [s for entry in files.values() for s in entry["survivors"]]
    share = dead / max(dead + len(alive), 1)
    summary = {
        "tried": dead + len(alive), "dead": dead, "survivors": len(alive),
        "with a reason": sum(bool(s["reason"]) for s in alive), "share dead": round(share, 4),
    }  # fmt: skip
    partial = STORE.with_suffix(".partial")
    partial.write_text(json.dumps({"summary": summary} | files, indent=1) + "\n")
    partial.replace(STORE)


def record(entry: dict[str, Any], fault: Fault, by: str) -> None:
    """Note the fate of a fault; a survivor keeps its reason."""
    old = [s for s in entry["survivors"] if s["key"] == fault.key]
    entry["survivors"] = [s for s in entry["survivors"] if s["key"] != fault.key]
    if by:
        entry["dead"].append(fault.key)
        return
    entry["survivors"].append(
        {
            "key": fault.key, "line": fault.line, "source": fault.source, "change": fault.change,
            "reason": old[0]["reason"] if old else "",
        }
    )  # fmt: skip


def main() -> int:
    """Plant what is asked for; 1 if a survivor has no reason."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("paths", nargs="*", help="files or folders below src/flowmaps")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="stop after this long")
    parser.add_argument("--seed", type=int, help="order at random, by this seed")
    parser.add_argument("--list", action="store_true", help="print the faults and stop")
    options = parser.parse_args()
    paths = sources(options.paths)
    if options.list:
        for path in paths:
            for fault in faults(path):
                print(f"{path.relative_to(ROOT)}:{fault.line}: {fault.change}")
        return 0
    began = time.monotonic()
    store = json.loads(STORE.read_text()) if STORE.exists() else {}
    tests = digest([*(ROOT / "tests").rglob("*.py")])
    waiting: list[tuple[Path, Fault]] = []
    for path in paths:
        entry, planted = known(store, path, tests), faults(path)
        keys = {fault.key for fault in planted}
        entry["survivors"] = [s for s in entry["survivors"] if s["key"] in keys]
        settled = {*entry["dead"], *(s["key"] for s in entry["survivors"] if not s.pop("stale"))}
        waiting += [(path, fault) for fault in planted if fault.key not in settled]
    if options.seed is not None:
        random.Random(options.seed).shuffle(waiting)
    return plant(store, waiting, began + options.seconds)


def plant(store: dict[str, Any], waiting: list[tuple[Path, Fault]], until: float) -> int:
    """Try the faults, saving after each."""
    import pytest  # noqa: F401  # imported once, here, and inherited by every fork
    import torch

    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="mutants-") as folder:
        bench = Bench(Path(folder))
        for i, (path, fault) in enumerate(waiting):
            if time.monotonic() > until:
                print(f"out of time: {len(waiting) - i} faults are left")
                break
            name = str(path.relative_to(PACKAGE))
            by = bench.kill(path, fault)
            record(store[name], fault, by)
            write(store)
            verdict = f"dead   {by}" if by else "ALIVE "
            print(
                f"{i + 1}/{len(waiting)} {verdict} {name}:{fault.line} {fault.change}", flush=True
            )
    write(store)
    summary = json.loads(STORE.read_text())["summary"]
    print(json.dumps(summary))
    return int(summary["with a reason"] < summary["survivors"])


if __name__ == "__main__":
    sys.exit(main())
