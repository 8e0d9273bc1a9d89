"""The longest wait for another process, and what is said after it."""

import processes

SCRIPT = """
import sys
from datetime import timedelta
sys.path.insert(0, {root!r})
import torch
from utils import distributed

distributed.init(torch.device("cpu"), timedelta(seconds=2))
if distributed.rank() == 0:
    try:
        torch.distributed.recv(torch.zeros(1), 1)  # which the other never sends
    except RuntimeError as error:
        print("did not answer in time" in distributed.describe_lost(error))
    distributed._stores[-1].set("waited", "")
    distributed._stores[-1].wait(["seen"])
else:
    distributed._stores[-1].wait(["waited"])
    distributed._stores[-1].set("seen", "")
"""


def test_init_limits_waits_to_group_timeout_and_its_error_is_understood(tmp_path):
    (tmp_path / "late.py").write_text(SCRIPT.format(root=str(processes.ROOT)))
    processes.ranks(tmp_path, [tmp_path / "late.py"], [tmp_path / "late.py"])
    assert [path.read_text().split("\n")[0] for path in sorted(tmp_path.glob("torchrun*.log"))] == ["True", ""]
