"""Hold the code to its hard numbers; exit 1 and name each place that breaks one.

No file over 250 lines, no function body over 40 (its docstring not counted), every function says what it
returns, and nothing is left to do. Tests, migrations and data are not measured.
"""

# ruff: noqa: INP001 - a script, not a package

import ast
import statistics
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CODE = ("config", "receiver", "worker", "firstseen", ".ci")
FILE_MAX = 250
BODY_MAX = 40
LEFTOVERS = tuple(word.upper() for word in ("todo", "fixme", "xxx"))

Function = ast.FunctionDef | ast.AsyncFunctionDef


def sources() -> list[Path]:
    """Return the measured files."""
    found = (path for folder in CODE for path in sorted((ROOT / folder).rglob("*.py")))
    return [path for path in found if "migrations" not in path.parts]


def body_lines(function: Function) -> int:
    """Count the lines from the first statement after the docstring to the last."""
    body = function.body[1:] if ast.get_docstring(function, clean=False) is not None else function.body
    return (body[-1].end_lineno or 0) - body[0].lineno + 1 if body else 0


def functions(tree: ast.Module) -> list[Function]:
    """Return every function and method of a module, nested ones too."""
    return [node for node in ast.walk(tree) if isinstance(node, Function)]


def broken(path: Path, text: str, found: list[Function]) -> Iterator[str]:
    """Yield a sentence for each number that a file breaks."""
    name = path.relative_to(ROOT)
    lines = text.splitlines()
    if len(lines) > FILE_MAX:
        yield f"{name}: {len(lines)} lines, the limit is {FILE_MAX}"
    for number, line in enumerate(lines, 1):
        if any(word in line for word in LEFTOVERS):
            yield f"{name}:{number}: something is left to do"
    for function in found:
        if body_lines(function) > BODY_MAX:
            where = f"{name}:{function.lineno} {function.name}"
            yield f"{where}: {body_lines(function)} lines, the limit is {BODY_MAX}"
        if function.returns is None:
            yield f"{name}:{function.lineno} {function.name}: its return type is missing"


def main() -> int:
    """Print the numbers and what breaks them."""
    files, sizes, bad = [], [], []
    for path in sources():
        text = path.read_text(encoding="utf-8")
        found = functions(ast.parse(text, str(path)))
        files.append(len(text.splitlines()))
        sizes += [body_lines(function) for function in found]
        bad += broken(path, text, found)
    middle = statistics.median(files), statistics.median(sizes)
    totals = [
        f"{len(files)} files, median {middle[0]:.0f} lines, longest {max(files)} of {FILE_MAX}",
        f"{len(sizes)} functions, median {middle[1]:.0f} lines, longest {max(sizes)} of {BODY_MAX}",
    ]
    sys.stdout.write("\n".join([*bad, *totals]) + "\n")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
