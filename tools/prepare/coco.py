"""Images listed in a JSON file in the format of COCO or of AliProducts.

COCO         {"images": [{"id", "file_name"}], "annotations": [{"image_id", "category_id"}],
              "categories": [{"id", "name"}]}
AliProducts  {"images": [{"image_id", "class_id"}]}, with images at <class_id>/<image_id>; the test file has no class_id
"""

import argparse
import json
import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dataloader.decode import image_suffixes
from dataloader.listing.class_names import natural_sort, to_class_ids
from dataloader.listing.lists import ImageList, Listing, SkippedItems, absolute
from options.wording import count_of
from utils.classes import key_of
from utils.errors import UserError
from utils.logger import log

MAX_NAMES = 8  # in a message
MAX_SHOWN = 120  # characters of an entry in a message
Entry = dict[str, Any]  # an object of the JSON file


def read_coco(opt: argparse.Namespace, given: list[str] | None) -> Listing:
    """Return the images of a JSON file; categories are numbered in the order of their ids, or by name in `given`.

    Raises:
        UserError: the file is malformed, or no image has a category.
    """
    file = Path(opt.file)
    content = _load(file)
    images = content["images"]
    root = str(Path(opt.root if opt.root is not None else file.parent).resolve())
    skipped, count = SkippedItems(), count_of(f"{len(images):,}", "image")
    annotations = content.get("annotations") or []
    labelled = annotations or any("class_id" in image or "category_id" in image for image in images)
    if opt.part == "test" or not labelled:
        log.info(f"{file}: {count}; they go to test.txt, without labels.")
        return Listing([], {"test": ImageList(_paths(file, images, [None] * len(images), root), None)})
    if annotations:
        log.info(f"{file}: {count}; categories by `annotations` (COCO).")
        kept, ids = _annotated(file, images, annotations, skipped)
    else:
        log.info(f"{file}: {count}; categories by `class_id` in `images` (AliProducts).")
        pairs = [(image, image.get("class_id", image.get("category_id"))) for image in images]
        kept = [image for image, key in pairs if key is not None]
        ids = [str(key) for _, key in pairs if key is not None]
        for image, key in pairs:
            if key is None:
                skipped.add("image(s) left out, which have no class_id", _show(image))
    if not kept:
        raise UserError(
            f"{file}: no image has a category; "
            "expected annotations that name `image_id` and `category_id` of the images."
        )
    skipped.report()
    names, labels = _classes(file, content, ids, given)
    return Listing(names, {opt.part: ImageList(_paths(file, kept, ids, root), labels)})


def _load(file: Path) -> Entry:
    """Return the content of the file, checked to have `images`, and dicts in all lists.

    Raises:
        UserError: the file is not such JSON.
    """
    try:
        content = json.loads(file.read_text(encoding="utf-8-sig"))
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise UserError(f"{file} is not JSON: {error}.") from error
    except OSError as error:
        raise UserError(f"{file} cannot be read: {error.strerror}; expected a JSON file with `images`.") from error
    if not isinstance(content, dict) or not isinstance(content.get("images"), list) or not content["images"]:
        got = f"the keys {', '.join(content) or 'none'}" if isinstance(content, dict) else f"a {type(content).__name__}"
        raise UserError(
            f'{file} has no list `images`; got {got}. Expected: {{"images": [{{"id": …, "file_name": …}}, …], …}}.'
        )
    for kind in ("images", "annotations", "categories"):
        for k, entry in enumerate(content.get(kind) or []):
            if not isinstance(entry, dict):
                raise UserError(f"{file}: {kind}[{k}] is {_show(entry)}; expected an object.")
    return content


def _annotated(
    file: Path, images: list[Entry], annotations: list[Entry], skipped: SkippedItems
) -> tuple[list[Entry], list[str]]:
    """Return the images with exactly one category, and the category ids as text; count the others in `skipped`."""
    of_image: dict[str, set[str]] = {}
    for k, entry in enumerate(annotations):
        if entry.get("image_id") is None or entry.get("category_id") is None:
            raise UserError(
                f"{file}: annotations[{k}] has the keys {', '.join(entry)}; expected `image_id` and `category_id`."
            )
        of_image.setdefault(str(entry["image_id"]), set()).add(str(entry["category_id"]))
    kept, ids = [], []
    for k, image in enumerate(images):
        key = image.get("id", image.get("image_id"))
        if key is None:
            raise UserError(
                f"{file}: images[{k}] has the keys {', '.join(image)}; expected `id`, which annotations refer to."
            )
        found = of_image.pop(str(key), set())
        if len(found) == 1:
            kept.append(image)
            ids.append(found.pop())
        else:
            problem = "two or more categories" if found else "no annotation"
            skipped.add(f"image(s) left out, which have {problem}", _show(image))
    for unknown in of_image:
        skipped.add("annotated image id(s) that no image in the file has", unknown)
    return kept, ids


def _classes(file: Path, content: Entry, ids: list[str], given: list[str] | None) -> tuple[list[str], list[int]]:
    """Return the class names, and the class number of each image.

    The classes are all of `categories`, with or without images; where it is missing, the ids that occur. Ids become
    0, 1, … in their order.
    """
    categories = content.get("categories") or []
    for k, entry in enumerate(categories):
        if entry.get("id") is None:
            raise UserError(f"{file}: categories[{k}] has the keys {', '.join(entry)}; expected `id` and `name`.")
    name_of = {str(entry["id"]): str(entry.get("name") or entry["id"]).strip() for entry in categories}
    known = natural_sort(name_of or ids)
    numbers = to_class_ids(ids, known, lambda k: f"{file}, an image's category id", "`categories`")
    names = [name_of.get(key, key) for key in known]
    if given is None:
        counts = Counter(map(key_of, names))
        twice = {name for name in names if counts[key_of(name)] > 1}
        if twice:
            names = [f"{name} ({key})" if name in twice else name for name, key in zip(names, known, strict=True)]
            shown = ", ".join(sorted(twice)[:MAX_NAMES])
            log.warning(f"{file}: {len(twice)} name(s) belong to several categories, and got their ids: {shown}.")
        return names, numbers
    used = sorted(set(numbers))
    used_names = [names[k] for k in used]
    given_ids = to_class_ids(used_names, given, lambda k: f"{file}, category {known[used[k]]}", "--classes")
    renumbered = dict(zip(used, given_ids, strict=True))
    return given, [renumbered[k] for k in numbers]


# ------------------------------------------------------------------------------------------------ paths


def _paths(file: Path, images: list[Entry], ids: Sequence[str | None], root: str) -> list[str]:
    """Return the absolute paths of the images.

    Without `file_name`, the first image decides how image_id and class_id make a path.
    """
    names = []
    for k, image in enumerate(images):
        name = image.get("file_name", image.get("image_id"))
        if not name or not isinstance(name, str | int):
            raise UserError(
                f"{file}: images[{k}] has the keys {', '.join(image) or 'none'}; expected `file_name`, or `image_id`."
            )
        complete = "file_name" in image or str(name).lower().endswith(image_suffixes())
        names.append(str(name) if complete else f"{name}.jpg")
    if "file_name" in images[0] or ids[0] is None:
        return [absolute(name, root) for name in names]
    layouts = {
        "<class_id>/<image_id>": lambda name, key: f"{key}/{name}",
        "<class_id, five digits>/<image_id>": lambda name, key: f"{key:0>5}/{name}",
        "<image_id>": lambda name, key: name,
    }
    found = [layout for layout, path in layouts.items() if os.path.exists(absolute(path(names[0], ids[0]), root))]
    layout = found[0] if found else next(iter(layouts))
    unknown = "" if found else f" (the first image is in no known place there: {_show(images[0])})"
    log.info(f"Paths are {root}/{layout}{unknown}")
    return [absolute(layouts[layout](name, key), root) for name, key in zip(names, ids, strict=True)]


def _show(entry: object) -> str:
    """Return a JSON value as text for a message, shortened."""
    text = json.dumps(entry, ensure_ascii=False)
    return text if len(text) <= MAX_SHOWN else text[: MAX_SHOWN - 3] + "…"
