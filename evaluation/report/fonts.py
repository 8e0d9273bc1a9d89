"""Find fonts that have the characters of a picture: matplotlib's own has no Chinese, and draws boxes instead."""

import unicodedata
from functools import cache
from typing import Any

from utils.logger import log

DEFAULT = "DejaVu Sans"  # comes with matplotlib
PREFERRED = (
    "Noto Sans CJK SC",
    "Source Han Sans SC",
    "WenQuanYi Zen Hei",
    "WenQuanYi Micro Hei",
    "PingFang SC",
    "Microsoft YaHei",
    "SimHei",
    "Noto Sans",
)
REGULAR = ("400", "normal", "regular")
MAX_NAMED = 5  # characters in the warning


def families(text: str) -> list[str]:
    """Return font families, in order of preference, that together have the characters of `text`.

    Warn once per process of characters that no font here has, and name the Debian package of one that does.
    """
    return [DEFAULT, *_covering(frozenset(filter(_visible, text)))]


@cache
def _covering(characters: frozenset[str]) -> tuple[str, ...]:
    missing = characters - _characters(_font_manager().findfont(DEFAULT), 0)
    found: list[str] = []
    for fresh in (False, True):  # matplotlib's own list lacks fonts that were installed later
        for name, path, index in _fonts(fresh) if missing else ():
            has = missing & _characters(path, index)
            if has:
                found.append(name)
                missing -= has
            if not missing:
                break
    if missing:
        _warn(missing)
    return tuple(found)


_warned: set[str] = set()  # packages that a warning has named


def _warn(missing: frozenset[str]) -> None:
    package = min(map(_package, missing))
    if package not in _warned:
        _warned.add(package)
        shown = "".join(sorted(missing)[:MAX_NAMED]) + ("…" if len(missing) > MAX_NAMED else "")
        log.warning(f"No font here has {shown}. The pictures show boxes instead. Try: apt-get install {package}")


def _package(character: str) -> str:
    """Return the Debian package with a font that has `character`."""
    if unicodedata.category(character) == "So":
        return "fonts-symbola"
    return "fonts-noto-cjk" if unicodedata.east_asian_width(character) in "WF" else "fonts-noto-core"


def _font_manager() -> Any:
    from matplotlib import font_manager

    return font_manager


@cache
def _fonts(fresh: bool) -> list[tuple[str, str, int]]:
    """Return (family, file, index in the file) of the fonts here, PREFERRED first.

    With `fresh`, return those that are not in matplotlib's list.
    """
    manager = _font_manager().fontManager
    known = {entry.fname for entry in manager.ttflist}
    if fresh:
        for path in _font_manager().findSystemFonts():
            if path not in known:
                try:
                    manager.addfont(path)
                except Exception:  # skip a damaged font
                    continue
    entries = [
        entry
        for entry in manager.ttflist
        if "last resort" not in entry.name.lower() and (not fresh or entry.fname not in known)
    ]
    rank = {name: place for place, name in enumerate(PREFERRED)}
    entries.sort(
        key=lambda entry: (
            rank.get(entry.name, len(rank)),
            entry.style != "normal",
            str(entry.weight) not in REGULAR,
            entry.name,
        )
    )
    return [(entry.name, entry.fname, getattr(entry, "index", 0)) for entry in entries]


@cache
def _characters(path: str, index: int) -> frozenset[str]:
    """Return all characters that the font has."""
    from matplotlib.ft2font import FT2Font

    try:
        font = FT2Font(path, face_index=index) if index else FT2Font(path)
        return frozenset(map(chr, font.get_charmap()))
    except Exception:  # skip a damaged font
        return frozenset()


def _visible(character: str) -> bool:
    return unicodedata.category(character)[0] not in "CZ"
