"""What a JPEG's bytes say besides its pixels: which way is up, and whether a warning of libjpeg's means damage.

libjpeg warns of odd headers and of stray bytes between segments, after which the picture is whole, in the same way as of
entropy-coded data that is cut or broken. `is_whole` tells them apart, with libjpeg's own decoder as the judge.
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
FRAMES = (*SEQUENTIAL, 0xC2)  # arithmetic coding, which hardly anyone writes, is left to the strict decoder
TABLES = (0xDB, 0xC4, DRI)
BARE = (0x01, *range(0xD0, 0xD8))  # markers without a body, which libjpeg passes over between segments
RESTART = re.compile(rb"\xff+[\xd0-\xd7]")
MARKER = re.compile(rb"\xff+[^\x00\xff\xd0-\xd7]")  # within entropy-coded data: what ends the scan
XMP, XMP_TURN = b"http://ns.adobe.com/xap/1.0/\0", b"tiff:Orientation"
FOUR = ("CMYK", "YCCK")
EXIF = b"Exif\0\0"
STRAY = re.compile(r"(\d+) extraneous bytes before marker 0x([0-9a-f]{2})")
MAX_SCANS, MAX_TRIMS, MAX_INTERVALS, MAX_SCAN_PIXELS = (
    100,
    8,
    20_000,
    2e9,
)  # beyond, a check takes too long: the file counts as damaged
MAX_SIDE = 65_500


# ------------------------------------------------------------------------------------------------ orientation


def orientation(data: bytes) -> int:
    """Return the orientation of a JPEG, 1 to 8, as Pillow finds it in EXIF or XMP; 1 where there is none.

    An ordinary header is read here, in microseconds. Whatever is odd about one is left to Pillow.

    Raises:
        Exception: the header is odd, and Pillow refuses the file.
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
                        return _pillows(data)
                    exif = data[at + 10 : at + 2 + length]
                elif data.startswith(XMP, at + 4):
                    xmp = data.find(XMP_TURN, at, at + 2 + length) > 0
            elif marker < 0xC0 or marker == 0xFF or 0xD0 <= marker < 0xDA or length < 2:
                return _pillows(data)
            at += 2 + length
        else:
            return _pillows(data)  # stray bytes
    except IndexError:
        return 1  # cut within the header: the decoder says so
    turn = _plain_orientation(exif) if exif else 0
    if turn is None or (turn == 0 and xmp):
        return _pillows(data)
    return turn or 1


def _plain_orientation(tiff: bytes) -> int | None:
    """The orientation in an EXIF block as cameras write it, 1 to 8; 0: it has none. None where anything is odd."""
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
    (kind, values, turn), *more = found
    return None if more or (kind, values) != (3, 1) else turn if 1 <= turn <= 8 else 1


def _pillows(data: bytes) -> int:
    return pillow.turn_of(pillow.open_image(data))


# ------------------------------------------------------------------------------------------------ damage


def is_whole(data: bytes, complaint: str) -> bool:
    """Return whether the picture is whole, though libjpeg warned: `complaint` is simplejpeg's message, of its first warning."""
    if _after_all(complaint):
        return True
    try:
        file = _parse(data)
    except (IndexError, ValueError):
        return False
    complaint = complaint_of(file.head() + b"".join(scan.bytes() for scan in file.scans) + EOI)
    if not complaint or _after_all(complaint):
        return True
    stray = STRAY.search(complaint)
    if stray is None:
        return False
    if 0xD0 <= int(stray[2], 16) <= 0xD7:
        return file.kind in SEQUENTIAL and _sound_intervals(file)
    return _sound_scans(file)


@dataclass
class _Scan:
    """A scan: the tables before it, its header, and its entropy-coded data."""

    tables: bytes
    header: bytes
    data: bytes

    def bytes(self) -> "bytes":
        return self.tables + self.header + self.data


@dataclass
class _File:
    """What of a JPEG its pixels are made of: frame header (marker and body), scans, and the restart interval of each."""

    kind: int = 0
    frame: bytes = b""
    scans: list[_Scan] = field(default_factory=list)
    restarts: list[int] = field(default_factory=list)

    def head(self, frame: bytes = b"") -> bytes:
        """Everything before the first scan's tables."""
        return SOI + _segment(self.kind, frame or self.frame)

    def intervals(self, place: int) -> Iterator[bytes]:
        """Each restart interval of sequential scan `place`, as a JPEG of its own, one row of blocks high where that fits.

        Raises:
            ValueError: it has more or fewer intervals than its frame wants.
        """
        scan, every = self.scans[place], self.restarts[place]
        parts = RESTART.split(scan.data)
        high, wide, size = self._units(scan)
        if not every or len(parts) != -(-size // every) or len(parts) > MAX_INTERVALS:
            raise ValueError("intervals are missing, or too many")
        tables = b"".join(one.tables for one in self.scans[: place + 1])
        components = scan.header[4 : 5 + 2 * scan.header[4]]
        for k, part in enumerate(parts):
            units = min(every, size - k * every)
            columns = next(n for n in range(min(units, MAX_SIDE // wide), 0, -1) if units % n == 0)
            if (units // columns) * high > MAX_SIDE:
                raise ValueError("an interval is too long")
            frame = self._frame(components, (units // columns) * high, columns * wide)
            yield self.head(frame) + tables + _segment(DRI, b"\0\0") + scan.header + part + EOI

    def _units(self, scan: _Scan) -> tuple[int, int, int]:
        """A coding unit's height and width in pixels of its own component, and how many units the scan has."""
        height, width = struct.unpack_from(">HH", self.frame, 1)
        sizes = {self.frame[6 + 3 * k]: self.frame[7 + 3 * k] for k in range(self.frame[5])}
        down, across = max(size & 15 for size in sizes.values()), max(size >> 4 for size in sizes.values())
        if scan.header[4] > 1:
            high, wide = 8 * down, 8 * across
            return high, wide, -(-height // high) * -(-width // wide)
        mine = sizes[scan.header[5]]
        rows, columns = -(-height * (mine & 15) // (8 * down)), -(-width * (mine >> 4) // (8 * across))
        return 8, 8, rows * columns

    def _frame(self, components: bytes, height: int, width: int) -> bytes:
        """A frame header of the components of one scan (how many, then name and tables of each)."""
        wanted = components[1::2]
        parts = [self.frame[6 + 3 * k : 9 + 3 * k] for k in range(self.frame[5]) if self.frame[6 + 3 * k] in wanted]
        if len(parts) != components[0]:
            raise ValueError("a scan of a component that there is not")
        if len(parts) == 1:  # alone, its blocks follow one another whatever its sampling
            parts = [parts[0][:1] + b"\x11" + parts[0][2:]]
        return self.frame[:1] + struct.pack(">HHB", height, width, len(parts)) + b"".join(parts)


def _segment(marker: int, body: bytes) -> bytes:
    return bytes((0xFF, marker)) + struct.pack(">H", len(body) + 2) + body


def _parse(data: bytes) -> _File:
    """Read a JPEG as libjpeg does: past fill bytes, stray bytes, and segments that only describe it.

    Raises:
        IndexError, ValueError: it is cut, or of a kind that is not checked here.
    """
    file, at, tables, restart = _File(), 2, b"", 0
    while True:
        at = data.index(b"\xff", at)
        while data[at] == 0xFF:
            at += 1
        marker, at = data[at], at + 1
        if marker == 0xD9:
            break
        if marker == 0 or marker in BARE:
            continue
        length = data[at] << 8 | data[at + 1]
        body, at = data[at + 2 : at + length], at + length
        if length < 2 or at > len(data) or len(file.scans) > MAX_SCANS:
            raise ValueError("a segment is cut, or there are too many")
        if marker in FRAMES and not file.kind:
            file.kind, file.frame = marker, body
        elif marker in TABLES:
            tables += _segment(marker, body)
            restart = body[0] << 8 | body[1] if marker == DRI else restart
        elif marker == SOS:
            if file.kind in SEQUENTIAL:  # which coefficients: all of them, whatever it says
                body = body[: 1 + 2 * body[0]] + b"\0\x3f\0"
            end = MARKER.search(data, at)
            if end is None:
                raise ValueError("there is no end")
            file.scans.append(_Scan(tables, _segment(SOS, body), data[at : end.start()]))
            file.restarts.append(restart)
            tables, at = b"", end.start()
        elif not (0xE0 <= marker <= 0xEF or marker in (COM, DNL)):
            raise ValueError("a kind that is not checked here")
    if not file.scans or not file.kind:
        raise ValueError("there is no picture")
    return file


def complaint_of(jpeg: bytes) -> str:
    """Return what libjpeg finds wrong with a JPEG: its first warning or error; "" for nothing. Decoded at an eighth, which is quick."""
    try:
        four = simplejpeg.decode_jpeg_header(jpeg, strict=False)[2] in FOUR
        simplejpeg.decode_jpeg(jpeg, "CMYK" if four else "GRAY", min_height=1, min_width=1)
    except (KeyError, ValueError) as error:
        return str(error)
    return ""


def _sound_intervals(file: _File) -> bool:
    """Whether each restart interval is whole; stray bytes may follow it."""
    try:
        complaints = [complaint_of(jpeg) for place in range(len(file.scans)) for jpeg in file.intervals(place)]
    except (ValueError, KeyError, IndexError):
        return False
    return all(not complaint or _after_all(complaint) for complaint in complaints)


def _after_all(complaint: str) -> bool:
    """Whether it is of stray bytes after all scans, as some cameras pad them."""
    stray = STRAY.search(complaint)
    return stray is not None and stray[2] == "d9"


def _sound_scans(file: _File) -> bool:
    """Whether each scan is whole, once the stray bytes at the ends of the earlier ones are cut off."""
    height, width = struct.unpack_from(">HH", file.frame, 1)
    if height * width * len(file.scans) > MAX_SCAN_PIXELS:
        return False
    before = file.head()
    for scan in file.scans:
        for _ in range(MAX_TRIMS):
            complaint = complaint_of(before + scan.bytes() + EOI)
            stray = STRAY.search(complaint)
            if stray is None or stray[2] != "d9":
                break
            scan.data = scan.data[: -int(stray[1])]  # FF 00 may count as one byte: then once more
        if complaint:
            return False
        before += scan.bytes()
    return True
