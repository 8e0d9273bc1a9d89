"""The command line: every flag of every script, declared once. Standard library only, so `--help` is instant."""

from options.options import build_parser, given_words, parse_clear, parse_eval, parse_submit, parse_train

__all__ = ["build_parser", "given_words", "parse_clear", "parse_eval", "parse_submit", "parse_train"]
