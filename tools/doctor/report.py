"""Report what tools.doctor found: in the log, in doctor.json, and in doctor.csv."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypedDict

import numpy as np

from dataloader.targets import LabelSets, as_text
from options.wording import count_of
from tools.doctor.classes import Balance
from tools.doctor.findings import ERROR, PROBLEMS, Findings
from tools.doctor.scan import Scan
from utils import tables
from utils.classes import noun
from utils.files import atomic_write, write_json
from utils.logger import format_count, log
from utils.names import padded, shorten

CSV_COLUMNS = ("list", "line", "path", "problem", "detail", "partner_list", "partner_line", "partner_path")
MAX_EXAMPLES = 3  # findings per problem in the log


class Row(TypedDict):
    """A finding as a row of doctor.csv; `image` and `partner`, -1 for none, are left out there.

    The partner's list, line and path are "" without a partner.
    """

    list: str
    line: int | str  # "" if the finding is about no single image
    path: str
    problem: str
    detail: str
    partner_list: str
    partner_line: int | str
    partner_path: str
    image: int
    partner: int


@dataclass(frozen=True)
class Report:
    """All findings.

    Attributes:
        balances: class balance per list, None without labels.
        names: of the classes, or None.
        task: of the lists.
        about: what else is known of the labels or numbers of each list.
    """

    seen: Scan
    found: Findings
    balances: list[Balance | None]
    names: list[str] | None
    seconds: float
    task: str = "single"
    about: list[dict[str, Any]] = field(default_factory=list)

    def row(self, number: int) -> Row:
        """Return finding `number` as a row."""
        code, image, partner, _, listed = (int(column[number]) for column in self.found.columns())
        list_number = listed if listed >= 0 else self.seen.which(image)[0]
        return {
            "list": str(self.seen.lists[list_number].source),
            "line": self.seen.line(image) if image >= 0 else "",
            "path": self.seen.path(image) if image >= 0 else "",
            "problem": list(PROBLEMS)[code],
            "detail": self.detail(number),
            "partner_list": str(self.seen.lists[self.seen.which(partner)[0]].source) if partner >= 0 else "",
            "partner_line": self.seen.line(partner) if partner >= 0 else "",
            "partner_path": self.seen.path(partner) if partner >= 0 else "",
            "image": image,
            "partner": partner,
        }

    def detail(self, number: int) -> str:
        """Return the detail of finding `number`, beyond the name of its problem."""
        code, image, partner, distance, _ = (int(column[number]) for column in self.found.columns())
        if number in self.found.texts:
            return self.found.texts[number]
        if partner < 0:
            return self.seen.details.get(image, "")
        here, there = int(self.seen.label[image]), int(self.seen.label[partner])
        known = here != there and min(here, there) >= 0
        labels = f"; label {self.target(partner)} there, {self.target(image)} here" if known else ""
        bits = f", {distance} of 64 bits apart" if list(PROBLEMS)[code].startswith("near") else ""
        same = ", the same path" if self.seen.path(image) == self.seen.path(partner) else ""
        return f"as {self.where(partner)}: {self.seen.path(partner)}{same}{bits}{labels}"

    def where(self, image: int) -> str:
        """Return list and line of an image, such as "train.txt, line 17"."""
        return f"{self.seen.lists[self.seen.which(image)[0]].source.name}, line {self.seen.line(image)}"

    def target(self, image: int) -> str:
        """Return the label, the labels or the numbers of an image, as its list has them."""
        list_number, index = self.seen.which(image)
        targets = self.seen.lists[list_number].targets
        return str(self.seen.label[image]) if targets is None else as_text(targets, index)

    def class_name(self, image: int) -> str:
        """Return the name of an image's class, or its number if it has no name; "" in a list without labels.

        Of several labels it returns the names of all, of numbers these.
        """
        if self.seen.label[image] < 0 or self.task == "regression":
            return "" if self.seen.label[image] < 0 else self.target(image)
        list_number, index = self.seen.which(image)
        targets = self.seen.lists[list_number].targets
        labels = targets.of(index).tolist() if isinstance(targets, LabelSets) else [int(self.seen.label[image])]
        known = self.names or []
        return ", ".join(known[label] if label < len(known) else str(label) for label in labels) or "none"


def write_csv(path: Path, report: Report) -> None:
    """Write one row per finding, the most severe first, then in the order of the lists."""
    with atomic_write(path, "w") as file:
        writer = tables.dict_writer(file, list(CSV_COLUMNS))
        writer.writeheader()
        writer.writerows(_rows(report))


def write_summary(path: Path, report: Report) -> dict[str, Any]:
    """Write doctor.json; return its content."""
    content = summary(report)
    write_json(path, content)
    return content


def summary(report: Report) -> dict[str, Any]:
    """Return all counts as plain data; values that differ between runs are under "run"."""
    seen = report.seen
    lists = []
    for list_number, (files, balance) in enumerate(zip(seen.lists, report.balances, strict=True)):
        labelled = balance is not None
        lists.append(
            {
                "list": str(files.source),
                "images": len(files),
                "labelled": labelled,
                "classes": balance,
                "problems": _problems_of(report, list_number),
                **(report.about[list_number] if report.about else {}),
            }
        )
    problems = {
        name: {"severity": PROBLEMS[name].severity, "title": PROBLEMS[name].title, "count": len(rows)}
        for name, rows in report.found.by_problem()
    }
    errors = report.found.errors()
    run = {"seconds": round(report.seconds, 2), "files_read": seen.read, "known": seen.known}
    return {"errors": errors, "warnings": report.found.count - errors, "problems": problems, "lists": lists, "run": run}


def show(report: Report, folder: Path) -> None:
    """Log the lists, then each problem with a few examples, leaks first."""
    content = summary(report)
    heads = f"\n{'list':<28} {'images':>11} {'errors':>8} {'warnings':>8} {noun(report.task):>8}"
    if report.task != "regression":
        heads += f" {f'images per {noun(report.task, 1)}':>22} {'Gini':>5}"
    log.info(heads)
    for entry in content["lists"]:
        counts = entry["problems"]
        errors = sum(count for name, count in counts.items() if PROBLEMS[name].severity == ERROR)
        name = shorten(entry["list"], 28)
        warnings = sum(counts.values()) - errors
        line = f"{padded(name, 28)} {format_count(entry['images']):>11} {errors:>8} {warnings:>8}"
        balance = entry["classes"]
        if balance:
            text = f" {balance['classes']:>8} {_per_class(balance):>22} {balance['gini']:>5.2f}"
        else:
            text = f" {len(entry['numbers']):>8}" if entry.get("numbers") else f" {'no labels':>8}"
        log.info(line + text)
    for entry in content["lists"]:
        for text in about_lines(entry):
            log.info(f"{Path(entry['list']).name}: {text}")
    log.info("")
    for name, rows in report.found.by_problem():
        problem = PROBLEMS[name]
        log.info(f"{problem.severity:<8}{problem.title}: {format_count(len(rows))}. {problem.advice}")
        for number in rows[:MAX_EXAMPLES].tolist():
            row = report.row(number)
            where = Path(row["list"]).name + (f", line {row['line']}" if row["line"] else "")
            log.info("        " + ": ".join(str(part) for part in (where, row["path"], row["detail"]) if part))
        if len(rows) > MAX_EXAMPLES:
            log.info(f"        … and {format_count(len(rows) - MAX_EXAMPLES)} more")
    if not report.found.count:
        log.info("No problems were found.")
    run = content["run"]
    rate = f", {run['files_read'] / max(report.seconds, 1e-3):.0f} images/s" if run["files_read"] > 100 else ""
    read = count_of(run["files_read"], "file")
    log.info(f"\n{read} read, {run['known']} known already: {report.seconds:.1f} s{rate}.")
    log.info(
        f"{content['errors']} error(s), {content['warnings']} warning(s): {folder}/doctor.html, doctor.csv, doctor.json"
    )


def about_lines(entry: dict[str, Any]) -> list[str]:
    """Return what is known of the labels or numbers of a list of `summary`, in words."""
    if "per_image" in entry:
        low, mean, high = entry["per_image"]
        lines = [f"{low} to {high} labels per image, {mean:.2f} on average; {entry['without_label']} images without"]
        pairs = [f"{one} + {other} ({images})" for one, other, images in entry["pairs"][:MAX_EXAMPLES]]
        return lines + ([f"most often together: {', '.join(pairs)}"] if pairs else [])
    return [
        f"{one['name']} from {one['min']:g} to {one['max']:g}, median {one['median']:g}, mean {one['mean']:g}, "
        f"standard deviation {one['std']:g}"
        for one in entry.get("numbers", ())
    ]


def _rows(report: Report) -> Iterator[Row]:
    for _, rows in report.found.by_problem():
        for number in rows.tolist():
            yield report.row(number)


def _problems_of(report: Report, list_number: int) -> dict[str, int]:
    """Return how often each problem was found in a list."""
    _, image, _, _, listed = report.found.columns()
    home = np.where(listed >= 0, listed, report.seen.list_of(image)) == list_number
    counts = {name: int(home[rows].sum()) for name, rows in report.found.by_problem()}
    return {name: count for name, count in counts.items() if count}


def _per_class(balance: Balance) -> str:
    return f"{balance['min']} / {balance['median']:g} / {balance['max']}"
