"""How a script starts and ends: process settings, its line in run_log.txt, exit code, device, seed."""

import argparse
import contextlib
import ctypes
import errno
import glob
import os
import random
import shlex
import signal
import sys
import threading
import time
import traceback
import warnings
from collections.abc import Callable, MutableMapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from options.wording import count_of
from utils import distributed, faults, run_lock, run_log
from utils.errors import ProcessLost, UserError
from utils.logger import log, log_to_file, start_logging
from utils.signals import STOP_SIGNALS, RunInterrupted, raising_sigterm
from utils.text import prepare_streams, say

if TYPE_CHECKING:
    import torch

Opt = TypeVar("Opt", bound=argparse.Namespace)
# Errors that the user can fix: a full or read-only disk, a file in the place of a folder.
DISK_ERRNOS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.ENOTDIR, errno.EEXIST)
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # glibc's malloc.h
SPIN_COUNT = (
    "20000"  # rounds that a waiting thread of libgomp spins before it sleeps; the default of 300,000 takes milliseconds
)
GPU_FILES = "/dev/nvidia[0-9]*"
DEBUG_BATCHES = 3  # batches per epoch with --debug
LOADER_THREADS = "loader"  # The names of the threads that load images begin with this.
MAX_JOIN_SECONDS = 10.0  # A thread has this long to finish the batch that it is loading.
WRITE_FLAGS = ("checkpoint_dir", "log_dir", "result_dir", "out")  # where a command writes, as far as it has them


def run_command(parse: Callable[[Sequence[str] | None], Opt], main: Callable[[Opt], None]) -> int:
    """Parse the command line, run `main(opt)` and write run_log.txt. Of several processes, the main one writes the log.

    Returns:
        The exit code: 0; 2 for a user's mistake (stderr has the message alone); 1 for a fault of the program (with a
        traceback); as in shells, 128 plus the number of the signal that ended the run (130: Ctrl-C).
    """
    set_openmp_spin(os.environ)
    tune_malloc()
    prepare_streams()
    if "-h" in sys.argv[1:] or "--help" in sys.argv[1:]:
        parse(None)
    started = time.monotonic()
    try:
        opt = parse(None)
    except SystemExit as wrong:
        run_log.end(run_log.begin("-"), f"exit {wrong.code}")
        raise
    if not distributed.is_main():
        code = _run_and_leave(lambda: main(opt), _write_flags(opt))
        _leave_stuck_threads(code)
        return code
    entry = run_log.begin(opt.tag)
    code = _run_and_leave(lambda: main(opt), _write_flags(opt))
    stopped = {128 + number: f"interrupted ({number.name})" for number in STOP_SIGNALS} | {
        0: f"done in {time.monotonic() - started:.0f} s"
    }
    run_log.end(entry, stopped.get(code, f"exit {code}"))
    _leave_stuck_threads(code)
    return code


def _run_and_leave(act: Callable[[], int | None], write_flags: str, again: str = "") -> int:
    """Return the exit code of `act`; after an `act` that ended well, leave the process group."""
    code = _guarded(act, write_flags, again)
    if code == 0:
        distributed.shutdown()
    return code


def _write_flags(opt: argparse.Namespace) -> str:
    """Return the flags of a command that choose where it writes; "" if it has none."""
    return ", ".join(f"--{name}" for name in WRITE_FLAGS if hasattr(opt, name))


def run_tool(
    parse: Callable[[], Opt], act: Callable[[Opt], int | None], again: str = "", write_flags: str | None = None
) -> int:
    """Call `act(parse())` for a tool, with the exit codes of `run_command`.

    Args:
        parse: returns the options of the tool.
        act: does the work; it may return an exit code.
        again: text that Ctrl-C prints after "interrupted", such as how to continue.
        write_flags: the flags that choose where the tool writes, for the message about a full disk; None: those of
            WRITE_FLAGS that it has.

    Returns:
        The exit code.
    """
    prepare_streams()
    opt = parse()
    start_logging()
    code = _run_and_leave(lambda: act(opt), _write_flags(opt) if write_flags is None else write_flags, again)
    _leave_stuck_threads(code)
    return code


def _leave_stuck_threads(code: int) -> None:
    """End this process with `code` if it failed and a loader's thread goes on, as where a drive does not answer.

    Python waits for such a thread, and the exit code would never come.
    """
    if code == 0:
        return
    until = time.monotonic() + MAX_JOIN_SECONDS
    for thread in threading.enumerate():
        if thread.name.startswith(LOADER_THREADS):
            thread.join(max(0.0, until - time.monotonic()))
            if thread.is_alive():
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(code)


def _guarded(act: Callable[[], int | None], write_flags: str, again: str) -> int:
    """Return the exit code of `act`; print an error, and append it to the log file."""
    try:
        with _told_before_end():
            _check_working_folder()
            return act() or 0
    except UserError as error:
        if not error.printed_elsewhere:
            say(f"\nerror: {error}")
        log_to_file(str(error))
        return 2
    except RunInterrupted as stop:
        if distributed.is_main():
            say(f"\n{stop}")
        return 128 + stop.number
    except ProcessLost as error:
        _say_lost(str(error))
        return 1
    except KeyboardInterrupt:
        _end_at_second_interrupt()
        if distributed.is_main():  # Ctrl-C reaches all processes of a terminal
            say("\ninterrupted" + (f"; {again}" if again else ""))
        return 130
    except BrokenPipeError:  # `python eval.py … | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception as error:
        message = distributed.describe_lost(error)
        if message is not None:
            _say_lost(message)
            return 1
        message = _user_fixable(error, write_flags)
        if message is not None:
            say(f"\nerror: {message}")
            log_to_file(message)
            return 2
        say(traceback.format_exc())
        log_to_file(traceback.format_exc())
        return 1
    finally:
        run_lock.release_all()


def _check_working_folder() -> None:
    """Raise UserError where the working folder was deleted, in which relative paths start and results are written."""
    try:
        Path.cwd()
    except FileNotFoundError:
        raise UserError(
            "The working folder is gone: it was deleted, or replaced by another of its name.\n"
            'Try: cd "$PWD", or cd to another folder, then the same command again'
        ) from None


def _end_at_second_interrupt() -> None:
    """Let another Ctrl-C end this process at once, without a traceback: the first is being answered."""
    with contextlib.suppress(ValueError):  # outside the main thread Python allows no handlers
        signal.signal(signal.SIGINT, lambda *_: os._exit(128 + signal.SIGINT))


def _say_lost(message: str) -> None:
    """Print that another process has ended, once: the first two processes do, for one of them is left."""
    if distributed.rank() < 2:
        say(f"\nerror: {message}")
        log_to_file(message)


def _told_before_end() -> AbstractContextManager[None]:
    """Return a context in which the main of several processes says that it ends when torchrun ends it.

    torchrun sends SIGTERM to every process once one of them has died.
    """
    if distributed.world_size() == 1 or not distributed.is_main():
        return contextlib.nullcontext()
    return raising_sigterm(f"SIGTERM: {distributed.lost('A process')}")


def _user_fixable(error: Exception, write_flags: str) -> str | None:
    """Return the message for an error of the machine that the user can fix; None for any other error.

    Args:
        error: what ended the command.
        write_flags: the flags that choose where the command writes; "" if it has none.
    """
    if isinstance(error, OSError) and error.errno in DISK_ERRNOS:
        if write_flags:
            return f"{error}.\nFree some space (`df -h`), or write elsewhere: {write_flags}."
        return f"{error}.\nFree some space (`df -h`)."
    if isinstance(error, MemoryError) or "can't allocate memory" in str(error):  # torch's allocator on the CPU
        reason = (str(error).strip() or "MemoryError").splitlines()[-1]  # a worker process adds its traceback before it
        return f"The machine has no memory left ({reason}).\n{faults.MEMORY}"
    if faults.is_machine_fault(error) and getattr(error, "filename", None):
        return f"{error}.\n{faults.HINTS[error.errno]}"  # type: ignore[attr-defined]
    if faults.is_gpu_full(error):  # in training, training.epoch says more
        reason = str(error).partition("\n")[0].partition(". ")[0]
        return (
            f"The GPU is out of memory ({reason}).\n"
            "Try: a smaller -b or --scale, or --gpu -1 for the CPU; nvidia-smi shows the processes on the GPU."
        )
    return None


def set_openmp_spin(environ: MutableMapping[str, str]) -> None:
    """Let waiting OpenMP threads sleep after a short spin, so that the loader's threads get the cores.

    Call it before torch is imported. Threads that spin hold up the very thread they wait for, where cores are short.
    OMP_WAIT_POLICY and GOMP_SPINCOUNT that the user has set stay. Only libgomp reads the latter.
    """
    if "OMP_WAIT_POLICY" not in environ:
        environ.setdefault("GOMP_SPINCOUNT", SPIN_COUNT)


def tune_malloc() -> None:
    """Let glibc's malloc keep freed memory: otherwise each batch and activation of over 32 MB costs new page faults.

    It saves 2 to 3 % of a training step on the CPU, and half of the time of normalising a large batch. Other C
    libraries are left as they are.
    """
    with contextlib.suppress(OSError, AttributeError):
        libc = ctypes.CDLL("libc.so.6")
        libc.mallopt(M_MMAP_THRESHOLD, 1 << 30)
        libc.mallopt(M_TRIM_THRESHOLD, (1 << 31) - 1)


def get_device(gpu: int | None) -> "torch.device":
    """Return the device of --gpu and make it torch's current one: -1 is the CPU; None is GPU 0, or else the CPU.

    Under torchrun each process takes the GPU of its LOCAL_RANK. On a GPU, fp32 matrices are multiplied in TF32, unless
    torch's algorithms are deterministic.

    Raises:
        UserError: torch finds no GPU of this number, or there are more processes than GPUs.
    """
    import torch

    if gpu is not None and gpu < 0:
        return torch.device("cpu")
    reason = _why_no_gpu()
    if reason and gpu is not None:
        raise UserError(
            f"--gpu is {gpu}, but torch finds no GPU: {reason}.\n"
            "Try: nvidia-smi (does the driver work?), or --gpu -1 for the CPU."
        )
    if reason and _gpu_files():
        log.warning(f"There is a GPU, but torch cannot use it: {reason}. Running on the CPU. Try: nvidia-smi")
    elif reason:
        log.info("No CUDA device here: running on the CPU (--gpu -1 hides this notice).")
    if reason:
        return torch.device("cpu")
    gpu, count = gpu or 0, torch.cuda.device_count()
    if distributed.world_size() > 1:
        gpu = _own_gpu(gpu, count)
    if gpu >= count:
        raise UserError(f"--gpu is {gpu}; allowed: 0 to {count - 1}, or -1 for the CPU.")
    torch.cuda.set_device(gpu)  # from here on, what torch reports of "the" GPU is of this one
    # Only on a GPU: some versions of torch apply the setting to the CPU's matrices too.
    torch.backends.cuda.matmul.allow_tf32 = not torch.are_deterministic_algorithms_enabled()
    return torch.device("cuda", gpu)


def _why_no_gpu() -> str:
    """Return torch's reason for finding no GPU; "" if it finds one."""
    import torch

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exception below says the same
        if torch.cuda.is_available():
            return ""
    try:
        torch.cuda.init()
    except (RuntimeError, AssertionError) as error:  # AssertionError: torch was built without CUDA
        return str(error).strip().splitlines()[0].rstrip(".")
    return "torch.cuda.is_available() is false"


def _gpu_files() -> list[str]:
    """Return the device files of the driver's GPUs; none if the environment hides them from CUDA."""
    return [] if os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1") else glob.glob(GPU_FILES)


def _own_gpu(gpu: int, count: int) -> int:
    """Return the GPU of this process under torchrun. Raises UserError if the machine's `count` GPUs are too few."""
    own, processes = distributed.local_rank(), distributed.local_world_size()
    if own >= count:
        main = sys.modules["__main__"]
        spec = getattr(main, "__spec__", None)  # of `torchrun -m tools.embed`; a file has none
        as_module = spec is not None and getattr(main, "__file__", "") == sys.argv[0]
        words = ["-m", spec.name.removesuffix(".__main__"), *sys.argv[1:]] if spec and as_module else sys.argv
        command = shlex.join(["torchrun", f"--nproc_per_node={count}", *words])
        gpus = count_of(count, "GPU")
        raise UserError(f"torchrun started {processes} processes on a machine with {gpus}.\nTry: {command}")
    if gpu and own == 0:
        log.warning(f"--gpu {gpu} is ignored: under torchrun each process takes the GPU of its local rank, from 0.")
    return own


def seed_everything(seed: int, deterministic: bool = False) -> None:
    """Seed the global generators of Python, NumPy and torch, for code of a user that draws from them.

    The project itself draws by (seed, epoch, sample), without global state, and on the device by (seed, epoch,
    batch): utils.rng seeds torch's generators for each batch.

    Args:
        seed: 0 or more.
        deterministic: use only algorithms with bit-exact results, and no TF32.
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
        torch.backends.cudnn.allow_tf32 = False  # of convolutions; torch's default is True
