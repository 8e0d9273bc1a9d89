"""The commands that a script prints."""

import sys

import pytest

from conftest import ROOT
from options import command, parse_train, resume_command


@pytest.mark.parametrize(
    ("processes", "in_all", "wanted"),
    [
        (1, 1, "python train.py --tag many --resume"),
        (8, 8, "torchrun --nproc_per_node=8 train.py --tag many --resume"),
        (8, 16, "the torchrun of this run again on each machine, with its --nnodes and --node_rank, and\n"),
        (1, 2, "the torchrun of this run again on each machine, with its --nnodes and --node_rank, and\n"),
    ],
)
def test_resume_command_counts_the_processes_of_one_machine(processes, in_all, wanted):
    """For 2 machines of 8 it said --nproc_per_node=16, without --nnodes."""
    found = resume_command(parse_train(["--tag", "many"]), processes, in_all)
    assert found.startswith(wanted) and found.endswith("train.py --tag many --resume")


@pytest.mark.parametrize("scripts", [["train.py"], ["train.py", "eval.py"]])
def test_command_of_a_script_behind_a_link_is_of_the_project(tmp_path, monkeypatch, scripts):
    """bin/train.py, a link to the one script, said to go on with bin/eval.py, which is not there."""
    for folder in ("project", "bin"):
        (tmp_path / folder).mkdir()
    for name in ("train.py", "eval.py"):
        (tmp_path / "project" / name).touch()
    for name in scripts:
        (tmp_path / "bin" / name).symlink_to(tmp_path / "project" / name)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["bin/train.py"])
    wanted = "bin/eval.py" if "eval.py" in scripts else f"{tmp_path}/project/eval.py"
    assert command("eval", {}) == f"python {wanted}"


@pytest.mark.parametrize("running", ["tools/export/__main__.py", "tools/lr_find.py", "datasets/prepare.py"])
def test_command_of_a_tool_in_another_folder_is_of_the_project(running, tmp_path, monkeypatch):
    """`python /project/datasets/prepare.py` in the folder of the images said `python train.py`, which is not there."""
    monkeypatch.setattr(sys, "argv", [str(ROOT / running)])
    monkeypatch.chdir(tmp_path)
    assert command("train", {}) == f"python {ROOT}/train.py"
    monkeypatch.chdir(ROOT)
    assert command("train", {}) == "python train.py"
    monkeypatch.setattr(sys, "argv", ["/elsewhere/tools/mine.py"])
    monkeypatch.chdir(tmp_path)
    assert command("train", {}) == "python train.py", "a program of somebody else"
