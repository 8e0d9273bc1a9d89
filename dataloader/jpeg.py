"""What a JPEG's bytes say besides its pixels: its orientation, and whether a warning of libjpeg's means damage.

libjpeg warns in the same way of harmless things (odd headers, stray bytes between segments) and of entropy-coded data
that is truncated or corrupt. `is_intact` tells them apart; libjpeg's own decoder is the judge.
"""

import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field

import simplejpeg

from dataloader import pillow

SOI, EOI = b"\xff\xd8", b"\xff\xd9"
SOS, DRI, DNL, APP1, COM = 0xDA, 0xDD, 0xDC, 0xE1, 0xFE
SEQUENTIAL = (0xC0, 0xC1)
FRAMES = (*SEQUENTIAL, 0xC2)  # arithmetic coding, which is rare, is left to the strict decoder
TABLES = (0xDB, 0xC4, DRI)
BODILESS = (0x01, *range(0xD0, 0xD8))  # markers without a body, which libjpeg skips between segments
RESTART = re.compile(rb"\xff+[\xd0-\xd7]")
MARKER = re.compile(rb"\xff+[^\x00\xff\xd0-\xd7]")  # within entropy-coded data: what ends the scan
XMP, XMP_ORIENTATION = b"http://ns.adobe.com/xap/1.0/\0", b"tiff:Orientation"
EXIF = b"Exif\0\0"
FOUR_CHANNELS = ("CMYK", "YCCK")
STRAY = re.compile(r"(\d+) extraneous bytes before marker 0x([0-9a-f]{2})")
# beyond these, a check takes too long: the file counts as damaged
MAX_SCANS, MAX_TRIMS, MAX_INTERVALS, MAX_SCAN_PIXELS = 100, 8, 20_000, 2e9
MAX_SIDE = 65_500  # pixels, of libjpeg


# ------------------------------------------------------------------------------------------------ orientation


def orientation(data: bytes) -> int:
    """Return the orientation of a JPEG, 1 to 8, as Pillow finds it in EXIF or XMP; 1 where it has none.

    A usual header is read here, in microseconds. Pillow reads an unusual one.

    Raises:
        Exception: the header is unusual, and Pillow refuses the file.
    """
    at, exif, xmp = 2, b"", False
    try:
        while data[at] == 0xFF:
            marker, length = data[at + 1], data[at + 2] << 8 | data[at + 3]
            if marker == SOS:
                break
            if marker == APP1:
                if data.startswith(EXIF, at + 4):
                    if exif:  # a continuation
                        return _orientation_by_pillow(data)
                    exif = data[at + 10 : at + 2 + length]
                elif data.startswith(XMP, at + 4):
                    xmp = data.find(XMP_ORIENTATION, at, at + 2 + length) > 0
            elif marker < 0xC0 or marker == 0xFF or 0xD0 <= marker < 0xDA or length < 2:
                return _orientation_by_pillow(data)
            at += 2 + length
        else:
            return _orientation_by_pillow(data)  # stray bytes
    except IndexError:
        return 1  # truncated within the header: the decoder reports it
    found = _exif_orientation(exif) if exif else 0
    if found is None or (found == 0 and xmp):
        return _orientation_by_pillow(data)
    return found or 1


def _exif_orientation(tiff: bytes) -> int | None:
    """Return the orientation in an EXIF block, 1 to 8; 0 if it has none; None if the block is unlike a camera's."""
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(tiff[:4])
    if order is None:
        return None
    try:
        (first,) = struct.unpack_from(order + "I", tiff, 4)
        (count,) = struct.unpack_from(order + "H", tiff, first)
    except struct.error:
        return None
    entries = tiff[first + 2 : first + 2 + 12 * count]
    if len(entries) < 12 * count:
        return None
    found = [entry[1:] for entry in struct.iter_unpack(order + "HHIHxx", entries) if entry[0] == 0x0112]
    if not found:
        return 0
    (kind, values, orientation), *more = found
    if more or (kind, values) != (3, 1):
        return None
    return orientation if 1 <= orientation <= 8 else 1


def _orientation_by_pillow(data: bytes) -> int:
    """Return the orientation that Pillow finds. Raises whatever Pillow raises."""
    return pillow.orientation(pillow.open_image(data))


# ------------------------------------------------------------------------------------------------ damage


def is_intact(data: bytes, warning: str) -> bool:
    """Return whether the image is intact although libjpeg warned; `warning` is its first, as simplejpeg's message."""
    if _is_trailing(warning):
        return True
    try:
        file = _parse(data)
    except (IndexError, ValueError):
        return False
    warning = first_warning(file.head() + b"".join(scan.to_bytes() for scan in file.scans) + EOI)
    if not warning or _is_trailing(warning):
        return True
    stray = STRAY.search(warning)
    if stray is None:
        return False
    if 0xD0 <= int(stray[2], 16) <= 0xD7:
        return file.kind in SEQUENTIAL and _intervals_intact(file)
    return _scans_intact(file)


@dataclass
class _Scan:
    """A scan: the tables before it, its header, and its entropy-coded data."""

    tables: bytes
    header: bytes
    data: bytes

    def to_bytes(self) -> bytes:
        """Return the scan as it is written in a file."""
        return self.tables + self.header + self.data


@dataclass
class _File:
    """What the pixels of a JPEG come from: frame header (marker and body), scans, and the restart interval of each."""

    kind: int = 0
    frame: bytes = b""
    scans: list[_Scan] = field(default_factory=list)
    restarts: list[int] = field(default_factory=list)

    def head(self, frame: bytes = b"") -> bytes:
        """Return everything before the tables of the first scan; `frame` replaces the frame header."""
        return SOI + _segment(self.kind, frame or self.frame)

    def intervals(self, number: int) -> Iterator[bytes]:
        """Yield each restart interval of sequential scan `number` as a JPEG, one row of blocks high if that fits.

        Raises:
            ValueError: the number of intervals is not that of the frame.
        """
        scan, every = self.scans[number], self.restarts[number]
        parts = RESTART.split(scan.data)
        high, wide, size = self._units(scan)
        if not every or len(parts) != -(-size // every) or len(parts) > MAX_INTERVALS:
            raise ValueError("intervals are missing, or there are too many")
        tables = b"".join(earlier.tables for earlier in self.scans[: number + 1])
        components = scan.header[4 : 5 + 2 * scan.header[4]]
        for k, part in enumerate(parts):
            units = min(every, size - k * every)
            columns = next(n for n in range(min(units, MAX_SIDE // wide), 0, -1) if units % n == 0)
            if (units // columns) * high > MAX_SIDE:
                raise ValueError("an interval is too long")
            frame = self._frame(components, (units // columns) * high, columns * wide)
            yield self.head(frame) + tables + _segment(DRI, b"\0\0") + scan.header + part + EOI

    def _units(self, scan: _Scan) -> tuple[int, int, int]:
        """Return a coding unit's height and width in pixels of its own component, and the scan's number of units."""
        height, width = struct.unpack_from(">HH", self.frame, 1)
        sizes = {self.frame[6 + 3 * k]: self.frame[7 + 3 * k] for k in range(self.frame[5])}
        down, across = max(size & 15 for size in sizes.values()), max(size >> 4 for size in sizes.values())
        if scan.header[4] > 1:
            high, wide = 8 * down, 8 * across
            return high, wide, -(-height // high) * -(-width // wide)
        own = sizes[scan.header[5]]
        rows, columns = -(-height * (own & 15) // (8 * down)), -(-width * (own >> 4) // (8 * across))
        return 8, 8, rows * columns

    def _frame(self, components: bytes, height: int, width: int) -> bytes:
        """Return a frame header of the components of one scan (their number, then name and tables of each)."""
        wanted = components[1::2]
        parts = [self.frame[6 + 3 * k : 9 + 3 * k] for k in range(self.frame[5]) if self.frame[6 + 3 * k] in wanted]
        if len(parts) != components[0]:
            raise ValueError("a scan of an unknown component")
        if len(parts) == 1:  # the blocks of a single component follow one another, whatever its sampling
            parts = [parts[0][:1] + b"\x11" + parts[0][2:]]
        return self.frame[:1] + struct.pack(">HHB", height, width, len(parts)) + b"".join(parts)


def _segment(marker: int, body: bytes) -> bytes:
    """Return a segment as it is written in a file."""
    return bytes((0xFF, marker)) + struct.pack(">H", len(body) + 2) + body


def _parse(data: bytes) -> _File:
    """Read a JPEG as libjpeg does: skip fill bytes, stray bytes, and segments that only describe it.

    Raises:
        IndexError, ValueError: the file is truncated, or of a kind that this module does not check.
    """
    file, at, tables, restart = _File(), 2, b"", 0
    while True:
        at = data.index(b"\xff", at)
        while data[at] == 0xFF:
            at += 1
        marker, at = data[at], at + 1
        if marker == 0xD9:
            break
        if marker == 0 or marker in BODILESS:
            continue
        length = data[at] << 8 | data[at + 1]
        body, at = data[at + 2 : at + length], at + length
        if length < 2 or at > len(data) or len(file.scans) > MAX_SCANS:
            raise ValueError("a segment is truncated, or there are too many scans")
        if marker in FRAMES and not file.kind:
            file.kind, file.frame = marker, body
        elif marker in TABLES:
            tables += _segment(marker, body)
            restart = body[0] << 8 | body[1] if marker == DRI else restart
        elif marker == SOS:
            if file.kind in SEQUENTIAL:  # all coefficients, whatever the header says
                body = body[: 1 + 2 * body[0]] + b"\0\x3f\0"
            end = MARKER.search(data, at)
            if end is None:
                raise ValueError("the scan has no end")
            file.scans.append(_Scan(tables, _segment(SOS, body), data[at : end.start()]))
            file.restarts.append(restart)
            tables, at = b"", end.start()
        elif not (0xE0 <= marker <= 0xEF or marker in (COM, DNL)):
            raise ValueError("an unknown kind of segment")
    if not file.scans or not file.kind:
        raise ValueError("the file has no scan")
    return file


def first_warning(jpeg: bytes) -> str:
    """Return the first warning or error of libjpeg about a JPEG; "" for none. Decodes at 1/8, which is fast."""
    try:
        four_channels = simplejpeg.decode_jpeg_header(jpeg, strict=False)[2] in FOUR_CHANNELS
        simplejpeg.decode_jpeg(jpeg, "CMYK" if four_channels else "GRAY", min_height=1, min_width=1)
    except (KeyError, ValueError) as error:
        return str(error)
    return ""


def _intervals_intact(file: _File) -> bool:
    """Return whether each restart interval is intact; stray bytes may follow it."""
    try:
        warnings = [first_warning(jpeg) for number in range(len(file.scans)) for jpeg in file.intervals(number)]
    except (ValueError, KeyError, IndexError):
        return False
    return all(not warning or _is_trailing(warning) for warning in warnings)


def _is_trailing(warning: str) -> bool:
    """Return whether a warning is about stray bytes after all scans, where some cameras pad the file."""
    stray = STRAY.search(warning)
    return stray is not None and stray[2] == "d9"


def _scans_intact(file: _File) -> bool:
    """Return whether each scan is intact, once the stray bytes at the ends of the earlier ones are cut off."""
    height, width = struct.unpack_from(">HH", file.frame, 1)
    if height * width * len(file.scans) > MAX_SCAN_PIXELS:
        return False
    before = file.head()
    for scan in file.scans:
        for _ in range(MAX_TRIMS):
            warning = first_warning(before + scan.to_bytes() + EOI)
            stray = STRAY.search(warning)
            if stray is None or stray[2] != "d9":
                break
            scan.data = scan.data[: -int(stray[1])]  # FF 00 may count as one byte: then repeat
        if warning:
            return False
        before += scan.to_bytes()
    return True
