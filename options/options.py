"""One parser per script, built from groups of flags. Nothing is parsed, read or written on import.

from options import parse_train
opt = parse_train(["--tag", "x", "--model", "ResNet50", "-b", "32"])
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from options import augmentation_flags, choices, loss_flags, model_flags, rules, shared_flags, training_flags
from options.parser import Parser, expanded
from options.values import Options


def parse_train(argv: Sequence[str] | None = None) -> Options:
    """Return the options of train.py. Raises SystemExit(2), after one message, if they are wrong."""
    return build_parser("train").parse(argv)


def parse_eval(argv: Sequence[str] | None = None) -> Options:
    """Return the options of eval.py. Raises SystemExit(2), after one message, if they are wrong."""
    return build_parser("eval").parse(argv)


def parse_submit(argv: Sequence[str] | None = None) -> Options:
    """Return the options of submit.py. Raises SystemExit(2), after one message, if they are wrong."""
    return build_parser("submit").parse(argv)


def parse_clear(argv: Sequence[str] | None = None) -> Options:
    """Return the options of clear.py. Raises SystemExit(2), after one message, if they are wrong."""
    return build_parser("clear").parse(argv)


def build_parser(script: str) -> Parser:
    """Return the parser of "train", "eval", "submit" or "clear"; docs/options.md is made from it."""
    return {"train": _train, "eval": _eval, "submit": _submit, "clear": _clear}[script]()


def given_words(values: Mapping[str, Any], *names: str) -> list[str]:
    """Return the `values` that are not None as words for a script's parser: `["--gpu", "1", "--load", "a", "b"]`.

    Unlike options.commands.words, it keeps values that equal a default: a given --data_root overrides the lists that a
    checkpoint remembers.

    Args:
        values: {name of a flag that takes a value or several: the value, or a sequence}.
        names: those to take; by default all.
    """
    words: list[str] = []
    for name in names or values:
        value = values[name]
        if value is not None:
            single = isinstance(value, str) or not isinstance(value, Iterable)
            words += [f"--{name}", *map(str, [value] if single else value)]
    return words


# ------------------------------------------------------------------------------------------------ the four parsers


def _train() -> Parser:
    parser = Parser("train.py", "Train a classifier on the images of a list.")
    shared_flags.run(parser, "checkpoint", "log")
    shared_flags.data(parser, lists=("train", "val"))
    model_flags.model(parser)
    training_flags.training(parser)
    model_flags.finetuning(parser)
    loss_flags.loss(parser)
    augmentation_flags.augmentation(parser)
    training_flags.saving(parser)
    parser.rules += [rules.tag, rules.cache, rules.training]
    parser.fills.append(rules.task_defaults)
    return parser


def _eval() -> Parser:
    parser = Parser("eval.py", "Score one checkpoint, or several together, on the validation list.")
    shared_flags.run(parser, "result")
    shared_flags.data(parser, lists=("val",))
    shared_flags.inference(parser)
    add = parser.group("evaluation")
    add("--report", action=shared_flags.SWITCH, default=True, help="write report.html, a single page to read and share")
    add(
        "--compare",
        type=expanded,
        metavar="CSV",
        help="predictions.csv of another evaluation of this list: show McNemar's test, or the difference in mAP, mae "
        "or qwk with its interval, and the changed images",
    )
    add(
        "--metric",
        choices=choices.METRICS,
        help="what --blend greedy maximises, and what is shown first; default: that of the checkpoint's training",
    )
    add(
        "--calibrate",
        action="store_true",
        help="fit a temperature on this list and write it into the checkpoint of --load: "
        "that file changes, its weights do not",
    )
    add(
        "--fit_thresholds",
        choices=choices.THRESHOLDS,
        help="several labels per image: fit the thresholds with the highest F1 on this list, one for all labels or one "
        "per label, and write them into the checkpoint of --load, as --calibrate does, or for several into an "
        "ensemble.yaml; half: write 0.5",
    )
    add(
        "--resamples",
        type=int,
        default=1000,
        low=0,
        high=100_000,
        metavar="N",
        help="bootstrap resamples for the confidence intervals of the scores; 0: no intervals",
    )
    parser.rules += [rules.tag, rules.load, rules.weights, rules.blend, rules.cache, rules.calibrate]
    parser.rules += [rules.fit_thresholds, rules.rank]
    return parser


def _submit() -> Parser:
    parser = Parser("submit.py", "Predict the class of each image of the test list and write a submission.")
    shared_flags.run(parser, "result")
    shared_flags.data(parser, lists=("test",))
    shared_flags.inference(parser)
    add = parser.group("submission")
    add(
        "--images",
        type=expanded,
        nargs="+",
        metavar="PATH",
        help="predict these instead of a list: files, folders, patterns such as '*.png', or - for names on standard "
        "input; prints a table of the 5 likeliest classes (--top_k), or with --format CSV or JSON",
    )
    add("--out", type=expanded, metavar="FILE", help="output file; default: results/<tag>/submission.csv (or .json)")
    shared_flags.force(add, "--out")
    add(
        "--like",
        type=expanded,
        metavar="CSV",
        help="the competition's sample submission: take header, ids, order, and the form of the predictions from it",
    )
    add("--format", choices=("csv", "json"), default="csv", help="json: a list of objects with id and predicted")
    add("--columns", nargs=2, default=["id", "predicted"], metavar="NAME", help="column names of the CSV")
    add("--header", action=shared_flags.SWITCH, default=True, help="write the column names")
    add("--separator", default=",", metavar="CHAR", help="column separator: one character, or tab")
    add(
        "--id",
        choices=("file", "stem", "path"),
        default="file",
        help="file name, file name without extension (stem), or path as listed",
    )
    add(
        "--labels",
        choices=("number", "name"),
        default="number",
        help="write a class as its number, or as its line of classes.txt (the default if that is another number)",
    )
    add("--top_k", type=int, default=1, low=1, high=5, metavar="K", help="classes per row, the most likely first")
    add("--joiner", default=" ", metavar="TEXT", help="text between the classes of --top_k in a CSV")
    add(
        "--probabilities",
        action="store_true",
        help="several labels per image: write the probability of each label, in a column of its own",
    )
    add(
        "--pseudo_label",
        type=float,
        low=0,
        high=1,
        metavar="P",
        help="also write <out>.pseudo.txt, a training list of the images predicted with at least this probability; "
        "several labels per image: each label present or absent with it",
    )
    parser.rules += [rules.tag, rules.load, rules.weights, rules.blend, rules.submission, rules.images, rules.cache]
    parser.rules.append(rules.rank)
    return parser


def _clear() -> Parser:
    parser = Parser("clear.py", "Move the checkpoints, logs, results and run_log lines of one experiment to .trash/.")
    add = parser.group("clear")
    add("--tag", help="experiment to clear; only this exact name")
    add(
        "--restore",
        nargs="?",
        const=choices.NEWEST,
        metavar="TIME",
        help="restore the tag from the trash: the newest entry, or that of TIME, as the entry's name begins",
    )
    add("--rm", action="store_true", help="delete permanently, including the tag's entries in the trash")
    shared_flags.add_folders(add, "checkpoint", "log", "result")
    parser.rules += [rules.tag, rules.clear]
    return parser
