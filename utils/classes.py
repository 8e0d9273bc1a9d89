"""The classes that a checkpoint knows, and the one comparison of their names with those of a list or another checkpoint."""

import unicodedata
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Classes:
    """`count` classes; `names` of them (None: they are numbers); `images`: training images of each (None: unknown)."""

    count: int
    names: list[str] | None = None
    images: list[int] | None = None

    def name(self, label: int) -> str:
        """The name of class `label`, its number where there are no names; "?" for -1."""
        return "?" if label < 0 else self.names[label] if self.names else str(label)

    def as_dict(self) -> dict[str, Any]:
        """Plain data, for a checkpoint."""
        return {"num_classes": self.count, "class_names": self.names, "class_images": self.images}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> "Classes":
        """The opposite of `as_dict`."""
        return cls(data["num_classes"], data["class_names"], data["class_images"])


def names_agree(one: Sequence[str] | None, other: Sequence[str] | None) -> bool:
    """Return whether class k means the same in both. Where either has no names, nothing speaks against it: sizes decide."""
    return not one or not other or _keys(one) == _keys(other)


def places(names: Sequence[str], known: Sequence[str]) -> NDArray[np.int64]:
    """Return the number in `known` of each of `names`, int64; -1 where it has none, or where a name is blank or not unique."""
    ours, theirs = _keys(names), _keys(known)
    once = [Counter(keys) for keys in (ours, theirs)]
    numbers = {key: number for number, key in enumerate(theirs)}
    sure = (key.strip() and all(count[key] == 1 for count in once) for key in ours)
    return np.array([numbers[key] if one else -1 for key, one in zip(ours, sure, strict=True)], np.int64)


def difference(there: Sequence[str], here: Sequence[str], where: str) -> str:
    """Return in words how the names `there` differ from those `here`; `where` says whose the latter are, such as "classes.txt"."""
    if len(there) != len(here):
        return f"it names {len(there)} classes, {where} {len(here)}"
    pairs = zip(_keys(there), _keys(here), strict=True)
    place = next(number for number, (one, other) in enumerate(pairs) if one != other)
    return f"class {place} is {there[place]!r} there and {here[place]!r} in {where}"


def _keys(names: Sequence[str]) -> list[str]:
    """The names as they are compared: an accent may be written as one character or as two."""
    return [unicodedata.normalize("NFC", name) for name in names]
