"""clear.py takes away exactly one tag's records, and gives them back byte for byte."""

import os
import time
from pathlib import Path

import pytest

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
        lines.append(Entry(f"2026-01-0{k + 1} 10:00:00", 1, tag, "done in 3 s", f"python train.py --tag {tag} --model X").line())
    (tmp_path / FILE).write_text("".join(f"{line}\n" for line in lines))
    return tmp_path


def files(folder: Path, tag: str = "*") -> dict[str, bytes]:
    """{path: content} of the tag's records."""
    return {str(path): path.read_bytes() for path in folder.glob(f"*/{tag}/deep/file.bin") if path.parts[-4] in FOLDERS}


def log_lines(folder: Path) -> list[str]:
    """The lines of run_log.txt but for those of clear.py itself."""
    return [line for line in (folder / FILE).read_text().splitlines() if "clear.py" not in line]


def test_exactly_the_tag_is_moved(script, records):
    before, logged = files(records), log_lines(records)
    result = script("clear.py", "--tag", "run.1")
    assert result.code == 0, result.err
    assert files(records) == {path: content for path, content in before.items() if "/run.1/" not in path}
    assert log_lines(records) == [line for line in logged if "tag run.1\t" not in line]
    assert "2 line(s)" in result.out
    assert "--restore" in result.out
    assert len(list((records / ".trash").iterdir())) == 1


def test_restore_brings_everything_back_byte_for_byte(script, records):
    before, logged = files(records), log_lines(records)
    assert script("clear.py", "--tag", "run.1").code == 0
    assert script("clear.py", "--tag", "run.1", "--restore").code == 0
    assert files(records) == before
    assert log_lines(records) == sorted(logged, key=lambda line: line.split("\t")[0])
    assert list((records / ".trash").iterdir()) == []


def test_restore_knows_where_the_records_were(script, records):
    (records / "checkpoints").rename(records / "weights")
    before = (records / "weights/run.1/deep/file.bin").read_bytes()
    assert script("clear.py", "--tag", "run.1", "--checkpoint_dir", "weights").code == 0
    assert not (records / "weights/run.1").exists()
    assert script("clear.py", "--tag", "run.1", "--restore").code == 0
    assert (records / "weights/run.1/deep/file.bin").read_bytes() == before


def test_rm_deletes_for_good_what_lies_in_the_trash_too(script, records):
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
    assert "trash holds nothing of tag 'run.1'" in result.err


def test_rm_of_what_lies_in_the_trash_alone(script, records):
    assert script("clear.py", "--tag", "run.1").code == 0
    assert script("clear.py", "--tag", "run.1", "--rm").code == 0
    assert list((records / ".trash").iterdir()) == []


@pytest.mark.parametrize("flags", [[], ["--rm"]])
def test_unknown_tag_says_which_there_are(script, records, flags):
    assert script("clear.py", "--tag", "run.1").code == 0
    before = files(records)
    result = script("clear.py", "--tag", "ru", *flags)
    assert result.code == 2
    assert "no records of tag 'ru'" in result.err
    assert ", ".join(sorted(NOT_OURS)) in result.err
    assert "In the trash: run.1" in result.err
    assert files(records) == before


def test_restore_of_an_unknown_tag_says_what_the_trash_holds(script, records):
    assert script("clear.py", "--tag", "run.1").code == 0
    result = script("clear.py", "--tag", "run", "--restore")
    assert result.code == 2
    assert "nothing of tag 'run'" in result.err
    assert "In the trash: run.1" in result.err


def test_an_empty_folder_has_no_tags(script):
    result = script("clear.py", "--tag", "x")
    assert result.code == 2
    assert "none of any tag" in result.err


@pytest.mark.parametrize("kind", ["folder", "dangling link"])
def test_restore_writes_over_nothing(script, records, kind):
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
def test_a_linked_folder_is_not_followed(script, records, flags):
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


def test_three_clears_within_a_second_come_back_newest_first(script, records, monkeypatch):
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


def test_restore_and_rm_contradict(script, records):
    result = script("clear.py", "--tag", "run.1", "--restore", "--rm")
    assert result.code == 2
    assert "--restore and --rm contradict" in result.err
