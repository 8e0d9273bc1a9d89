"""Check what the lists say of their images, by task: classes, sets of labels, or numbers."""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dataloader.file_list import FileList
from dataloader.targets import LabelSets
from evaluation.thresholds import MIN_POSITIVES
from tools.doctor.classes import Balance, Names, check_classes, shown
from tools.doctor.findings import Findings
from tools.doctor.scan import Scan

MAX_PAIRS = 20  # of labels, in doctor.json
FAR = 3.0  # interquartile ranges beyond the quartiles: Tukey's "far out"
MAX_OUTLIERS = 0.01  # share of the images; more of them are a long tail, no slips
MAX_SHOWN = 50  # outliers of a number that are findings
About = list[dict[str, Any]]  # of each list, for doctor.json


def check_targets(
    found: Findings, seen: Scan, task: str, names_file: Path, names: Names
) -> tuple[list[Balance | None], About]:
    """Add the problems of the labels or numbers to `found`.

    Returns:
        The balance of the classes or labels of each list, None without; and what else is known of each list.
    """
    if task == "regression":
        return [None] * len(seen.lists), check_numbers(found, seen, names_file, names)
    balances = check_classes(found, seen, names_file, names)
    return balances, check_labels(found, seen, names) if task == "multilabel" else [{} for _ in seen.lists]


# ------------------------------------------------------------------------------------------------ labels


def check_labels(found: Findings, seen: Scan, names: Names) -> About:
    """Add the problems of sets of labels; return labels per image, images without, and the commonest pairs."""
    about: About = []
    trained = False
    for list_number, files in enumerate(seen.lists):
        sets = files.targets
        if not isinstance(sets, LabelSets):
            about.append({})
            continue
        sizes = np.diff(sets.start)
        pairs, images = label_pairs(sets)
        empty = np.flatnonzero(sizes == 0)
        if len(empty):
            text = f"{len(empty)} of {len(files)} images have no label (-)"
            found.add_text("no_label", list_number, int(seen.first[list_number] + empty[0]), text)
        if not trained:
            _check_training_labels(found, list_number, sets, pairs, images, names)
            trained = True
        order = np.argsort(-images, kind="stable")[:MAX_PAIRS].tolist()
        about.append(
            {
                "per_image": [int(sizes.min()), round(float(sizes.mean()), 4), int(sizes.max())],
                "without_label": len(empty),
                "pairs": [[*(shown(int(label), names) for label in pairs[k]), int(images[k])] for k in order],
            }
        )
    return about


def label_pairs(sets: LabelSets) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the pairs of labels that some image has, int64 (P, 2), and on how many images, int64 (P,).

    The memory is that of the pairs which occur, not of all labels squared.
    """
    from scipy.sparse import csr_array, triu

    shape = len(sets), max(sets.count, 1)
    held = csr_array((np.ones(len(sets.label), np.int64), sets.label, sets.start), shape)
    both = triu(held.T @ held, k=1).tocoo()
    order = np.lexsort((both.col, both.row))
    return np.stack([both.row, both.col], axis=1)[order].astype(np.int64), both.data[order]


def _check_training_labels(
    found: Findings,
    list_number: int,
    sets: LabelSets,
    pairs: NDArray[np.int64],
    images: NDArray[np.int64],
    names: Names,
) -> None:
    """Add the labels of the training list that are rare, on every image, or on the same images as another."""
    count = sets.images_per_label()
    for label in np.flatnonzero((count > 1) & (count < MIN_POSITIVES)).tolist():
        found.add_text("rare_label", list_number, -1, f"label {shown(label, names)} has {count[label]} images")
    for label in np.flatnonzero(count == len(sets)).tolist():
        found.add_text("always_present", list_number, -1, f"label {shown(label, names)} is on all {len(sets)} images")
    same = (images == count[pairs[:, 0]]) & (images == count[pairs[:, 1]]) & (images > 1)
    for (one, other), many in zip(pairs[same].tolist(), images[same].tolist(), strict=True):
        text = f"labels {shown(one, names)} and {shown(other, names)} are on the same {many} images"
        found.add_text("always_together", list_number, -1, text)


# ------------------------------------------------------------------------------------------------ numbers


def check_numbers(found: Findings, seen: Scan, names_file: Path, names: Names) -> About:
    """Add the problems of the numbers of a regression; return the range, mean and deviation of each number."""
    labelled = [
        (list_number, values) for list_number, files in enumerate(seen.lists) if (values := _numbers(files)) is not None
    ]
    about: About = [{} for _ in seen.lists]
    if not labelled:
        return about
    train, first = labelled[0]
    count = first.shape[1]
    if names is not None and len(names) != count:
        much = "few" if len(names) < count else "many"
        text = f"too {much} names: {names_file} has {len(names)}; a line of {seen.lists[train].source.name} has {count}"
        found.add_text("class_names", train, -1, f"{text} number(s)")
    for list_number, values in labelled:
        if values.shape[1] != count:
            text = f"{values.shape[1]} number(s) per image; {seen.lists[train].source.name} has {count}"
            found.add_text("target_count", list_number, -1, text)
            continue
        about[list_number] = {"numbers": [_described(values[:, k], _name(k, names)) for k in range(count)]}
        for k in range(count):
            if list_number == train:
                _check_column(found, seen, list_number, values[:, k], _name(k, names))
            else:
                _check_range(found, seen, list_number, values[:, k], first[:, k], _name(k, names))
    return about


def _numbers(files: FileList) -> NDArray[np.float64] | None:
    """Return the numbers of a list, (N, T); None without."""
    return files.targets if isinstance(files.targets, np.ndarray) else None


def _name(k: int, names: Names) -> str:
    return names[k] if names and k < len(names) else f"number {k}"


def _described(values: NDArray[np.float64], name: str) -> dict[str, Any]:
    """Return the range and the moments of a number as plain data."""
    found = {"min": values.min(), "median": np.median(values), "mean": values.mean(), "max": values.max()}
    return {"name": name, **{key: float(value) for key, value in found.items()}, "std": float(values.std())}


def _check_column(found: Findings, seen: Scan, list_number: int, values: NDArray[np.float64], name: str) -> None:
    """Add what is wrong with one number of the training list."""
    if np.ptp(values) == 0:
        found.add_text("constant_number", list_number, -1, f"{name} is {values[0]:g} for all {len(values)} images")
        return
    low, high = np.percentile(values, [25, 75])
    below, above = low - FAR * (high - low), high + FAR * (high - low)
    far = np.flatnonzero((values < below) | (values > above)) if high > low else np.zeros(0, np.int64)
    if not len(far):
        return
    half = f"half of the images are from {low:g} to {high:g}"
    if len(far) > MAX_OUTLIERS * len(values) and len(far) > 1:
        text = f"{name}: {len(far)} of {len(values)} images are below {below:g} or above {above:g}; {half}"
        found.add_text("long_tail", list_number, int(seen.first[list_number] + far[np.abs(values[far]).argmax()]), text)
        return
    distance = np.maximum(below - values[far], values[far] - above)
    for index in far[np.argsort(-distance, kind="stable")][:MAX_SHOWN].tolist():
        image = int(seen.first[list_number]) + index
        found.add_text("outlying_number", list_number, image, f"{name} is {values[index]:g}; {half}")


def _check_range(
    found: Findings, seen: Scan, list_number: int, values: NDArray[np.float64], trained: NDArray[np.float64], name: str
) -> None:
    """Add a finding where a number of a list leaves the range of the training list more often than by chance."""
    low, high = trained.min(), trained.max()
    beyond = np.flatnonzero((values < low) | (values > high))
    if len(beyond) > max(1, MAX_OUTLIERS * len(values)):
        farthest = beyond[np.maximum(low - values[beyond], values[beyond] - high).argmax()]
        text = f"{name}: {len(beyond)} image(s) are outside {low:g} to {high:g}, up to {values[farthest]:g}"
        found.add_text("beyond_train", list_number, int(seen.first[list_number] + farthest), text)
