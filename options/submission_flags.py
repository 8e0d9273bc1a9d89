"""Flags of submit.py alone."""

from options.parser import Parser, expanded
from options.shared_flags import SWITCH, force


def submission(parser: Parser) -> None:
    """Add the images, and the form of the submission."""
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
    force(add, "--out")
    add(
        "--like",
        type=expanded,
        metavar="CSV",
        help="the competition's sample submission: take header, ids, order, and the form of the predictions from it",
    )
    add("--format", choices=("csv", "json"), default="csv", help="json: a list of objects with id and predicted")
    add("--columns", nargs=2, default=["id", "predicted"], metavar="NAME", help="column names of the CSV")
    add("--header", action=SWITCH, default=True, help="write the column names")
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
