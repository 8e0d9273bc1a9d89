"""What the probe found: a table, a verdict with its certainty, probe.json, probe.csv and probe.png."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from evaluation.bootstrap import paired_difference
from utils import tables
from utils.errors import UserError
from utils.files import atomic_write, write_json
from utils.logger import log
from utils.names import columns, padded, shorten_all

FORMAT = 1
MAX_TITLE_COLUMNS = 40  # of the terminal
SCORES = ("top1", "top5", "mean_class_accuracy", "loss")


@dataclass(frozen=True)
class Row:
    """One backbone.

    Attributes:
        scores, intervals: of the linear probe, by name.
        knn_top1, knn_interval: of the nearest neighbours.
        kind: of the linear head, with its `strength` (a weight decay, or a shrinkage) and the top-1 of all that were
            tried.
        hit: bool (N,), which images the linear probe classifies correctly.
        places: where they are in the list.
        seen: how many of the list's images a checkpoint's network was trained on: it knows them, so it is no candidate.
        file: the checkpoint with the fitted head.
        network: options of train.py that the network was built with.
    """

    title: str
    model: str
    parameters: int
    dim: int
    images_per_second: float
    peak_bytes: int
    kind: str
    strength: float
    tried: dict[float, float]
    scores: dict[str, float]
    intervals: dict[str, list[float]]
    knn_top1: float
    knn_interval: list[float] | None
    file: str
    network: dict[str, Any]
    hit: NDArray[np.bool_]
    places: NDArray[np.int64]
    seen: int = 0

    def as_dict(self) -> dict[str, Any]:
        """Return plain data for probe.json."""
        return {
            "backbone": self.title,
            "model": self.model,
            "parameters": self.parameters,
            "features": self.dim,
            "images_per_second": self.images_per_second,
            "peak_bytes": self.peak_bytes,
            "linear": {
                "method": self.kind,
                "strength": self.strength,
                "top1_by_strength": {f"{strength:g}": top1 for strength, top1 in self.tried.items()},
                **{name: self.scores[name] for name in SCORES},
                "intervals": {name: self.intervals[name] for name in SCORES if name in self.intervals},
            },
            "knn": {"top1": self.knn_top1, "interval": self.knn_interval},
            "file": self.file,
            "seen_images": self.seen,
        }


class Verdict(NamedTuple):
    """Which backbone is first: `best`, and by how much it leads each other one, (title, difference, low, high)."""

    best: Row
    leads: list[tuple[str, float, float, float]]

    @property
    def tied(self) -> list[tuple[str, float, float, float]]:
        """Return those that `best` does not lead for certain: the interval of the difference reaches 0."""
        return [lead for lead in self.leads if lead[2] <= 0]


def ranked(rows: Sequence[Row]) -> list[Row]:
    """Return the rows, the highest top-1 of the linear probe first; of equal ones, the lowest loss.

    Networks that have seen the images come last.
    """
    return sorted(rows, key=lambda row: (row.seen > 0, -row.scores["top1"], row.scores["loss"]))


def verdict(rows: Sequence[Row], seed: int, resamples: int, image: NDArray[np.integer] | None = None) -> Verdict:
    """Compare the first row with each other one, by a paired bootstrap over the images.

    Networks that have seen the images are compared only if there are no others.

    Args:
        image: (N,), of each line of the list, equal where lines are of one image; None: all are different.

    Raises:
        UserError: they were scored on different images.
    """
    best, *others = ranked([row for row in rows if not row.seen] or rows)
    if any(not np.array_equal(row.places, best.places) for row in others):
        raise UserError("Some images were readable for one backbone and not for another. Try: the same command again")
    image = None if image is None else image[best.places]
    leads = [(row.title, *paired_difference(best.hit, row.hit, seed, resamples, image)) for row in others]
    return Verdict(best, leads)


def verdict_text(found: Verdict, images: int) -> str:
    """Return in words which backbone is first, or that the probe cannot tell."""
    top1 = f"{found.best.title}, top1 {found.best.scores['top1']:.4f} of {images} images"
    if not found.leads:
        return f"Only one backbone can be judged: {top1}."
    if not found.tied:
        title, difference, low, high = min(found.leads, key=lambda lead: lead[2])
        more = f"; it leads all {len(found.leads)} others" if len(found.leads) > 1 else ""
        return (
            f"First by the linear probe: {top1}. It leads {title} by {difference:.4f} "
            f"(95 % interval {low:.4f} to {high:.4f}, paired bootstrap){more}."
        )
    close = "; ".join(
        f"{title} by {difference:.4f} ({low:.4f} to {high:.4f})" for title, difference, low, high in found.tied
    )
    return (
        f"The linear probe cannot tell which backbone is first. The highest score is that of {top1}, "
        f"but the 95 % interval of its lead reaches 0 (paired bootstrap) over: {close}."
    )


def print_table(rows: Sequence[Row]) -> None:
    """Log a row per backbone, the best first."""
    names = shorten_all(dict(enumerate(row.title + " *" * (row.seen > 0) for row in rows)), MAX_TITLE_COLUMNS)
    width = max(len("backbone"), *(columns(name) for name in names.values()))
    log.info(
        f"\n{'backbone':{width}s}  {'linear top1':>11s}  {'95 % interval':>17s}  {'kNN top1':>8s}"
        f"  {'95 % interval':>17s}  {'images/s':>8s}  {'parameters':>11s}  {'peak MB':>8s}"
    )
    for row, name in zip(rows, names.values(), strict=True):
        log.info(
            f"{padded(name, width)}  {row.scores['top1']:11.4f}  {_interval(row.intervals.get('top1')):>17s}"
            f"  {row.knn_top1:8.4f}  {_interval(row.knn_interval):>17s}  {row.images_per_second:8.1f}"
            f"  {row.parameters:11,d}  {row.peak_bytes / 1e6:8.0f}"
        )

    if any(row.seen for row in rows):
        log.warning("* was trained on images that are probed here. Its scores are of images that it knows.")


def _interval(bounds: list[float] | None) -> str:
    return "–" if bounds is None else f"{bounds[0]:.4f} to {bounds[1]:.4f}"


def write(folder: Path, rows: Sequence[Row], found: Verdict, about: dict[str, Any]) -> None:
    """Write probe.json, probe.csv and probe.png.

    Args:
        rows: the best first. about: what was probed, and how.
    """
    leads = [dict(zip(("over", "difference", "low", "high"), lead, strict=True)) for lead in found.leads]
    first = {"backbone": found.best.title, "certain": not found.tied, "leads": leads}
    write_json(
        folder / "probe.json", {"format": FORMAT, **about, "first": first, "backbones": [row.as_dict() for row in rows]}
    )
    with atomic_write(folder / "probe.csv", "w") as file:
        writer = tables.writer(file)
        names = ("top1", "top1_low", "top1_high", *SCORES[1:], "knn_top1", "knn_low", "knn_high")
        cost_names = ("images_per_second", "parameters", "features", "peak_bytes", "strength", "seen_images")
        writer.writerow(["backbone", "model", *names, *cost_names])
        for row in rows:
            missing: list[Any] = ["", ""]
            linear, near = row.intervals.get("top1", missing), row.knn_interval or missing
            scores = [row.scores["top1"], *linear, *(row.scores[name] for name in SCORES[1:]), row.knn_top1, *near]
            cost = [row.images_per_second, row.parameters, row.dim, row.peak_bytes, row.strength, row.seen]
            writer.writerow([row.title, row.model, *scores, *cost])
    _draw(folder / "probe.png", rows, about)


def _draw(path: Path, rows: Sequence[Row], about: dict[str, Any]) -> None:
    from evaluation.report.tool_plots import scatter

    points = [
        (row.title, row.images_per_second, row.scores["top1"], row.intervals.get("top1"), row.knn_top1) for row in rows
    ]
    title = f"Frozen backbones, {about['images']} images, {about['classes']} classes, {about['scale']} px"
    scatter(path, points, title)
