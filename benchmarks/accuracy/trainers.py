"""The trainers that are compared, and how one run of each is started, timed and read."""

import contextlib
import csv
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks import harness as bench
from benchmarks.accuracy.rivals.common import Task
from tools.train_process import end_with_parent
from utils.errors import UserError

RIVALS = "benchmarks.accuracy.rivals"
OFFLINE = {"HF_HUB_OFFLINE": "1"}  # the weights are a local file: no trainer waits for a hub
CHECK_SECONDS = 300


class Trainer(NamedTuple):
    """One row of the comparison.

    Attributes:
        script: a module of `rivals`; empty: our train.py.
        venv: the environment in the folder of --rivals.
        advice: the settings in words, and whose advice they are.
    """

    script: str
    venv: str
    tuned: bool
    advice: str


TRAINERS = {
    "ours": Trainer("", "", False, "train.py with no flags but data, model, size and epochs"),
    "timm": Trainer("timm_script", ".venv-torch", False, "the defaults of timm's train.py"),
    "timm, tuned": Trainer(
        "timm_script",
        ".venv-torch",
        True,
        "the fine-tuning command of timm's page Scripts (AdamW, 1e-4, batch 32, weight decay 0.01), --sched-on-updates",
    ),
    "torchvision": Trainer(
        "torchvision_reference", ".venv-torch", False, "the defaults of references/classification/train.py"
    ),
    "torchvision, tuned": Trainer(
        "torchvision_reference",
        ".venv-torch",
        True,
        "the same with the optimizer of PyTorch's tutorial Transfer Learning (SGD, 0.001 per batch of 4, step 7)",
    ),
    "fastai": Trainer("fastai_fine_tune", ".venv-fastai", False, "vision_learner(...).fine_tune(epochs)"),
    "AutoGluon": Trainer("autogluon_multimodal", ".venv-autogluon", False, "MultiModalPredictor(...).fit(...)"),
}


class Failed(Exception):  # noqa: N818  # a row of the table, not an error of ours
    """A trainer cannot run here; the message says why, in one line."""


class Job(NamedTuple):
    """What all trainers get.

    Attributes:
        lists: (training, validation).
        model: our name of the network.
        work: a folder for runs.
    """

    lists: tuple[Path, Path]
    task: Task
    model: str
    gpu: int | None
    rivals: Path
    work: Path


def check(trainer: Trainer, job: Job) -> dict[str, str]:
    """Return the versions of the packages that `trainer` runs with.

    Raises:
        Failed: its environment is not there, or lacks a package. Whether the packages work, a run tells.
    """
    if not trainer.script:
        return _our_versions()
    words = [str(_python(trainer, job)), "-m", f"{RIVALS}.{trainer.script}", "--check"]
    try:
        done = subprocess.run(words, capture_output=True, text=True, cwd=bench.ROOT, timeout=CHECK_SECONDS)
    except subprocess.TimeoutExpired:
        raise Failed(f"its packages are not found within {CHECK_SECONDS} s") from None
    if done.returncode:
        raise Failed(_last_line(done.stderr))
    return dict(json.loads(done.stdout.splitlines()[-1])["versions"])


def train(trainer: Trainer, job: Job, epochs: int, seed: int, limit: float) -> tuple[float, float | None]:
    """Train once; return the seconds from the start of the process to its end, and the top-1 after its last epoch.

    Top-1 is from 0 to 1. It is None if the run was ended because it took more than `limit` seconds.

    Raises:
        Failed: it ended with an error.
    """
    shutil.rmtree(job.work, ignore_errors=True)
    job.work.mkdir(parents=True)
    environ = {**os.environ, **OFFLINE}
    if trainer.script:
        task = job.task._replace(epochs=epochs, seed=seed, out=str(job.work), tuned=trainer.tuned)
        (job.work / "task.json").write_text(json.dumps(task._asdict()))
        words = [str(_python(trainer, job)), "-m", f"{RIVALS}.{trainer.script}"]
        words += [str(job.work / "task.json"), str(job.work / "result.json")]
        cwd = bench.ROOT
    else:
        words, cwd = [sys.executable, str(bench.ROOT / "train.py"), *our_flags(job, epochs, seed)], job.work
    seconds, code, log = _timed(words, cwd, environ, limit, job.work / "output.txt")
    if code is None:
        return seconds, None
    if code:
        raise Failed(_last_line(log))
    return seconds, _our_top1(job.work, epochs) if not trainer.script else _rival_top1(job.work)


def our_flags(job: Job, epochs: int, seed: int) -> list[str]:
    """Return the flags of train.py: data, model, size and epochs; the seed, and where its files go."""
    words = ["--tag", "run", "--train_list", str(job.lists[0]), "--val_list", str(job.lists[1])]
    words += ["--model", job.model, "--scale", str(job.task.size), "--epochs", str(epochs), "--seed", str(seed)]
    words += ["--weights_dir", str(Path(job.task.weights).parent)]
    return words + bench.gpu_words({"gpu": job.gpu})


def _python(trainer: Trainer, job: Job) -> Path:
    path = job.rivals / trainer.venv / "bin" / "python"
    if not path.is_file():
        raise Failed(f"not installed: no {trainer.venv} in {job.rivals}")
    return path


def _timed(
    words: list[str], cwd: Path, environ: Mapping[str, str], limit: float, log: Path
) -> tuple[float, int | None, str]:
    """Run `words`; return its seconds, its exit code (None: ended at `limit` seconds), and its output."""
    with open(log, "w") as output:
        began = time.monotonic()
        process = subprocess.Popen(
            words,
            stdout=output,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            cwd=cwd,
            env=environ,
            start_new_session=True,
            preexec_fn=end_with_parent,
        )
        code: int | None = None
        try:
            code = process.wait(limit if limit < math.inf else None)
        except subprocess.TimeoutExpired:
            pass
        finally:
            seconds = time.monotonic() - began
            with contextlib.suppress(ProcessLookupError):  # its workers too
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    return seconds, code, log.read_text(errors="replace")


def _our_top1(work: Path, epochs: int) -> float:
    with open(work / "logs" / "run" / "metrics.csv") as file:
        rows = list(csv.DictReader(file))
    if int(rows[-1]["epoch"]) != epochs:
        raise Failed(f"it ended after epoch {rows[-1]['epoch']} of {epochs}")
    return float(rows[-1]["val_top1"])


def _rival_top1(work: Path) -> float:
    return float(json.loads((work / "result.json").read_text())["top1"][-1])


def _our_versions() -> dict[str, str]:
    import importlib.metadata

    found = {name: importlib.metadata.version(name) for name in ("torch", "timm")}
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, cwd=bench.ROOT)
    return {"python": sys.version.split()[0], **found, "commit": commit.stdout.strip() or "unknown"}


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1][-200:] if lines else "it ended without a message"


def chosen(names: list[str]) -> dict[str, Trainer]:
    """Return the trainers called `names`.

    Raises:
        UserError: there is no trainer of that name.
    """
    unknown = [name for name in names if name not in TRAINERS]
    if unknown:
        raise UserError(f"--only: no trainer is called {unknown[0]!r}; allowed: {', '.join(map(repr, TRAINERS))}.")
    return {name: TRAINERS[name] for name in TRAINERS if name in names}


def as_json(trainers: Mapping[str, Trainer]) -> dict[str, Any]:
    """Return what is compared, for the JSON."""
    return {name: trainer._asdict() for name, trainer in trainers.items()}
