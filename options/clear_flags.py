"""Flags of clear.py alone."""

from options import choices
from options.parser import Parser
from options.shared_flags import add_folders


def clear(parser: Parser) -> None:
    """Add the experiment to clear or to restore, and where its folders are."""
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
    add_folders(add, "checkpoint", "log", "result")
