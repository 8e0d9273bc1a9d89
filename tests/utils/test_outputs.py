"""What a command may replace: no input, no device, no other kind of file, no results of another checkpoint."""

import json
import os
import shutil
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import PIL.Image
import pytest

import network
import tiny
from conftest import HOLD_FOLDER, ROOT
from tools import lr_find, preview
from tools.doctor import command as doctor
from utils import checkpoint, outputs, run_lock
from utils.errors import UserError
from utils.files import atomic_write, link_over, write_replaced


@pytest.fixture
def ready(tmp_path, monkeypatch):
    """Write images, lists and a checkpoint of tag `small` into the current folder; return flags for eval and submit."""
    monkeypatch.setitem(network.models, "Tiny", tiny.Tiny)
    monkeypatch.setattr(run_lock, "TIMEOUT_SECONDS", 0.2)
    tiny.write_images(tmp_path)
    content = checkpoint.load(tiny.unpack("sgd", tmp_path))
    content["opt"]["tag"] = "small"
    checkpoint.save(tmp_path / "checkpoints/small/last.pt", content)
    return ["--load", "checkpoints/small/last.pt", "--data_root", str(tmp_path), "--gpu", "-1", "-w", "0"]


def test_atomic_write_uses_random_name_and_keeps_permissions(tmp_path):
    trap = tmp_path / "trap"
    trap.write_text("untouched")
    names = set()
    before = os.umask(0o027)
    try:
        for path in (tmp_path / "new", tmp_path / "old", tmp_path / "linked"):
            if path.name == "old":
                path.write_text("old")
                path.chmod(0o604)
            if path.name == "linked":
                path.symlink_to(trap)
            for _ in range(2):
                with atomic_write(path, "w") as file:
                    file.write("text")
                    file.flush()
                    beside = Path(file.name)
                    names.add(beside.name)
                    assert beside.parent == tmp_path and not beside.is_symlink()
    finally:
        os.umask(before)
    assert len(names) == 6 and trap.read_text() == "untouched"
    modes = [stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("new", "old", "linked")]
    assert modes == [0o640, 0o604, 0o640] and not (tmp_path / "linked").is_symlink()
    link_over(tmp_path / "old", tmp_path / "second")
    assert (tmp_path / "second").samefile(tmp_path / "old")
    assert not list(tmp_path.glob(".*"))
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "full").symlink_to("/dev/full")
    for name, what in (("pipe", "a device or a pipe"), ("full", "a device or a pipe"), ("", "is a folder")):
        with pytest.raises(UserError, match=what), atomic_write(tmp_path / name):
            raise AssertionError("it was opened")
    assert (tmp_path / "full").is_symlink()


@pytest.fixture
def as_somebody() -> Iterator[Path]:
    """A folder that its user may not write into; root, who may, is somebody else for the time of the test."""
    folder = Path(tempfile.mkdtemp())  # that of pytest is closed to others
    (folder / "closed").mkdir()
    (folder / "closed").chmod(0o555)
    folder.chmod(0o755)
    root = os.geteuid() == 0
    if root:
        os.seteuid(65534)  # nobody
    yield folder / "closed"
    if root:
        os.seteuid(0)
    (folder / "closed").chmod(0o755)
    shutil.rmtree(folder)


def test_check_refuses_a_place_that_cannot_be_written(as_somebody):
    for path in (as_somebody / "new.csv", as_somebody / "missing" / "deep" / "new.csv"):
        with pytest.raises(
            UserError, match=f"{path} cannot be written: its permissions.* no new file in {as_somebody}"
        ):
            outputs.check([outputs.Output(path, "a list")], {})
    with pytest.raises(UserError, match="/dev/null is a file, not a folder"):
        outputs.check([outputs.Output(Path("/dev/null/new.csv"), "a list")], {})
    outputs.check([outputs.Output(Path(tempfile.gettempdir()) / "new" / "list.csv", "a list")], {})


def test_check_refuses_one_file_for_two_things(tmp_path):
    both = [outputs.Output(tmp_path / "a.csv", what) for what in ("a submission", "a file of probabilities")]
    with pytest.raises(UserError, match=r"a\.csv would be a submission and a file of probabilities at once"):
        outputs.check(both, {})


def test_submit_out_replaces_only_its_own_submissions(script, ready, tmp_path):
    load = tmp_path / ready[1]
    for name, source in (("same.pt", load), ("same.txt", tmp_path / "test.txt")):
        (tmp_path / name).hardlink_to(source)
    (tmp_path / "link.csv").symlink_to(tmp_path / "test_image_of_class_0_0.png")
    (tmp_path / "other.txt").write_text("a.jpg 3\n")
    (tmp_path / "mine.csv").write_text("name,price\n")
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    for out, part in (
        ("test.txt", "the same file as"),
        ("classes.txt", "the names of a list"),
        ("same.txt", "test.txt (a list)"),
        ("same.pt", "checkpoints/small/last.pt (--load)"),
        ("link.csv", "test_image_of_class_0_0.png (an image of the list)"),
        (".", "is a folder"),
        ("/dev/full", "is a device or a pipe"),
        ("other.txt", "--force"),
        ("mine.csv", "--force"),
    ):
        for force in (["--force"], []) if part != "--force" else ([],):
            result = script("submit.py", *ready, "--out", out, *force)
            assert result.code == 2 and part in result.err and "Traceback" not in result.err, (out, result.err)
    assert before == {path: path.read_bytes() for path in before} and stat.S_ISCHR(Path("/dev/full").stat().st_mode)
    assert {path.name for path in tmp_path.iterdir()} - {path.name for path in before} == {
        "checkpoints",
        "run_log.txt",
        "run_log.txt.lock",
    }

    assert script("submit.py", *ready, "--out", "mine.csv", "--force").code == 0
    for flags in (
        [],
        ["--no-header", "--separator", " "],
        ["--columns", "a", "b"],
        ["--columns", "a", "b"],
        ["--format", "json"],
        [],
    ):
        # as its provenance says, it is ours
        result = script("submit.py", *ready, "--out", "mine.csv", "--save_probs", *flags)
        assert result.code == 0, result.err
    (tmp_path / "mine.provenance.json").unlink()
    assert script("submit.py", *ready, "--out", "mine.csv").code == 0  # as its header says
    (tmp_path / "mine.provenance.json").write_text("{}")
    result = script("submit.py", *ready, "--out", "mine.csv")
    assert result.code == 2 and "does not look like a submission's provenance" in result.err


def test_tools_out_that_is_an_input_is_refused(ready, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    image = next(tmp_path.glob("train_image*.png"))
    train = ["--data_root", ".", *tiny.FLAGS]
    before = {path: path.read_bytes() for path in tmp_path.glob("*.*")}
    for main, words, part in (
        (preview.main, [*train, "--out", image.name], "an image of the list"),
        (preview.main, [*train, "--out", "sgd.pt"], "--force"),
        (lr_find.main, [*train, "--out", "train.txt"], "a list"),
        (lr_find.main, [*train, "--out", "x.csv"], "at once"),
        (doctor.main, ["train.txt", "--out", "."], "same file as train.txt (a list)"),
    ):
        if main is doctor.main:
            (tmp_path / "doctor.csv").hardlink_to(tmp_path / "train.txt")
        assert main(words) == 2, words
        assert part in capfd.readouterr().err, words
    assert before == {path: path.read_bytes() for path in before}
    mine, twin = (outputs.Output(tmp_path / name, "mine", lambda path: False) for name in ("doctor.csv", "train.txt"))
    with pytest.raises(UserError, match="train.txt .mine. is the same file as ./train.txt"):  # one file by two names
        outputs.check([mine, twin], {"./train.txt": "a list"})
    with pytest.raises(UserError, match="doctor.csv exists already and does not look like mine"):
        outputs.check([mine, twin], {})
    PIL.Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save("photo.png")
    # a picture, but none that was drawn
    assert preview.main([*train, "--out", "photo.png", "--samples", "1", "--views", "1"]) == 2
    assert preview.main([*train, "--out", "photo.png", "--samples", "1", "--views", "1", "--force"]) == 0
    assert preview.main([*train, "--out", "photo.png", "--samples", "1", "--views", "1"]) == 0
    assert outputs.is_plot(tmp_path / "photo.png") and not outputs.is_plot(image)


def test_eval_of_another_checkpoint_gets_its_own_folder(script, ready, tmp_path):
    words = [*ready, "--no-report", "--resamples", "0"]
    assert script("eval.py", *words).code == 0
    assert script("eval.py", *words, "--tta", "x8").code == 0
    assert script("eval.py", *words, "--tag", "small", "--tta", "flip").code == 0
    folders = {str(path.relative_to(tmp_path)) for path in (tmp_path / "results").glob("*/*")}
    assert folders == {"results/cache/small_1", "results/cache/small_1_x8", "results/small/1"}
    first = json.loads((tmp_path / "results/small/1/metrics.json").read_text())
    compared = script("eval.py", *words, "--tag", "small", "--compare", "results/small/1/predictions.csv")
    assert compared.code == 2 and "predictions.csv (--compare), which is read" in compared.err

    content = checkpoint.load(ready[1])
    content["weights"] = {
        name: weight + 1 if name.endswith("fc.bias") else weight for name, weight in content["weights"].items()
    }
    content["opt"]["tag"] = "鞋" * 85  # 255 bytes, which an earlier version took
    checkpoint.save(tmp_path / "x.pt", content)
    assert script("eval.py", *words, "--load", "x.pt").code == 0
    (other,) = (tmp_path / "results/cache").glob("鞋*")
    assert (other / "metrics.json").exists()
    content["opt"]["tag"] = "small"
    checkpoint.save(tmp_path / "x.pt", content)
    result = script("eval.py", *words, "--load", "x.pt", "--tag", "small")
    assert result.code == 0
    assert "results/small/1/ held the results of another checkpoint. It is renamed to 1.2" in result.out
    new = json.loads((tmp_path / "results/small/1/metrics.json").read_text())
    (aside,) = (tmp_path / "results/small").glob("1.2*")
    assert json.loads((aside / "metrics.json").read_text()) == first
    assert len(new["runs"]) == 1 and new["checkpoints"] != first["checkpoints"]
    assert script("eval.py", *words, "--load", "x.pt", "--tag", "small", "--tta", "flip").code == 0
    assert len(list((tmp_path / "results/small").iterdir())) == 2  # the same checkpoint: replaced


def test_eval_report_compares_runs_of_the_same_list_alone(script, ready, photo_set, tmp_path):
    """The difference of two lists was shown as the gain of --tta, as both lists have as many images."""
    lines = (photo_set / "train.txt").read_text().splitlines()[::6]
    (tmp_path / "other.txt").write_text("".join(f"{line}\n" for line in lines))
    words = ["eval.py", *ready, "--tag", "small", "--resamples", "0"]
    file = tmp_path / "results/small/1/metrics.json"
    assert script(*words).code == 0
    result = script(*words, "--val_list", tmp_path / "other.txt", "--tta", "flip")
    assert result.code == 0 and "leaves out 1 evaluation(s) in results/small/: of another list" in result.out
    first, second = json.loads(file.read_text())["runs"]
    assert first["count"] == second["count"] == 6 and second["list"] == str(tmp_path / "other.txt")
    assert first["list_hash"] != second["list_hash"]
    title = "Other settings and ensembles"
    assert title not in file.with_name("report.html").read_text()
    result = script(*words, "--tta", "flip")  # the same settings as above, on the first list
    assert result.code == 0 and "leaves out 1 evaluation(s)" in result.out
    runs = json.loads(file.read_text())["runs"]
    assert runs[:2] == [first, second] and [run["tta"] for run in runs] == ["none", "flip", "flip"]
    assert title in file.with_name("report.html").read_text()

    content = json.loads(file.read_text())
    for run in content["runs"]:  # as an earlier version left it
        del run["list"], run["list_hash"]
    file.write_text(json.dumps(content))
    result = script(*words, "--tta", "flip")
    assert result.code == 0 and "a version that did not note the list" in result.out
    assert [run["tta"] for run in json.loads(file.read_text())["runs"]] == ["none", "flip"]
    assert title not in file.with_name("report.html").read_text()


def test_submit_of_another_checkpoint_renames_the_old_files(script, ready, tmp_path):
    words = ["submit.py", *ready, "--tag", "one"]
    folder = tmp_path / "results/one"
    assert script(*words, "--pseudo_label", 0, "--save_probs").code == 0
    before = {path.name.partition(".")[0::2]: path.read_bytes() for path in folder.iterdir()}
    assert script(*words, "--pseudo_label", 0, "--save_probs").code == 0
    assert len(list(folder.iterdir())) == len(before) == 4  # of the same checkpoint
    content = checkpoint.load(tmp_path / "checkpoints/small/last.pt")
    content["opt"]["seed"] += 1
    checkpoint.save(tmp_path / "checkpoints/small/last.pt", content)
    result = script(*words)
    assert result.code == 0 and "belongs to other checkpoints" in result.out + result.err
    kept = [path for path in folder.iterdir() if path.name not in ("submission.csv", "submission.provenance.json")]
    assert len(kept) == 4
    assert {path.name.partition(".")[0] for path in kept} == {"submission", "probs"}
    csv = next(path for path in kept if path.suffix == ".csv")
    assert csv.read_bytes() == before["submission", "csv"]


def other_checkpoint(path):
    """Write a checkpoint of the same network and another seed beside that of `ready`, and return its path."""
    content = checkpoint.load(path)
    content["opt"]["seed"] += 1
    checkpoint.save(path.with_name("other.pt"), content)
    return path.with_name("other.pt")


def test_submit_in_another_format_renames_what_is_of_another_checkpoint(script, ready, tmp_path):
    """The provenance named the last format alone, so the CSV of the first checkpoint was replaced in silence."""
    words, other = ["submit.py", *ready, "--tag", "one"], other_checkpoint(tmp_path / ready[1])
    folder = tmp_path / "results/one"
    assert script(*words, "--pseudo_label", 0, "--save_probs").code == 0
    first = {path.read_bytes() for path in folder.iterdir()}
    result = script(*words, "--load", other, "--format", "json")
    assert result.code == 0 and "results/one/ belongs to other checkpoints" in result.out
    assert "submission.csv to submission.2" in result.out
    assert {path.name for path in folder.iterdir() if ".2" not in path.name} == {
        "submission.json",
        "submission.provenance.json",
    }
    assert script(*words, "--load", other).code == 0  # of the same checkpoint: the two formats stay
    assert {path.name for path in folder.iterdir() if ".2" not in path.name} == {
        "submission.csv",
        "submission.json",
        "submission.provenance.json",
    }
    assert first <= {path.read_bytes() for path in folder.iterdir()}
    (folder / "submission.csv").rename(folder / "sent.csv")
    assert script(*words).code == 0  # the first checkpoint: the provenance and the JSON are the other's
    assert {path.name for path in folder.iterdir() if ".2" not in path.name} == {
        "sent.csv",
        "submission.csv",
        "submission.provenance.json",
    }


def test_submit_of_unrecorded_submission_renames_it(script, ready, tmp_path):
    """Earlier versions noted the last format alone."""
    words, folder = ["submit.py", *ready, "--tag", "one"], tmp_path / "results/one"
    assert script(*words, "--format", "json").code == 0
    (folder / "submission.csv").write_text("id,predicted\n")
    assert "results/one/ belongs to other checkpoints" in script(*words).out
    assert "id,predicted\n" in [path.read_text() for path in folder.glob("submission.2*.csv")]


def test_provenance_keeps_the_record_of_another_format(script, ready, tmp_path):
    words, other = ["submit.py", *ready], other_checkpoint(tmp_path / ready[1])
    assert script(*words, "--out", "x.csv").code == 0
    first = json.loads(Path("x.provenance.json").read_text())
    assert "others" not in first
    assert script(*words, "--load", other, "--out", "x.tsv", "--separator", "tab").code == 0
    both = json.loads(Path("x.provenance.json").read_text())
    assert both["submission"]["path"] == "x.tsv" and both["others"] == {"x.csv": first}
    assert script(*words, "--out", "x.csv").code == 0
    again = json.loads(Path("x.provenance.json").read_text())
    assert again["submission"] == first["submission"]
    assert again["others"] == {"x.tsv": {name: value for name, value in both.items() if name != "others"}}


@pytest.mark.parametrize("out", [[], ["--out", "results/one/submission.csv"]], ids=["tag", "out"])
def test_submit_without_pseudo_labels_renames_those_of_the_earlier_run(out, script, ready, tmp_path):
    """They were of another list than the submission beside them."""
    words, folder = ["submit.py", *ready, "--tag", "one", *out], tmp_path / "results/one"
    assert script(*words, "--pseudo_label", 0, "--save_probs").code == 0
    pseudo, probabilities = ((folder / name).read_bytes() for name in ("submission.pseudo.txt", "probs.npz"))
    (tmp_path / "short.txt").write_text("\n".join((tmp_path / "test.txt").read_text().splitlines()[:3]))
    result = script(*words, "--test_list", "short.txt")
    assert result.code == 0 and "The earlier submission.csv had files that this run does not write" in result.out
    left = {path.name for path in folder.iterdir() if ".2" not in path.name}
    assert left == {"submission.csv", "submission.provenance.json"}
    assert [path.read_bytes() for path in folder.glob("*.2*")] in ([pseudo, probabilities], [probabilities, pseudo])
    result = script(*words)
    assert result.code == 0 and "Renamed" not in result.out  # nothing is left to rename


def test_submit_out_leaves_probabilities_of_another_submission(script, ready, tmp_path):
    """The folder had one probs.npz, which each name replaced."""
    words = ["submit.py", *ready, "--tag", "one"]
    assert script(*words, "--save_probs").code == 0
    assert script(*words, "--out", "results/one/a.csv", "--save_probs").code == 0
    before = {path: path.read_bytes() for path in Path("results/one").glob("*probs.npz")}
    assert sorted(path.name for path in before) == ["a.probs.npz", "probs.npz"]
    other = other_checkpoint(tmp_path / ready[1])
    for more in (["--save_probs"], []):
        assert script(*words, "--load", other, "--out", "results/one/b.csv", *more).code == 0
        assert {path: path.read_bytes() for path in before} == before
    (renamed,) = Path("results/one").glob("b.2*.probs.npz")
    assert not Path("results/one/b.probs.npz").exists(), f"{renamed} is of the earlier b.csv"


def test_submit_in_another_format_keeps_its_own_probabilities_and_pseudo_labels(script, ready, tmp_path):
    """x.csv and x.json shared x.probs.npz and x.pseudo.txt, so the second checkpoint's replaced the first's."""
    words = ["submit.py", *ready, "--pseudo_label", 0, "--save_probs"]
    assert script(*words, "--out", "x.csv").code == 0
    before = {path: path.read_bytes() for path in (Path("x.csv"), Path("x.probs.npz"), Path("x.pseudo.txt"))}
    other = other_checkpoint(tmp_path / ready[1])
    assert script(*words, "--load", other, "--out", "x.json", "--format", "json").code == 0
    assert {path: path.read_bytes() for path in before} == before
    assert Path("x.json.probs.npz").is_file() and Path("x.json.pseudo.txt").is_file()
    assert script(*words, "--tag", "one").code == 0
    assert script(*words, "--tag", "one", "--format", "json", "--tta", "flip").code == 0
    folder = Path("results/one")
    assert (folder / "submission.json.probs.npz").read_bytes() != (folder / "probs.npz").read_bytes()
    result = script("submit.py", *ready, "--load", other, "--tag", "one")
    assert result.code == 0 and "results/one/ belongs to other checkpoints" in result.out
    left = {path.name for path in folder.iterdir() if ".2" not in path.name}
    assert left == {"submission.csv", "submission.provenance.json"}


def test_a_few_batches_replace_no_results_and_no_submission(script, ready):
    """The rows that --debug predicts replaced those of the whole list, under their name."""
    words = [*ready, "--tag", "small", "-b", "1"]
    for name in ("eval.py", "submit.py"):
        assert script(name, *words, "--save_probs").code == 0
    before = {path: path.read_bytes() for path in Path("results").rglob("*") if path.is_file()}
    for name in ("eval.py", "submit.py"):
        assert script(name, *words, "--save_probs", "--debug").code == 0
    assert {path: path.read_bytes() for path in before} == before
    files = {path.relative_to("results/small").as_posix() for path in Path("results").rglob("*") if path not in before}
    assert {"1_debug/metrics.json", "submission_debug.csv", "submission_debug.probs.npz"} <= files


def test_eval_and_submit_in_locked_folder_are_refused(script, ready, tmp_path):
    """Another process holds a folder as a run, clear.py, or another evaluation would."""
    for folder, shared, refused in (
        ("results/t", False, [["eval.py", *ready, "--tag", "t"], ["submit.py", *ready, "--tag", "t"]]),
        ("results/t", True, [["clear.py", "--tag", "t"]]),
        ("results/t/small_1", False, [["eval.py", *ready, "--tag", "t"]]),
        ("results/t/submission.csv", False, [["submit.py", *ready, "--tag", "t"]]),
        ("checkpoints/small", False, [["eval.py", *ready, "--tag", "t", "--calibrate"]]),
    ):
        words = [sys.executable, "-c", HOLD_FOLDER.format(shared=shared), tmp_path / folder]
        with subprocess.Popen(words, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
            assert other.stdout.readline() == "held\n"
            for command in refused:
                result = script(*command)
                assert result.code == 2, (folder, command, result.err)
                assert f"{folder} is in use by another command" in result.err, (folder, command, result.err)
            other.communicate("\n")
    assert script("eval.py", *ready, "--tag", "t", "--no-report", "--calibrate").code == 0
    assert "calibration" in checkpoint.load(ready[1])


def test_write_replaced_keeps_the_old_file_if_it_fails(tmp_path, monkeypatch):
    """An image was written in place, so that a kill left a part of it."""
    path = tmp_path / "images" / "a.png"
    write_replaced(path, b"old")
    with monkeypatch.context() as patched:
        patched.setattr(os, "replace", lambda *words: (_ for _ in ()).throw(OSError(28, "No space left on device")))
        with pytest.raises(UserError, match=r"(?s)a\.png cannot be written: No space left.*Try: df -h"):
            write_replaced(path, b"new")
    assert path.read_bytes() == b"old" and [one.name for one in path.parent.iterdir()] == ["a.png"]
    write_replaced(path, b"new")
    assert path.read_bytes() == b"new"
