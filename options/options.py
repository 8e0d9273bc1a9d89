"""One parser per script, built from groups of flags. Nothing is parsed, read or written on import.

from options import parse_train
opt = parse_train(["--tag", "x", "--model", "ResNet50", "-b", "32"])
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from options import (
    augmentation_flags,
    clear_flags,
    evaluation_flags,
    loss_flags,
    model_flags,
    predict_rules,
    rules,
    shared_flags,
    submission_flags,
    training_flags,
)
from options.parser import Parser
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
    evaluation_flags.evaluation(parser)
    parser.rules += [rules.tag, rules.cache, *predict_rules.OF_BOTH, predict_rules.calibrate]
    parser.rules.append(predict_rules.fit_thresholds)
    return parser


def _submit() -> Parser:
    parser = Parser("submit.py", "Predict the class of each image of the test list and write a submission.")
    shared_flags.run(parser, "result")
    shared_flags.data(parser, lists=("test",))
    shared_flags.inference(parser)
    submission_flags.submission(parser)
    parser.rules += [rules.tag, rules.cache, *predict_rules.OF_BOTH, predict_rules.submission, predict_rules.images]
    return parser


def _clear() -> Parser:
    parser = Parser("clear.py", "Move the checkpoints, logs, results and run_log lines of one experiment to .trash/.")
    clear_flags.clear(parser)
    parser.rules += [rules.tag, rules.clear]
    return parser
