"""The decoder against Pillow, over generated families of odd files: both give the same picture, or both refuse.

By hand, with more examples: FAMILIES=5000 pytest tests/dataloader/test_decode_families.py
"""

import contextlib
import io
import os
import struct
import zlib

import matplotlib
import numpy as np
import PIL.Image
import PIL.ImageOps
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dataloader.decode import decode
from utils.errors import ImageError

EXAMPLES = int(os.environ.get("FAMILIES", "100"))
PHOTO = PIL.Image.open(f"{matplotlib.get_data_path()}/sample_data/grace_hopper.jpg")
family = settings(max_examples=EXAMPLES, deadline=None, derandomize=True)
turns = st.integers(0, 9)


def encoded(image, kind, **how):
    file = io.BytesIO()
    image.save(file, kind, **how)
    return file.getvalue()


def pillows(data):
    """Return Pillow's picture, uint8 RGB, upright, over white, or None where it refuses the file.

    A damaged EXIF block is no orientation.
    """
    try:
        image = PIL.Image.open(io.BytesIO(data))
        image.load()
    except Exception:
        return None
    with contextlib.suppress(Exception):
        image = PIL.ImageOps.exif_transpose(image)
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = PIL.Image.alpha_composite(PIL.Image.new("RGBA", image.size, "white"), image)
    return np.array(image.convert("RGB"))


def ours(data):
    try:
        return decode(data)[0]
    except ImageError:
        return None


def check(data, refused=False):
    """Both the same picture, or, where that is `refused` an outcome, both none."""
    wanted, got = pillows(data), ours(data)
    assert (got is None) == (wanted is None)
    assert refused or got is not None
    if got is not None:
        assert got.shape == wanted.shape
        assert np.array_equal(got, wanted)


# ------------------------------------------------------------------------ EXIF, XMP

TYPES = {1: "B", 3: "H", 4: "I", 6: "b", 8: "h", 9: "i"}  # BYTE, SHORT, LONG, SBYTE, SSHORT, SLONG


@st.composite
def exif_blocks(draw):
    """A TIFF directory anywhere in its block: the orientation of any type, once, twice or never, among other tags."""
    order = draw(st.sampled_from("<>"))
    entries = []
    for tag in draw(st.lists(st.sampled_from([0x010F, 0x0112, 0x0112, 0x0128, 0x0213]), max_size=4)):
        kind = draw(st.sampled_from([*TYPES, 5])) if tag == 0x0112 else 3
        count = draw(st.sampled_from([1, 1, 1, 2]))
        if kind == 5:  # rational: its offset; the values stand at the block's start
            value, count = struct.pack(order + "I", 8), 1
        else:
            value = struct.pack(order + TYPES[kind], draw(turns)).ljust(4, b"\0")
        entries.append(struct.pack(order + "HHI", tag, kind, count) + value)
    rational = struct.pack(order + "II", draw(turns) * 2, 2)
    gap = draw(st.integers(0, 9))
    head = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(order + "I", 16 + gap)
    block = head + rational + bytes(gap) + struct.pack(order + "H", len(entries)) + b"".join(entries) + bytes(4)
    cut = draw(st.sampled_from([0] * 6 + [5, 20, 60]))
    return block[: len(block) - cut]


@st.composite
def xmp_packets(draw):
    turn = draw(turns)
    said = draw(
        st.sampled_from(
            ['tiff:Orientation="{}"', "<tiff:Orientation>{}</tiff:Orientation>", 'exif:Orientation="{}"', "none{}"]
        )
    )
    return f"<x:xmpmeta xmlns:x='adobe:ns:meta/'>{said.format(turn)}</x:xmpmeta>".encode()


# ------------------------------------------------------------------------ JPEG


def segment(marker, body):
    return bytes([0xFF, marker]) + struct.pack(">H", len(body) + 2) + body


ICC = [b"ICC_PROFILE\0\1\1" + bytes(40), b"ICC_PROFILE\0\0\0", b"ICC_PROFILE\0\2\1x", b"ICC_PROFILE\0\1\2x"]
ADOBE = [b"Adobe\0\x64\0\0\0\0" + bytes([k]) for k in (1, 2, 3, 77)] + [
    b"Adobe",
    b"Adobe\0\x64\0\0\0",
    b"Adobe\0\x64\0\0\0\0\1and more",
]


@st.composite
def described(draw, coloured):
    """A segment that only describes the picture, well or badly."""
    return draw(
        st.one_of(
            exif_blocks().map(lambda block: segment(0xE1, b"Exif\0\0" + block)),
            xmp_packets().map(lambda packet: segment(0xE1, b"http://ns.adobe.com/xap/1.0/\0" + packet)),
            st.sampled_from(ICC).map(lambda body: segment(0xE2, body)),
            st.sampled_from(ADOBE if coloured else [b"Adob"]).map(lambda body: segment(0xEE, body)),
            st.tuples(st.integers(0, 3), st.integers(0, 255)).map(
                lambda v: segment(0xE0, b"JFIF\0" + bytes([*v, 0, 0, 1, 0, 1, 0, 0]))
            ),
            st.binary(max_size=20).map(lambda body: segment(0xFE, body)),
            st.tuples(st.sampled_from([0xE3, 0xE5, 0xEC, 0xEF]), st.binary(max_size=30)).map(lambda v: segment(*v)),
        )
    )


def split(data):
    """A JPEG's segments before its scan, and the rest."""
    parts, at = [], 2
    while data[at + 1] != 0xDA:
        end = at + 2 + int.from_bytes(data[at + 2 : at + 4], "big")
        parts.append(data[at:end])
        at = end
    return parts, data[at:]


junk = st.one_of(
    st.binary(max_size=6).map(lambda b: b.replace(b"\xff", b"\xff\0")), st.integers(0, 4).map(lambda n: b"\xff" * n)
)
stray = st.one_of(st.just(b""), st.just(b""), junk)


@st.composite
def jpegs(draw):
    """A whole picture with an odd header: described badly or twice, in another order, with fill or stray bytes."""
    mode = draw(st.sampled_from(["L", "RGB", "RGB", "CMYK"]))
    image = PHOTO.convert(mode).crop((200, 100, 200 + draw(st.integers(1, 60)), 100 + draw(st.integers(1, 60))))
    how = {"quality": draw(st.sampled_from([5, 75, 95])), "progressive": draw(st.booleans())}
    how |= {"subsampling": draw(st.integers(0, 2))} if mode == "RGB" else {}
    parts, rest = split(encoded(image, "JPEG", **how, restart_marker_blocks=draw(st.sampled_from([0, 0, 1, 3]))))
    for piece in draw(st.lists(described(mode == "RGB"), max_size=4)):
        parts.insert(draw(st.integers(0, len(parts))), piece)
    if draw(st.booleans()):
        parts = draw(st.permutations(parts))
    bare = b"".join(
        part for part in parts if not part.startswith((b"\xff\xe0", b"\xff\xe2")) and len(part) != 9 and len(part) != 12
    )
    data = (
        b"\xff\xd8" + b"".join(draw(stray) + part for part in parts) + draw(stray) + rest + draw(st.binary(max_size=9))
    )
    return data, b"\xff\xd8" + bare + rest


@family
@given(jpegs())
def test_decode_jpeg_with_odd_header_equals_pillow(files):
    """Where Pillow itself trips over a description: its picture without that, or none."""
    data, bare = files
    if pillows(data) is not None:
        check(data)
    elif ours(data) is not None:
        assert np.array_equal(ours(data), pillows(bare))


def test_decode_jpeg_with_header_and_data_damaged_is_refused():
    parts, rest = split(encoded(PHOTO.crop((0, 0, 90, 90)), "JPEG"))
    for end in (rest[: len(rest) // 2], rest[:-2], rest[:200] + bytes(len(rest) - 200)):
        assert ours(b"\xff\xd8" + b"stray" + b"".join(parts) + end) is None


@st.composite
def stray_scans(draw):
    """A JPEG of several intervals or scans, with stray bytes after some; and the same with the last one cut."""
    mode, progressive = draw(st.sampled_from(["L", "RGB", "CMYK"])), draw(st.booleans())
    image = PHOTO.convert(mode).crop((200, 100, 200 + draw(st.sampled_from([17, 60, 96])), 196))
    parts, rest = split(
        encoded(image, "JPEG", quality=95, progressive=progressive, restart_marker_rows=0 if progressive else 1)
    )
    codes = (0xC4, 0xDA) if progressive else range(0xD0, 0xD8)  # what follows entropy-coded data
    ends = [k for k in range(14, len(rest) - 1) if rest[k] == 0xFF and rest[k + 1] in codes]
    if progressive:  # a scan's header that follows its table, follows no data
        ends = [
            k
            for k in ends
            if not any(k == t + 2 + int.from_bytes(rest[t + 2 : t + 4], "big") for t in ends if rest[t + 1] == 0xC4)
        ]
    chosen = sorted(draw(st.lists(st.sampled_from(ends), min_size=1, max_size=4, unique=True)))
    data = b"\xff\xd8" + b"".join(parts)
    for begin, end in zip([0, *chosen], chosen, strict=False):
        data += rest[begin:end] + draw(st.binary(min_size=1, max_size=5)).replace(b"\xff", b"\xff\0")
    last = max(k for k in range(len(rest) - 1) if rest[k] == 0xFF and rest[k + 1] not in (0, 0xD9))
    last += 2 + (int.from_bytes(rest[last + 2 : last + 4], "big") if progressive else 0)
    cut = data + rest[chosen[-1] : last] + rest[last : (last + len(rest)) // 2] + b"\xff\xd9"
    return data + rest[chosen[-1] :], cut if len(rest) - last > 20 else b"\xff\xd8\xff"


@family
@given(stray_scans())
def test_decode_jpeg_stray_bytes_pass_and_cut_data_is_refused(files):
    whole, broken = files
    check(whole)
    assert ours(broken) is None


# ------------------------------------------------------------------------ PNG


def chunk(name, body):
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


def raw_profile(block, compressed):
    text, key = f"\nexif\n{len(block):8}\n{block.hex()}\n".encode(), b"Raw profile type exif\0"
    return chunk(b"zTXt", key + b"\0" + zlib.compress(text)) if compressed else chunk(b"tEXt", key + text)


GREY, COLOUR, PALETTE, GREY_ALPHA, ALPHA = CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}
KINDS = [(8, 2), (8, 0), (8, 2), (1, 0), (2, 0), (4, 0)]  # bits, colour type
KINDS += [(8, 3), (4, 3), (8, 4), (8, 6), (16, 2), (16, 6)]


@st.composite
def pngs(draw):
    """A whole PNG of any kind and depth, with chunks that describe it, turn it, clear a colour, or animate it."""
    depth, colour = draw(st.sampled_from(KINDS))
    width, height, channels = draw(st.integers(1, 20)), draw(st.integers(1, 12)), CHANNELS[colour]
    rng = np.random.default_rng(draw(st.integers(0, 99)))
    pixels = rng.integers(0, 256, (height, -(-width * channels * depth // 8)), dtype=np.uint8)
    data = zlib.compress(b"".join(bytes([draw(st.integers(0, 4))]) + row.tobytes() for row in pixels))
    before = [chunk(b"PLTE", rng.bytes(3 * 2**depth))] if colour == PALETTE else []
    clear = {GREY: struct.pack(">H", int(pixels[0, 0]) % 2**depth), PALETTE: bytes([0, 99, 255])}
    clear |= {COLOUR: struct.pack(">3H", *np.resize(pixels[0], 3).tolist())}
    block = draw(exif_blocks())
    odd = [
        chunk(b"eXIf", block),
        raw_profile(block, draw(st.booleans())),
        chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + draw(xmp_packets())),
        chunk(b"acTL", struct.pack(">II", 1, 0)),
        chunk(b"gAMA", struct.pack(">I", draw(st.sampled_from([45455, 100000])))),
        chunk(b"bKGD", bytes({2: 6, 3: 1, 6: 6}.get(colour, 2))),
        chunk(b"sBIT", bytes([3] * (3 if colour == 3 else channels))),
        chunk(b"iCCP", b"x\0\0" + zlib.compress(b"no profile")),
        chunk(b"tEXt", b"Comment\0Orientation 6"),
        *([chunk(b"tRNS", clear[colour])] if colour in clear and (colour != 2 or depth == 8) else []),
    ]
    pieces = draw(st.lists(st.sampled_from(odd), max_size=3, unique=True))
    after = [piece for piece in pieces if piece[4:8] in (b"eXIf", b"tEXt", b"zTXt", b"iTXt") and draw(st.booleans())]
    before += [piece for piece in pieces if piece not in after]
    at = draw(st.integers(0, len(data)))
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    parts = [
        chunk(b"IHDR", header),
        *before,
        chunk(b"IDAT", data[:at]),
        chunk(b"IDAT", data[at:]),
        *after,
        chunk(b"IEND", b""),
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


@family
@given(pngs())
def test_decode_odd_png_equals_pillow(data):
    check(data)


# ------------------------------------------------------------------------ deep samples


def tiff(samples, order, turn):
    """An uncompressed TIFF of `samples` (H, W) or (H, W, 3), of their own type, in one strip."""
    high, wide, bands = (*samples.shape, 1)[:3]
    kind = {"u": 1, "i": 2, "f": 3}[samples.dtype.kind]
    pixels = samples.astype(samples.dtype.newbyteorder(order)).tobytes()
    bits = samples.dtype.itemsize * 8
    head, room = (
        (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(order + "I", 20),
        struct.pack(order + "4H", *[bits] * 3, 0),
    )
    tags = [
        (256, 4, 1, wide),
        (257, 4, 1, high),
        (258, 3, bands, bits if bands == 1 else 8),
        (259, 3, 1, 1),
        (262, 3, 1, 1 + bands // 3),
    ]
    tags += [
        (273, 4, 1, 200),
        (274, 3, 1, turn),
        (277, 3, 1, bands),
        (278, 4, 1, high),
        (279, 4, 1, len(pixels)),
        (339, 3, 1, kind),
    ]
    body = b""
    for tag, form, count, value in tags:
        packed = struct.pack(order + "HH", value, 0) if form == 3 and count == 1 else struct.pack(order + "I", value)
        body += struct.pack(order + "HHI", tag, form, count) + packed
    return (head + room + bytes(4) + struct.pack(order + "H", len(tags)) + body + bytes(4)).ljust(200, b"\0") + pixels


def png16(samples, order, turn):
    high, wide, bands = (*samples.shape, 1)[:3]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in samples)
    header = struct.pack(">IIBBBBB", wide, high, 16, 2 if bands == 3 else 0, 0, 0, 0)
    block = b"MM\0*\0\0\0\x08\0\1" + struct.pack(">HHIHH", 0x0112, 3, 1, turn, 0) + bytes(4)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"eXIf", block)
        + chunk(b"IDAT", zlib.compress(rows))
        + chunk(b"IEND", b"")
    )


@st.composite
def deep(draw):
    """(samples, file): of integers or floating point, in any range."""
    kind = draw(st.sampled_from(["u2", "u2", "i2", "u4", "i4", "f4", "f8"]))
    bands = draw(st.sampled_from([0, 3])) if kind == "u2" else 0
    shape = (draw(st.integers(1, 9)), draw(st.integers(1, 9)), bands)[: 3 if bands else 2]
    limits = {"u2": 65535, "i2": 32767, "u4": 2**32 - 1, "i4": 2**31 - 1, "f4": 1e30, "f8": 1e300}
    top = min(
        limits[kind],
        draw(st.sampled_from([0, 1, 3, 60, 200, 255, 1000, 4095, 16000, 16383, 16384, 65535, 70000, 3e9, 1e30])),
    )
    least = draw(st.sampled_from([0, 0, -1, -1024])) if kind[0] != "u" else 0
    share = np.random.default_rng(draw(st.integers(0, 99))).random(shape)
    share.flat[0] = 1
    samples = np.clip(least + share * (top - least), least, top).astype(kind)
    turn, order = draw(st.integers(1, 8)), draw(st.sampled_from("<>"))
    return samples, (png16 if kind == "u2" and draw(st.booleans()) else tiff)(samples, order, turn), turn


@family
@given(deep())
def test_decode_deep_samples_keep_order_and_range(made):
    samples, data, turn = made
    got = ours(data)
    if got is None:
        assert pillows(data) is None  # 64 bits, or several bands of them
        return
    wanted = PIL.ImageOps.exif_transpose(PIL.Image.open(io.BytesIO(data)))
    assert got.shape[:2] == wanted.size[::-1]
    upright = {2: np.fliplr, 3: lambda a: np.rot90(a, 2), 4: np.flipud, 5: lambda a: a.swapaxes(0, 1)}
    upright |= {6: lambda a: np.rot90(a, -1), 7: lambda a: np.rot90(a.swapaxes(0, 1), 2), 8: np.rot90}
    turned = upright.get(turn, np.asarray)(samples).astype(np.float64)
    shown = got if samples.ndim == 3 else got[..., 0]
    low, high = min(0, turned.min()), turned.max()
    order = np.argsort(turned, axis=None)
    assert (np.diff(shown.ravel()[order].astype(int)) >= 0).all()
    assert shown.max() >= 63 or high == 0 == low
    if samples.dtype.kind == "u" and 64 <= high <= 255:
        assert np.array_equal(shown, turned)
    if samples.dtype == np.uint16 and high > 16383:
        assert np.abs(shown - turned / 257).max() <= 1


@pytest.mark.parametrize("wrong", [np.nan, np.inf, -np.inf])
def test_decode_samples_not_finite_are_refused(wrong):
    samples = np.ones((4, 5), np.float32)
    samples[2, 2] = wrong
    with pytest.raises(ImageError, match="NaN or infinite"):
        decode(tiff(samples, "<", 1))
