"""Prove that a change of the code keeps all numbers: train a matrix of small runs, and compare them with recorded ones.

    python -m benchmarks.proof                   # compare with dev/proof.json
    python -m benchmarks.proof --only sam mixup  # only the runs with these words in their names
    python -m benchmarks.proof --write           # replace the record, from a clean tree, in a separate commit

Each run is a separate `train.py` on images drawn from a seed. The proof compares the scores of each epoch, and a hash
of the weights, averages and optimizer state in the last checkpoint. Bits depend on the processor and on torch, so the
record names both. On another machine, first record the commit before the change. Exit code 1 if a number has changed.
"""

import argparse
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.compare import leaves, scores
from benchmarks.harness import processor_name
from options.parser import ToolParser, expanded
from utils.errors import UserError
from utils.files import write_json
from utils.logger import log, progress
from utils.run import run_tool

ROOT = Path(__file__).resolve().parent.parent
RECORD = ROOT / "dev" / "proof.json"
SIDE, CLASSES, PER_CLASS = 32, 3, 8
START_SECONDS = 300  # for a run to write its first checkpoint
EVERY = (
    "--no-pretrained --preset original "
    "--scale 32 -b 6 --epochs 2 --gpu -1 --lr 0.01 --precision fp32 --transform light --data_root data "
    "--save_minutes 0 --model timm:test_resnet --optimizer sgd -w 0"
)
TWO, CUT = "two processes", "cut"  # how a run is started; "": as usual
# name: (how it is started, its flags). A later flag overrides one of EVERY.
RUNS: dict[str, tuple[str, str]] = {
    "sgd": ("", ""),
    "resnet": ("", "--model ResNet18"),
    "resnext": ("", "--model ResNeXt50"),
    "resnest": ("", "--model ResNeSt50"),
    "res2net": ("", "--model Res2Net50"),
    "iresnet": ("", "--model iResNet50 --drop 0.2"),
    "efficientnet": ("", "--model EfficientNet-Lite0 --drop_path 0.1 --transform resize"),
    "vit": ("", "--model timm:test_vit --scale 160 --optimizer adamw --lr 0.001 --layer_decay 0.7"),
    "adamw": ("", "--optimizer adamw --lr 0.001 --scheduler onecycle"),
    "ranger": ("", "--optimizer ranger --lr 0.001"),
    "lamb": ("", "--optimizer lamb"),
    "lion": ("", "--optimizer lion --lr 0.001"),
    "muon": ("", "--optimizer muon --clip_grad 1"),
    "sam": ("", "--sam 0.05"),
    "sam mixup": ("", "--sam 0.05 --mixup 0.4 --optimizer adamw"),
    "accumulate": ("", "--accumulate 3 --clip_grad 0.5"),
    "agc": ("", "--clip_grad 0.01 --clip_mode agc"),
    "ema": ("", "--ema 0.9"),
    "swa": ("", "--swa 1 --epochs 3"),
    "ema swa accumulate": ("", "--ema 0.9 --swa 2 --accumulate 2 --epochs 3 --optimizer adamw"),
    "mixup": ("", "--mixup 0.4 --smooth 0.1"),
    "cutmix": ("", "--cutmix 1.0 --mixup 0.2 --loss bce"),
    "ohem": ("", "--loss ohem --ohem_ratio 0.5"),
    "focal": ("", "--loss focal --class_weight effective --balance sqrt"),
    "arcface": ("", "--head arcface --pool gem --optimizer adamw --lr 0.001"),
    "subcenter": ("", "--head subcenter --logit_adjust 1"),
    "freeze": ("", "--freeze 1 --head_lr 10"),
    "head alone": ("", "--freeze -1 --ema 0.9"),
    "bf16": ("", "--precision bf16 --mixup 0.2"),
    "fp16": ("", "--precision fp16"),
    "teacher": ("", "--teacher checkpoints/adamw/last.pt --distill_alpha 0.7"),
    "load": ("", "--load checkpoints/adamw/last.pt --head_lr 2"),
    "policies": ("", "--transform randaugment --erase 0.3 --repeat_aug 2"),
    "sizes": ("", "--scale_schedule 1:24,2:32"),
    "threads": ("", "-w 2 --ema 0.9"),
    "processes": ("", "-w 2 --loader process --ema 0.9"),
    "cut": (CUT, "--ema 0.9 --mixup 0.4 --accumulate 2 --epochs 3 --optimizer adamw"),
    "cut ranger": (CUT, "--optimizer ranger --sam 0.05 --epochs 3"),
    "ranks": (TWO, "--ema 0.9 --mixup 0.4"),
    "ranks sam": (TWO, "--sam 0.05 --mixup 0.2"),
    "ranks swa": (TWO, "--swa 1 --optimizer adamw --head arcface"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Parse, train, compare; return the exit code."""
    parser = ToolParser("-m benchmarks.proof", __doc__)
    parser.add_argument(
        "--record", type=expanded, default=str(RECORD), metavar="FILE", help="what to compare with, or to write"
    )
    parser.add_argument(
        "--write", action="store_true", help="write the record instead of comparing; the tree must be clean"
    )
    parser.add_argument(
        "--only", nargs="+", default=[""], metavar="PART", help="only the runs whose names contain one of these"
    )
    return run_tool(lambda: parser.parse_args(argv), prove)


def prove(opt: argparse.Namespace) -> int:
    """Train the matrix, and write or compare; return 1 if a number has changed, else 0."""
    record = Path(opt.record)
    known = {} if opt.write else read_record(record)
    chosen = [name for name in RUNS if any(part in name for part in opt.only)]
    if opt.write and (len(chosen) < len(RUNS) or changed_files()):
        raise UserError(
            "--write records all runs of a commit, but --only is given, "
            f"or these files differ from it: {changed_files()}."
        )
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="proof") as folder:
        work = Path(folder)
        draw_images(work / "data")
        for name in progress(
            [name for name in RUNS if name in chosen or (name == "adamw" and needs_teacher(chosen))], "runs"
        ):
            found[name] = train(work, name)
    if opt.write:
        write_json(record, {"machine": machine(), "commit": git("rev-parse", "HEAD"), "runs": found})
        log.info(f"Recorded {len(found)} runs in {record}")
        return 0
    moved = [name for name in found if differences(known["runs"].get(name), found[name])]
    for name in moved:
        log.warning(f"{name}: {differences(known['runs'].get(name), found[name])}")
    log.info(f"{len(found) - len(moved)} of {len(found)} runs equal those of commit {known['commit'][:7]}")
    return 1 if moved else 0


def needs_teacher(names: list[str]) -> bool:
    """Return whether one of `names` starts from another run's checkpoint."""
    return any("checkpoints/adamw" in RUNS[name][1] for name in names)


def read_record(path: Path) -> dict[str, Any]:
    """Return the record. Raise UserError if there is none, or if it comes from another machine."""
    if not path.is_file():
        raise UserError(
            f"There is no record {path}.\nTry: python -m benchmarks.proof --write, at the commit to compare with."
        )
    known = json.loads(path.read_text())
    if known["machine"] != machine():
        raise UserError(
            f"{path} was recorded on another machine ({known['machine']}; this is {machine()}), so bits may differ.\n"
            f"Try, with nothing uncommitted: git switch --detach {known['commit'][:7]} && "
            "python -m benchmarks.proof --write --record /tmp/proof.json"
        )
    return known


def machine() -> dict[str, str]:
    """Return what bits depend on besides the code."""
    import numpy
    import timm
    import torch

    return {"cpu": processor_name(), "torch": torch.__version__, "numpy": numpy.__version__, "timm": timm.__version__}


def git(*words: str) -> str:
    """Return what git prints for `words`, in the project's folder."""
    return subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()


def changed_files() -> str:
    """Return the tracked files that differ from the commit, on one line."""
    return " ".join(git("diff", "HEAD", "--name-only").split())


def draw_images(folder: Path) -> None:
    """Write train.txt (8 images per class), val.txt (4) and classes.txt, as PNGs of noise with a colour per class."""
    import cv2
    import numpy as np

    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for part, count in (("train", PER_CLASS), ("val", PER_CLASS // 2)):
        lines = []
        for number in range(count * CLASSES):
            image = rng.integers(0, 160, (SIDE + 8, SIDE + 8, 3), dtype=np.uint8)
            image[..., number % CLASSES] += 60
            cv2.imwrite(str(folder / f"{part}_{number}.png"), image)
            lines.append(f"{part}_{number}.png {number % CLASSES}\n")
        (folder / f"{part}.txt").write_text("".join(lines))
    (folder / "classes.txt").write_text("red\ngreen\nblue\n")


def train(work: Path, name: str) -> dict[str, Any]:
    """Train the run `name` in `work`; return the scores of its epochs and the hashes of its last checkpoint."""
    how, flags = RUNS[name]
    tag = name.replace(" ", "_")
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"] if how == TWO else []
    command = [sys.executable, *launcher, str(ROOT / "train.py"), "--tag", tag, *EVERY.split(), *flags.split()]
    last = work / "checkpoints" / tag / "last.pt"
    process = start(command, work / f"{tag}.log", work)
    if how == CUT:
        end_early(process, last)
        process = start([*command, "--resume"], work / f"{tag}.log", work)
    if process.wait():
        raise UserError(
            f"The run {name} ended with exit code {process.returncode}:\n{(work / f'{tag}.log').read_text()[-3000:]}"
        )
    found = {"scores": scores(work / "logs" / tag / "metrics.csv"), "hashes": hashes(last)}
    if name != "adamw":
        shutil.rmtree(last.parent)
    return found


def start(command: list[str], output: Path, work: Path) -> "subprocess.Popen[bytes]":
    """Start `command` in `work`, with one thread per process, so that sums have one order."""
    with open(output, "ab") as file:
        return subprocess.Popen(command, cwd=work, stdout=file, stderr=file, env={**os.environ, "OMP_NUM_THREADS": "1"})


def end_early(process: "subprocess.Popen[bytes]", last: Path) -> None:
    """Kill the process once it has saved; wherever that was, the resumed run must end with the same numbers."""
    until = time.monotonic() + START_SECONDS
    while not last.exists() and process.poll() is None and time.monotonic() < until:
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()


def hashes(path: Path) -> dict[str, str]:
    """Return a sha256 of each part of a checkpoint: weights, averages, optimizer state and scaler state."""
    import torch

    content = torch.load(path, map_location="cpu", weights_only=True)
    parts = {key: content[key] for key in ("weights", "ema", "swa") if content.get(key) is not None}
    parts |= {key: content["training"][key] for key in ("step", "optimizer", "scaler")}
    found = {}
    for key, part in parts.items():
        digest = hashlib.sha256()
        for place, value in leaves(part):
            digest.update(place.encode())
            digest.update(
                value.contiguous().view(-1).view(torch.uint8).numpy().tobytes()
                if hasattr(value, "numpy")
                else repr(value).encode()
            )
        found[key] = digest.hexdigest()[:16]
    return found


def differences(known: dict[str, Any] | None, found: dict[str, Any]) -> str:
    """Return in words what differs between a run and its record; "" if nothing does.

    A score that the record does not have yet is no difference.
    """
    if known is None:
        return "not in the record"
    words = [f"hash of {key}" for key, value in known["hashes"].items() if found["hashes"].get(key) != value]
    words += [f"a new part, {key}" for key in found["hashes"] if key not in known["hashes"]]
    for epoch, (was, now) in enumerate(zip(known["scores"], found["scores"], strict=False), 1):
        keys = [key for key in was if was[key] != now.get(key)]
        words += [f"epoch {epoch} {key} {was[key]} -> {now.get(key)}" for key in keys]
    if len(known["scores"]) != len(found["scores"]):
        words.append("another number of epochs")
    return ", ".join(words)


if __name__ == "__main__":
    sys.exit(main())
