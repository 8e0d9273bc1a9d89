"""The problems that tools.doctor can find, the most severe first, and the rows that were found."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

ERROR, WARNING = "error", "warning"


class Problem(NamedTuple):
    """A kind of finding: "error" (the command ends with 1) or "warning", its heading, and what to do about it."""

    severity: str
    title: str
    advice: str


PROBLEMS: dict[str, Problem] = {
    "leak": Problem(
        ERROR,
        "Leaks: the same bytes in two lists",
        "Remove the image from one of the lists: scores on it mean nothing.",
    ),
    "near_leak": Problem(
        ERROR,
        "Near leaks: a copy in two lists",
        "Look at the pair. Re-encoded or resized copies leak as exact ones do.",
    ),
    "missing": Problem(ERROR, "Missing files", "Correct the path, or remove the line."),
    "dangling_link": Problem(ERROR, "Links to nothing", "Correct the link, or remove the line."),
    "not_a_file": Problem(ERROR, "Folders, pipes, devices", "A line must name an image file."),
    "empty": Problem(ERROR, "Empty files (0 bytes)", "Download the file again, or remove the line."),
    "truncated": Problem(ERROR, "Truncated images", "The file is incomplete: download it again, or remove the line."),
    "unreadable": Problem(
        ERROR, "Unreadable images", "Training cannot decode it: download it again, or remove the line."
    ),
    "too_large": Problem(
        ERROR, "Images over the limit of pixels", "Training refuses it: resize it, or raise --max_pixels."
    ),
    "label_out_of_range": Problem(
        ERROR, "Labels without a name", "Add the names to classes.txt, or correct the labels."
    ),
    "class_name_unusable": Problem(
        ERROR, "Blank or repeated names", "Give one name per line of classes.txt, each once."
    ),
    "conflicting_labels": Problem(WARNING, "Same bytes, different labels", "One of the two labels is wrong."),
    "near_conflict": Problem(
        WARNING, "Near-duplicates with different labels", "Look at the pair: one of the two labels may be wrong."
    ),
    "duplicate": Problem(WARNING, "Duplicates inside a list", "They count twice in training and in scores."),
    "near_duplicate": Problem(
        WARNING, "Near-duplicates inside a list", "They weigh as much as two images and show little more than one."
    ),
    "one_colour": Problem(WARNING, "Images of one colour", "Often a placeholder: look at it."),
    "tiny": Problem(WARNING, "Images with a side of one pixel", "Often a tracking pixel or a spacer: look at it."),
    "extreme_aspect": Problem(
        WARNING, "Very long images", "A side over 20 times the other: a crop shows little of it."
    ),
    "wrong_extension": Problem(
        WARNING, "Extensions that do not match", "Training looks at the content; other programs may not."
    ),
    "class_not_in_train": Problem(
        WARNING, "Classes without training images", "Add training images, or remove the class from the other lists."
    ),
    "class_not_scored": Problem(
        WARNING, "Classes that a labelled list lacks", "Their accuracy cannot be measured on that list."
    ),
    "single_image": Problem(
        WARNING, "Classes with a single training image", "Add images, or merge the class with another."
    ),
    "label_gap": Problem(
        WARNING, "Labels that no list uses", "Number the labels from 0 without gaps, or expect idle outputs."
    ),
    "class_names": Problem(
        WARNING,
        "classes.txt does not fit",
        "Write one name per line; line k, counted from 0, names class, label or number k.",
    ),
    "rare_label": Problem(
        WARNING,
        "Labels with few training images",
        "Add images; with few in its list, eval.py --fit_thresholds per_label gives them one threshold.",
    ),
    "always_present": Problem(
        WARNING, "Labels that every training image has", "There is nothing to learn: remove the label."
    ),
    "always_together": Problem(
        WARNING, "Labels of the same training images", "No network can tell them apart: merge them, or add images."
    ),
    "no_label": Problem(
        WARNING, "Images without a label", "Right if none of the labels fits them; else annotate them."
    ),
    "target_count": Problem(
        ERROR, "Other numbers per image than in training", "Each line of every list needs the same numbers."
    ),
    "constant_number": Problem(
        WARNING, "Numbers that are equal for all training images", "There is nothing to learn: remove the number."
    ),
    "outlying_number": Problem(
        WARNING, "Numbers far from all others", "Often a wrong unit or a slipped digit: look at it."
    ),
    "long_tail": Problem(
        WARNING, "Numbers with a long tail", "A few images decide the loss: predict the logarithm, or use --loss l1."
    ),
    "beyond_train": Problem(
        WARNING, "Numbers beyond those of training", "A network extrapolates badly: divide the lists at random."
    ),
}
NAMES = list(PROBLEMS)
CODE = {name: code for code, name in enumerate(NAMES)}
# The problems of a file are bits of a uint32 in doctor.sqlite: a new problem comes last, so that they stay the same.
MASKS = {name: 1 << code for name, code in CODE.items() if code < 32}


@dataclass
class Findings:
    """M rows as flat arrays, in blocks: problem code, image, and partner (numbered over all lists, or -1).

    `distance` is the Hamming distance of a near pair. A row about a class has its detail in `texts`, `listed` is its
    list, and its image, if any, is the first of that class.
    """

    blocks: list[tuple[NDArray, ...]] = field(default_factory=list)
    texts: dict[int, str] = field(default_factory=dict)  # row -> detail, for rows about classes
    count: int = 0

    def add(self, name: str, image: NDArray, partner: NDArray | None = None, distance: NDArray | None = None) -> None:
        """Add a row for each of `image` (int64, (M,)), all with one problem."""
        if len(image):
            other = np.full(len(image), -1, np.int64) if partner is None else partner
            bits = np.zeros(len(image), np.uint8) if distance is None else distance.astype(np.uint8)
            self.blocks.append(
                (
                    np.full(len(image), CODE[name], np.uint8),
                    image.astype(np.int64),
                    other,
                    bits,
                    np.full(len(image), -1, np.int16),
                )
            )
            self.count += len(image)

    def add_text(self, name: str, listed: int, image: int, text: str) -> None:
        """Add a row about a class or a list; `image` is an example, or -1."""
        self.texts[self.count] = text
        columns = ((CODE[name], np.uint8), (image, np.int64), (-1, np.int64), (0, np.uint8), (listed, np.int16))
        self.blocks.append(tuple(np.array([value], kind) for value, kind in columns))
        self.count += 1

    def columns(self) -> tuple[NDArray, ...]:
        """Return code (uint8), image, partner (int64), distance (uint8), listed (int16), (M,) each.

        `listed` is -1 except in rows of `add_text`.
        """
        kinds: tuple[type[np.generic], ...] = (np.uint8, np.int64, np.int64, np.uint8, np.int16)
        if not self.blocks:
            return tuple(np.zeros(0, kind) for kind in kinds)
        self.blocks = [tuple(np.concatenate(parts) for parts in zip(*self.blocks, strict=True))]
        return self.blocks[0]

    def by_problem(self) -> Iterator[tuple[str, NDArray[np.int64]]]:
        """Yield each problem that was found, the most severe first, with its rows of `columns`, int64 (n,)."""
        code = self.columns()[0]
        for name in sorted(NAMES, key=lambda name: PROBLEMS[name].severity != ERROR):
            rows = np.flatnonzero(code == CODE[name])
            if len(rows):
                yield name, rows

    def errors(self) -> int:
        """Return how many rows are errors."""
        return sum(len(rows) for name, rows in self.by_problem() if PROBLEMS[name].severity == ERROR)
