"""Make the pictures of report.html: errors with Grad-CAM maps and similar images, and likely label errors."""

import base64
import os
from dataclasses import dataclass, field

import cv2
import numpy as np
from numpy.typing import NDArray

from dataloader.decode import Image
from dataloader.file_list import FileList
from evaluation.label_issues import Issues
from evaluation.metrics import Predictions
from evaluation.scored import Scored
from utils.logger import progress
from utils.text import visible

SIDE, NEIGHBOUR_SIDE = 160, 72  # pixels
MAX_ERRORS, MAX_ISSUES, NEIGHBOURS = 48, 60, 4
MAX_PICTURE_BYTES = 12_000_000  # of all pictures as base64; the page stays below 20 MB
NAMED_CLASSES = 5  # per error

# The result of inference.gradcam_maps, {image: (network input, map)}: uint8 RGB (S, S, 3), float32 (h, w) from 0 to 1.
Maps = dict[int, tuple[NDArray[np.uint8], NDArray[np.float32]]]
Neighbours = dict[int, list[tuple[int, float]]]  # {image: its nearest images with their cosines}


@dataclass
class Pictures:
    """Make data URLs of small JPEGs, up to MAX_PICTURE_BYTES; beyond these, or for an unreadable image, ""."""

    files: FileList
    spent: int = 0
    made: dict[tuple[int, int], str] = field(default_factory=dict)

    def picture(self, index: int, side: int = SIDE) -> str:
        """Return the data URL of image `index` of the list, at most `side` pixels."""
        if (index, side) not in self.made:
            image = self.files.thumbnail(index, side)
            self.made[index, side] = "" if image is None else self._url(image)
        return self.made[index, side]

    def overlay(self, shown: tuple[NDArray[np.uint8], NDArray[np.float32]] | None) -> str:
        """Return the data URL of a network input under its Grad-CAM map.

        `shown` holds both: uint8 RGB (S, S, 3), and float32 (h, w) from 0 to 1.
        """
        if shown is None:
            return ""
        return self._url(blend_heat(*shown, SIDE))

    def _url(self, image: Image) -> str:
        _, jpeg = cv2.imencode(".jpg", cv2.cvtColor(image, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, 78])
        text = base64.b64encode(jpeg.tobytes()).decode()
        if self.spent + len(text) > MAX_PICTURE_BYTES:
            return ""
        self.spent += len(text)
        return f"data:image/jpeg;base64,{text}"


def blend_heat(image: Image, heat: NDArray[np.float32], side: int) -> Image:
    """Return a network input, uint8 RGB (S, S, 3), under its map, float32 (h, w) from 0 to 1, at `side` pixels."""
    method = cv2.INTER_AREA if len(image) > side else cv2.INTER_LINEAR
    image = cv2.resize(image, (side, side), interpolation=method)
    heat = np.clip(cv2.resize(heat, (side, side), interpolation=cv2.INTER_CUBIC), 0, 1)
    colour = cv2.cvtColor(cv2.applyColorMap((heat * 255).astype(np.uint8), cv2.COLORMAP_TURBO), cv2.COLOR_BGR2RGB)
    return (0.55 * image + 0.45 * colour).astype(np.uint8)


def most_confident_errors(predictions: Predictions, max_rows: int = MAX_ERRORS) -> NDArray[np.int64]:
    """Return the rows of the wrong predictions, the most confident first, int64 (M,), M at most `max_rows`."""
    rows = np.flatnonzero(predictions.scorable & (predictions.top[:, 0] != predictions.label))
    return rows[np.argsort(-predictions.probability[rows, 0], kind="stable")][:max_rows]


def error_cards(scored: Scored, pictures: Pictures, maps: Maps, near: Neighbours) -> list[dict[str, object]]:
    """Return what the gallery shows, the most confident error first: pictures, the likeliest classes, and neighbours.

    Args:
        maps: the Grad-CAM maps.
        near: the neighbours; if empty, correct and confident images of the predicted class.
    """
    predictions, files, classes = scored
    rows = most_confident_errors(predictions)
    examples = {} if near else _examples(scored, np.unique(predictions.top[rows, 0]))
    cards = []
    for row in progress(rows.tolist(), "pictures", len(rows)):
        index, label, first = int(predictions.index[row]), int(predictions.label[row]), int(predictions.top[row, 0])
        own, correct = os.path.abspath(files.path(index)), examples.get(first, {})
        beside: list[tuple[int, float | None]] = [*near.get(index, ())] or [
            (other, None) for path, other in correct.items() if path != own
        ]
        named = zip(
            predictions.top[row, :NAMED_CLASSES].tolist(),
            predictions.probability[row, :NAMED_CLASSES].tolist(),
            strict=True,
        )
        cards.append(
            {
                "path": files.path(index),
                "label": visible(classes.name(label)),
                "called": visible(classes.name(first)),
                "sure": float(predictions.probability[row, 0]),
                "true": float(predictions.true_probability[row]),
                "top": [[visible(classes.name(k)), round(p, 4)] for k, p in named],
                "picture": pictures.picture(index),
                "cam": pictures.overlay(maps.get(index)),
                "near": _neighbours(scored, pictures, beside),
            }
        )
    return cards


def _neighbours(scored: Scored, pictures: Pictures, near: list[tuple[int, float | None]]) -> list[list[object]]:
    """Return [picture, class, cosine] of each neighbour that has a picture."""
    predictions, _, classes = scored
    rows = np.searchsorted(predictions.index, [other for other, _ in near])
    found: list[list[object]] = []
    for row, (other, cosine) in zip(rows.tolist(), near, strict=True):
        picture = pictures.picture(other, NEIGHBOUR_SIDE)
        if picture:
            found.append([picture, visible(classes.name(int(predictions.label[row]))), cosine and round(cosine, 2)])
    return found


def issue_cards(
    scored: Scored, issues: Issues, pictures: Pictures, near: Neighbours | None = None
) -> list[dict[str, object]]:
    """Return the cards of likely label errors, the likeliest first; labels are numbers of the list file.

    Args:
        near: the neighbours, by image.
    """
    predictions, files, classes = scored
    cards = []
    for row, quality, other in zip(*(column[:MAX_ISSUES].tolist() for column in issues[:3]), strict=True):
        index, label = int(predictions.index[row]), int(predictions.label[row])
        choices = dict.fromkeys([other, *predictions.top[row].tolist()])
        cards.append(
            {
                "path": files.path(index),
                "label": files.file_label(label),
                "name": visible(classes.name(label)),
                "quality": quality,
                "choices": [
                    [files.file_label(k), visible(classes.name(k))]
                    for k in choices
                    if k != label and files.file_label(k) >= 0
                ],
                "picture": pictures.picture(index),
                "near": _neighbours(scored, pictures, [*(near or {}).get(index, ())]),
            }
        )
    return cards


def _examples(scored: Scored, wanted: NDArray[np.int64]) -> dict[int, dict[str, int]]:
    """Return the most confident correct images of each class in `wanted`: {class: {absolute path: list position}}."""
    predictions, files, _ = scored
    right = np.flatnonzero(
        predictions.scorable & (predictions.top[:, 0] == predictions.label) & np.isin(predictions.label, wanted)
    )
    right = right[np.argsort(-predictions.probability[right, 0], kind="stable")]
    found: dict[int, dict[str, int]] = {}
    for row in right.tolist():
        examples = found.setdefault(int(predictions.label[row]), {})
        if len(examples) < NEIGHBOURS:
            index = int(predictions.index[row])
            examples.setdefault(os.path.abspath(files.path(index)), index)
    return found
