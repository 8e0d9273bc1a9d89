"""Run a script as a process of its own, without the four seconds of its imports: a server imports them once, and forks.

Signals, kills and exit codes are those of any process. What only a new interpreter can show, such as an import or
`python train.py` as a user types it, needs a test that starts one.
"""

import atexit
import multiprocessing
import os
import runpy
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping
from multiprocessing.connection import wait
from pathlib import Path

import PIL.Image
import PIL.PngImagePlugin

import gate

ROOT = Path(__file__).resolve().parent.parent
SERVER = multiprocessing.get_context("forkserver")
IMPORTS = "torch torch.distributed.run torch.utils.tensorboard matplotlib.figure PIL.PngImagePlugin"
IMPORTS += " train network dataloader training.run training.recorder"
started: list["Forked"] = []


class Forked:
    """A process that runs a Python script with `words` in `folder`, with the methods of subprocess.Popen that we need.

    Args:
        out: the file that takes what the process prints.
        environment: all of its variables; those of the test where None.
        session: whether it begins a session, as Popen's start_new_session has it.
        gates: a folder, and the epochs after which a run waits; see gate.py.
    """

    def __init__(
        self,
        folder: Path,
        out: Path,
        script: Path,
        *words: object,
        environment: Mapping[str, str] | None = None,
        session: bool = False,
        gates: tuple[Path, set[int]] | None = None,
    ) -> None:
        _start_server()
        line = [str(script), *map(str, words)]
        self._process = SERVER.Process(
            target=_run, args=(folder, out, line, dict(environment or os.environ), session, gates)
        )
        self._process.start()
        self.pid: int = self._process.pid
        started.append(self)

    def poll(self) -> int | None:
        """Return the exit code, minus the number of the signal that killed it, or None while it runs."""
        return self._process.exitcode

    def wait(self, seconds: float | None = None) -> int:
        """Return the exit code once it has ended. Raises subprocess.TimeoutExpired after `seconds`."""
        self._process.join(seconds)
        if self._process.exitcode is None:
            raise subprocess.TimeoutExpired("a process of forked.py", seconds)
        return self._process.exitcode

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


def launch_fold(line: list[str], processes: int) -> int:
    """Train in a process of its own as tools.folds.training.launch does, printing into train.log; return its code."""
    assert processes == 1
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    out = Path("train.log").resolve()
    return Forked(Path.cwd(), out, ROOT / "train.py", *line, environment=environment).wait()


def end_all() -> None:
    """End what a test that failed has left: the interpreter would wait for it."""
    while started:
        process = started.pop()
        process.kill()
        process.wait()


def draw_little(replace: Callable[[object, str, object], None] = setattr) -> None:
    """Let matplotlib write a PNG of 8 x 8 pixels for each figure; other formats are drawn."""
    import matplotlib
    from matplotlib.figure import Figure

    real = Figure.savefig

    def savefig(self, file, *words, format=None, **more):
        if format == "png":
            said = PIL.PngImagePlugin.PngInfo()
            said.add_text("Software", f"Matplotlib version {matplotlib.__version__}")
            PIL.Image.new("RGB", (8, 8)).save(file, format="png", pnginfo=said)
        else:
            real(self, file, *words, format=format, **more)

    replace(Figure, "savefig", savefig)


def _start_server() -> None:
    SERVER.set_forkserver_preload(IMPORTS.split())
    before = os.environ.get("PYTHONPATH")
    # the server imports before it hears of our sys.path
    os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT), *([before] if before else [])])
    try:
        multiprocessing.forkserver.ensure_running()
    finally:
        os.environ.pop("PYTHONPATH")
        if before is not None:
            os.environ["PYTHONPATH"] = before


def _run(
    folder: Path,
    out: Path,
    line: list[str],
    environment: dict[str, str],
    session: bool,
    gates: tuple[Path, set[int]] | None,
) -> None:
    missing = set(IMPORTS.split()) - sys.modules.keys()
    assert not missing, f"the server could not import {missing}"
    multiprocessing.set_start_method("fork", force=True)  # Linux's own, which a child of the server would not have
    if session:
        os.setsid()
    os.environ.clear()
    os.environ.update(environment)
    if "OMP_NUM_THREADS" in environment:  # libgomp has read that of the server
        sys.modules["torch"].set_num_threads(int(environment["OMP_NUM_THREADS"]))
    os.chdir(folder)
    file = os.open(out, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for stream in (1, 2):
        os.dup2(file, stream)
    os.dup2(os.pipe()[0], 0)  # for processes that this one starts: it ends with this one
    draw_little()
    threading.Thread(target=_end_with_the_test, daemon=True).start()
    if gates is not None:
        gate.hold(*gates)
    sys.argv = line
    sys.path.insert(0, str(Path(line[0]).parent))  # as for `python SCRIPT`
    try:
        runpy.run_path(line[0], run_name="__main__")
        code = 0
    except SystemExit as end:
        code = int(end.code or 0)
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    # here, as an interpreter does: multiprocessing would close its queues first, and threads that read them protest
    os._exit(code)


def _end_with_the_test() -> None:
    wait([multiprocessing.parent_process().sentinel])
    os._exit(99)
