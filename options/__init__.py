"""The command line: every flag of every script, declared once. Standard library only, so `--help` is instant."""

from options.commands import NO_TEST_LIST, after_evaluation, after_training, command, resume_command
from options.options import build_parser, given_words, parse_clear, parse_eval, parse_submit, parse_train
from options.saved import problems_of_saved
from options.values import Options, changed

__all__ = [
    "NO_TEST_LIST",
    "Options",
    "after_evaluation",
    "after_training",
    "build_parser",
    "changed",
    "command",
    "given_words",
    "parse_clear",
    "parse_eval",
    "parse_submit",
    "parse_train",
    "problems_of_saved",
    "resume_command",
]
