"""Names shortened to a width: cut in the middle, to keep beginning and end, and never two alike."""

import unicodedata
from collections import Counter
from collections.abc import Callable, Mapping

ELLIPSIS = "…"
JOINER = "\u200d"  # between the parts of one emoji

Measure = Callable[[str], float]


def columns(text: str) -> int:
    """Return the columns that `text` takes in a terminal: two for a Chinese character, none for a combining accent."""
    return sum(0 if _attached(letter) else 2 if unicodedata.east_asian_width(letter) in "WF" else 1 for letter in text)


def padded(text: str, width: int, left: bool = True) -> str:
    """Return `text` with blanks up to `width` columns of a terminal, flush left or right; a wider text is unchanged."""
    blanks = " " * (width - columns(text))
    return text + blanks if left else blanks + text


def shorten(text: str, room: float, measure: Measure = columns) -> str:
    """Return `text`, or its beginning, an ellipsis and its end, at most `room` wide.

    Args:
        text: any text.
        room: the width, in the unit of `measure` (columns of a terminal, points in a figure).
        measure: returns the width of a text.
    """
    if measure(text) <= room:
        return text
    letters = _letters(text)
    low, high = 0, len(letters) - 1  # number of letters that fit
    while low < high:
        middle = (low + high + 1) // 2
        if measure(_without_middle(letters, middle)) <= room:
            low = middle
        else:
            high = middle - 1
    return _without_middle(letters, low)


def shorten_all(names: Mapping[int, str], room: float, measure: Measure = columns) -> dict[int, str]:
    """Return the names of classes by number, each at most `room` wide; equal results get their number in front."""
    found = {number: shorten(name, room, measure) for number, name in names.items()}
    times = Counter(found.values())
    for number, text in found.items():
        if times[text] > 1:
            before = f"{number}: "
            found[number] = before + shorten(names[number], room - measure(before), measure)
    return found


def _without_middle(letters: list[str], kept: int) -> str:
    return "".join(letters[: kept - kept // 2]) + ELLIPSIS + "".join(letters[len(letters) - kept // 2 :])


def _letters(text: str) -> list[str]:
    """Return the letters, each with its accents and joined signs."""
    letters: list[str] = []
    for letter in text:
        if letters and (_attached(letter) or letters[-1].endswith(JOINER)):
            letters[-1] += letter
        else:
            letters.append(letter)
    return letters


def _attached(letter: str) -> bool:
    return unicodedata.category(letter) in ("Mn", "Me", "Cf")
