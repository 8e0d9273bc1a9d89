"""A loader's thread that never ends must not keep the process, nor its exit code."""

import subprocess
import sys

from conftest import ROOT

STUCK = """
import sys, threading
sys.path.insert(0, {root!r})
from dataloader.prefetch import prefetch_threaded
from utils import run
from utils.errors import UserError
run.MAX_JOIN_SECONDS = 0.1

def act(opt):
    wait = threading.Event().wait
    loading = prefetch_threaded(lambda batch: batch if batch < 3 else wait(), range(9), 2, 0.5)
    try:
        print([batch for batch in loading])
    except TimeoutError:
        raise UserError("a worker is stuck") from None

sys.exit(run.run_tool(lambda: None, act))
"""


def test_worker_thread_that_is_stuck_for_ever_does_not_keep_the_process():
    words = [sys.executable, "-c", STUCK.format(root=str(ROOT))]
    done = subprocess.run(words, timeout=600, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (2, "\nerror: a worker is stuck\n")
