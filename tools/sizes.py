"""Print the longest files and functions, and the signatures with the most arguments, for a reviewer to question.

    python -m tools.sizes

`make check` runs it. It refuses nothing: a long thing that is one thing may stay.
"""

import argparse
import ast
import sys
from collections.abc import Sequence
from pathlib import Path

from options.parser import ToolParser
from utils.run import run_tool

ROOT = Path(__file__).resolve().parent.parent
NOT_OURS = {"tests", "dev", "shared"}
MAX_ROWS = 10


def sources() -> list[Path]:
    """Return the project's Python files, without tests, hidden folders and the virtual environment."""
    parts = {path: path.relative_to(ROOT).parts for path in ROOT.rglob("*.py")}
    return [path for path, of in parts.items() if of[0] not in NOT_OURS and not any(p.startswith(".") for p in of)]


def measure(path: Path) -> tuple[int, list[tuple[int, int, str]]]:
    """Return a file's lines, and for each function in it: lines, arguments without self, and "line: name"."""
    text = path.read_text(encoding="utf-8")
    functions = []
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            names = [argument.arg for argument in (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs)]
            arguments = len([name for name in names if name not in ("self", "cls")])
            lines = (node.end_lineno or node.lineno) - node.lineno + 1
            functions.append((lines, arguments, f"{node.lineno}: {node.name}"))
    return len(text.splitlines()), functions


def largest(rows: list[tuple[int, str]], title: str, unit: str) -> str:
    """Return a title and the MAX_ROWS largest of `rows` as lines of text."""
    shown = sorted(rows, key=lambda row: (-row[0], row[1]))[:MAX_ROWS]
    return "\n".join([title, *(f"{count:5d} {unit}  {name}" for count, name in shown)])


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and print; return the exit code."""
    parser = ToolParser("-m tools.sizes", __doc__)
    return run_tool(lambda: parser.parse_args(argv), run)


def run(opt: argparse.Namespace) -> None:
    """Measure every source file, and print the largest."""
    files, lines, arguments = [], [], []
    for path in sources():
        name = str(path.relative_to(ROOT))
        count, functions = measure(path)
        files.append((count, name))
        lines += [(long, f"{name}:{where}") for long, _, where in functions]
        arguments += [(many, f"{name}:{where}") for _, many, where in functions]
    print(largest(files, "The longest files", "lines"))
    print(largest(lines, "The longest functions", "lines"))
    print(largest(arguments, "The longest signatures", "arguments"))


if __name__ == "__main__":
    sys.exit(main())
