"""Write doctor.html: one file with small pictures, for desktop and phone, light and dark."""

import base64
from pathlib import Path
from typing import Any

import simplejpeg

from dataloader import decode
from dataloader.decode import MAX_PIXELS
from tools.doctor.findings import PROBLEMS
from tools.doctor.report import Report, about_lines, summary
from tools.doctor.scan import Store
from utils.classes import noun
from utils.names import shorten
from utils.page import write_filled

SIDE = 160  # of a thumbnail, in pixels
MAX_THUMBNAILS = 200
MAX_THUMBNAIL_BYTES = 3_500_000  # as base64; text adds up to a megabyte
MAX_ROWS = 60  # per problem; doctor.csv has all
MAX_CHARACTERS = 600  # of a path or a detail
NO_PICTURE = {
    "missing",
    "dangling_link",
    "not_a_file",
    "empty",
    "truncated",
    "unreadable",
    "too_large",
    "wrong_extension",
}
NO_PICTURE |= {
    "class_not_in_train",
    "class_not_scored",
    "single_image",
    "label_gap",
    "class_names",
    "class_name_unusable",
    "label_out_of_range",
    "rare_label",
    "always_present",
    "always_together",
    "target_count",
    "constant_number",
    "long_tail",
    "beyond_train",
}


def write_page(path: Path, report: Report, store: Store) -> None:
    """Write the page; thumbnails come from the store if it has them."""
    album = Album(report, store)
    content = summary(report)
    sections = []
    for name, rows in report.found.by_problem():
        shown = [_row(report, album, name, number) for number in rows[:MAX_ROWS].tolist()]
        sections.append(
            {
                "name": name,
                **PROBLEMS[name]._asdict(),
                "count": len(rows),
                "rows": shown,
                "rest": len(rows) - len(shown),
            }
        )
    template = Path(__file__).parent / "doctor.html.j2"
    write_filled(
        path,
        template,
        sections=sections,
        thumbnails=album.count,
        task=report.task,
        one=noun(report.task, 1),
        several=noun(report.task),
        word={"multilabel": "labels", "regression": "numbers"}.get(report.task, "class"),
        about=[line for entry in content["lists"] for line in page_lines(entry)],
        **content,
    )


def page_lines(entry: dict[str, Any]) -> list[str]:
    """Return what is known of the labels or numbers of a list, each with the list's name."""
    return [shorten(f"{Path(entry['list']).name}: {line}", MAX_CHARACTERS) for line in about_lines(entry)]


class Album:
    """Make thumbnails, up to MAX_THUMBNAILS and MAX_THUMBNAIL_BYTES."""

    def __init__(self, report: Report, store: Store) -> None:
        self.report, self.store = report, store
        self.count = self.bytes = 0
        self.made: dict[bytes, str] = {}

    def picture(self, image: int) -> str:
        """Return a data URL of image `image`; "" if it cannot be read, or beyond the limits."""
        key = self.report.seen.key[image].tobytes()
        if not any(key) or self.count >= MAX_THUMBNAILS:
            return ""
        jpeg = self.store.thumbnail(
            key, lambda: thumbnail(self.report.seen.path(image), max_pixels=self.report.seen.max_pixels)
        )
        text = base64.b64encode(jpeg).decode()
        if not text or self.bytes + len(text) > MAX_THUMBNAIL_BYTES:
            return ""
        self.count, self.bytes = self.count + 1, self.bytes + len(text)
        return f"data:image/jpeg;base64,{text}"


def thumbnail(path: str, max_pixels: int = MAX_PIXELS) -> bytes:
    """Return a small JPEG of the image at `path`; b"" if it cannot be read."""
    small = decode.thumbnail(path, SIDE, max_pixels)
    return b"" if small is None else simplejpeg.encode_jpeg(small, quality=75, colorspace="RGB", colorsubsampling="420")


def _row(report: Report, album: Album, name: str, number: int) -> dict[str, object]:
    row = report.row(number)
    image, partner = row["image"], row["partner"]
    sides = []
    for side in (partner, image) if partner >= 0 else (image,):
        if side >= 0:
            picture = "" if name in NO_PICTURE else album.picture(side)
            path = shorten(report.seen.path(side), MAX_CHARACTERS)
            sides.append(
                {
                    "where": report.where(side),
                    "path": path,
                    "label": shorten(report.class_name(side), MAX_CHARACTERS),
                    "picture": picture,
                }
            )
    conflict = partner >= 0 and -1 < report.seen.label[image] != report.seen.label[partner] > -1
    apart = int(report.found.columns()[3][number])
    bits = f"{apart} of 64 bits apart" if name.startswith("near") else ""
    detail = bits if partner >= 0 else shorten(row["detail"], MAX_CHARACTERS)
    return {
        "sides": sides,
        "pair": partner >= 0,
        "detail": detail,
        "list": Path(row["list"]).name,
        "conflict": bool(conflict),
    }
