"""The commands that a script prints."""

import pytest

from options import parse_train, resume_command


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
