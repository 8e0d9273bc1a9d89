"""Real photographs, cut into a small data set; the scripts run in-process, in an empty folder."""

import contextlib
import functools
import importlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, NamedTuple

import cv2
import numpy as np
import pytest

from forked import Forked, draw_little, end_all

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

# Under nohup and in a script's background some are ignored, and children would inherit that.
for number in (signal.SIGINT, signal.SIGHUP, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2):
    if signal.getsignal(number) is signal.SIG_IGN:
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)

if TYPE_CHECKING:
    import torch

NAMES = ("china", "flower", "hopper")

# A program that locks a folder, prints "held", and waits for its standard input to end; .format(shared=True or False).
HOLD_FOLDER = """
import pathlib, sys
from utils import run_lock
run_lock.acquire(pathlib.Path(sys.argv[1]), {shared})
print("held", flush=True)
input()
"""


@pytest.hookimpl(tryfirst=True)  # before -m selects by these marks
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark each test that takes the fixture `device`; skip those marked `cuda` where torch finds no GPU."""
    for item in items:
        if "device" in getattr(item, "fixturenames", ()):
            item.add_marker("device")
    for_gpu = [item for item in items if item.get_closest_marker("cuda")]
    if for_gpu and not _finds_gpu():
        for item in for_gpu:
            item.add_marker(pytest.mark.skip(reason="needs an NVIDIA GPU; run it there with: make test-gpu"))


def _finds_gpu() -> bool:
    import torch

    return torch.cuda.is_available()


@pytest.fixture(scope="session")
def device() -> "torch.device":
    """GPU 0 if torch finds one, else the CPU. A test that takes it proves its own code on the CPU."""
    import torch

    if not _finds_gpu():
        return torch.device("cpu")
    # as --deterministic sets it; cuBLAS reads it once, at its start
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    return torch.device("cuda", 0)


@pytest.fixture(scope="session")
def photos() -> list[np.ndarray]:
    """Three photographs that scikit-learn and matplotlib ship, uint8 RGB: a temple, a flower, a portrait."""
    import matplotlib
    import sklearn.datasets

    hopper = Path(matplotlib.get_data_path()) / "sample_data" / "grace_hopper.jpg"
    portrait = cv2.cvtColor(cv2.imread(str(hopper)), cv2.COLOR_BGR2RGB)
    return [*sklearn.datasets.load_sample_images().images, portrait]


@pytest.fixture(scope="session")
def photo_set(photos, tmp_path_factory) -> Path:
    """A folder with train.txt (36 images), val.txt (12), test.txt (6) and classes.txt: cuts, a class per photograph."""
    folder = tmp_path_factory.mktemp("photos")
    rng = np.random.default_rng(0)
    for part, each in (("train", 12), ("val", 4), ("test", 2)):
        lines = []
        for label, photo in enumerate(photos):
            for k in range(each):
                side = int(rng.integers(120, 240))
                top, left = (int(rng.integers(size - side)) for size in photo.shape[:2])
                path = folder / f"{part}_{NAMES[label]}_{k}.jpg"
                cv2.imwrite(str(path), cv2.cvtColor(photo[top : top + side, left : left + side], cv2.COLOR_RGB2BGR))
                lines.append(f"{path}" if part == "test" else f"{path} {label}")
        (folder / f"{part}.txt").write_text("".join(f"{line}\n" for line in lines))
    (folder / "classes.txt").write_text("".join(f"{name}\n" for name in NAMES))
    return folder


def wait_for(condition: Callable[[], object], seconds: float = 900.0) -> None:
    """Until `condition()` holds; a failure after `seconds`."""
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, "it did not come"
        time.sleep(0.02)


@contextlib.contextmanager
def locked_elsewhere(file: Path) -> Iterator[None]:
    """Lock `file`, a lock file of utils.run_lock, from another process while the body runs."""
    file.parent.mkdir(parents=True, exist_ok=True)
    code = "import fcntl, sys; file = open(sys.argv[1], 'w'); fcntl.lockf(file, fcntl.LOCK_EX)\n"
    code += "print('locked', flush=True); input()"
    with subprocess.Popen([sys.executable, "-c", code, file], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdin is not None and holder.stdout is not None
        assert holder.stdout.readline() == b"locked\n"
        yield
        holder.stdin.write(b"\n")


def gated(folder: Path, epoch: int, *words: object, **settings: Any) -> "Forked":
    """Start train.py in `folder`, wait until gate.py holds it after `epoch`, and return it; it prints to folder/out."""
    gates = folder / "gates"
    gates.mkdir()
    process = Forked(folder, folder / "out", ROOT / "train.py", *words, gates=(gates, {epoch}), **settings)
    wait_for(lambda: (gates / str(epoch)).exists() or process.poll() is not None)
    assert process.poll() is None, (folder / "out").read_text()
    return process


@pytest.fixture(autouse=True)
def own_signals() -> Iterator[None]:
    """Give each test the handlers that it found: a script that answers Ctrl-C leaves one that ends the process."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, Any, Any]:
    """Make what a test has logged UTF-8: a name of other bytes in it would end the whole run, not the test."""
    report = yield
    report.sections = [(title, text.encode(errors="backslashreplace").decode()) for title, text in report.sections]
    return report


class Result(NamedTuple):
    """How a script ended, and what it printed."""

    code: int
    out: str
    err: str


Script = Callable[..., Result]


@pytest.fixture
def script(tmp_path, monkeypatch, capfd) -> Script:
    """`script("train.py", "--tag", "x")` runs `python train.py --tag x` in `tmp_path`, without a new process."""
    from utils.run import run_command

    monkeypatch.chdir(tmp_path)

    def run(name: str, *words: object) -> Result:
        module = importlib.import_module(name.removesuffix(".py"))
        monkeypatch.setattr(sys, "argv", [name, *map(str, words)])
        capfd.readouterr()
        try:
            code = run_command(getattr(module, f"parse_{module.__name__}"), module.main)
        except SystemExit as stop:
            code = int(stop.code or 0)
        shown = capfd.readouterr()
        return Result(code, shown.out, shown.err)

    return run


@pytest.fixture(scope="module")
def prepare() -> ModuleType:
    """What datasets/prepare.py runs."""
    from tools.prepare import command

    return command


SMALL = (
    "--model timm:test_resnet --no-pretrained --preset original --scale 32 -b 12 -w 0 --gpu -1 --lr 0.01 "
    "--optimizer sgd --transform light --precision fp32"
)


@pytest.fixture
def small() -> list[str]:
    """Flags for a run of seconds: a small network, small images, the CPU."""
    return SMALL.split()


@pytest.fixture(scope="session")
def colours(tmp_path_factory) -> Path:
    """The folder of tiny.write_colours: colours/<task> has the lists of that task."""
    from tiny import write_colours

    return write_colours(tmp_path_factory.mktemp("colours"))


@pytest.fixture(scope="session")
def task_checkpoint(colours, tmp_path_factory) -> Callable[[str], Path]:
    """`task_checkpoint("multilabel")` is a copy of best.pt, of one epoch over `colours`; "corn": ordinal, with CORN."""
    from utils.run import run_command

    folder = tmp_path_factory.mktemp("tasks")

    @functools.cache
    def train(task: str) -> Path:
        import train as module

        named = "ordinal --loss corn" if task == "corn" else task
        words = f"train.py --tag {task} --task {named} --epochs 1 --data_root {colours / named.split()[0]} {SMALL}"
        with pytest.MonkeyPatch.context() as patch:
            patch.chdir(folder)
            patch.setattr(sys, "argv", words.split())
            assert run_command(module.parse_train, module.main) == 0
        return folder / "checkpoints" / task / "best.pt"

    def copy(task: str) -> Path:
        return Path(shutil.copy(train(task), tmp_path_factory.mktemp(task) / "best.pt"))

    return copy


@pytest.fixture(autouse=True)
def quick_pictures(request, monkeypatch) -> None:
    """Let matplotlib write PNGs of a few pixels: drawing is nine tenths of a small run.

    With the mark `pictures` they are drawn in full, and so they are in a process that a test starts without forked.py.
    """
    if request.node.get_closest_marker("pictures") is None:
        draw_little(monkeypatch.setattr)


@pytest.fixture(autouse=True)
def no_process_left() -> Iterator[None]:
    """What a test that failed has started ends with it."""
    yield
    end_all()


@pytest.fixture(autouse=True)
def no_albumentations_update() -> None:
    os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")


@pytest.fixture(autouse=True)
def logger_as_imported() -> Iterator[None]:
    """Reset the logger after a test: a script stops its propagation, and pytest would then hear each message twice."""
    from utils.logger import end_logging

    yield
    end_logging()
