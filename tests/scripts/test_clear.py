"""clear.py takes away exactly one tag's records, and gives them back byte for byte."""

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from conftest import ROOT
from utils.run_log import FILE, Entry

FOLDERS = ("checkpoints", "logs", "results")
NOT_OURS = ("run", "run.12", "run.1_b", "run-1", "Run.1", "2_run.1")


@pytest.fixture
def records(tmp_path) -> Path:
    """Records of seven tags, of which `run.1` is the one to clear, with a run_log of earlier processes."""
    for tag in ("run.1", *NOT_OURS):
        for folder in FOLDERS:
            (tmp_path / folder / tag / "deep").mkdir(parents=True)
            (tmp_path / folder / tag / "deep/file.bin").write_bytes(os.urandom(100) + tag.encode())
    lines = ["a line of the user's own"]
    for k, tag in enumerate(("run.1", *NOT_OURS, "run.1")):
        lines.append(
            Entry(f"2026-01-0{k + 1} 10:00:00", 1, tag, "done in 3 s", f"python train.py --tag {tag} --model X").line()
        )
    (tmp_path / FILE).write_text("".join(f"{line}\n" for line in lines))
    return tmp_path


def files(folder: Path, tag: str = "*") -> dict[str, bytes]:
    """{path: content} of the tag's records."""
    return {str(path): path.read_bytes() for path in folder.glob(f"*/{tag}/deep/file.bin") if path.parts[-4] in FOLDERS}


def log_lines(folder: Path) -> list[str]:
    """The lines of run_log.txt but for those of clear.py itself."""
    return [line for line in (folder / FILE).read_text().splitlines() if "clear.py" not in line]


def test_clear_moves_exactly_its_tag(script, records):
    before, logged = files(records), log_lines(records)
    result = script("clear.py", "--tag", "run.1")
    assert result.code == 0, result.err
    assert files(records) == {path: content for path, content in before.items() if "/run.1/" not in path}
    assert log_lines(records) == [line for line in logged if "tag run.1\t" not in line]
    assert "2 lines of run_log.txt" in result.out
    assert "--restore" in result.out
    assert len(list((records / ".trash").iterdir())) == 1


def test_clear_restore_brings_back_every_byte(script, records):
    before, logged = files(records), log_lines(records)
    assert script("clear.py", "--tag", "run.1").code == 0
    assert script("clear.py", "--tag", "run.1", "--restore").code == 0
    assert files(records) == before
    assert log_lines(records) == sorted(logged, key=lambda line: line.split("\t")[0])
    assert list((records / ".trash").iterdir()) == []


def test_clear_restore_remembers_other_folders(script, records):
    (records / "checkpoints").rename(records / "weights")
    before = (records / "weights/run.1/deep/file.bin").read_bytes()
    assert script("clear.py", "--tag", "run.1", "--checkpoint_dir", "weights").code == 0
    assert not (records / "weights/run.1").exists()
    assert script("clear.py", "--tag", "run.1", "--restore").code == 0
    assert (records / "weights/run.1/deep/file.bin").read_bytes() == before


def test_clear_rm_deletes_records_and_trash(script, records):
    assert script("clear.py", "--tag", "run.1").code == 0
    (records / "logs/run.1").mkdir()
    others = files(records)
    result = script("clear.py", "--tag", "run.1", "--rm")
    assert result.code == 0, result.err
    assert list((records / ".trash").iterdir()) == []
    assert not (records / "logs/run.1").exists()
    assert files(records) == others
    result = script("clear.py", "--tag", "run.1", "--restore")
    assert result.code == 2
    assert "trash holds nothing of tag 'run.1'" in result.err and "Try:" not in result.err


def test_clear_restore_of_a_misspelt_tag_gives_the_command_for_the_near_one(script, records):
    before = files(records)
    assert script("clear.py", "--tag", "run.1").code == 0
    result = script("clear.py", "--tag", "run_1", "--restore")
    assert result.code == 2
    words = result.err.split("Try: python ")[1].split()
    assert words == ["clear.py", "--tag", "run.1", "--restore"]
    assert script(*words).code == 0
    assert files(records) == before


def test_clear_rm_of_trash_only_succeeds(script, records):
    assert script("clear.py", "--tag", "run.1").code == 0
    assert script("clear.py", "--tag", "run.1", "--rm").code == 0
    assert list((records / ".trash").iterdir()) == []


@pytest.mark.parametrize("flags", [[], ["--rm"]])
def test_clear_unknown_tag_lists_the_known(script, records, flags):
    assert script("clear.py", "--tag", "run.1").code == 0
    before = files(records)
    result = script("clear.py", "--tag", "ru", *flags)
    assert result.code == 2
    assert "no records of tag 'ru'" in result.err
    assert ", ".join(sorted(NOT_OURS)) in result.err
    assert "In the trash: run.1" in result.err
    assert files(records) == before


@pytest.mark.parametrize("flags", [[], ["--rm"]])
def test_clear_of_a_file_beside_the_tags_is_refused(script, records, flags):
    """results/compare.html, of tools.compare, was among the tags, and was cleared as one."""
    page = records / "results/compare.html"
    page.write_text("a page")
    result = script("clear.py", "--tag", "compare.html", *flags)
    assert result.code == 2 and "There are no records of tag 'compare.html'." in result.err
    assert "compare.html" not in result.err.split("There are: ")[1] and page.read_text() == "a page"


def test_clear_restore_unknown_tag_lists_the_trash(script, records):
    assert script("clear.py", "--tag", "run.1").code == 0
    result = script("clear.py", "--tag", "run", "--restore")
    assert result.code == 2
    assert "nothing of tag 'run'" in result.err
    assert "In the trash: run.1" in result.err


def test_clear_in_empty_folder_is_refused(script):
    result = script("clear.py", "--tag", "x")
    assert result.code == 2
    assert "none of any tag" in result.err


@pytest.mark.parametrize("kind", ["folder", "dangling link"])
def test_clear_restore_over_existing_is_refused(script, records, kind):
    assert script("clear.py", "--tag", "run.1").code == 0
    back = records / "logs/run.1"
    back.mkdir() if kind == "folder" else back.symlink_to("nowhere")
    result = script("clear.py", "--tag", "run.1", "--restore")
    assert result.code == 2
    assert "logs/run.1 exist(s) again" in result.err
    assert not (records / "checkpoints/run.1").exists()
    back.rmdir() if kind == "folder" else back.unlink()
    assert script("clear.py", "--tag", "run.1", "--restore").code == 0
    assert (records / "logs/run.1/deep/file.bin").exists()


@pytest.mark.parametrize("flags", [[], ["--rm"]])
def test_clear_linked_folder_is_not_followed(script, records, flags):
    elsewhere = records / "elsewhere"
    (records / "logs/run.1").rename(elsewhere)
    (records / "logs/run.1").symlink_to(elsewhere)
    (records / "results/run.1/deep/link").symlink_to(elsewhere)
    kept = (elsewhere / "deep/file.bin").read_bytes()
    assert script("clear.py", "--tag", "run.1", *flags).code == 0
    assert not os.path.lexists(records / "logs/run.1")
    assert (elsewhere / "deep/file.bin").read_bytes() == kept
    if not flags:
        assert script("clear.py", "--tag", "run.1", "--restore").code == 0
        assert (records / "logs/run.1").is_symlink()
        assert script("clear.py", "--tag", "run.1").code == 0
        assert script("clear.py", "--tag", "run.1", "--rm").code == 0  # out of the trash
        assert (elsewhere / "deep/file.bin").read_bytes() == kept


def test_clear_three_in_a_second_restore_newest_first(script, records, monkeypatch):
    monkeypatch.setattr(time, "strftime", lambda *_: "20260101-100000")
    for k in range(3):
        (records / "logs/run.1").mkdir(exist_ok=True)
        (records / "logs/run.1/which").write_text(str(k))
        assert script("clear.py", "--tag", "run.1").code == 0
    assert len(list((records / ".trash").iterdir())) == 3
    came = []
    for _ in range(3):
        assert script("clear.py", "--tag", "run.1", "--restore").code == 0
        came.append((records / "logs/run.1/which").read_text())
        (records / "logs/run.1/which").unlink()
        for path in records.glob("*/run.1"):
            path.rename(records / f"aside{len(list(records.iterdir()))}")
    assert came == ["2", "1", "0"]


@pytest.mark.parametrize("earlier_version", [False, True])
def test_clear_restores_the_newest_whatever_the_time_zone(script, records, earlier_version):
    """The names have the local time, which is no order between two time zones, nor at the end of summer time."""
    for zone, which in (("Asia/Tokyo", "old"), ("America/Los_Angeles", "new")):
        (records / "logs/run.1").mkdir(exist_ok=True)
        (records / "logs/run.1/which").write_text(which)
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("TZ", zone)
            time.tzset()
            assert script("clear.py", "--tag", "run.1").code == 0
        time.tzset()
    oldest, newest = sorted((records / ".trash").iterdir(), key=lambda path: path.name, reverse=True)
    for path, at in ((oldest, 1_000_000), (newest, 2_000_000)):
        content = json.loads((path / "origin.json").read_text())
        made_at = content.pop("made_at")
        if earlier_version:
            (path / "origin.json").write_text(json.dumps(content))
            os.utime(path / "origin.json", (at, at))
        else:
            assert abs(made_at - time.time()) < 3600
            os.utime(path / "origin.json", (3_000_000 - at,) * 2)  # as in a copy of the trash
    assert script("clear.py", "--tag", "run.1", "--restore").code == 0
    assert (records / "logs/run.1/which").read_text() == "new"


def printed(text, *flags):
    """The words of the last printed command of clear.py that has all `flags`."""
    found = re.findall(r"python (clear\.py .*?)(?=      |$)", text, re.MULTILINE)
    return [line.split() for line in found if all(flag in line.split() for flag in flags)][-1]


def test_clear_restore_brings_back_an_older_entry_as_its_message_says(script, records):
    first = files(records, "run.1")
    assert script("clear.py", "--tag", "run.1").code == 0
    (records / "logs/run.1/deep").mkdir(parents=True)
    (records / "logs/run.1/deep/file.bin").write_text("trained again")
    refused = script("clear.py", "--tag", "run.1", "--restore")
    assert refused.code == 2
    assert script(*printed(refused.err.splitlines()[-2])).code == 0
    assert script(*printed(refused.err.splitlines()[-1], "--restore")).code == 0
    assert files(records, "run.1") == first
    assert len(list((records / ".trash").iterdir())) == 1  # what was trained again


def test_clear_restore_of_unknown_time_lists_the_times(script, records):
    assert script("clear.py", "--tag", "run.1").code == 0
    (entry,) = (records / ".trash").iterdir()
    time = entry.name.split("_")[0]
    result = script("clear.py", "--tag", "run.1", "--restore", "20200101-000000")
    assert result.code == 2
    assert (
        f"allowed: {time}, or no time for the newest. Try: python clear.py --tag run.1 --restore {time}" in result.err
    )
    assert entry.exists()


def test_clear_says_how_to_restore_exactly_what_it_moved(script, records):
    moved = script("clear.py", "--tag", "run.1")
    (entry,) = (records / ".trash").iterdir()
    assert f"--restore {entry.name.split('_')[0]}" in moved.out
    assert script(*printed(moved.out, "--restore")).code == 0
    assert not entry.exists()


def test_clear_names_the_runs_of_folds(script, records):
    for tag in ("run.1_fold10", "run.1_fold2", "run.1_folder", "run-1_fold3"):
        (records / "logs" / tag).mkdir()
    moved = script("clear.py", "--tag", "run.1").out
    assert "The folds of tag 'run.1' are still there" in moved
    assert moved.splitlines()[-2:] == [f"python clear.py --tag run.1_fold{k}" for k in (2, 10)]
    for line in moved.splitlines()[-2:]:
        assert script(*line.split()[1:]).code == 0
    back = script("clear.py", "--tag", "run.1", "--restore").out
    assert back.splitlines()[-2:] == [f"python clear.py --tag run.1_fold{k} --restore" for k in (2, 10)]
    gone = script("clear.py", "--tag", "run.1", "--rm").out
    assert gone.splitlines()[-2:] == [f"python clear.py --tag run.1_fold{k} --rm" for k in (2, 10)]
    assert "The folds" not in script("clear.py", "--tag", "run.1_fold2", "--rm").out


def test_clear_rm_counts_the_lines_in_the_trash(script, records):
    assert script("clear.py", "--tag", "run.1").code == 0
    # the third is that of the first command
    assert "1 trash entry and 3 lines of run_log.txt" in script("clear.py", "--tag", "run.1", "--rm").out


def test_clear_restore_with_rm_is_refused(script, records):
    result = script("clear.py", "--tag", "run.1", "--restore", "--rm")
    assert result.code == 2
    assert "--restore and --rm contradict" in result.err


KILLED = """
import contextlib, io, os, pathlib, shutil, signal, sys
import clear
from options import parse_clear
from utils import run_lock, run_log
from utils.errors import UserError

before, here, other = (pathlib.Path(path) for path in sys.argv[1:4])
ours = ["--tag", "run.1", "--checkpoint_dir", str(other)]
os.fsync = lambda _: None  # no power is cut here
CHANGES = ("os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.symlink", "open")

def command(*words, kill=0):
    # clear.py in a child, which kills itself before its `kill`-th change of the disk; the waiting status.
    child = os.fork()
    if child:
        return os.waitpid(child, 0)[1]
    changes = 0
    def watch(event, arguments):
        nonlocal changes
        if event in CHANGES and (event != "open" or arguments[2] & (os.O_WRONLY | os.O_RDWR)):
            changes += 1
            if changes == kill:
                os.kill(os.getpid(), signal.SIGKILL)
    sys.argv, run_lock.TIMEOUT_SECONDS = ["clear.py", *words], 0
    opt = parse_clear([*ours, *words])
    sys.addaudithook(watch)
    with contextlib.redirect_stdout(io.StringIO()):
        try:
            clear.main(opt)
        except UserError:
            os._exit(2)
        run_lock.release_all()
    os._exit(0)

def anew():
    for folder in (here, other):
        shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(before, here, symlinks=True)
    shutil.move(here / "checkpoints", other)
    os.chdir(here)

def content():
    # Every file but locks and half files of killed commands, by path; the lines of run_log.txt sorted.
    found = {}
    for top in (here, other):
        for path in top.rglob("*"):
            if path.is_symlink() or path.is_file() and path.suffix not in (".lock", ".tmp"):
                lines = path.name == run_log.FILE
                whole = path.is_symlink() or path.read_bytes()
                found[str(path)] = sorted(path.read_text().splitlines()) if lines else whole
    return found

anew()
whole = content()
rest = {name: value for name, value in whole.items() if "/run.1/" not in name and not name.endswith(run_log.FILE)}
for first, then in ([], "--restore"), ([], ""), (["--restore"], "--restore"), (["--rm"], "--rm"):
    for kill in range(1, 1000):
        anew()
        if first == ["--restore"]:
            command()
        killed = command(*first, kill=kill)
        if killed != signal.SIGKILL:
            assert killed == 0, (first, then, kill, killed)
            break
        half, status = content(), command(*[then][: bool(then)])
        found, where = content(), (first, then, kill, status)
        # repeated, or undone; or there was nothing left to do, or nothing done yet, which is exit code 2
        assert status == 0 or (status == 2 << 8 and found in (half, whole)), where
        if then == "":
            entries = [path for path in pathlib.Path(".trash").iterdir() if path.suffix != ".lock"]
            assert len(entries) == 1 and not [name for name in found if "/run.1/" in name], (where, entries)
            command("--restore")
            found = content()
        if then == "--rm":
            assert {name: value for name, value in found.items() if not name.endswith(run_log.FILE)} == rest, where
        else:
            assert found == whole, (where, sorted(found.keys() ^ whole.keys()))
    print(kill - 1, end=" ")
"""


@pytest.mark.parametrize(
    "apart", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["one file system", "two file systems"]
)
def test_clear_killed_anywhere_is_undone_or_continued(records, tmp_path, apart):
    """SIGKILL before each rename, unlink, mkdir and open for writing in turn; then --restore, or the command again."""
    quick = Path(tempfile.mkdtemp(dir="/dev/shm" if Path("/dev/shm").is_dir() else None))
    here, other = quick / "here", (tmp_path.parent / f"{tmp_path.name}_other" if apart else quick / "other")
    try:
        if apart and quick.stat().st_dev == tmp_path.stat().st_dev:
            pytest.skip("there is no second file system here")
        (records / "logs/run.1/link").symlink_to("nowhere")
        for path in [path for tag in NOT_OURS[1:] for path in records.glob(f"*/{tag}")]:
            shutil.rmtree(path)
        words = [sys.executable, "-c", KILLED, records, here, other]
        done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True)
    finally:
        shutil.rmtree(quick)
    assert done.returncode == 0, done.stderr[-3000:]
    assert min(map(int, done.stdout.split())) > 15, done.stdout


def test_clear_foreign_trash_entry_is_kept_and_named(script, records, tmp_path):
    assert script("clear.py", "--tag", "run.1").code == 0
    (entry,) = (records / ".trash").glob("2*")
    good = (entry / "origin.json").read_text()
    before = files(records, "*")
    for content in (
        "{",
        "[]",
        "{}",
        '{"checkpoint": 1}',
        '{"checkpoint": "/etc"}',
        '{"other": "checkpoints/run.1"}',
        None,
    ):
        (entry / "origin.json").unlink()
        if content is not None:
            (entry / "origin.json").write_text(content)
        for flags in (["--restore"], ["--rm"], []):
            result = script("clear.py", "--tag", "run.1", *flags)
            assert result.code == 2 and f".trash/{entry.name}/ has no valid origin.json; it is skipped" in result.err
        (entry / "origin.json").write_text(good)
    assert files(records, "*") == before
    assert script("clear.py", "--tag", "run.1", "--restore").code == 0


@pytest.mark.parametrize("where", ["runs", "runs/run.1"])
def test_clear_nested_folders_are_moved_once(script, tmp_path, where):
    (tmp_path / where / "run.1").mkdir(parents=True)
    (tmp_path / where / "run.1/file.bin").write_bytes(b"kept")
    words = ["clear.py", "--tag", "run.1", "--checkpoint_dir", "runs", "--log_dir", where, "--result_dir", f"{where}/"]
    assert script(*words).code == 0
    assert not (tmp_path / "runs/run.1").exists()
    assert script(*words, "--restore").code == 0
    assert (tmp_path / where / "run.1/file.bin").read_bytes() == b"kept"
    result = script(*words, "--rm")
    assert result.code == 0, result.err
    assert not (tmp_path / "runs/run.1").exists()
