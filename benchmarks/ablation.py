"""Measure what each trick buys: train with and without it, over several seeds, and print a table.

    python -m benchmarks.ablation runs/ablation_scratch.yaml --data_root datasets/small --seeds 3

The YAML file holds `base`, the words for train.py, and may hold more. `rows` gives names to words that are added to the
base's. `predict` gives names to words with which eval.py scores the runs of the base again. `ensembles` and `soups` are
numbers of runs of the base: their predictions are blended, or their weights averaged. `more_seeds` is the number of
seeds that the base has beyond --seeds, so that there are enough runs. train.py trains each run, and eval.py scores it
on the validation list of --data_root.

The gain is the mean over the seeds of a row's score less the base's of the same seed, in points of top-1, with a 95 %
interval of Student's t. With three seeds that reaches 2.5 standard deviations to each side: a small gain is seldom
proved. Runs go --jobs at a time, and share the cores. Those that have ended are kept in <out>/runs.json; --resume
continues.
"""

import argparse
import collections
import json
import math
import shlex
import shutil
import sys
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from benchmarks import harness as bench
from benchmarks.kept_runs import KeptRuns
from dataloader.file_list import read_list
from options.parser import ToolParser, expanded
from options.plain_yaml import YamlError, read_yaml
from utils import run_lock
from utils.cores import usable_cores
from utils.errors import UserError, path_hint
from utils.files import atomic_write, write_json
from utils.logger import log
from utils.run import run_tool

BASE = "base"
FIRST_SEED = 1
MAX_GROUPS = 3  # ensembles and soups of one size


class Plan(NamedTuple):
    """What the YAML file holds; see this module's docstring."""

    base: str
    rows: dict[str, str]
    predict: dict[str, str]
    ensembles: list[int]
    soups: list[int]
    more_seeds: int

    def groups(self) -> dict[str, tuple[str, int]]:
        """Return the rows of several runs of the base: (kind, size) by name."""
        named = {f"ensemble of {size}": ("ensembles", size) for size in self.ensembles}
        return named | {f"soup of {size}": ("soups", size) for size in self.soups}

    def names(self) -> list[str]:
        """Return the names of all rows but the base's."""
        return [*self.rows, *self.predict, *self.groups()]


class Job(NamedTuple):
    """One run: commands in turn, of which the last scores; its result counts for `seeds` of row `row`."""

    row: str
    seeds: tuple[int, ...]
    commands: tuple[tuple[str, ...], ...]

    def name(self) -> str:
        """Return the job's name in the file of runs, and in the log."""
        return f"{self.row}, seed {' '.join(map(str, self.seeds))}"


def option_parser() -> argparse.ArgumentParser:
    """Return the parser of this benchmark."""
    parser = ToolParser("-m benchmarks.ablation", __doc__)
    parser.add_argument("plan", type=expanded, metavar="FILE", help="YAML file with the base and the rows")
    parser.add_argument("--data_root", type=expanded, required=True, metavar="DIR", help="folder of the lists")
    parser.add_argument("--seeds", type=int, default=3, metavar="N", help="seeds of each row, 2 or more")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="these rows, and the base")
    parser.add_argument("--jobs", type=int, default=1, metavar="N", help="runs at a time")
    parser.add_argument("--gpu", type=int, metavar="N", help="which GPU; -1: the CPU; default: GPU 0 if there is one")
    parser.add_argument("--resume", action="store_true", help="keep the runs of an earlier call")
    parser.add_argument("--out", type=expanded, default="results/ablation", help="folder for runs and table")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Parse and measure; return the exit code."""
    return run_tool(lambda: option_parser().parse_args(argv), ablate, again="run it again with --resume to continue")


def ablate(opt: argparse.Namespace) -> None:
    """Train and score every row; write the table and the JSON."""
    plan, out = read_plan(opt), Path(opt.out).resolve()
    out.mkdir(parents=True, exist_ok=True)
    run_lock.acquire(out)
    root, device = str(Path(opt.data_root).resolve()), bench.device_name(opt.gpu)
    lists = [read_list(Path(root) / f"{part}.txt").fingerprint() for part in ("train", "val")]
    runs = KeptRuns(out, {"plan": plan._asdict(), "data_root": root, "lists": lists, "device": device}, opt.resume)
    words = ["--data_root", root, *bench.gpu_words({"gpu": opt.gpu})]
    if opt.jobs > 1:  # they share the cores
        words += ["-w", str(max(1, usable_cores() // opt.jobs - 1))]
    of_base = range(FIRST_SEED, FIRST_SEED + opt.seeds + plan.more_seeds)
    trainings = [training(BASE, plan.base, seed, words) for seed in of_base]
    for row, more in plan.rows.items():
        trainings += [training(row, f"{plan.base} {more}", seed, words) for seed in of_base[: opt.seeds]]
    wanted = {BASE, *(plan.names() if opt.only is None else opt.only)}
    do([job for job in trainings if job.row in wanted], runs, opt.jobs)
    do([job for job in predictions(plan, of_base, words) if job.row in wanted], runs, opt.jobs)
    about = f"{device}, {opt.seeds} seeds; base: `{plan.base}`"
    table = markdown(runs.done, about)
    write_json(out / "ablation.json", {**runs.about, "runs": list(runs.done.values())})
    with atomic_write(out / "ablation.md", "w") as file:
        file.write(table)
    log.info(f"\n{table}\nWritten: {out}/ablation.md, {out}/ablation.json")


def read_plan(opt: argparse.Namespace) -> Plan:
    """Return the plan of the YAML file.

    Raises:
        UserError: it has no base, an unknown part, a name twice, or a size for which there are too few seeds; or --only
            names no row of it.
    """
    if opt.seeds < 2 or opt.jobs < 1:
        raise UserError(f"--seeds {opt.seeds}, --jobs {opt.jobs}; allowed: 2 or more, and 1 or more.")
    try:
        content = read_yaml(Path(opt.plan))
    except FileNotFoundError:
        raise UserError(f"There is no file {opt.plan}.{path_hint(Path(opt.plan))}") from None
    except (OSError, YamlError) as error:
        raise UserError(f"The plan {opt.plan} cannot be read: {error}.") from None
    if not isinstance(content, dict) or BASE not in content or not content.keys() <= set(Plan._fields):
        allowed = ", ".join(Plan._fields[1:])
        raise UserError(f"{opt.plan} must hold `{BASE}: words for train.py`; allowed beside it: {allowed}.")
    more = _numbers(opt.plan, "more_seeds", [content.get("more_seeds", "0")], 0, math.inf)[0]
    sizes = [_numbers(opt.plan, part, content.get(part, []), 2, opt.seeds + more) for part in ("ensembles", "soups")]
    texts = [_texts(opt.plan, part, content.get(part, {})) for part in ("rows", "predict")]
    base = _texts(opt.plan, BASE, {BASE: content[BASE]})[BASE]
    plan = Plan(base, texts[0], texts[1], sizes[0], sizes[1], more)
    tags = collections.Counter(tag_of(name, 0) for name in [BASE, *plan.names()])
    twice = [name for name in plan.names() if tags[tag_of(name, 0)] > 1]
    if twice:
        raise UserError(
            f"{opt.plan} has two rows called {twice[0]!r}, or names that differ in signs alone; rename one."
        )
    unknown = [name for name in opt.only or [] if name not in plan.names()]
    if unknown:
        allowed = ", ".join(map(repr, plan.names()))
        raise UserError(f"--only: {opt.plan} has no row {unknown[0]!r}; allowed: {allowed}.")
    return plan


def _texts(path: str, part: str, found: Any) -> dict[str, str]:
    """Return words by name. Raises UserError if they are no words."""
    if not isinstance(found, dict) or not all(isinstance(words, str) and words.strip() for words in found.values()):
        raise UserError(f"{path}: {part} must give words to each name, such as `mixup: --mixup 0.2`.")
    for name, words in found.items():
        try:
            shlex.split(words)
        except ValueError as error:
            raise UserError(f"{path}: {part} {name}: {words!r} is no command line ({error}).") from None
    return {str(name): words for name, words in found.items()}


def _numbers(path: str, part: str, found: Any, low: int, high: float) -> list[int]:
    """Return whole numbers from `low` to `high`. Raises UserError if they are none."""
    words = found if isinstance(found, list) else [found]
    if not all(isinstance(word, str) and word.isdecimal() and low <= int(word) <= high for word in words):
        limit = "" if high == math.inf else f" to {high}, the number of seeds of the base"
        raise UserError(f"{path}: {part} is {found}; allowed: {low}{limit or ' or more'}.")
    return [int(word) for word in words]


def training(row: str, words: str, seed: int, common: Sequence[str]) -> Job:
    """Return the job that trains a row with `seed`, and scores it."""
    tag = tag_of(row, seed)
    train = ("train.py", "--tag", tag, *shlex.split(words), "--seed", str(seed), "--overwrite", *common)
    return Job(row, (seed,), (train, scoring(tag, [last_of(tag)], common)))


def predictions(plan: Plan, seeds: Sequence[int], common: Sequence[str]) -> list[Job]:
    """Return the jobs that score the runs of the base again: with other words, several together, or averaged."""
    jobs = []
    for row, words in plan.predict.items():
        for seed in seeds:
            tag = tag_of(row, seed)
            jobs.append(Job(row, (seed,), (scoring(tag, [last_of(tag_of(BASE, seed))], common, shlex.split(words)),)))
    for row, (kind, size) in plan.groups().items():
        for first in range(min(MAX_GROUPS, len(seeds) - size + 1)):
            group = tuple(seeds[first : first + size])
            loads, tag = [last_of(tag_of(BASE, seed)) for seed in group], tag_of(row, first)
            if kind == "ensembles":
                jobs.append(Job(row, group, (scoring(tag, loads, common),)))
            else:
                soup = f"checkpoints/{tag}.pt"
                average = ("-m", "tools.average", "--load", *loads, "--how", "uniform", "--out", soup, "--overwrite")
                jobs.append(Job(row, group, ((*average, *common), scoring(tag, [soup], common))))
    return jobs


def scoring(tag: str, loads: Sequence[str], common: Sequence[str], more: Sequence[str] = ()) -> tuple[str, ...]:
    """Return the command that scores these checkpoints together, into results/<tag>."""
    return ("eval.py", "--tag", tag, "--load", *loads, "--no-report", *more, *common)


def tag_of(row: str, seed: int) -> str:
    """Return the tag of a row and a seed."""
    return f"{''.join(letter if letter.isalnum() else '_' for letter in row)}-{seed}"


def last_of(tag: str) -> str:
    """Return the checkpoint of the end of a run."""
    return f"checkpoints/{tag}/last.pt"


def do(jobs: Sequence[Job], runs: KeptRuns, at_once: int) -> None:
    """Run the jobs that are not done yet; the first that fails is raised when those that run have ended.

    Raises:
        UserError: a command failed.
    """
    left = [job for job in jobs if job.name() not in runs.done]
    environ = bench.project_environment()
    if at_once > 1:
        environ.setdefault("OMP_NUM_THREADS", str(max(1, usable_cores() // at_once)))
    with ThreadPoolExecutor(at_once) as pool:
        futures = [pool.submit(_do_one, job, runs, environ) for job in left]
        try:
            for future in futures:
                future.result()
        finally:
            pool.shutdown(cancel_futures=True)


def _do_one(job: Job, runs: KeptRuns, environ: Mapping[str, str]) -> None:
    out = runs.file.parent
    began, results = time.monotonic(), out / "results" / job.commands[-1][2]
    shutil.rmtree(results, ignore_errors=True)
    for command in job.commands:
        bench.run_script(command, out, environ)
    (metrics,) = results.glob("*/metrics.json")
    top1 = json.loads(metrics.read_text()).get("top1")
    if top1 is None:
        raise UserError(f"{metrics} has no top1, which the table compares; allowed: --task single or ordinal.")
    seconds = time.monotonic() - began
    runs.add(job.name(), {"row": job.row, "seeds": job.seeds, "top1": top1, "seconds": seconds})
    log.info(f"{job.name():40s} {100 * top1:6.2f} %   {seconds:.0f} s   ({len(runs.done)} done)")


def gains(done: Mapping[str, Mapping[str, Any]], row: str) -> list[float]:
    """Return, for each run of `row`, its top-1 less the mean of the base's with the same seeds, in points."""
    base = {run["seeds"][0]: run["top1"] for run in done.values() if run["row"] == BASE}
    runs = [run for run in done.values() if run["row"] == row]
    return [100 * (run["top1"] - float(np.mean([base[seed] for seed in run["seeds"]]))) for run in runs]


def interval(values: Sequence[float]) -> float:
    """Return half the width of the 95 % interval of the mean of two or more `values`, by Student's t."""
    from scipy.stats import t

    return float(t.ppf(0.975, len(values) - 1) * np.std(values, ddof=1) / np.sqrt(len(values)))


def markdown(done: Mapping[str, Mapping[str, Any]], about: str) -> str:
    """Return the table as Markdown: a line per row, the largest gain first; the base leads."""
    rows = list(dict.fromkeys(run["row"] for run in done.values()))
    rows.sort(key=lambda row: (row != BASE, -float(np.mean(gains(done, row)))))
    lines = [f"{about}.", "", "| row | runs | top-1, % | gain, points | proved |", "|---|---|---|---|---|"]
    for row in rows:
        runs = [run for run in done.values() if run["row"] == row]
        scores, gained = [100 * run["top1"] for run in runs], gains(done, row)
        score = f"{np.mean(scores):.2f} ({min(scores):.2f}–{max(scores):.2f})"
        if row == BASE:
            lines.append(f"| {row} | {len(runs)} | {score} | | |")
            continue
        shared = len({seed for run in runs for seed in run["seeds"]}) < sum(len(run["seeds"]) for run in runs)
        mean = float(np.mean(gained))
        if shared or len(gained) < 2:  # runs that share members tell no spread
            lines.append(f"| {row} | {len(runs)} | {score} | {mean:+.2f} | |")
            continue
        half = interval(gained)
        proved = "yes" if abs(mean) > half else "no"
        lines.append(f"| {row} | {len(runs)} | {score} | {mean:+.2f} ± {half:.2f} | {proved} |")
    lines += [
        "",
        "proved: the 95 % interval excludes 0. Of 20 rows that change nothing, one is called proved by chance.",
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(main())
