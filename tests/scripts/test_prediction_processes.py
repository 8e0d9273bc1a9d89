"""eval.py, submit.py and tools.embed in several processes: the same files as in one, and an end where one dies."""

import io
import os
import re
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest

import processes
from conftest import ROOT, wait_for
from options.choices import TASKS
from processes import free_port, logs
from tools import best_scale
from utils import checkpoint

ON_CPU = "--gpu -1 -w 1".split()
SMALL = (
    "--model timm:test_resnet --no-pretrained --preset original --scale 32 -b 12 -w 0 --gpu -1 --lr 0.01 "
    "--optimizer sgd --transform light --precision fp32 --epochs 1"
).split()
EMBED, SUBMIT, EVAL = ROOT / "tools/embed.py", ROOT / "submit.py", ROOT / "eval.py"


@pytest.fixture(scope="module")
def trained(photo_set, colours, tmp_path_factory) -> Path:
    """A folder with checkpoints/<task>/last.pt, checkpoints/other/last.pt, and lists in lists/: one image is broken."""
    folder = tmp_path_factory.mktemp("trained")
    for task in TASKS:
        data = photo_set if task == "single" else colours / task
        assert (
            processes.alone(folder, ROOT / "train.py", "--task", task, "--tag", task, "--data_root", data, *SMALL) == 0
        )
    words = ["--tag", "other", "--data_root", photo_set, *SMALL, "--seed", 7]
    assert processes.alone(folder, ROOT / "train.py", *words) == 0
    (folder / "lists").mkdir()
    (folder / "lists/broken.jpg").write_bytes(b"no image")
    for name, line in (("val", "broken.jpg 0"), ("test", "broken.jpg")):
        lines = (photo_set / f"{name}.txt").read_text().splitlines()
        (folder / f"lists/{name}.txt").write_text("\n".join([*lines[:4], line, *lines[4:]]) + "\n")
    shutil.copy(photo_set / "classes.txt", folder / "lists")
    return folder


@pytest.fixture
def places(trained, tmp_path) -> tuple[Path, Path]:
    """Two folders with the same checkpoints and lists."""
    for name in ("one", "two"):
        shutil.copytree(trained / "checkpoints", tmp_path / name / "checkpoints")
        shutil.copytree(trained / "lists", tmp_path / name / "lists")
    return tmp_path / "one", tmp_path / "two"


def written(folder: Path) -> dict[str, bytes]:
    """The content of all results in `folder`, but for what a report says of how, where and when it was made."""
    found = {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    made = rb'<tr><th>(command|folder)<.*|\d{4}-\d\d-\d\d \d\d:\d\d UTC|"list_hash_absolute": "[0-9a-f]+"'
    return {
        name: arrays(content) if name.endswith(".npz") else re.sub(made, b"", content)
        for name, content in found.items()
    }


def arrays(content: bytes) -> bytes:
    """The arrays of a file of predictions, but for the hash that says where the list is."""
    with np.load(io.BytesIO(content)) as file:
        kept = [(name, file[name]) for name in file.files if name != "list_hash_absolute"]
        assert len(kept) == len(file.files) - 1
    return b"".join(f"{name} {array.dtype} {array.shape} ".encode() + array.tobytes() for name, array in kept)


def same_results(one: Path, two: Path, pictures: bool = True) -> int:
    """The number of files that a command left in one process and in two; they are equal to the byte.

    Without `pictures`, those and the reports that hold them are not compared.
    """
    left, right = written(one / "results"), written(two / "results")
    assert left.keys() == right.keys()
    differing = [name for name in left if left[name] != right[name]]
    assert [name for name in differing if pictures or not name.endswith((".png", ".html"))] == []
    return len(left)


def run_both(places: tuple[Path, Path], script, *words, batch: int = 3) -> None:
    """Run a command in one process with `batch`, and in two with twice as many."""
    one, two = places
    script = list(script) if isinstance(script, list) else [script]
    assert processes.alone(one, *script, *words, *ON_CPU, "-b", batch) == 0, (one / "alone.log").read_text()
    line = [*script, *words, *ON_CPU, "-b", 2 * batch]
    assert processes.ranks(two, line, line) == [0, 0], logs(two)


FLAGS = {
    "single": "--load checkpoints/single/last.pt --tta flip --save_probs --calibrate --val_list lists/val.txt",
    "ordinal": "--load checkpoints/ordinal/last.pt",
    "multilabel": "--load checkpoints/multilabel/last.pt --save_probs",
    "regression": "--load checkpoints/regression/last.pt",
    "fitted": "--load checkpoints/single/last.pt checkpoints/other/last.pt --blend greedy",
}


@pytest.mark.parametrize("case", FLAGS)
def test_eval_two_processes_write_the_same_files(places, case):
    run_both(places, EVAL, *FLAGS[case].split(), "--tag", "scored", "--resamples", 20)
    assert same_results(*places) > 5
    if case == "single":  # the broken image, by the main process alone, and the stored temperature
        assert logs(places[1]).count("broken.jpg") == (places[0] / "alone.log").read_text()[-3000:].count("broken.jpg")
        stored = [checkpoint.load(place / "checkpoints/single/last.pt")["calibration"] for place in places]
        assert stored[0] == stored[1]
    assert "2 processes share the batches" in logs(places[1])
    lines = (places[1] / "run_log.txt").read_text().splitlines()
    assert sum("tag scored\t" in line for line in lines) == sum(
        "tag scored\t" in line for line in (places[0] / "run_log.txt").read_text().splitlines()
    )


@pytest.mark.parametrize("case", ["fitted", "single"])
def test_eval_two_processes_with_little_memory_write_the_same_files(places, case):
    """The fitted ensemble runs its networks again, and predictions go through files."""
    words = ["--tag", "scored", "--resamples", 0, "--no-report"]
    one, two = places
    assert processes.alone(one, EVAL, *FLAGS[case].split(), *words, *ON_CPU, "-b", 3) == 0
    line = [ROOT / "tests/little_memory.py", EVAL, *FLAGS[case].split(), *words, *ON_CPU, "-b", 6]
    assert processes.ranks(two, line, line) == [0, 0], logs(two)
    assert same_results(one, two) > 5


SUBMISSIONS = {
    "single": "--load checkpoints/single/last.pt --save_probs --pseudo_label 0.1 --test_list lists/test.txt",
    "ensemble": "--load checkpoints/single/last.pt checkpoints/other/last.pt --weights 2 1 --tta flip",
    "multilabel": "--load checkpoints/multilabel/last.pt --probabilities",
    "regression": "--load checkpoints/regression/last.pt",
}


@pytest.mark.parametrize("case", SUBMISSIONS)
def test_submit_two_processes_write_the_same_files(places, case):
    """The provenance alone differs, by its command."""
    run_both(places, SUBMIT, *SUBMISSIONS[case].split(), "--tag", "sent", batch=2)
    for place in places:
        for path in place.rglob("*.provenance.json"):
            path.unlink()
    assert same_results(*places) >= 1


def test_submit_images_two_processes_print_the_same(places, photo_set):
    words = ["--images", photo_set, "--load", "checkpoints/single/last.pt", "--format", "csv", "--out", "found.csv"]
    run_both(places, SUBMIT, *words, batch=5)
    assert (places[0] / "found.csv").read_bytes() == (places[1] / "found.csv").read_bytes()
    assert len((places[0] / "found.csv").read_text().splitlines()) > 50


def test_embed_two_processes_write_the_same_files(places, photo_set):
    words = ["--load", "checkpoints/single/last.pt", "--list", "lists/val.txt", "--out", "results"]
    run_both(places, EMBED, *words, "--among", photo_set / "train.txt", "--neighbours", 3)
    assert same_results(*places) == 5
    assert np.load(places[1] / "results/features.npy").shape == (13, 96)


def test_torchrun_eval_writes_the_same_files(places):
    words = [*FLAGS["single"].split(), "--tag", "scored", "--resamples", 0, *ON_CPU]
    assert processes.alone(places[0], EVAL, *words, "-b", 3) == 0
    launcher = ["--nproc_per_node=2", "--master_addr", "127.0.0.1", "--master_port", free_port()]
    assert processes.torchrun(places[1], launcher, EVAL, *words, "-b", 6).wait() == 0, logs(places[1])
    assert same_results(*places, pictures=False) > 5  # torchrun's processes draw them in full, not forked.py's


# ------------------------------------------------------------------------ what goes wrong


def test_eval_mistake_in_several_processes_is_printed_once(places):
    two = places[1]
    line = [EVAL, "--load", "checkpoints/none.pt", *ON_CPU, "-b", 6]
    assert processes.ranks(two, line, line) == [2, 2]
    assert logs(two).count("checkpoints/none.pt") == 1
    (two / "other").mkdir()
    short = (two / "lists/val.txt").read_text().splitlines()[:6]
    (two / "lists/short.txt").write_text("\n".join(short) + "\n")
    lines = [
        [EVAL, "--load", f"checkpoints/{tag}/last.pt", "--val_list", f"lists/{name}.txt", *ON_CPU, "-b", 6]
        for tag, name in (("single", "val"), ("other", "short"))
    ]
    assert processes.ranks(two, *lines) == [2, 2]
    said = logs(two).split("not started alike:")
    assert len(said) == 2
    assert [line.split(":")[0].strip() for line in said[1].splitlines()[1:3]] == ["member 0 of --load", "the list"]
    assert not (two / "results").exists()


def test_eval_other_thresholds_of_labels_in_another_process_are_refused(places):
    two = places[1]
    (two / "other").mkdir()
    content = checkpoint.load(two / "checkpoints/multilabel/last.pt")
    stored = {"rule": "per_label", "images": 8, "tta": "none", "values": [0.25, 0.75]}
    checkpoint.save(two / "other/last.pt", {**content, "thresholds": stored})
    lines = [[EVAL, "--load", f"{name}/last.pt", *ON_CPU, "-b", 6] for name in ("checkpoints/multilabel", "other")]
    assert processes.ranks(two, *lines) == [2, 2]
    told = logs(two).split("not started alike:")[1].splitlines()[1:3]
    assert told[0].strip() == "thresholds of the labels: None (process 0), [0.25, 0.75] (process 1)"
    assert told[1].startswith("Give each machine")


def test_submit_images_mistake_in_several_processes_is_printed_once(tmp_path):
    for name, said in (("-", "Names from standard input run in one process"), ("none.jpg", "error: ")):
        (tmp_path / name).mkdir()
        line = [SUBMIT, "--images", "-" if name == "-" else name + "/none.jpg", "--load", "none.pt", *ON_CPU, "-b", 6]
        assert processes.ranks(tmp_path / name, line, line) == [2, 2]
        assert logs(tmp_path / name).count(said) == 1, logs(tmp_path / name)


def test_tool_for_one_process_is_refused_in_several(trained, photo_set, monkeypatch, capsys):
    monkeypatch.setenv("WORLD_SIZE", "2")
    words = ["--load", trained / "checkpoints/single/last.pt", "--list", photo_set / "val.txt", "--gpu", -1, "-w", 0]
    assert best_scale.main(list(map(str, words))) == 2
    assert "run in one process, but torchrun started 2" in capsys.readouterr().err


def test_eval_fault_of_another_process_ends_all_with_its_message(places):
    """The main process alone prints it, and writes nothing."""
    two = places[1]
    (two / "fault.py").write_text(
        "import runpy, sys\n"
        f"sys.path.insert(0, {str(ROOT)!r})\n"
        "from utils import distributed, errors\n"
        "from inference.predictor import Predictor\n"
        "real = Predictor.member_probabilities\n"
        "def fail(*given):\n"
        "    if distributed.rank():\n"
        "        raise errors.MachineFault('the drive is gone')\n"
        "    return real(*given)\n"
        "Predictor.member_probabilities = fail\n"
        "sys.argv = sys.argv[1:]\n"
        "runpy.run_path(sys.argv[0], run_name='__main__')\n"
    )
    line = [two / "fault.py", EVAL, *FLAGS["single"].split(), *ON_CPU, "-b", 6, "--tag", "scored"]
    assert processes.ranks(two, line, line) == [2, 2]
    assert logs(two).count("the drive is gone") == 1
    assert "In process 1: the drive is gone" in logs(two)
    assert not list(two.glob("results/scored/*"))


@pytest.mark.slow
@pytest.mark.parametrize("held", [1, 0])
def test_torchrun_process_killed_ends_all_and_keeps_earlier_results(places, held):
    """The main process waits for the killed one, or is told by torchrun while it predicts."""
    two = places[1]
    words = [*FLAGS["single"].split(), "--tag", "scored", "--resamples", 0, *ON_CPU]
    assert processes.alone(two, EVAL, *words, "-b", 3) == 0
    earlier = written(two / "results")
    launcher = ["--nproc_per_node=2", "--master_addr", "127.0.0.1", "--master_port", free_port()]
    agent = processes.torchrun(two, launcher, ROOT / "tests/held_batch.py", two, held, EVAL, *words, "-b", 6)
    wait_for(lambda: (two / "held").exists() or agent.poll() is not None)
    children = Path(f"/proc/{agent.pid}/task/{agent.pid}/children").read_text().split()
    if held:  # torchrun stands still until the main process has noticed by itself
        os.kill(agent.pid, signal.SIGSTOP)
    os.kill(int(children[1]), signal.SIGKILL)
    if held:
        state = Path(f"/proc/{children[0]}/stat")
        wait_for(lambda: state.read_text().rpartition(")")[2].split()[0] == "Z")
        os.kill(agent.pid, signal.SIGCONT)
    assert agent.wait() == 1
    assert ("Process 1 of this run has ended" if held else "SIGTERM: A process of this run has ended") in logs(two)
    assert "RuntimeError" not in logs(two)
    assert written(two / "results") == earlier
