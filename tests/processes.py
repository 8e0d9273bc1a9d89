"""Start scripts in several processes, as torchrun does, and read what they printed."""

import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import torch.distributed.run

from forked import Forked

ROOT = Path(__file__).resolve().parent.parent
ONE_THREAD = {"OMP_NUM_THREADS": "1"}


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return sock.getsockname()[1]


def torchrun(folder: Path, launcher, *words, machine: str | None = None):
    """Start torchrun with the flags `launcher`; `words` are the script and its words.

    `machine` is a network namespace.
    """
    line = list(map(str, [*launcher, *words]))
    out, environment = folder / f"torchrun{time.monotonic_ns()}.log", os.environ | ONE_THREAD
    if machine is None:
        return Forked(folder, out, Path(torch.distributed.run.__file__), *line, environment=environment)
    command = ["ip", "netns", "exec", machine, sys.executable, "-m", "torch.distributed.run", *line]
    environment["GLOO_SOCKET_IFNAME"] = "eth0"
    with open(out, "wb") as file:
        return subprocess.Popen(command, cwd=folder, stdout=file, stderr=subprocess.STDOUT, env=environment)


def ranks(folder: Path, *lines) -> list[int]:
    """The exit codes of processes as `start_ranks` starts them."""
    return [process.wait() for process in start_ranks(folder, *lines)]


def start_ranks(folder: Path, *lines) -> list[Forked]:
    """Start processes that meet each other without torchrun, one for each line of a script and its words.

    What each prints is in torchrun<port>_<rank>.log.
    """
    port, started = free_port(), []
    for rank, line in enumerate(lines):
        own = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": len(lines), "LOCAL_WORLD_SIZE": len(lines)}
        own |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        environment = os.environ | ONE_THREAD | {name: str(value) for name, value in own.items()}
        started.append(Forked(folder, folder / f"torchrun{port}_{rank}.log", *line, environment=environment))
    return started


def alone(folder: Path, script: Path, *words) -> int:
    """The exit code of a script in one process; what it printed is in alone.log."""
    return Forked(folder, folder / "alone.log", script, *words, environment=os.environ | ONE_THREAD).wait()


def logs(folder: Path) -> str:
    """The end of what all of them printed in `folder`."""
    return "\n".join(path.read_text()[-3000:] for path in sorted(folder.glob("torchrun*.log")))
