"""Measure the accuracy that each trainer reaches within the same seconds of wall time, or in as many epochs.

    python -m benchmarks.accuracy --data_root datasets/fashion-mnist --rivals ~/rivals
    python -m benchmarks.accuracy --data_root datasets/fashion-mnist --budgets 30 60 --seeds 1 --only ours timm
    python -m benchmarks.accuracy --data_root datasets/stamps --rivals ~/rivals --epochs 30

All train the same network from the same ImageNet weights, on the same images at the same size, and are scored on the
same validation list: ours with train.py's defaults; timm's train.py as it comes, and tuned by its documentation;
torchvision's reference script, likewise; fastai's vision_learner.fine_tune; AutoGluon-MultiModal. Each keeps its own
augmentation, optimizer, schedule, batch and validation transform. The budget decides the number of epochs: the largest
that ends in time, start of the process, validation and saving included. Two short runs of each predict it; the first
seed's runs correct it. Runs of the same length serve all budgets that choose it. The order is one seed after another,
one budget after another, all trainers in turn. With --epochs, every trainer trains these numbers of epochs, whatever
time they take.

--rivals is a folder with the rivals' virtual environments, made with Python 3.11:
    .venv-torch      pip install torch torchvision timm
    .venv-fastai     pip install fastai timm
    .venv-autogluon  pip install autogluon.multimodal 'setuptools<81'
A trainer that is not there, or does not run, is named with the reason, and the others go on. Writes accuracy.json,
accuracy.md and accuracy.png; accuracy.runs.json holds every run as soon as it ends. --resume continues an interrupted
call, or adds budgets, seeds and trainers to one that ended.
"""

import argparse
import json
import math
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks import harness as bench
from benchmarks.accuracy import plan, report, trainers
from benchmarks.accuracy.rivals.common import Task, class_folder
from benchmarks.accuracy.trainers import Failed, Job, Trainer
from dataloader.file_list import FileList, read_list
from options.parser import ToolParser, expanded
from utils.cores import usable_cores
from utils.errors import UserError
from utils.files import atomic_write, write_json
from utils.logger import log
from utils.outputs import check_folder
from utils.run import get_device, run_tool

NAME = "accuracy"
FIRST_SEED = 42
OVERTIME = 1.5  # of a budget, after which a run is ended
SAME_FLAGS = ("model", "scale", "workers", "gpu")  # what --resume must not change; more budgets and seeds are welcome
NAMES = (f"{NAME}.json", f"{NAME}.md", f"{NAME}.png", f"{NAME}.runs.json")


def option_parser() -> argparse.ArgumentParser:
    """Return the parser of this benchmark."""
    parser = ToolParser(f"-m benchmarks.{NAME}", __doc__)
    parser.add_argument("--data_root", type=expanded, default="datasets", help="folder of train.txt and val.txt")
    parser.add_argument("--train_list", type=expanded, metavar="FILE", help="default: train.txt in --data_root")
    parser.add_argument("--val_list", type=expanded, metavar="FILE", help="default: val.txt in --data_root")
    parser.add_argument("--rivals", type=expanded, default="rivals", metavar="DIR", help="folder of the environments")
    parser.add_argument("--model", default="EfficientNet-Lite0", help="network, by its name in train.py")
    parser.add_argument("--scale", type=int, default=64, metavar="PX", help="side of the images")
    parser.add_argument("--budgets", type=float, nargs="+", default=[30, 60, 120], metavar="SECONDS")
    parser.add_argument("--epochs", type=int, nargs="+", metavar="N", help="equal epochs in place of --budgets")
    parser.add_argument("--seeds", type=int, default=3, metavar="N", help="number of seeds")
    parser.add_argument("--only", nargs="+", default=list(trainers.TRAINERS), metavar="NAME", help="these trainers")
    parser.add_argument("--workers", type=int, default=usable_cores(), help="loader processes of each rival")
    parser.add_argument("--gpu", type=int, metavar="N", help="which GPU; -1: the CPU; default: GPU 0 if there is one")
    parser.add_argument("--resume", action="store_true", help="keep the runs that an earlier call has timed")
    parser.add_argument("--out", type=expanded, default="results/benchmarks", help="folder for what it writes")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Parse and measure; return the exit code."""
    return run_tool(lambda: option_parser().parse_args(argv), compare, again="run it again with --resume to continue")


def compare(opt: argparse.Namespace) -> None:
    """Time all trainers within all budgets; write the table, the JSON and the plot."""
    wanted = trainers.chosen(opt.only)
    if opt.seeds < 1 or min(opt.budgets) <= 0:
        raise UserError(f"--seeds {opt.seeds}, --budgets {min(opt.budgets):g}; allowed: 1 or more, and over 0.")
    if opt.epochs and min(opt.epochs) < 1:
        raise UserError(f"--epochs {min(opt.epochs)}; allowed: 1 or more.")
    root = Path(opt.data_root)
    paths = Path(opt.train_list or root / "train.txt"), Path(opt.val_list or root / "val.txt")
    lists = read_list(paths[0]), read_list(paths[1])
    check_folder(Path(opt.out), NAMES, opt, *lists)
    if "OMP_NUM_THREADS" in os.environ:
        log.warning(f"OMP_NUM_THREADS={os.environ['OMP_NUM_THREADS']} holds for all trainers.")
    job = prepare(opt, lists)
    versions, absent = {}, {}
    for name, trainer in wanted.items():
        try:
            versions[name] = trainers.check(trainer, job)
        except Failed as reason:
            absent[name] = str(reason)
            log.warning(f"{name} is left out: {reason}")
    about = {
        "settings": {**vars(opt), "resume": None},
        "versions": versions,
        "lists": [one.fingerprint() for one in lists],
    }
    runs = Runs(opt, job, {name: wanted[name] for name in versions}, about)
    runs.measure()
    write(opt, runs, absent | runs.failed, about)


def prepare(opt: argparse.Namespace, lists: tuple[FileList, FileList]) -> Job:
    """Make what all trainers start from: the weights as a file, folders of links to the images; fill the page cache."""
    folder = Path(opt.out).resolve() / NAME
    images = folder / "images"
    shutil.rmtree(images, ignore_errors=True)
    classes = 1 + max(int(files.label.max()) for files in lists)
    for split, files in zip(("train", "val"), lists, strict=True):
        for label in range(classes):
            (images / split / class_folder(label)).mkdir(parents=True)
        for index in range(len(files)):
            path = Path(files.path(index)).resolve()
            (images / split / class_folder(files.label[index]) / f"{index:07d}{path.suffix.lower()}").symlink_to(path)
        bench.into_page_cache(files)
    weights, arch = export_weights(opt.model, folder / "weights")
    device = get_device(opt.gpu)
    task = Task(
        images=str(images),
        weights=str(weights),
        arch=arch,
        classes=classes,
        size=opt.scale,
        epochs=0,
        seed=0,
        workers=opt.workers,
        device=str(device),
        out="",
        tuned=False,
    )
    absolute = lists[0].source.resolve(), lists[1].source.resolve()
    return Job(absolute, task, opt.model, opt.gpu, Path(opt.rivals).resolve(), folder / "work")


def export_weights(model: str, folder: Path) -> tuple[Path, str]:
    """Write the ImageNet weights of `model` to <folder>/<timm's name>.pth; return the file, and timm's name.

    Raises:
        UserError: timm has no such network, or its weights are not on this machine.
    """
    import torch

    from network import get_model
    from options import parse_train

    words = ["--model", model, "--pretrained", "--gpu", "-1"]
    built = get_model(model)(parse_train(words).replace(num_classes=1000))
    config = getattr(built.net, "pretrained_cfg", None)
    if config is None:
        raise UserError(f"--model {model} is no network of timm, so the rivals cannot build it.")
    folder.mkdir(parents=True, exist_ok=True)
    arch = config["architecture"]
    with atomic_write(folder / f"{arch}.pth") as file:
        torch.save(built.net.state_dict(), file)
    return folder / f"{arch}.pth", arch


class Runs:
    """All runs that were timed, by trainer, epochs and seed, and which of them a budget has chosen.

    With --epochs, a number of epochs takes the place of a budget.
    """

    def __init__(self, opt: argparse.Namespace, job: Job, wanted: dict[str, Trainer], about: dict[str, Any]) -> None:
        self.opt, self.job, self.wanted, self.about = opt, job, wanted, about
        self.file = Path(opt.out) / f"{NAME}.runs.json"
        self.done: list[dict[str, Any]] = self._read() if opt.resume else []
        self.failed: dict[str, str] = {}
        self.chosen: dict[tuple[str, float], int] = {}  # (trainer, budget) -> epochs

    def measure(self) -> None:
        """Time everything: two short runs of each trainer, then all seeds, budgets and trainers in turn."""
        budgets, seeds = sorted(self.opt.budgets), range(FIRST_SEED, FIRST_SEED + self.opt.seeds)
        if self.opt.epochs:
            self.chosen = {(name, epochs): epochs for name in self.wanted for epochs in sorted(self.opt.epochs)}
            for seed in seeds:
                for name, epochs in self.chosen:
                    if name not in self.failed:
                        self._try(name, int(epochs), seed, math.inf)
            return
        for epochs in (1, 2):
            for name in self._left():
                if epochs == 1 or plan.epochs_within(budgets[-1], self.timings(name)) > 1:
                    self._try(name, epochs, seeds[0], budgets[-1])
        for seed in seeds:
            for budget in budgets:
                for name in self._left():
                    if seed == seeds[0]:
                        self._settle(name, budget, seed)
                    elif self.chosen[name, budget]:
                        self._try(name, self.chosen[name, budget], seed, budget)

    def timings(self, name: str) -> list[plan.Timing]:
        """Return the runs of a trainer that ended; of those that were stopped, only one of a single epoch counts."""
        return [
            plan.Timing(run["epochs"], run["seconds"])
            for run in self.done
            if run["trainer"] == name and (run["top1"] is not None or run["epochs"] == 1)
        ]

    def results(self) -> dict[str, dict[float, report.Result]]:
        """Return the runs of each trainer within each budget."""
        found: dict[str, dict[float, report.Result]] = {}
        for (name, budget), epochs in self.chosen.items():
            if name in self.failed:
                continue
            runs = [run for run in self.done if (run["trainer"], run["epochs"]) == (name, epochs)]
            ended = [run for run in runs if run["top1"] is not None]
            found.setdefault(name, {})[budget] = report.Result(
                epochs, [run["seconds"] for run in ended], [run["top1"] for run in ended], len(runs) - len(ended)
            )
        return {name: dict(sorted(found[name].items())) for name in self.wanted if name in found}

    def _left(self) -> list[str]:
        return [name for name in self.wanted if name not in self.failed]

    def _settle(self, name: str, budget: float, seed: int) -> None:
        def timed(epochs: int) -> float:
            return self.run(name, epochs, seed, budget)

        try:
            self.chosen[name, budget] = plan.settle(budget, lambda: self.timings(name), timed)
        except Failed as reason:
            self._drop(name, reason)

    def _try(self, name: str, epochs: int, seed: int, budget: float) -> None:
        try:
            self.run(name, epochs, seed, budget)
        except Failed as reason:
            self._drop(name, reason)

    def _drop(self, name: str, reason: Failed) -> None:
        self.failed[name] = str(reason)
        log.warning(f"{name} is left out: {reason}")

    def run(self, name: str, epochs: int, seed: int, budget: float) -> float:
        """Return the seconds of one run, from an equal one if there was one; keep it in the file of runs."""
        known = {(run["trainer"], run["epochs"], run["seed"]): run for run in self.done}
        same = known.get((name, epochs, seed))
        if same is not None and (same["top1"] is not None or same["seconds"] > budget):
            return float(same["seconds"])
        seconds, top1 = trainers.train(self.wanted[name], self.job, epochs, seed, OVERTIME * budget)
        run = {"trainer": name, "epochs": epochs, "seed": seed, "seconds": seconds, "top1": top1}
        self.done = [one for one in self.done if one is not same] + [run]  # `same` was stopped for a smaller budget
        write_json(self.file, {**self.about, "runs": self.done})
        score = "stopped" if top1 is None else f"{100 * top1:5.1f} %"
        within = f" (budget {budget:g} s)" if budget < math.inf else ""
        log.info(f"{name:20s} seed {seed}  {epochs:3d} epochs  {seconds:6.1f} s{within}  {score}")
        return seconds

    def _read(self) -> list[dict[str, Any]]:
        """Return the runs of an earlier call: of one that was interrupted, else of one that ended.

        Raises:
            UserError: there is none, or what decides a run was not the same.
        """
        file = next((path for path in (self.file, Path(self.opt.out) / f"{NAME}.json") if path.is_file()), None)
        if file is None:
            raise UserError(f"--resume: there is no {self.file}. Try: leave --resume out")
        kept = json.loads(file.read_text())
        now = json.loads(json.dumps(self.about))
        differ = [f"--{key}" for key in SAME_FLAGS if kept["settings"].get(key) != now["settings"][key]]
        differ += ["images"] * (kept["lists"] != now["lists"])
        differ += [
            f"versions of {name}"
            for name, versions in now["versions"].items()
            if kept["versions"].get(name, versions) != versions
        ]
        if differ:
            raise UserError(f"--resume: {file} was made with other {', '.join(differ)}. Try: leave --resume out")
        return list(kept["runs"])


def write(opt: argparse.Namespace, runs: Runs, absent: dict[str, str], about: dict[str, Any]) -> None:
    """Write accuracy.json, accuracy.md and accuracy.png into --out, and print the table."""
    out, results = Path(opt.out), runs.results()
    device = bench.device_name(opt.gpu)
    images = f"{opt.model} at {opt.scale} px from ImageNet weights, lists of {Path(runs.job.lists[0]).parent.name}"
    conditions = f"{device}, {opt.seeds} seeds, loader processes of the rivals: {opt.workers}"
    advice = {name: trainers.TRAINERS[name].advice for name in results}
    table = report.markdown(results, absent, advice, [f"{images}.", f"{conditions}."], "epochs" if opt.epochs else "s")
    found = {name: {f"{budget:g}": result._asdict() for budget, result in row.items()} for name, row in results.items()}
    environ = {key: os.environ[key] for key in ("OMP_NUM_THREADS",) if key in os.environ}
    measured = {"device": device, "cores": usable_cores(), "environ": environ, "results": found, "absent": absent}
    everything = {**about, **measured, "trainers": trainers.as_json(runs.wanted), "runs": runs.done}
    write_json(out / f"{NAME}.json", everything)
    with atomic_write(out / f"{NAME}.md", "w") as file:
        file.write(table)
    drawn = report.plot(out / f"{NAME}.png", results, f"{images}\n{conditions}")
    runs.file.unlink(missing_ok=True)
    log.info(f"\n{table}\nWritten: {out}/{NAME}.json, {out}/{NAME}.md" + f", {out}/{NAME}.png" * drawn)
