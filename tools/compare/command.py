"""Compare runs: their scores, times and options in a table, their curves on one page.

    python -m tools.compare first second
    python -m tools.compare --sort time --out results/all.html

Without tags, all runs in --log_dir are compared. It prints a table, the options that differ, and where each run's
checkpoint is. It writes one HTML file that loads nothing else: a table to sort and filter, and curves by step and by
epoch. It reads metrics.csv, steps.csv, options.yaml, lists.json and log.txt of each run, and changes none. It names
what is missing or damaged.
"""

import argparse
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

from evaluation.ranking import merit
from options import choices
from options.parser import ToolParser, expanded
from tools.compare.runs import (
    RECORDS,
    Run,
    common_metric,
    differing_options,
    find_runs,
    option_text,
    read_run,
    validation_warning,
)
from utils.logger import log
from utils.names import columns, padded, shorten_all
from utils.outputs import Output, check, contains
from utils.run import run_tool
from utils.text import visible

GENERATOR = b'content="tools.compare"'  # in the head of the page, so that it is known again
MIN_TAG_COLUMNS, MAX_TAG_COLUMNS = 16, 60
PIPE_COLUMNS = 140  # without a terminal
MAX_OPTIONS_SHOWN = 16  # per run on the terminal
# The value to sort by, given the metric; None comes last.
SORTS: dict[str, Callable[[Run, str], float | str | None]] = {
    "best": lambda run, metric: _rank(run.best(metric), metric),
    "last": lambda run, metric: _rank(run.last(f"val_{metric}"), metric),
    "loss": lambda run, _: run.last("val_loss"),
    "epochs": lambda run, _: -run.epochs,
    "time": lambda run, _: run.seconds,
    "speed": lambda run, _: None if run.images_per_second is None else -run.images_per_second,
    "model": lambda run, _: run.model,
    "tag": lambda run, _: run.tag,
}


def main(argv: Sequence[str] | None = None) -> int:
    """Parse and compare; return the exit code."""
    parser = ToolParser("-m tools.compare", __doc__)
    parser.add_argument("tags", nargs="*", metavar="TAG", help="runs, by their --tag; none: all in --log_dir")
    parser.add_argument("--sort", choices=tuple(SORTS), default="best", help="order of the rows")
    parser.add_argument(
        "--metric",
        choices=choices.METRICS,
        help="the score to compare; by default that of the runs if they agree, else top1",
    )
    parser.add_argument("--out", type=expanded, default="results/compare.html", metavar="FILE", help="the page")
    parser.add_argument("--force", action="store_true", help="let --out replace a file of another kind")
    parser.add_argument(
        "--log_dir", type=expanded, default="logs", metavar="DIR", help="the records are in <DIR>/<tag>"
    )
    parser.add_argument(
        "--checkpoint_dir",
        type=expanded,
        metavar="DIR",
        help="the checkpoints are in <DIR>/<tag>; by default where the run put them",
    )
    return run_tool(lambda: parser.parse_args(argv), compare)


def compare(opt: argparse.Namespace) -> None:
    """Read the runs, print the tables, and write the page.

    Raises:
        UserError: there is no such run, or --out is a file of another kind.
    """
    from tools.compare.page import write_page

    logs, out = Path(opt.log_dir), Path(opt.out)
    tags, others = find_runs(logs, opt.tags)
    read = {str(logs / tag / name): "a record of a run" for tag in tags for name in RECORDS}
    check([Output(out, "a page of tools.compare", contains(GENERATOR))], read, force=opt.force)
    runs = [read_run(logs, tag, Path(opt.checkpoint_dir) if opt.checkpoint_dir else None) for tag in tags]
    metric = opt.metric or common_metric(runs)
    runs = in_order(runs, opt.sort, metric)
    log.info("\n".join(table(runs, metric, shutil.get_terminal_size(fallback=(PIPE_COLUMNS, 24)).columns)))
    log.info("\n" + "\n".join(describe_options(runs)))
    log.info("\nCheckpoints:\n" + "\n".join(f"  {run.tag}: {run.where(metric)}" for run in runs))
    if others:
        log.info(f"\nNo records of train.py, so left out: {', '.join(f'{logs / name}/' for name in others)}")
    for run in runs:
        for note in run.notes:
            log.warning(f"{run.tag}: {note}.")
    if warning := validation_warning(runs):
        log.warning(warning)
    write_page(out, runs, metric)
    log.info(f"\nWritten: {out}")


def in_order(runs: Sequence[Run], sort: str, metric: str) -> list[Run]:
    """Return the runs sorted by a name of SORTS, the best or shortest first, and those without a value last."""
    values = {run.tag: SORTS[sort](run, metric) for run in runs}
    known = [run for run in runs if values[run.tag] is not None]
    unknown = [run for run in runs if values[run.tag] is None]
    return sorted(known, key=lambda run: values[run.tag]) + unknown  # type: ignore[arg-type, return-value]


def table(runs: Sequence[Run], metric: str, width: int) -> list[str]:
    """Return the lines of a table for a terminal of `width` columns; long tags are shortened in the middle."""
    titles = ("run", "model", "epochs", f"best {metric}", "epoch", f"last {metric}", "val loss", "time", "images/s")
    rows = [cells(run, metric) for run in runs]
    texts = [[titles[place], *(row[place] for row in rows)] for place in range(1, len(titles))]
    widths = [max(map(columns, column)) for column in texts]
    room = min(MAX_TAG_COLUMNS, max(MIN_TAG_COLUMNS, width - sum(widths) - 2 * len(widths)))
    tags = [titles[0], *shorten_all({place: visible(run.tag) for place, run in enumerate(runs, 1)}, room).values()]
    first = max(map(columns, tags))
    lines = []
    for tag, *others in zip(tags, *texts, strict=True):
        numbers = [
            padded(text, size, left=place == 0) for place, (text, size) in enumerate(zip(others, widths, strict=True))
        ]
        lines.append("  ".join([padded(tag, first), *numbers]).rstrip())
    return lines


def cells(run: Run, metric: str) -> list[str]:
    """Return the texts of a run's row in the table."""
    best = run.best(metric)
    return [
        run.tag,
        visible(run.model) or "–",
        run.epochs_text,
        "–" if best is None else f"{best[0]:.4f}",
        "–" if best is None else str(best[1]),
        _number(run.last(f"val_{metric}"), ".4f"),
        _number(run.last("val_loss"), ".4f"),
        run.time_text,
        _number(run.images_per_second, ".0f"),
    ]


def describe_options(runs: Sequence[Run]) -> list[str]:
    """Return the options that differ between the runs, one line per run."""
    names = differing_options(runs)
    known = [run for run in runs if run.options]
    if len(known) < 2:
        return [f"The options of {len(known)} run(s) are known: there is nothing to compare."]
    if not names:
        return ["The runs have the same options."]
    lines = ["Options that differ:"]
    for run in known:
        shown = ", ".join(f"{name} {option_text(run.compared, name)}" for name in names[:MAX_OPTIONS_SHOWN])
        more = f", and {len(names) - MAX_OPTIONS_SHOWN} more on the page" if len(names) > MAX_OPTIONS_SHOWN else ""
        lines.append(f"  {run.tag}: {shown}{more}")
    return lines


def _number(value: float | None, form: str) -> str:
    return "–" if value is None else format(value, form)


def _rank(score: "float | tuple[float, int] | None", metric: str) -> float | None:
    """Return a score, or the first of a pair, so that the best is the lowest; None stays None."""
    value = score[0] if isinstance(score, tuple) else score
    return None if value is None else -merit({metric: value}, metric)
