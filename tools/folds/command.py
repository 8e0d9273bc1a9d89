"""Train one network per fold of the training list, predict each image out of fold, and write the ensemble.

    python -m tools.folds --folds 5 -- --tag lite0 --model EfficientNet-Lite0 --data_root datasets --epochs 10
    python -m tools.folds --folds 5 --group_table products.csv --group_column product --path_column image -- --tag lite0
    python -m tools.folds --folds 5 --group_by "([^/]+)_view" --processes 2 -- --tag lite0 --data_root datasets

The flags after -- are train.py's. Its training list is divided by class, label or number; groups are kept whole. The
run of fold k has the tag <tag>_fold<k>. If the command is killed, run it again: finished folds are skipped, the
interrupted one resumes. Writes results/<tag>/: oof.npz (predictions of the whole training list, each image by the one
network that has not seen it), folds.json (scores of each fold and of all, with intervals), oof/report.html,
ensemble.yaml for submit.py --ensemble, and folds/ with the lists.
"""

import argparse
from collections.abc import Sequence

from options.parser import split_at_dashes
from tools.folds import flags
from utils.run import run_tool


def main(argv: Sequence[str] | None = None) -> int:
    """Parse, train, predict, report; return the exit code."""
    ours, rest = split_at_dashes(argv)
    return run_tool(
        lambda: option_parser().parse_args(ours),
        lambda opt: run_folds(opt, rest),
        again="run the same command again to continue",
        write_flags="--result_dir DIR, or after --: --checkpoint_dir, --log_dir",
    )


def option_parser() -> argparse.ArgumentParser:
    """Return the parser of this tool; the words after -- are train.py's."""
    return flags.option_parser(__doc__)


def run_folds(opt: argparse.Namespace, words: list[str]) -> int:
    """Do the work, from the flags of this tool and the words for train.py; return 0.

    Raises:
        UserError: the flags, the list or the groups are wrong, before anything is trained; or a training failed.
    """
    train = flags.parse_train_flags(opt, words)
    # Heavy imports are here, so that --help and a mistyped flag answer at once.
    from tools.folds import ensemble, oof, plan, scores, seen, training
    from tools.folds.draw import draw
    from tools.folds.listed import open_training_list
    from utils import run_lock
    from utils.outputs import INPUT_FLAGS, check, inputs

    files, classes = open_training_list(train, flags.folder_of(opt, train) / "folds" / "all")
    seen.check_start(train, files)
    files, fold_of = draw(opt, files, classes)
    run = plan.make_run(opt, train, words, (files, classes), fold_of)
    read = {name: vars(train).get(name) for name in INPUT_FLAGS} | {"file": opt.group_table}
    check(plan.outputs(run), inputs(argparse.Namespace(**read), files))
    run_lock.acquire(run.folder)
    plan.begin(run)
    seen.check_runs(run)
    training.train_folds(run)
    identities = oof.predict_folds(run)
    path, thresholds = oof.write_oof(run)
    scores.write_report(run, path, thresholds)
    ensemble.write(run, identities, path, thresholds)
    return 0
