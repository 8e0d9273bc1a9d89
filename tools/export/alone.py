"""Runs an exported folder as another machine would: a new process that finds neither this project nor torch."""

import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path

from utils.errors import UserError

CODE = """
import importlib.util, runpy, sys
sys.path.append(sys.argv[1])
assert {torch} or importlib.util.find_spec("torch") is None, "torch can be imported"
assert importlib.util.find_spec("inference") is None, "this project can be imported"
sys.argv = sys.argv[2:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""
FOUND = re.compile(r"largest difference (\S+)")
TIMEOUT_SECONDS = 1800
KEPT = ("LD_LIBRARY_PATH",)  # by which the Python of a cluster's modules finds its own library


def check_alone(folder: Path, runtimes: Sequence[str]) -> float:
    """Run `predict.py --check` of an exported folder in a new process, and return the largest difference.

    The process finds the standard library, NumPy, Pillow and the packages `runtimes`, and nothing else.

    Raises:
        UserError: the check fails, or predict.py does not run.
    """
    with tempfile.TemporaryDirectory() as name:
        packages = Path(name) / "packages"
        packages.mkdir()
        for package in ("numpy", "pillow", *runtimes):
            link_package(package, packages)
        code = CODE.format(torch="torch" in runtimes)
        words = [
            sys.executable,
            "-I",
            "-S",
            "-B",
            "-c",
            code,
            str(packages),
            str(folder.resolve() / "predict.py"),
            "--check",
        ]
        kept = {variable: os.environ[variable] for variable in KEPT if variable in os.environ}
        done = subprocess.run(
            words, cwd=name, env={"HOME": name} | kept, capture_output=True, text=True, timeout=TIMEOUT_SECONDS
        )
    found = FOUND.search(done.stdout)
    if found is None:
        raise UserError(f"The exported folder does not run by itself:\n{(done.stderr or done.stdout).strip()[-2000:]}")
    if done.returncode:
        raise UserError(
            f"The exported model does not give the predictions of eval.py, so nothing was written.\n{done.stdout}"
        )
    return float(found[1])


def link_package(package: str, place: Path, seen: set[str] | None = None) -> None:
    """Link an installed package, and what it requires, into the folder `place`."""
    seen = set() if seen is None else seen
    if package.lower() in seen:
        return
    seen.add(package.lower())
    try:
        distribution = metadata.distribution(package)
    except metadata.PackageNotFoundError:
        return
    for file in distribution.files or ():
        top = file.parts[0]
        if top not in ("..", "__pycache__") and not (place / top).is_symlink():
            (place / top).symlink_to(Path(str(distribution.locate_file(top))).resolve())
    for requirement in distribution.requires or ():
        if "extra ==" not in requirement:
            link_package(re.split(r"[^\w.-]", requirement)[0], place, seen)
