"""Search for good settings with many short runs of train.py, each with its own tag, and report the best.

    python -m tools.sweep --name first --space space.yaml --trials 20 -- --model ResNet18 --data_root data --epochs 5
    python -m tools.sweep --name first --space space.yaml --sampler grid -- --model ResNet18 --data_root data

space.yaml has a line for each flag that varies:

    lr: {low: 1e-5, high: 1e-2, log: true}
    warmup: {low: 0, high: 3, step: 1}
    optimizer: [sgd, adamw]

Every trial gets the flags after --. Writes results/<name>/: study.db (Optuna, SQLite), <name>-<number>.log of each
trial, trials.csv and sweep.png. If the sweep is interrupted, run the same command again to continue: a trial that was
running then is repeated with the same settings. Needs Optuna: python -m pip install optuna.
"""

import argparse
import contextlib
import csv
import itertools
import shlex
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from evaluation.ranking import merit
from options import Options, build_parser, choices
from options.parser import ToolParser, expanded, split_at_dashes
from options.wording import count_of
from tools.sweep_space import Space, grid, in_words, read_space, suggest, words_of
from tools.sweep_study import (
    STUDY,
    check_new,
    check_same_lists,
    check_same_networks,
    check_same_options,
    continued_space,
    count_left,
    enqueue,
    finished,
    import_optuna,
    next_trial,
    open_study,
    study_errors,
)
from tools.train_process import train_process
from utils import run_lock, tables
from utils.errors import UserError
from utils.files import atomic_write
from utils.logger import log, progress
from utils.outputs import check_folder
from utils.run import run_tool

if TYPE_CHECKING:
    from optuna import Study, Trial
    from optuna.trial import FrozenTrial

ROOT = Path(__file__).resolve().parent.parent
POLL_SECONDS = 0.2
FIXED = ("tag", "resume", "load", "config", "metric")  # flags of train.py that no space may vary


def main(argv: Sequence[str] | None = None) -> int:
    """Parse, search, report; return the exit code."""
    ours, rest = split_at_dashes(argv)
    return run_tool(
        lambda: option_parser().parse_args(ours),
        lambda opt: search(opt, rest),
        again="run the same command again to continue",
        write_flags="--result_dir DIR",
    )


def option_parser() -> argparse.ArgumentParser:
    """Return the parser of this tool; the words after -- are train.py's."""
    parser = ToolParser("-m tools.sweep", __doc__)
    parser.add_argument(
        "--name", required=True, help="of the sweep: its folder in --result_dir, and the beginning of each tag"
    )
    parser.add_argument(
        "--space", type=expanded, required=True, metavar="FILE", help="YAML: which flags vary, and in which range"
    )
    parser.add_argument("--trials", type=int, default=20, help="how many trials, including those of earlier commands")
    parser.add_argument(
        "--sampler", choices=("tpe", "random", "grid"), default="tpe", help="grid: every combination, at most --trials"
    )
    parser.add_argument(
        "--prune",
        action="store_true",
        help="end a trial whose --metric is worse than the median of the other trials at the same epoch",
    )
    parser.add_argument("--seed", type=int, default=0, help="of the sampler")
    parser.add_argument("--result_dir", type=expanded, default="results", metavar="DIR")
    return parser


def search(opt: argparse.Namespace, rest: list[str]) -> int:
    """Run the remaining trials, then report; return 0.

    Raises:
        UserError: Optuna is missing, the space or the flags are wrong, the name belongs to another space or to other
            flags, or no trial was completed.
    """
    import_optuna()  # if it is missing, say so before anything else
    space = read_space(Path(opt.space), build_parser("train"), FIXED)
    settings = _check(opt, rest, space)
    folder = Path(opt.result_dir) / opt.name
    check_folder(folder, (STUDY, "trials.csv", "sweep.png"), opt)
    run_lock.acquire(folder)
    folder.mkdir(parents=True, exist_ok=True)
    with study_errors(folder):
        return _search(opt, rest, space, settings)


def _search(opt: argparse.Namespace, rest: list[str], space: Space, settings: Options) -> int:
    """Do what `search` says, once the folder is locked."""
    folder = Path(opt.result_dir) / opt.name
    study = open_study(opt, folder, settings.metric)
    space = continued_space(study, space)
    combinations = _combinations(space, opt.trials) if opt.sampler == "grid" else None
    check_same_options(study, settings, space)
    check_new(study, settings)
    if "data_root" not in space:
        settings = _with_drawn_lists(settings, folder)
        rest = [*rest, *_shared_lists(study, settings, space, folder)]
    check_same_lists(study, settings, space)
    _report_order(settings, space)
    _report_sizes(settings, space)
    enqueue(study, combinations or [])
    total = opt.trials if combinations is None else len(combinations)
    bar = progress(None, opt.name, total)
    bar.update(total - count_left(study, opt.trials, combinations))
    while count_left(study, opt.trials, combinations) > 0:
        check_same_lists(study, settings, space)  # a list may have been edited meanwhile, a network replaced
        check_same_networks(study, settings, space)
        trial = next_trial(study, opt)
        chosen = suggest(trial, space)
        tag = f"{opt.name}-{trial.number}"
        trial.set_user_attr("tag", tag)
        log.info(f"{tag}: {', '.join(in_words(chosen))}")
        run_trial(
            study,
            trial,
            [*rest, *words_of(chosen), "--tag", tag],
            TrialFiles(folder / f"{tag}.log", Path(settings.log_dir) / tag, settings.metric, opt.prune),
        )
        bar.update()
    bar.close()
    return report(study, folder, rest)


def _with_drawn_lists(settings: Options, folder: Path) -> Options:
    """Return `settings` with the lists that train.py would draw of class folders without lists, drawn in `folder`."""
    import dataloader

    return dataloader.draw_lists(settings, folder / "lists")


def _shared_lists(study: "Study", settings: Options, space: Space, folder: Path) -> list[str]:
    """Return the flags that give all trials the lists drawn in `folder`, if --seed varies: each would draw its own."""
    lists = {name: getattr(settings, name) for name in ("train_list", "val_list")}
    if "seed" not in space or lists["train_list"] != str(folder / "lists" / "train.txt"):
        return []
    if not finished(study):
        study.set_user_attr("shared_lists", True)
    elif "shared_lists" not in study.user_attrs:
        log.warning(
            f"The earlier trials of {study.study_name} drew a split each, by their --seed. They were scored on other "
            "images than the new ones, so do not compare them. Try: another --name"
        )
    return [word for name, path in lists.items() if path for word in (f"--{name}", path)]


def _report_order(settings: Options, space: Space) -> None:
    """Log the order of ordinal classes, which train.py logs into the file of each trial; warn as train.py does."""
    import dataloader
    from dataloader.classes import report_order

    if settings.task != "ordinal" or {"data_root", "train_list", "task"} & space.keys():
        return
    folder = dataloader.list_path(settings, "train").parent
    if names := dataloader.read_class_names(folder):
        report_order(names, str(folder / "classes.txt"))


def _report_sizes(settings: Options, space: Space) -> None:
    """Warn where the trials are trained at other sizes than they are scored at; each trial warns in its own file."""
    from dataloader.transforms import scale_stages
    from training.start import warn_of_last_size

    if not settings.scale_schedule or "scale_schedule" in space:
        return
    if "scale" in space:
        log.warning(
            f"--scale_schedule {settings.scale_schedule} sets the sizes at which all trials are trained, so `scale` in "
            f"the space changes only the size at which they are scored. Try: leave one of the two out"
        )
    else:
        warn_of_last_size(scale_stages(settings.scale_schedule)[-1][1], settings.scale)


def _combinations(space: Space, trials: int) -> list[dict[str, object]]:
    """Return the first `trials` combinations of a grid."""
    table = grid(space)
    products = itertools.islice(itertools.product(*table.values()), trials)
    return [dict(zip(table, values, strict=True)) for values in products]


class TrialFiles:
    """Where a trial prints, the folder of its metrics.csv, the metric to read there, and whether it may be pruned."""

    def __init__(self, output: Path, logs: Path, metric: str, prune: bool) -> None:
        self.output, self.logs, self.metric, self.prune = output, logs, metric, prune

    def scores(self) -> list[tuple[int, float]]:
        """Return (epoch, score) of the epochs that were validated so far."""
        name = f"val_{self.metric}"
        with (
            contextlib.suppress(OSError, ValueError, KeyError),
            open(self.logs / "metrics.csv", newline="", encoding="utf-8") as file,
        ):
            return [(int(row["epoch"]), float(row[name])) for row in csv.DictReader(file) if row.get(name)]
        return []


def run_trial(study: "Study", trial: "Trial", words: list[str], files: TrialFiles) -> None:
    """Run train.py with `words`; tell the study its best score, or that it was pruned or failed."""
    optuna = import_optuna()
    if "--overwrite" in words:
        (files.logs / "metrics.csv").unlink(missing_ok=True)  # from a deleted sweep of the same name
    reported: set[int] = set()  # epochs
    weak = False  # decided for each epoch: several may have passed since the last poll
    command = [sys.executable, str(ROOT / "train.py"), *words]
    with open(files.output, "w", encoding="utf-8") as output, train_process(command, output) as process:
        while True:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(POLL_SECONDS)
            for epoch, score in files.scores():
                if epoch not in reported:
                    reported.add(epoch)
                    trial.report(score, epoch)
                    weak = weak or (files.prune and trial.should_prune())
            if process.poll() is not None:
                break
            if weak:
                log.info(f"{trial.user_attrs['tag']}: pruned after epoch {max(reported)}")
                study.tell(trial, state=optuna.trial.TrialState.PRUNED)
                return
    scores = files.scores()
    if process.returncode or not scores:
        last = (files.output.read_text(encoding="utf-8", errors="replace").strip().splitlines() or ["no output"])[-6:]
        reason = next((line for line in last if line.startswith(("error:", "train.py:"))), last[-1])
        trial.set_user_attr("failed", f"exit code {process.returncode}: {reason}")
        log.warning(
            f"{trial.user_attrs['tag']} failed with exit code {process.returncode}: {reason} "
            f"(full output: {files.output})"
        )
        study.tell(trial, state=optuna.trial.TrialState.FAIL)
        return
    best = (min if choices.METRICS[files.metric].lower_is_better else max)(score for _, score in scores)
    log.info(f"{trial.user_attrs['tag']}: {files.metric} {best:.6f}")
    study.tell(trial, best)


def _check(opt: argparse.Namespace, rest: list[str], space: Space) -> Options:
    """Return train.py's options with the first values of the space.

    Raises:
        SystemExit: code 2, after a message: the flags are wrong.
        UserError: --name, --trials or a flag after -- is not allowed.
    """
    if Path(opt.name).name != opt.name or opt.name.startswith((".", "-")) or opt.trials < 1:
        raise UserError(f"--name is {opt.name!r}, --trials {opt.trials}; allowed: one file name, and 1 or more trials.")
    twice = sorted(build_parser("train").names_in(rest) & {*space, *FIXED[:2]})
    if twice:
        raise UserError(f"--{twice[0]} is also given after --, but each trial sets its own. Leave it out there.")
    first = {name: rule["choices"][0] if "choices" in rule else rule["low"] for name, rule in space.items()}
    settings = build_parser("train").parse([*rest, *words_of(first), "--tag", opt.name])
    if 0 in space.get("val_freq", {}).get("choices", [settings.val_freq]):
        raise UserError(
            "--val_freq is 0, and tools.sweep compares validation scores. Allowed: 1 or more. Try: leave it out"
        )
    return settings


# ---------------------------------------------------------------------------------------------------- report


def _score(trial: "FrozenTrial") -> float:
    """Return the score of a complete trial."""
    assert trial.value is not None
    return trial.value


def report(study: "Study", folder: Path, rest: list[str]) -> int:
    """Write trials.csv and sweep.png; log the best trials, the failed ones and the best command; return 0.

    Raises:
        UserError: no trial was completed.
    """
    from evaluation.report.tool_plots import trials as draw

    names, metric = list(study.user_attrs["space"]), study.user_attrs.get("metric", "top1")
    done = finished(study)
    complete = [trial for trial in done if trial.state.name == "COMPLETE"]
    good = sorted(complete, key=lambda trial: (-merit({metric: _score(trial)}, metric), trial.number))
    bad = [trial for trial in done if "failed" in trial.user_attrs]
    with atomic_write(folder / "trials.csv", "w") as file:
        writer = tables.writer(file)
        writer.writerow(("tag", "state", f"val_{metric}", *names))
        for trial in sorted(done, key=lambda trial: trial.number):
            score = _score(trial) if trial.state.name == "COMPLETE" else ""
            writer.writerow(
                (trial.user_attrs["tag"], trial.state.name.lower(), score, *(trial.params.get(name) for name in names))
            )
    pruned = len(done) - len(good) - len(bad)
    trials = count_of(len(done), "trial")
    log.info(f"{trials}: {len(good)} complete, {pruned} pruned, {len(bad)} failed; {folder}/trials.csv")
    for trial in bad:
        log.warning(f"{trial.user_attrs['tag']} failed: {trial.user_attrs['failed']}")
    if not good:
        raise UserError(f"No trial was completed. Their output: {folder}/*.log.")
    draw(
        folder / "sweep.png",
        [(trial.number, _score(trial), trial.params) for trial in good],
        study.user_attrs["space"],
        metric,
    )
    width = max(len(trial.user_attrs["tag"]) for trial in good)
    for trial in good[:10]:
        log.info(f"{trial.user_attrs['tag']:{width}}  {_score(trial):.6f}  {'  '.join(in_words(trial.params))}")
    best = shlex.join(["python", "train.py", *rest, *words_of(good[0].params), "--tag", f"{study.study_name}-best"])
    log.info(f"Picture: {folder}/sweep.png. To train longer with the best settings, under a new tag:\n{best}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
