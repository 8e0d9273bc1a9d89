"""The rules of the house: nothing on import, no circle, no arrow upwards, and docstrings."""

import ast
import importlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from tools import sizes

ROOT = Path(__file__).resolve().parent.parent
SCRIPTS = ("train", "eval", "submit", "clear")
# What each room may use besides itself. `options` is the standard library's alone; everything may use it for defaults.
MAY_USE = {
    "options": set(),
    "utils": {"options"},
    "optimizer": {"options", "utils"},
    "scheduler": {"options", "utils"},
    "dataloader": {"options", "utils"},
    "network": {"options", "utils"},
    "evaluation": {"options", "utils", "dataloader"},
    "training": {"options", "utils", "optimizer", "scheduler", "dataloader", "network", "evaluation"},
    "inference": {"options", "utils", "dataloader", "network", "evaluation"},
}
ROOMS = (*MAY_USE, "tools", "benchmarks")
MAY_USE["script"] = {*MAY_USE}
MAY_USE["tools"] = {*MAY_USE} - {"script"}
MAY_USE["benchmarks"] = {*MAY_USE} - {"script"}
MAY_USE["datasets"] = {"tools"}

SOURCES = sorted(
    [*(ROOT / f"{name}.py" for name in SCRIPTS), *(file for room in ROOMS for file in (ROOT / room).rglob("*.py"))]
)
FILES = sorted([*SOURCES, *(ROOT / "datasets").glob("*.py")])


def label(path: Path) -> str:
    return str(path.relative_to(ROOT))


def module(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


MODULES = {module(path): path for path in SOURCES}


def room_of(path: Path) -> str:
    return path.relative_to(ROOT).parts[0] if path.parent != ROOT else "script"


def imported_names(tree: ast.AST, package: list[str]) -> Iterator[str]:
    """Yield every dotted name that a file imports, also inside functions, but not under `if TYPE_CHECKING`.

    `package` holds the parts of the package in which the file lives, from which relative imports start.
    """
    guards = [node for node in ast.walk(tree) if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)]
    typing_only = {id(node) for guard in guards for statement in guard.body for node in ast.walk(statement)}
    for node in ast.walk(tree):
        if id(node) in typing_only:
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            start = package[: len(package) - node.level + 1] if node.level else []
            base = ".".join([*start, *([node.module] if node.module else [])])
            yield from (f"{base}.{alias.name}" for alias in node.names)


def import_graph() -> dict[Path, set[Path]]:
    """Return the files of the project that each file imports. `from a import b` means the file a/b.py if it exists."""
    graph = {}
    for path in FILES:
        package = list(path.relative_to(ROOT).parent.parts)
        names = imported_names(ast.parse(path.read_text()), package)
        found = (MODULES.get(name) or MODULES.get(name.rpartition(".")[0]) for name in names)
        graph[path] = {file for file in found if file is not None and file != path}
    return graph


def arrows_upwards(graph: dict[Path, set[Path]]) -> dict[tuple[str, str], set[Path]]:
    """Return the imports that MAY_USE does not allow: (importing file, room) -> the imported files."""
    found: dict[tuple[str, str], set[Path]] = {}
    for path, targets in graph.items():
        room = room_of(path)
        for target in targets:
            above = room_of(target)
            if above not in {room, *MAY_USE[room]} or room == above == "script":
                found.setdefault((label(path), above), set()).add(target)
    return found


def find_circle(graph: dict[Path, set[Path]]) -> list[str]:
    """Return the files of one circle of imports, in order, or an empty list."""
    done: set[Path] = set()

    def visit(path: Path, trail: list[Path]) -> list[Path]:
        if path in trail:
            return [*trail[trail.index(path) :], path]
        if path in done:
            return []
        for target in sorted(graph[path]):
            if circle := visit(target, [*trail, path]):
                return circle
        done.add(path)
        return []

    for path in sorted(graph):
        if circle := visit(path, []):
            return [label(one) for one in circle]
    return []


def test_modules_imported_alone_parse_read_and_write_nothing(tmp_path):
    begin = f"import sys; sys.argv = ['x', '--no-such-flag']; sys.path.insert(0, {str(ROOT)!r})\n"
    code = begin + "\n".join(f"import {name}" for name in MODULES)
    code += f"\nsys.path.insert(0, {str(ROOT / 'datasets')!r})\n"  # its files have no package
    code += "\n".join(f"import {path.stem}" for path in sorted((ROOT / "datasets").glob("*.py")))
    env = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1", "HOME": str(tmp_path / "home")}
    (tmp_path / "empty").mkdir()
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path / "empty", env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout == ""
    assert list((tmp_path / "empty").iterdir()) == []


def test_rooms_import_only_rooms_below_them():
    upwards = {arrow: sorted(map(label, files)) for arrow, files in arrows_upwards(import_graph()).items()}
    assert upwards == {}, "an arrow upwards: move the code to the room that needs it, or pass it as an argument"


def test_options_enter_training_through_six_files():
    """Every other file takes the values that it needs."""
    rooms = [ROOT / room for room in ("dataloader", "network", "optimizer", "scheduler", "training")]
    found = set()
    for path in (path for path in FILES if path == ROOT / "train.py" or any(room in path.parents for room in rooms)):
        functions = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.FunctionDef)]
        if any(one.arg == "opt" for node in functions for one in (*node.args.args, *node.args.kwonlyargs)):
            found.add(label(path))
    assert sorted(found) == [
        "dataloader/__init__.py",
        "dataloader/transforms/__init__.py",
        "network/base_model.py",
        "train.py",
        "training/resumed_options.py",
        "training/setup.py",
        "training/start.py",
    ]


def test_files_import_each_other_in_no_circle():
    assert find_circle(import_graph()) == []


def test_house_rules_see_a_circle_and_an_arrow_upwards():
    low, high = ROOT / "utils" / "low.py", ROOT / "network" / "high.py"
    graph = {low: {high}, high: {low}}
    assert find_circle(graph) == ["network/high.py", "utils/low.py", "network/high.py"]
    assert arrows_upwards(graph) == {("utils/low.py", "network"): {high}}
    code = "from . import a\nfrom ..b import c\ndef f():\n    import d.e\n"
    code += "if TYPE_CHECKING:\n    import g\nelse:\n    import h"
    assert set(imported_names(ast.parse(code), ["x", "y"])) == {"x.y.a", "x.b.c", "d.e", "h"}


def test_files_all_have_a_docstring():
    trees = {path: ast.parse(path.read_text()) for path in FILES}
    assert [label(path) for path, tree in trees.items() if tree.body and not ast.get_docstring(tree)] == []


SPEAK_FOR_THEMSELVES = {"forward", "main", "close", "line", "device", "num_classes", "emit", "error"}


def public(tree):
    """Functions and classes of a module and of its classes; not those inside functions."""
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
            yield node
            if isinstance(node, ast.ClassDef):
                yield from public(node)


def test_public_functions_all_have_a_docstring():
    silent = [
        f"{label(path)}: {node.name}"
        for path in FILES
        for node in public(ast.parse(path.read_text()))
        if not ast.get_docstring(node) and node.name not in SPEAK_FOR_THEMSELVES and path.name != "model.py"
    ]
    assert silent == []


def test_datasets_folder_does_not_shadow_the_library():
    assert not (ROOT / "datasets" / "__init__.py").exists()


def test_scripts_imported_have_a_main():
    for name in SCRIPTS:
        assert callable(importlib.import_module(name).main)


def test_sizes_report_lists_the_longest_files_and_functions(capsys):
    assert sizes.main([]) == 0
    out = capsys.readouterr().out
    longest = max(FILES, key=lambda path: len(path.read_text().splitlines()))
    assert out.splitlines()[1].split() == [str(len(longest.read_text().splitlines())), "lines", label(longest)]
    assert len(out.splitlines()) == 3 * (1 + sizes.MAX_ROWS)
