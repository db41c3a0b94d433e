"""Plant faults in core/ and learn/, one at a time, and see whether a test notices.

    python tools/mutants.py --seed 3                 all that is not known yet, at random (an hour or two; go on any time)
    python tools/mutants.py learn/rules.py           one file, or a folder
    python tools/mutants.py --seconds 600 --seed 3   a random sample within a time limit
    python tools/mutants.py --only d7f677d84f        one fault, by its key, whatever is known of it
    python tools/mutants.py --list learn/rules.py    what would be planted

A fault is a change of the syntax tree: a flipped sign, a dropped factor, swapped times, another number, a flipped comparison
or condition, a removed detach or no_grad, swapped branches of `where`, a function exchanged for its sister. Left alone
are messages, asserts and `strict=` of zip, which say that something is wrong and change no result, and the defaults of
arguments that a function takes for its protocol's sake and never reads.

It runs on a copy of source and tests. First every test runs once without a fault, alone in a process of its own: which lines
of core/ and learn/ it executes, and how long it takes (kept in the temporary folder until a test or a line changes); a test
that fails is left out, loudly. A fault is then shown to the tests that execute its statement, the fastest first, until one
fails. There are two ways to plant it:

* hot: source and tests are loaded already, and a forked process gives the functions of the file the code of its changed text.
* cold: the file is written, and a forked process imports source and tests anew. This is for statements that run while they
  are imported or collected (defaults, tables, parametrizations of tests); such a fault is shown to all tests that enter the
  file, and to those that run no line of core/ or learn/: they look at things as they were imported.

A fault may take `--budget` seconds of tests; one that nobody noticed by then waits for the end of the run and sees the rest.
benchmarks/mutants.json keeps what is known: a dead fault stays dead while its file is unchanged, and so does a survivor with
the reason `equivalent: ...`, which says that no test could tell; other survivors are tried again when a test changed. Reasons
are written beside them by hand, and stay.
"""

import argparse
import ast
import contextlib
import gc
import hashlib
import importlib
import itertools
import json
import math
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path
from types import CodeType, FrameType, FunctionType
from typing import Any

ROOT = Path(__file__).parents[1]
PACKAGE, STORE = ROOT / "src" / "flowmaps", ROOT / "benchmarks" / "mutants.json"
FOLDERS = ("core", "learn")
TESTS = ("core", "learn", "sample", "recipes", "metrics")
# what needs other machines' patience: training, launchers, compilers
SLOW = "not exam and not learns and not resume and not compiled and not inductor and not one_graph"
PYTEST = ["-q", "-p", "no:cacheprovider", "-p", "no:warnings", "-o", "timeout=0", "-k", SLOW]

PAIRS: dict[type[ast.operator], type[ast.operator]] = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Div,
    ast.Div: ast.Mult,
    ast.Pow: ast.Mult,
}
FLIPS: dict[type[ast.cmpop], type[ast.cmpop]] = {
    ast.Lt: ast.GtE, ast.GtE: ast.Lt, ast.Gt: ast.LtE, ast.LtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq,
    ast.Is: ast.IsNot, ast.IsNot: ast.Is, ast.In: ast.NotIn, ast.NotIn: ast.In,
}  # fmt: skip
KIN = {"sin": "cos", "minimum": "maximum", "amin": "amax", "ones_like": "zeros_like", "alpha": "sigma", "s": "t",
       "dalpha": "dsigma", "x_0": "eps", "mean": "sum"}  # fmt: skip
SISTERS = KIN | {b: a for a, b in KIN.items()}
QUIET = (ast.Raise, ast.Assert, ast.JoinedStr, ast.Import, ast.ImportFrom)


@dataclass(frozen=True)
class Fault:
    """One change of one file; `span` are the lines of its statement, without the statements within."""

    key: str
    path: Path
    line: int
    span: range
    source: str
    change: str
    text: str


def places(tree: ast.AST, inside: ast.stmt | None = None) -> Iterator[tuple[ast.AST, ast.stmt]]:
    """Every node that may be changed, with its statement."""
    for field, value in ast.iter_fields(tree):
        if field in ("annotation", "returns", "decorator_list", "type_params"):
            continue
        for node in value if isinstance(value, list) else [value]:
            if isinstance(node, ast.AST) and not quiet(node, inside):
                statement = node if isinstance(node, ast.stmt) else inside
                if statement:
                    yield node, statement
                yield from places(node, statement)


def quiet(node: ast.AST, inside: ast.stmt | None) -> bool:
    """Whether a change cannot matter: of a message or an assertion, a protocol, a default that the function never reads."""
    match node:
        case ast.ClassDef():
            return any(isinstance(base, ast.Name) and base.id == "Protocol" for base in node.bases)
        case ast.keyword():
            return node.arg == "strict"
        case ast.Constant() if isinstance(inside, ast.FunctionDef):
            return any(
                node is default and not reads(inside, arg) for arg, default in defaults(inside.args)
            )
        case _:
            return isinstance(node, QUIET)


def defaults(args: ast.arguments) -> Iterator[tuple[ast.arg, ast.expr | None]]:
    """The arguments that have a default, with it."""
    places = [*args.posonlyargs, *args.args]
    yield from zip(places[len(places) - len(args.defaults) :], args.defaults, strict=True)
    yield from zip(args.kwonlyargs, args.kw_defaults, strict=True)


def reads(function: ast.FunctionDef, arg: ast.arg) -> bool:
    """Whether a function uses an argument."""
    return any(isinstance(node, ast.Name) and node.id == arg.arg for node in ast.walk(function))


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
    for node, statement in places(tree):
        for kind, new in variants(node):
            expr = node.context_expr if isinstance(node, ast.withitem) else node
            assert isinstance(expr, ast.expr), ast.dump(node)
            change = f"{kind}: {ast.unparse(node)} -> {ast.unparse(new)}"
            source = lines[expr.lineno - 1].strip()
            seen[source + change] += 1
            named = f"{path.relative_to(PACKAGE)}|{source}|{change}|{seen[source + change]}"
            key = hashlib.sha1(named.encode(), usedforsecurity=False).hexdigest()[:10]
            changed = put(text, expr, ast.unparse(new))
            found.append(
                Fault(key, path, expr.lineno, span(expr, statement), source, change, changed)
            )
    return found


def span(expr: ast.expr, statement: ast.stmt) -> range:
    """The lines of an expression and of its statement, or of the head of one that holds others."""
    body = getattr(statement, "body", getattr(statement, "cases", None))
    inner = getattr(body[0], "lineno", expr.lineno) if body else 0
    last = max(inner - 1, statement.lineno) if body else statement.end_lineno
    return range(statement.lineno, max(last or 0, expr.end_lineno or 0) + 1)


def put(text: str, old: ast.expr, new: str) -> str:
    """The text with another expression in one place, and every other line where it was."""
    lines = text.encode().splitlines(keepends=True)
    first, last = old.lineno - 1, (old.end_lineno or old.lineno) - 1
    before, after = lines[first][: old.col_offset], lines[last][old.end_col_offset :]
    middle = f"({new}{chr(10) * (last - first)})".encode()
    return b"".join([*lines[:first], before, middle, after, *lines[last + 1 :]]).decode()


Lines = dict[str, list[int]]
COLD, ABSENT = 75, 5  # a hot fault that only an import can plant; pytest: no test was selected


@dataclass(frozen=True)
class Request:
    """Tests with their limits in seconds of the processor, and the text of a file while they run (`None`: note the lines)."""

    tests: dict[str, float]
    file: str = ""
    text: str | None = None


def alone(work: Callable[[], int], seconds: float) -> int:
    """Exit status of some work in a forked process of its own; negative where a signal, or the end of its time, ended it."""
    until, pid = time.monotonic() + seconds, os.fork()
    if pid == 0:
        status = 70
        try:
            os.setsid()
            sys.dont_write_bytecode = True
            status = work()
        finally:
            os._exit(status)
    while time.monotonic() < until:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.004)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    return -signal.SIGKILL


class Trace:
    """Notes which lines of `FOLDERS` run, by file; entering a function counts as its first line."""

    def __init__(self, package: Path) -> None:
        self.folders = tuple(f"{package / name}{os.sep}" for name in FOLDERS)
        self.start = len(str(package)) + 1
        self.seen: dict[str, set[int]] = {}

    def __call__(self, frame: FrameType, event: str, arg: object) -> Any:  # noqa: ANN401
        """The trace function of the interpreter, and of the frames that are watched."""
        name = frame.f_code.co_filename
        if event == "call" and not name.startswith(self.folders):
            return None
        self.seen.setdefault(name[self.start :], set()).add(frame.f_lineno)
        return self

    def lines(self) -> Lines:
        """What has been seen."""
        return {name: sorted(lines) for name, lines in self.seen.items()}


class Cold:
    """A plugin of pytest that runs the chosen tests in order, each for a limited time, and notes the one that fails."""

    def __init__(self, note: Path, tests: dict[str, float], known: set[str]) -> None:
        self.note, self.tests, self.known = note, tests, known

    def pytest_collection_modifyitems(self, items: list[Any]) -> None:
        """Keep the chosen ones, and those that only the fault has (its parameters have other names)."""
        order = {name: i for i, name in enumerate(self.tests)}
        kept = [item for item in items if item.nodeid in order or item.nodeid not in self.known]
        items[:] = sorted(kept, key=lambda item: order.get(item.nodeid, len(order)))

    def pytest_runtest_setup(self, item: Any) -> None:  # noqa: ANN401
        """Start the clock."""
        signal.setitimer(signal.ITIMER_PROF, self.tests.get(item.nodeid, 60))

    def pytest_runtest_logreport(self, report: Any) -> None:  # noqa: ANN401
        """Note a failure."""
        if report.failed:
            self.note.write_text(report.nodeid)


class Hot:
    """A plugin of pytest that collects everything once and then answers requests, each in a forked process."""

    def __init__(self, folder: Path, pipe: Connection) -> None:
        self.folder, self.pipe, self.note = folder, pipe, folder / "note"
        self.trace = Trace(folder / "src" / "flowmaps")

    def pytest_runtestloop(self, session: Any) -> bool:  # noqa: ANN401
        """Tell what was collected, which lines ran meanwhile, and which modules came along; then serve."""
        sys.settrace(None)
        assert str(sys.modules["flowmaps"].__file__).startswith(str(self.folder))
        self.session, self.items = session, {item.nodeid: item for item in session.items}
        self.functions: dict[CodeType, list[FunctionType]] = {}
        for thing in gc.get_objects():
            if isinstance(thing, FunctionType):
                name = thing.__code__.co_filename
                if name.startswith(self.trace.folders):
                    self.functions.setdefault(thing.__code__, []).append(thing)
        self.pipe.send((list(self.items), self.trace.lines(), list(sys.modules)))
        gc.collect()
        gc.freeze()
        with contextlib.suppress(EOFError):
            while request := self.pipe.recv():
                limit = 60 + 4 * sum(request.tests.values())
                self.pipe.send(alone(lambda: self.answer(request), limit))
        return True

    def pytest_runtest_logreport(self, report: Any) -> None:  # noqa: ANN401
        """Note a failure."""
        if report.failed:
            self.note.write_text(report.nodeid)

    def answer(self, request: Request) -> int:
        """Run tests until one fails: 1; 0 if none does."""
        if request.text is not None and not self.plant(request.file, request.text):
            return COLD
        began = time.process_time()
        if request.text is None:
            self.trace.seen.clear()
            sys.settrace(self.trace)
        chosen = [self.items[name] for name in request.tests]
        for item, after in itertools.zip_longest(chosen, chosen[1:]):
            signal.setitimer(signal.ITIMER_PROF, request.tests[item.nodeid])
            item.config.hook.pytest_runtest_protocol(item=item, nextitem=after)
            if self.session.testsfailed:
                return 1
        sys.settrace(None)
        if request.text is None:
            self.note.write_text(json.dumps([time.process_time() - began, self.trace.lines()]))
        return 0

    def plant(self, file: str, text: str) -> bool:
        """Give the functions of a file the code of its changed text; false where none has it."""
        path = str(self.folder / "src" / "flowmaps" / file)
        old, new = (
            [*codes(compile(t, path, "exec", dont_inherit=True))]
            for t in (Path(path).read_text(), text)
        )
        if [code.co_qualname for code in old] != [code.co_qualname for code in new]:
            return False
        changed = [
            (function, b)
            for a, b in zip(old, new, strict=True)
            for function in self.functions.get(a, [])
            if a != b
        ]
        if any(f.__code__.co_freevars != code.co_freevars for f, code in changed):
            return False
        for function, code in changed:
            function.__code__ = code
        return bool(changed)


def codes(code: CodeType) -> Iterator[CodeType]:
    """A piece of code and all within it."""
    yield code
    for const in code.co_consts:
        if isinstance(const, CodeType):
            yield from codes(const)


def warm() -> None:
    """What torch does at the first derivative of a process, and takes seconds for: it imports its compiler."""
    import torch

    torch.set_num_threads(1)
    x = torch.ones(2)
    torch.func.jvp(torch.sin, (x,), (x,))
    torch.func.vmap(torch.func.grad(torch.sin))(x)


def settle(folder: Path) -> None:
    """Say nothing, and live in the copy."""
    null = os.open(os.devnull, os.O_WRONLY)
    for stream in (1, 2):
        os.dup2(null, stream)
    os.chdir(folder)
    sys.path.insert(0, str(folder / "src"))


class Bench:
    """The temporary copy, what its tests execute, and the processes that run them."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.note = folder, folder / "note"
        hide = shutil.ignore_patterns("__pycache__", "*.pyc", "runs", "results")
        for name in ("src", "tests", "benchmarks", "tools", "docs"):
            shutil.copytree(ROOT / name, folder / name, ignore=hide)
        for name in ("pyproject.toml", "README.md", "CONTRIBUTING.md", "Makefile"):
            shutil.copy(ROOT / name, folder / name)
        os.environ |= {"PYTHONPATH": str(folder / "src"), "OMP_NUM_THREADS": "1"}
        self.pipe, there = Pipe()
        if os.fork() == 0:
            self.pipe.close()
            self.serve(there)
        there.close()
        try:
            self.names, self.imported, modules = self.pipe.recv()
        except EOFError:
            sys.exit("the tests cannot be collected: mend them first")
        for name in modules:
            if name.partition(".")[0] not in ("flowmaps", "tests", "conftest", "__main__"):
                with contextlib.suppress(Exception):
                    importlib.import_module(name)
        self.seconds: dict[str, float] = {}
        self.reach: dict[str, dict[int, list[str]]] = {}
        self.kills: Counter[tuple[str, str]] = Counter()
        self.idle: set[str] = set()  # tests that look at things as they were imported
        self.measure()

    def serve(self, pipe: Connection) -> None:
        """The process that has everything loaded."""
        import pytest

        try:
            settle(self.folder)
            sys.dont_write_bytecode = False  # what the cold ones will read
            server = Hot(self.folder, pipe)
            sys.settrace(server.trace)
            pytest.main([*PYTEST, *(f"tests/{name}" for name in TESTS)], plugins=[server])
        finally:
            os._exit(0)

    def ask(self, request: Request) -> int:
        """Exit status of the hot process that answers a request."""
        self.note.write_text("")
        self.pipe.send(request)
        return self.pipe.recv()

    def measure(self) -> None:
        """Run every test alone and without a fault, unless its lines and seconds are known and no file of them changed."""
        cache = Path(tempfile.gettempdir()) / "flowmaps-tests.json"
        known = json.loads(cache.read_text()) if cache.exists() else {}
        package = self.folder / "src" / "flowmaps"
        states = {str(p.relative_to(package)): digest([p]) for p in package.rglob("*.py")}
        states |= {name: digest([self.folder / name]) for name in {*map(home, self.names)}}
        fresh = {}
        for i, name in enumerate(self.names):
            seconds, lines, then = known.get(name, (0, {}, {"": ""}))
            if any(states.get(file) != state for file, state in then.items()):
                passed = self.ask(Request({name: 600.0})) == 0
                seconds, lines = json.loads(self.note.read_text()) if passed else (-1.0, {})
            fresh[name] = seconds, lines, {file: states[file] for file in [home(name), *lines]}
            if i % 100 == 99 or i == len(self.names) - 1:
                cache.write_text(json.dumps(known | fresh))
            if seconds < 0:
                print(f"left out, as it fails alone and without a fault: {name}", flush=True)
            self.seconds[name] = seconds
            if seconds >= 0 and not lines:
                self.idle.add(name)
            for file, numbers in lines.items():
                for number in numbers:
                    self.reach.setdefault(file, {}).setdefault(number, []).append(name)

    def candidates(self, fault: Fault) -> tuple[list[str], bool]:
        """The tests that may notice a fault, the most promising for their time first, and whether it must be planted cold."""
        file = str(fault.path.relative_to(PACKAGE))
        reach = self.reach.get(file, {})
        near = {name for line in fault.span for name in reach.get(line, [])}
        cold = not {*fault.span}.isdisjoint(self.imported.get(file, []))
        entering = {name for names in reach.values() for name in names}
        names = near | entering | self.idle if cold else near
        own = f"tests/{fault.path.parent.name}/test_{fault.path.stem}.py"
        turn: Counter[str] = Counter()

        def rank(name: str) -> float:
            """Its seconds; more in files of other things and after the same function, less after kills in this file."""
            function, folder = name.partition("[")[0], str(Path(own).parent)
            apart = 1 if name.startswith(own) else 2 if name.startswith(folder) else 6
            if name in self.idle:
                return self.seconds[name] * apart
            turn[function] += 1
            apart *= turn[function] * (1 if name in near else 3)
            return self.seconds[name] * apart / (1 + self.kills[file, function])

        by_time = sorted(names, key=lambda name: (self.seconds[name], name))
        return sorted(by_time, key=rank), cold

    def kill(self, fault: Fault, budget: float) -> tuple[str, int, int]:
        """The test that notices a fault, or nothing; how many tests saw it within the budget, and how many could."""
        names, cold = self.candidates(fault)
        file = str(fault.path.relative_to(PACKAGE))
        spent = [*itertools.accumulate(self.seconds[name] for name in names)]
        chosen = names[: max(1, sum(s <= budget for s in spent))]
        request = Request({n: 4 * self.seconds[n] + 3 for n in chosen}, file, fault.text)
        if not chosen:
            return "", 0, 0
        status = COLD if cold else self.ask(request)
        if status == COLD:
            status = self.cold(request)
        failed = self.note.read_text()
        if failed:
            self.kills[file, failed.partition("[")[0]] += 1
        return (
            "" if status in (0, ABSENT) else failed or f"status {status}",
            len(chosen),
            len(names),
        )

    def cold(self, request: Request) -> int:
        """Exit status of tests that import a changed file; those of one file of tests come first, as a kill is quick there."""
        target = self.folder / "src" / "flowmaps" / request.file
        original, stat = target.read_text(), target.stat()
        first = home(next(iter(request.tests)))
        own = {n: limit for n, limit in request.tests.items() if home(n) == first}
        rest = {n: limit for n, limit in request.tests.items() if n not in own}
        assert request.text is not None
        target.write_text(request.text)
        os.utime(target, (stat.st_atime, stat.st_mtime + 1000))  # no compiled file is of this time
        try:
            for tests in (own, rest):
                if tests:
                    self.note.write_text("")
                    limit = 60 + 4 * sum(tests.values())
                    status = alone(lambda: self.import_and_run(tests), limit)  # noqa: B023
                    if status not in (0, ABSENT):
                        return status
        finally:
            target.write_text(original)
            os.utime(target, (stat.st_atime, stat.st_mtime))
        return 0

    def import_and_run(self, tests: dict[str, float]) -> int:
        """Run pytest in this process."""
        import pytest

        settle(self.folder)
        files = dict.fromkeys(map(home, tests))
        plugin = Cold(self.note, tests, {*self.names})
        return int(pytest.main([*PYTEST, "-x", *files], plugins=[plugin]))


def home(test: str) -> str:
    """The file of a test."""
    return test.partition("::")[0]


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


def equivalent(survivor: dict[str, Any]) -> bool:
    """Whether somebody found that no test could tell."""
    return survivor["reason"].startswith("equivalent")


class Store:
    """What is known, by file: the keys of the dead, and the survivors."""

    def __init__(self) -> None:
        self.files: dict[str, Any] = json.loads(STORE.read_text()) if STORE.exists() else {}
        self.files.pop("summary", None)
        self.tests, self.total = digest([*(ROOT / "tests").rglob("*.py")]), 0

    def waiting(self, paths: list[Path]) -> list[Fault]:
        """The faults of some files whose fate is unknown, or no longer known."""
        found: list[Fault] = []
        for path in sources([]):
            planted, state = faults(path), digest([path])
            self.total += len(planted)
            empty = {"state": state, "dead": [], "survivors": []}
            entry = self.files.setdefault(str(path.relative_to(PACKAGE)), empty)
            keys = {fault.key for fault in planted}
            alive = [s for s in entry["survivors"] if s["key"] in keys]
            if entry["state"] != state:
                entry["dead"], alive = [], [s | {"tests": ""} for s in alive]
            entry |= {"state": state, "survivors": alive}
            settled = {*entry["dead"], *(s["key"] for s in alive if self.settled(s))}
            if path in paths:
                found += [fault for fault in planted if fault.key not in settled]
        return found

    def settled(self, survivor: dict[str, Any]) -> bool:
        """Whether a survivor need not be tried again."""
        if equivalent(survivor):
            return bool(survivor["tests"])
        seen = bool(survivor["reason"]) or survivor["saw"] == survivor["of"]
        return seen and survivor["tests"] == self.tests

    def record(self, fault: Fault, by: str, saw: int, of: int) -> str:
        """Note the fate of a fault; a survivor keeps its reason."""
        entry = self.files[str(fault.path.relative_to(PACKAGE))]
        reason = "".join(s["reason"] for s in entry["survivors"] if s["key"] == fault.key)
        entry["survivors"] = [s for s in entry["survivors"] if s["key"] != fault.key]
        entry["dead"] = [key for key in entry["dead"] if key != fault.key]
        if by:
            entry["dead"].append(fault.key)
        else:
            known = {name: getattr(fault, name) for name in ("key", "line", "source", "change")}
            seen = {"saw": saw, "of": of, "tests": self.tests, "reason": reason}
            entry["survivors"].append(known | seen)
        return reason

    def summary(self) -> dict[str, Any]:
        """The figures; the interval is Wilson's, of a random sample, and absent when all were tried."""
        dead = sum(len(entry["dead"]) for entry in self.files.values())
        alive = [s for entry in self.files.values() for s in entry["survivors"]]
        equal, tried = sum(map(equivalent, alive)), dead + len(alive)
        figures: dict[str, Any] = {
            "faults": self.total, "tried": tried, "dead": dead, "survivors": len(alive),
            "with a reason": sum(bool(s["reason"]) for s in alive), "equivalent": equal,
            "share dead": round(dead / max(tried, 1), 4),
            "share dead of those that change something": round(dead / max(tried - equal, 1), 4),
        }  # fmt: skip
        if 0 < tried < self.total:
            p, z = dead / tried, 1.96 / math.sqrt(tried)
            middle, half = p + z * z / 2, z * math.sqrt(p * (1 - p) + z * z / 4)
            figures["interval of 95 %"] = [
                round((middle + side * half) / (1 + z * z), 4) for side in (-1, 1)
            ]
        return figures

    def write(self) -> None:
        """Save."""
        partial = STORE.with_suffix(".partial")
        text = json.dumps({"summary": self.summary()} | dict(sorted(self.files.items())), indent=1)
        partial.write_text(text + "\n")
        partial.replace(STORE)


def main() -> int:
    """Plant what is asked for; 1 if a survivor has no reason."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("paths", nargs="*", help="files or folders below src/flowmaps")
    parser.add_argument("--seconds", type=float, default=math.inf, help="stop after this long")
    parser.add_argument("--budget", type=float, default=10.0, help="seconds of tests per fault")
    parser.add_argument("--seed", type=int, help="order at random, by this seed")
    parser.add_argument("--only", nargs="+", help="these keys, whatever is known of them")
    parser.add_argument("--list", action="store_true", help="print the faults and stop")
    options = parser.parse_args()
    paths = sources(options.paths)
    if options.list:
        for fault in itertools.chain.from_iterable(map(faults, paths)):
            print(f"{fault.key} {fault.path.relative_to(ROOT)}:{fault.line}: {fault.change}")
        return 0
    began, store = time.monotonic(), Store()
    waiting = store.waiting(paths)
    if options.only:
        waiting = [fault for path in paths for fault in faults(path) if fault.key in options.only]
    if options.seed is not None:
        random.Random(options.seed).shuffle(waiting)
    return plant(store, waiting, began + options.seconds, options.budget)


def plant(store: Store, waiting: list[Fault], until: float, budget: float) -> int:
    """Try the faults, saving after each, survivors first; those that outlive the budget see the other tests at the end."""
    import pytest  # noqa: F401  # pyright: ignore[reportUnusedImport]  # once, here, inherited by every fork

    warm()
    with tempfile.TemporaryDirectory(prefix="mutants-") as folder:
        bench = Bench(Path(folder))
        before = {s["key"] for entry in store.files.values() for s in entry["survivors"]}
        again = [(fault, math.inf) for fault in waiting if fault.key in before]
        queue = again + [(fault, budget) for fault in waiting if fault.key not in before]
        for i, (fault, allowed) in enumerate(queue):
            began = time.monotonic()
            if began > until:
                print(f"out of time: {len(queue) - i} are left")
                break
            by, saw, of = bench.kill(fault, allowed)
            reason = store.record(fault, by, saw, of)
            store.write()
            if not by and not reason and saw < of:
                queue.append((fault, math.inf))
            verdict = f"dead {by}" if by else f"ALIVE {saw}/{of}"
            where = f"{fault.path.relative_to(PACKAGE)}:{fault.line}"
            seconds = f"{time.monotonic() - began:.1f} s"
            print(
                f"{i + 1}/{len(queue)} {fault.key} {where} {fault.change} | {verdict} | {seconds}",
                flush=True,
            )
    store.write()
    print(json.dumps(store.summary()))
    return int(store.summary()["with a reason"] < store.summary()["survivors"])


if __name__ == "__main__":
    sys.exit(main())
