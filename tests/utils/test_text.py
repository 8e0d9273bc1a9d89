"""Names of any bytes: what a person is shown, what a file keeps, on terminals that know little."""

import csv
import io
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from conftest import ROOT
from utils import tables
from utils.files import atomic_write
from utils.text import exact, visible

ASCII = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "PYTHONIOENCODING": ""}
# latin-1, an escape that renames a terminal's window, a carriage return, a formula, Chinese, a turn of direction
NAMES = [
    b"caf\xe9.jpg",
    b"\x1b]0;owned\x07.jpg",
    b"a\rb.jpg",
    b"=1+1.jpg",
    "图.jpg".encode(),
    "a\u202egpj.jpg".encode(),
    b'q"u,o.jpg',
]
HIDDEN = re.compile(rb"[\x00-\x08\x0b-\x1f\x7f]")


def test_visible_escapes_control_and_hidden_characters():
    assert (
        visible("caf\udce9 \x1b[2J \r \x85 \u202e \ud800 图 é\tx\n")
        == "caf\\xe9 \\x1b[2J \\r \\x85 \\u202e \\ud800 图 é\tx\n"
    )
    assert exact(os.fsdecode(b"caf\xe9")) == "caf\udce9"


def test_tables_with_any_names_read_back(tmp_path):
    rows = [[os.fsdecode(name), "a\nb", "", "1"] for name in NAMES]
    with atomic_write(tmp_path / "t.csv", "w") as file:
        tables.writer(file).writerows(rows)
    with open(tmp_path / "t.csv", encoding="utf-8", errors="surrogateescape", newline="") as file:
        assert list(csv.reader(file)) == rows
    assert b"caf\xe9.jpg" in (tmp_path / "t.csv").read_bytes() and b"\r\n" not in (tmp_path / "t.csv").read_bytes()


@pytest.fixture
def strange(photo_set, tmp_path) -> Path:
    """The photographs under NAMES, in a folder of latin-1; class names of the same kind; a test image that is none."""
    folder = tmp_path / os.fsdecode(b"donn\xe9es")
    folder.mkdir()
    for part in ("train", "val", "test"):
        lines = []
        for k, line in enumerate((photo_set / f"{part}.txt").read_text().splitlines()):
            source, _, label = line.partition(" ")
            name = part.encode() + b"_" + str(k).encode() + b"_" + NAMES[k % len(NAMES)]
            shutil.copy(source, folder / os.fsdecode(name))
            lines.append(name + (b" " + label.encode() if label else b""))
        if part != "train":
            (folder / os.fsdecode(lines[0].split(b" ")[0])).write_bytes(b"no image")
        (folder / f"{part}.txt").write_bytes(b"\n".join(lines) + b"\n")
    (folder / "classes.txt").write_text("chi\x1b[31mna\n$x^2 flower\n图\n", encoding="utf-8", newline="")
    return folder


def commands(folder: Path) -> list[tuple[str, ...]]:
    """train, eval, submit twice, doctor, each as typed; with an image that cannot be read."""
    common = ("--data_root", str(folder), "--gpu", "-1", "-w", "0", "--tag", "t")
    network = (
        "--model timm:test_resnet --no-pretrained --preset original --scale 32 -b 12 --epochs 1 --precision fp32"
    ).split()
    load = ("--load", "checkpoints/t/last.pt")
    return [
        ("train.py", *common, *network),
        ("eval.py", *common, *load),
        ("submit.py", *common, *load, "--id", "path"),
        ("submit.py", *common, *load, "--format", "json"),
        ("-m", "tools.doctor", str(folder / "train.txt"), str(folder / "val.txt"), str(folder / "test.txt")),
    ]


def check_results(folder: Path, said: bytes) -> None:
    """Everything is there, names are exact where they must match, and harmless where they are shown."""
    log = Path("logs/t/log.txt").read_bytes()
    pages = b"".join(
        path.read_bytes() for path in (Path("results/t/1/report.html"), Path("results/doctor/doctor.html"))
    )
    for text in (said, log, pages):
        assert not HIDDEN.search(text.replace(b"\r\n", b"\n")), HIDDEN.search(text)
    assert b"caf\\xe9.jpg" in said and b"caf\\xe9.jpg" in pages
    (log + pages).decode("utf-8")
    rows = (folder / "test.txt").read_bytes().split(b"\n")[:-1]
    with open("results/t/submission.csv", encoding="utf-8", errors="surrogateescape", newline="") as file:
        ids = [row["id"].encode("utf-8", "surrogateescape") for row in csv.DictReader(file)]
    assert [path.rpartition(b"/")[2] for path in ids] == rows
    content = json.loads(Path("results/t/submission.json").read_text(encoding="utf-8"))
    assert [row["id"].encode("utf-8", "surrogateescape") for row in content] == rows
    for name in ("results/t/1/metrics.json", "results/t/submission.provenance.json", "results/doctor/doctor.json"):
        json.loads(Path(name).read_text(encoding="utf-8"))


@pytest.mark.slow
def test_commands_with_odd_names_succeed_and_print_no_controls(script, strange, monkeypatch, capfd):
    from tools.doctor import command as doctor

    said = b""
    for name, *words in commands(strange):
        monkeypatch.setattr(
            sys, "stdout", io.TextIOWrapper(io.FileIO(os.dup(1), "w"), encoding="ascii", write_through=True)
        )
        if name == "-m":
            assert doctor.main(words[1:]) == 1
            shown = "".join(capfd.readouterr())
        else:
            result = script(name, *words)
            assert result.code == 0, result.err
            shown = result.out + result.err
        said += shown.encode()
    check_results(strange, said)


@pytest.mark.slow
def test_commands_with_odd_names_in_ascii_locale_succeed(strange, tmp_path, monkeypatch):
    """All commands in one process, which saves the imports."""
    monkeypatch.chdir(tmp_path)
    code = f"import runpy, sys\nsys.path.insert(0, {str(ROOT)!r})\n"
    for name, *words in commands(strange):
        run = f"run_module({words[0]!r}" if name == "-m" else f"run_path({str(ROOT / name)!r}"
        code += f"sys.argv = {[name, *words[name == '-m' :]]!a}\ntry:\n    runpy.{run}, run_name='__main__')\n"
        code += f"except SystemExit as stop:\n    assert stop.code == {int(name == '-m')}, stop.code\n"
    done = subprocess.run([sys.executable, "-c", code], env={**os.environ, **ASCII}, capture_output=True)
    assert done.returncode == 0, done.stderr.decode(errors="replace")
    said = done.stdout + done.stderr
    said.decode("ascii")
    check_results(strange, said)


@pytest.mark.parametrize("name", ["train.py", "eval.py", "submit.py", "clear.py", "datasets/prepare.py csv"])
def test_help_in_ascii_locale_is_printed(name, tmp_path):
    words = name.split()
    command = [sys.executable, str(ROOT / words[0]), *words[1:], "--help"]
    done = subprocess.run(command, cwd=tmp_path, env={**os.environ, **ASCII}, capture_output=True)
    assert done.returncode == 0 and b"usage:" in done.stdout, done.stderr.decode()
