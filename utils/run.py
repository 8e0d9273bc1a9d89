"""How a script begins and ends: its line in run_log.txt, its exit code, its device, its seed."""

import argparse
import contextlib
import ctypes
import errno
import glob
import os
import random
import shlex
import sys
import time
import traceback
import warnings
from collections.abc import Callable, MutableMapping, Sequence
from typing import TYPE_CHECKING

from utils import distributed, faults, run_lock, run_log
from utils.errors import UserError
from utils.logger import log, record_error, start_logging
from utils.signals import STOP_SIGNALS, RunInterrupted
from utils.text import prepare_streams, say

if TYPE_CHECKING:
    import torch

# What a user can mend: a full or closed disk, a file where a folder is to be.
DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.ENOTDIR, errno.EEXIST)
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # glibc's malloc.h
SPINS = "20000"  # how often a thread of libgomp looks before it sleeps; 300,000 by default: milliseconds
GPU_FILES = "/dev/nvidia[0-9]*"
DEBUG_BATCHES = 3  # --debug: so many batches of each epoch


def run_command(
    parse: Callable[[Sequence[str] | None], argparse.Namespace], main: Callable[[argparse.Namespace], None]
) -> int:
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
    if distributed.rank():
        return _guarded(lambda: main(opt))
    entry = run_log.begin(opt.tag)
    code = _guarded(lambda: main(opt))
    stopped = {128 + number: f"interrupted ({number.name})" for number in STOP_SIGNALS} | {
        0: f"done in {time.monotonic() - started:.0f} s"
    }
    run_log.end(entry, stopped.get(code, f"exit {code}"))
    return code


def run_tool(
    parse: Callable[[], argparse.Namespace], act: Callable[[argparse.Namespace], int | None], again: str = ""
) -> int:
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


def _guarded(
    act: Callable[[], int | None], elsewhere: str = "--checkpoint_dir, --log_dir, --result_dir", again: str = ""
) -> int:
    try:
        return act() or 0
    except UserError as error:
        say(f"\nerror: {error}")
        record_error(str(error))
        return 2
    except RunInterrupted as stop:
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
        run_lock.release_all()


def _mendable(error: Exception, elsewhere: str) -> str | None:
    """What to tell the user of a fault that is the machine's, and no code of ours names; None for any other.

    Args:
        elsewhere: the flags that say where to write.
    """
    if isinstance(error, OSError) and error.errno in DISK:
        return f"{error}.\nMake room there (`df -h`), or write elsewhere: {elsewhere}."
    if isinstance(error, MemoryError) or "can't allocate memory" in str(error):  # torch's allocator on the CPU
        what = (str(error).strip() or "MemoryError").splitlines()[-1]  # of a worker process it holds a traceback
        return f"The machine has no memory left ({what}).\n{faults.MEMORY}"
    if faults.is_fault(error) and getattr(error, "filename", None):
        return f"{error}.\n{faults.HINTS[error.errno]}"  # type: ignore[attr-defined]
    if (
        type(error).__name__ == "OutOfMemoryError"
    ):  # torch's, which need not be imported by now; training.epoch says more in training
        what = str(error).split(". ")[0]
        return f"The GPU has no room ({what}).\nGive a smaller -b or --scale, or --gpu -1 for the CPU; nvidia-smi says who else uses it."
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


def get_device(gpu: int | None) -> "torch.device":
    """Return the device of --gpu, and make it torch's current one: -1 is the CPU; None is GPU 0, or the CPU where there is none.

    Under torchrun each process of a machine takes a GPU of its own, by LOCAL_RANK. fp32 matrices are multiplied in TF32
    there, unless torch is to be deterministic.

    Raises:
        UserError: `gpu` is a number, and torch finds no such GPU; or there are more processes than GPUs.
    """
    import torch

    keep_memory()
    if gpu is not None and gpu < 0:
        return torch.device("cpu")
    reason = _why_no_gpu()
    if reason and gpu is not None:
        raise UserError(
            f"--gpu is {gpu}, and torch finds no GPU: {reason}.\nTry: nvidia-smi (does the driver work?), or --gpu -1 for the CPU."
        )
    if reason and _gpu_files():
        log.warning(f"There is a GPU, but torch cannot use it: {reason}. Running on the CPU. Try: nvidia-smi")
    elif reason:
        log.info("No CUDA device here: running on the CPU (--gpu -1 says so without this notice).")
    if reason:
        return torch.device("cpu")
    gpu, count = gpu or 0, torch.cuda.device_count()
    if distributed.world_size() > 1:
        gpu = _own_gpu(gpu, count)
    if gpu >= count:
        raise UserError(f"--gpu is {gpu}; allowed: 0 to {count - 1}, or -1 for the CPU.")
    torch.cuda.set_device(gpu)  # what torch then says of "the" device, such as its precisions, is said of this one
    # for a GPU alone: some versions of torch take it for the CPU's matrices too
    torch.backends.cuda.matmul.allow_tf32 = not torch.are_deterministic_algorithms_enabled()
    return torch.device("cuda", gpu)


def _why_no_gpu() -> str:
    """Return torch's reason for having no GPU; "" where it has one."""
    import torch

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exception says the same
        if torch.cuda.is_available():
            return ""
    try:
        torch.cuda.init()
    except (RuntimeError, AssertionError) as error:  # AssertionError: torch was built without CUDA
        return str(error).strip().splitlines()[0].rstrip(".")
    return "torch.cuda.is_available() is false"


def _gpu_files() -> list[str]:
    """Return the device files of the GPUs that a driver knows; none where the environment hides them from CUDA."""
    return [] if os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1") else glob.glob(GPU_FILES)


def _own_gpu(gpu: int, count: int) -> int:
    """Return this process's GPU of `count`, under torchrun. Raises UserError where there are fewer GPUs than processes."""
    own = distributed.local_rank()
    if own >= count:
        command = shlex.join(["torchrun", f"--nproc_per_node={count}", *sys.argv])
        raise UserError(
            f"torchrun started {distributed.local_world_size()} processes on a machine with {count} GPUs.\nTry: {command}"
        )
    if gpu and own == 0:
        log.warning(f"--gpu {gpu} is left out: under torchrun each process takes a GPU of its own, from 0 on.")
    return own


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
        torch.backends.cuda.matmul.allow_tf32 = False
