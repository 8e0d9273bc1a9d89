"""Folders of results are whole: after a kill the old one or the new one is there, and no leftovers stay."""

import json
import os
import signal
import subprocess
import sys

import pytest

import tiny
from conftest import ROOT
from utils import checkpoint
from utils import whole_folder as module
from utils.whole_folder import remove_leftovers, whole_folder


def fill(folder, text):
    for name in ("a.txt", "b.txt"):
        (folder / name).write_text(text)


def held(folder):
    return {path.name: path.read_text() for path in sorted(folder.iterdir()) if path.is_file()}


@pytest.fixture
def old(tmp_path):
    folder = tmp_path / "1"
    folder.mkdir()
    fill(folder, "old")
    (folder / "notes.txt").write_text("mine")
    (folder / "sub").mkdir()
    (folder / "sub" / "x").write_text("deep")
    return folder


NO_EXCHANGE = "module._exchange = lambda one, other: False"  # as on a file system that has none


def test_whole_folder_replaces_the_old_one_at_once(old, monkeypatch, tmp_path):
    for exchange in (True, False):
        if not exchange:
            monkeypatch.setattr(module, "_exchange", lambda one, other: False)
        keep = {"notes.txt": "notes.txt", "sub": "sub", "b.txt": "b.old"}.get
        with whole_folder(old, keep) as new:
            assert held(old)["a.txt"] != "new" and not list(new.iterdir())
            (new / "a.txt").write_text("new")
        assert held(old)["a.txt"] == "new" and held(old)["notes.txt"] == "mine" and "b.txt" not in held(old)
        assert (old / "sub/x").read_text() == "deep"
        (old / "a.txt").write_text("old")
    assert [path.name for path in tmp_path.iterdir()] == ["1"]
    (tmp_path / "link").symlink_to(old)
    with whole_folder(tmp_path / "link") as new:
        fill(new, "linked")
    assert (tmp_path / "link").is_symlink() and held(old) == {"a.txt": "linked", "b.txt": "linked"}
    with pytest.raises(NotADirectoryError), whole_folder(old / "a.txt"):
        raise AssertionError("it began")


def test_whole_folder_failure_keeps_only_the_old_one(old, tmp_path):
    before = held(old)
    with pytest.raises(OSError, match="full"), whole_folder(old) as new:
        fill(new, "new")
        raise OSError(28, "full")
    assert held(old) == before and [path.name for path in tmp_path.iterdir()] == ["1"]


CHILD = """
import sys
sys.path.insert(0, {root!r})
from pathlib import Path
from utils import whole_folder as module
{before}
def here(*_):
    print("here", flush=True)
    sys.stdin.readline()
def at(name):  # announce and wait when the function of that name is called; "" in the body
    real = getattr(module, name)
    def call(*words):
        here()
        return real(*words)
    setattr(module, name, call)
def second(real, calls=[]):  # the second rename: of the new folder
    calls.append(real)
    return here() if len(calls) == 2 else None
if {point!r} == "rename":
    real = module.os.rename
    module.os.rename = lambda *words: (second(real), real(*words))
elif {point!r}:
    at({point!r})
with module.whole_folder(Path({path!r}), lambda name: name if name == "notes.txt" else None) as new:
    (new / "a.txt").write_text("new")
    {point!r} or here()
    (new / "b.txt").write_text("new")
"""


@pytest.mark.parametrize("point", ["", "_carry_over", "_replace", "_exchange", "rename", "after"])
def test_whole_folder_killed_anywhere_is_old_or_new(old, tmp_path, point):
    """`rename`: on a file system without exchange, between the two renames. `after`: the old one is not removed yet."""
    before = (
        NO_EXCHANGE
        if point == "rename"
        else "module.shutil.rmtree = lambda *_, **__: here()"
        if point == "after"
        else ""
    )
    code = CHILD.format(root=str(ROOT), before=before, point="" if point == "after" else point, path=str(old))
    if point == "after":
        code = code.replace("'' or here()", "pass")
    child = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        assert child.stdout.readline() == "here\n"
        if point in ("", "_carry_over"):  # in the exchange itself it would wait
            remove_leftovers(tmp_path)
            assert len(list(tmp_path.iterdir())) == 2, "what a living process fills was removed"
        child.send_signal(signal.SIGKILL)
    finally:
        child.kill()
        child.communicate()
    if point == "rename":
        assert not old.exists()  # moved away, and put back by whoever comes next
    remove_leftovers(tmp_path)
    wanted = "new" if point == "after" else "old"
    assert held(old) == {"a.txt": wanted, "b.txt": wanted, "notes.txt": "mine"}
    assert [path.name for path in tmp_path.iterdir()] == ["1"]
    assert (old / "sub").exists() == (wanted == "old")


def test_remove_leftovers_keeps_lookalikes(tmp_path):
    names = [".1.0123456789abcdef.partial.txt", ".hidden", ".1.notahexnumber000.partial"]
    for name in names:
        (tmp_path / name).mkdir()
    (tmp_path / ".1.0123456789abcdef.partial").write_text("a file")
    (tmp_path / "elsewhere").mkdir()
    os.symlink(tmp_path / "elsewhere", tmp_path / ".2.0123456789abcdef.partial")
    before = sorted(tmp_path.iterdir())
    remove_leftovers(tmp_path)
    assert sorted(tmp_path.iterdir()) == before


EVAL = """
import sys
sys.path[:0] = [{root!r}, {root!r} + "/tests"]
import network, tiny
from evaluation import results
network.models["Tiny"] = tiny.Tiny
def here(*_):
    print("here", flush=True)
    sys.stdin.readline()
results._write_confused = here
from utils.run import run_command
import eval
sys.argv = ["eval.py", *{words!r}]
run_command(eval.parse_eval, eval.main)
"""


@pytest.mark.slow
def test_eval_killed_keeps_earlier_results_whole(script, tmp_path, monkeypatch):
    import network

    monkeypatch.setitem(network.models, "Tiny", tiny.Tiny)
    data, path = tiny.write_images(tmp_path), tiny.unpack("sgd", tmp_path)
    words = ["--load", str(path), "--data_root", str(data), "--gpu", "-1", "-w", "0", "--resamples", "0"]
    words += ["--tag", checkpoint.load(path)["opt"]["tag"]]
    result = script("eval.py", *words, "--save_probs", "--compare", "no.csv")
    assert result.code == 2 and not list(tmp_path.glob("results/*/*"))
    assert script("eval.py", *words, "--save_probs").code == 0
    (folder,) = tmp_path.glob("results/*/1")
    (folder / "notes.txt").write_text("mine")
    before = {one.name: one.read_bytes() for one in folder.iterdir()}
    assert {"metrics.json", "report.html", "probs.npz", "errors.png"} <= before.keys()

    code = EVAL.format(root=str(ROOT), words=[*words, "--tta", "flip"])
    child = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        assert any(line == "here\n" for line in child.stdout)
        child.send_signal(signal.SIGKILL)
    finally:
        child.kill()
        child.communicate()
    assert len([one for one in folder.parent.iterdir() if one.is_dir()]) == 2
    assert {one.name: one.read_bytes() for one in folder.iterdir()} == before

    result = script("eval.py", *words, "--tta", "flip", "--no-report")
    assert result.code == 0
    assert list(folder.parent.iterdir()) == [folder]
    after = {one.name: one.read_bytes() for one in folder.iterdir()}
    assert before.keys() - after.keys() == {"report.html", "probs.npz"}
    assert after.keys() - before.keys() == {"probs.earlier.npz"}
    assert "report.html belongs to an earlier evaluation; it is removed" in result.out
    assert after["notes.txt"] == b"mine" and after["probs.earlier.npz"] == before["probs.npz"]
    assert len(json.loads(after["metrics.json"])["runs"]) == 2
