"""The house's own rules: nothing on import, who may use whom, lengths."""

import ast
import importlib
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
ROOMS = (
    "options", "utils", "optimizer", "scheduler", "dataloader", "network", "evaluation", "training", "inference", "tools", "benchmarks"
)  # fmt: skip
SCRIPTS = ("train", "eval", "submit", "clear")
SOURCES = sorted([*(ROOT / f"{name}.py" for name in SCRIPTS), *(path for room in ROOMS for path in (ROOT / room).rglob("*.py"))])
FILES = sorted([*SOURCES, *(ROOT / "datasets").glob("*.py")])
MAX_FILE_LINES, MAX_FUNCTION_LINES, MAX_ARGUMENTS = 400, 80, 6
MAY_USE = {
    "options": {"options"},
    "utils": {"utils", "options"},  # the schema of a checkpoint holds its saved options against the flags
    "scheduler": {"scheduler", "utils"},
    "optimizer": {"optimizer", "utils"},
    "dataloader": {"dataloader", "utils"},
    "network": {"network", "optimizer", "scheduler", "utils", "options", "training", "inference"},
    "evaluation": {"evaluation", "dataloader", "utils", "inference"},
    "training": {"training", "network", "dataloader", "optimizer", "scheduler", "evaluation", "utils", "options"},
    "inference": {"inference", "network", "dataloader", "evaluation", "utils", "options", "training"},
    "tools": {*ROOMS} - {"benchmarks"},
    "benchmarks": {*ROOMS},
    "script": {*ROOMS} - {"tools", "benchmarks"},
}


def modules():
    return [".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__") for path in SOURCES]


def imports(path):
    """The top-level names that a file imports, also inside functions; without those for type checking alone."""
    tree = ast.parse(path.read_text())
    guards = [node for node in ast.walk(tree) if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"]
    typing_only = {id(node) for guard in guards for node in ast.walk(guard)}
    for node in ast.walk(tree):
        if id(node) in typing_only:
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module or ""


def test_importing_everything_parses_reads_and_writes_nothing(tmp_path):
    begin = f"import sys; sys.argv = ['x', '--no-such-flag']; sys.path.insert(0, {str(ROOT)!r})\n"
    code = begin + "\n".join(f"import {name}" for name in modules())
    env = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1", "HOME": str(tmp_path / "home")}
    (tmp_path / "empty").mkdir()
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path / "empty", env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout == ""
    assert list((tmp_path / "empty").iterdir()) == []


def test_rooms_use_only_those_below():
    upwards = []
    for path in SOURCES:
        room = path.relative_to(ROOT).parts[0] if path.parent != ROOT else "script"
        allowed = MAY_USE[room] | ({"eval"} if path.name == "train.py" else set())
        used = {name.split(".")[0] for name in imports(path)} & {*ROOMS, *SCRIPTS}
        upwards += [f"{path.relative_to(ROOT)} uses {name}" for name in sorted(used - allowed)]
    assert upwards == []


def test_every_file_says_what_it_is():
    trees = {path: ast.parse(path.read_text()) for path in FILES}
    assert [str(path.relative_to(ROOT)) for path, tree in trees.items() if tree.body and not ast.get_docstring(tree)] == []


def test_no_file_function_or_signature_grows_out_of_hand():
    """The bounds leave room for one long thing; below them a reviewer decides."""
    grown = []
    for path in FILES:
        text, name = path.read_text(), str(path.relative_to(ROOT))
        if len(text.splitlines()) > MAX_FILE_LINES:
            grown.append(f"{name}: {len(text.splitlines())} lines")
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef):
                lines = node.end_lineno - node.lineno + 1
                arguments = [a for a in node.args.args + node.args.kwonlyargs if a.arg not in ("self", "cls")]
                if lines > MAX_FUNCTION_LINES or len(arguments) > MAX_ARGUMENTS:
                    grown.append(f"{name}:{node.lineno}: {node.name} has {lines} lines, {len(arguments)} arguments")
    assert grown == []


SPEAK_FOR_THEMSELVES = {"forward", "main", "close", "line", "device", "num_classes", "emit", "error"}


def public(tree):
    """Functions and classes of a module and of its classes; not those inside functions."""
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
            yield node
            if isinstance(node, ast.ClassDef):
                yield from public(node)


def test_every_public_function_says_what_it_does():
    silent = [
        f"{path.relative_to(ROOT)}: {node.name}"
        for path in FILES
        for node in public(ast.parse(path.read_text()))
        if not ast.get_docstring(node) and node.name not in SPEAK_FOR_THEMSELVES and path.name != "model.py"
    ]
    assert silent == []


def test_datasets_folder_does_not_shadow_the_library_of_that_name():
    assert not (ROOT / "datasets" / "__init__.py").exists()


def test_scripts_can_be_imported_and_hold_a_main():
    for name in SCRIPTS:
        assert callable(importlib.import_module(name).main)
