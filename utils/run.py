"""How a script begins and ends: its line in run_log.txt, its exit code, its device, its seed."""

import argparse
import contextlib
import ctypes
import errno
import os
import random
import sys
import time
import traceback
from collections.abc import Callable, MutableMapping, Sequence
from typing import TYPE_CHECKING

from utils import processes, run_log
from utils.errors import UserError
from utils.holding import let_go
from utils.logger import log, record_error, start_logging
from utils.stopping import STOPPING, Stop
from utils.text import prepare_streams, say

if TYPE_CHECKING:
    import torch

# What a user can mend: a full or closed disk, a file where a folder is to be.
DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.ENOTDIR, errno.EEXIST)
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # glibc's malloc.h
SPINS = "20000"  # how often a thread of libgomp looks before it sleeps; 300,000 by default: milliseconds
DEBUG_BATCHES = 3  # --debug: so many batches of each epoch


def run_command(parse: Callable[[Sequence[str] | None], argparse.Namespace], main: Callable[[argparse.Namespace], None]) -> int:
    """Parse the command line, run `main(opt)`, write run_log.txt; returns the exit code.

    0 done, 2 a user's mistake (the message alone on stderr), 1 a fault of ours (with traceback); as shells have it, 128
    and the signal's number where one ended the run (130: Ctrl-C). Of several processes the first writes the log.
    """
    share_cores(os.environ)
    prepare_streams()
    if "-h" in sys.argv[1:] or "--help" in sys.argv[1:]:
        parse(None)
    started = time.monotonic()
    try:
        opt = parse(None)
    except SystemExit as wrong:
        run_log.end(run_log.begin("-"), f"exit {wrong.code}")
        raise
    if processes.rank():
        return _guarded(lambda: main(opt))
    entry = run_log.begin(opt.tag)
    code = _guarded(lambda: main(opt))
    stopped = {128 + number: f"interrupted ({number.name})" for number in STOPPING} | {0: f"done in {time.monotonic() - started:.0f} s"}
    run_log.end(entry, stopped.get(code, f"exit {code}"))
    return code


def run_tool(parse: Callable[[], argparse.Namespace], act: Callable[[argparse.Namespace], int | None], again: str = "") -> int:
    """Call `act(parse())` and end as `run_command` ends a script, for a tool.

    Args:
        again: what to say after Ctrl-C.

    Returns:
        The exit code; that of `act` where it gives one.
    """
    prepare_streams()
    opt = parse()
    start_logging()
    return _guarded(lambda: act(opt), "--out DIR", again)


def _guarded(act: Callable[[], int | None], elsewhere: str = "--checkpoint_dir, --log_dir, --result_dir", again: str = "") -> int:
    try:
        return act() or 0
    except UserError as error:
        say(f"\nerror: {error}")
        record_error(str(error))
        return 2
    except Stop as stop:
        say(f"\n{stop}")
        return 128 + stop.number
    except KeyboardInterrupt:
        say("\ninterrupted" + (f"; {again}" if again else ""))
        return 130
    except BrokenPipeError:  # `python eval.py … | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception as error:
        mendable = _mendable(error, elsewhere)
        if mendable is not None:
            say(f"\nerror: {mendable}")
            record_error(mendable)
            return 2
        say(traceback.format_exc())
        record_error(traceback.format_exc())
        return 1
    finally:
        let_go()


def _mendable(error: Exception, elsewhere: str) -> str | None:
    """What to tell the user of a fault that is the machine's, and no code of ours names; None for any other.

    Args:
        elsewhere: the flags that say where to write.
    """
    if isinstance(error, OSError) and error.errno in DISK:
        return f"{error}.\nMake room there (`df -h`), or write elsewhere: {elsewhere}."
    if type(error).__name__ == "OutOfMemoryError":  # torch's, which need not be imported by now; utils.watch says more in training
        what = str(error).split(". ")[0]
        return f"The card has no room ({what}).\nGive a smaller -b or --scale, or --gpu -1 for the CPU; nvidia-smi says who else uses it."
    return None


def share_cores(environ: MutableMapping[str, str]) -> None:
    """Let threads of the network that wait for one another sleep, so that the loader's have the core. Before torch is imported.

    They would spin, and hold up the very thread that they wait for, wherever another one wants a core. Left alone where
    the user has set OMP_WAIT_POLICY or GOMP_SPINCOUNT. Libraries other than libgomp do not read it.
    """
    if "OMP_WAIT_POLICY" not in environ:
        environ.setdefault("GOMP_SPINCOUNT", SPINS)


def keep_memory() -> None:
    """Let malloc keep what is freed: without it, each batch and activation of over 32 MB costs page faults anew.

    Measured: 2 to 3 % of a training step on the CPU, half of the time of normalising a large batch. Nothing where
    the C library is not glibc.
    """
    with contextlib.suppress(OSError, AttributeError):
        libc = ctypes.CDLL("libc.so.6")
        libc.mallopt(M_MMAP_THRESHOLD, 1 << 30)
        libc.mallopt(M_TRIM_THRESHOLD, (1 << 31) - 1)


def get_device(gpu: int) -> "torch.device":
    """The device of --gpu: card `gpu`, or the CPU for -1 and, after a notice, where there is no CUDA device.

    Raises:
        UserError: there are cards, but not so many.
    """
    import torch

    keep_memory()
    if gpu < 0:
        return torch.device("cpu")
    if not torch.cuda.is_available():
        log.info("No CUDA device here: running on the CPU (--gpu -1 says so without this notice).")
        return torch.device("cpu")
    if processes.world() > 1:
        gpu = processes.local_rank()
        torch.cuda.set_device(gpu)
    if gpu >= torch.cuda.device_count():
        raise UserError(f"--gpu is {gpu}; allowed: 0 to {torch.cuda.device_count() - 1}, or -1 for the CPU.")
    return torch.device("cuda", gpu)


def seed_everything(seed: int, deterministic: bool = False) -> None:
    """Seed the global generators of Python, NumPy and torch; `deterministic`: only bit-exact algorithms.

    The pipeline draws from (seed, epoch, sample) and the network from (seed, step) and needs no global state; this
    is for what a user's own code draws.
    """
    import numpy as np
    import torch

    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)
    torch.backends.cudnn.benchmark = not deterministic
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True)
