"""Hold the house to its size: functions, files and recipe cards; exit 1 when one outgrew it.

A function may have 50 code lines (docstring, comments and blank lines are free), a file 400
lines in all. A longer one says why in its first comment: `# budget: <reason>`.
"""

import ast
import io
import re
import sys
import tokenize
from collections.abc import Iterator
from pathlib import Path

FUNCTION, FILE, ARXIV = 50, 400, re.compile(r"arXiv:\d{4}\.\d{4,5}")
QUIET = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT}
Function = ast.FunctionDef | ast.AsyncFunctionDef
Scope = Function | ast.ClassDef | ast.Module


def code_lines(text: str, tree: ast.Module) -> tuple[set[int], dict[int, str]]:
    """Return the numbers of the lines that hold code, and the comments by line."""
    code, comments = set[int](), dict[int, str]()
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type == tokenize.COMMENT:
            comments[token.start[0]] = token.string
        elif token.type not in QUIET and token.string:
            code.update(range(token.start[0], token.end[0] + 1))
    for node in ast.walk(tree):
        if isinstance(node, Scope) and ast.get_docstring(node, clean=False) is not None:
            doc = node.body[0]
            code.difference_update(range(doc.lineno, (doc.end_lineno or doc.lineno) + 1))
    return code, comments


def excused(comments: dict[int, str], first: int, last: int) -> bool:
    """Tell whether the first comment of these lines gives a reason for the length."""
    found = next((comments[n] for n in range(first, last + 1) if n in comments), "")
    return bool(re.match(r"# budget: \S", found))


def card(path: Path, tree: ast.Module) -> Iterator[str]:
    """Yield what the card of a recipe lacks."""
    if not ARXIV.search(ast.get_docstring(tree) or ""):
        yield f"{path}: the module docstring names no source (arXiv:0000.00000)"
    if not any(isinstance(node, ast.FunctionDef) and node.name == path.stem for node in tree.body):
        yield f"{path}: no public function named {path.stem}"


def main(root: Path = Path("src/flowmaps")) -> int:
    """Print the figures and the violations under `root`; return how many violations there are."""
    lengths, bad, total, remarks = list[int](), list[str](), 0, 0
    for path in sorted(root.rglob("*.py")):
        text = path.read_text(encoding="utf-8")
        tree, count = ast.parse(text), len(text.splitlines())
        code, comments = code_lines(text, tree)
        total, remarks = total + len(code), remarks + len(comments)
        if count > FILE and not excused(comments, 1, count):
            bad.append(f"{path}: {count} lines (at most {FILE})")
        far = (n for n in ast.walk(tree) if isinstance(n, ast.ImportFrom) and n.level > 2)
        bad += [f"{path}:{n.lineno}: a relative import goes at most one level up" for n in far]
        for node in (n for n in ast.walk(tree) if isinstance(n, Function)):
            first, last = node.lineno, node.end_lineno or node.lineno
            lengths.append(sum(first <= line <= last for line in code))
            if lengths[-1] > FUNCTION and not excused(comments, first, last):
                bad.append(f"{path}:{first} {node.name}: {lengths[-1]} code lines (<= {FUNCTION})")
        if path.parent.name == "recipes" and not path.stem.startswith("_"):
            bad.extend(card(path, tree))
    ranked = sorted(lengths or [0])
    middle, p90, longest = (ranked[int(q * (len(ranked) - 1))] for q in (0.5, 0.9, 1))
    print(f"{len(lengths)} functions: median {middle}, p90 {p90}, max {longest} code lines")
    share = 100 * remarks / max(total, 1)
    print(f"{total} code lines, {share:.1f} comments per 100 of them (habit: 1 to 8)")
    print(*bad, sep="\n", end="\n" if bad else "")
    return len(bad)


if __name__ == "__main__":
    sys.exit(main(*map(Path, sys.argv[1:])) > 0)
