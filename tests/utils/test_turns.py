"""Parts of several processes in one stream: in order, whole, and never many at a time."""

import pytest
import torch

import processes
from utils.turns import in_turns

SCRIPT = """
import resource, sys
sys.path.insert(0, {root!r})
import torch
from utils import distributed, turns
from utils.batch import EvalBatch
from utils.errors import UserError

distributed.init(torch.device("cpu"))
rank, world, count = distributed.rank(), distributed.world_size(), {count}

def parts():
    for k in range(rank, count, world):
        if k == {wrong}:
            raise UserError("part {wrong} is wrong")
        yield EvalBatch((torch.full(({numbers},), k, dtype=torch.uint8),), torch.tensor(k), None, None, ((k, "bad"),))

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024

before, seen = peak(), []
try:
    for part in turns.in_turns(parts()):
        assert int(part.images[0].min()) == int(part.images[0].max()) == int(part.label) == part.bad[0][0]
        assert type(part) is EvalBatch and len(part.images[0]) == {numbers}
        seen.append(int(part.label))
except UserError as error:
    seen.append(str(error))
print(seen == list(range(count)) if rank == 0 else seen == [], seen[-1:], peak() - before < {megabytes})
distributed.shutdown()
"""


def run(folder, world=2, **settings):
    """What each of `world` processes printed."""
    values = {"root": str(processes.ROOT), "count": 7, "wrong": -1, "numbers": 3, "megabytes": 1000} | settings
    (folder / "turns.py").write_text(SCRIPT.format(**values))
    assert processes.ranks(folder, *[[folder / "turns.py"]] * world) == [0] * world, processes.logs(folder)
    return [path.read_text().strip() for path in sorted(folder.glob("torchrun*.log"))]


@pytest.mark.parametrize("count", [0, 1, 7])
def test_in_turns_main_process_gets_all_parts_in_order(tmp_path, count):
    last = f"[{count - 1}]" if count else "[]"
    assert run(tmp_path, world=3, count=count) == [f"True {last} True", "True [] True", "True [] True"]


def test_in_turns_error_of_another_process_is_raised_in_both(tmp_path):
    said = run(tmp_path, wrong=3)
    assert said == ["False ['In process 1: part 3 is wrong'] True", "False ['part 3 is wrong'] True"]


def test_in_turns_holds_few_parts(tmp_path):
    """200 parts of 2 MB: no process holds a tenth of them."""
    assert run(tmp_path, count=200, numbers=2_000_000, megabytes=40) == ["True [199] True", "True [] True"]


def test_in_turns_of_one_process_yields_the_parts_themselves():
    parts = [(torch.zeros(2), "a"), (torch.ones(1), "b")]
    assert all(one is other for one, other in zip(in_turns(parts), parts, strict=True))
