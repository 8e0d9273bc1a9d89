"""Decoding against Pillow: every kind of image, every orientation, every cut; scaled decoding against a full resize."""

import io
import struct
import zlib

import cv2
import numpy as np
import PIL.Image
import PIL.ImageOps
import pytest

from dataloader.decode import decode, from_pillow, read_image
from dataloader.file_list import read_list
from dataloader.geometry import RandomCrop, crop_resize
from utils.errors import ImageError


def encoded(image, kind, **settings):
    file = io.BytesIO()
    image.save(file, kind, **settings)
    return file.getvalue()


@pytest.fixture
def photo(photos):
    return PIL.Image.fromarray(photos[0][:201, :303])


LOSSLESS = {
    "png": lambda p: (p, "PNG", {}),
    "grey png": lambda p: (p.convert("L"), "PNG", {}),
    "palette png": lambda p: (p.quantize(64), "PNG", {}),
    "bmp": lambda p: (p, "BMP", {}),
    "tiff": lambda p: (p, "TIFF", {}),
    "gif": lambda p: (p.quantize(64), "GIF", {}),
    "webp": lambda p: (p, "WEBP", {"lossless": True}),
}


@pytest.mark.parametrize("kind", LOSSLESS)
def test_decode_lossless_format_equals_pillow(photo, kind):
    image, name, settings = LOSSLESS[kind](photo)
    got, size = decode(encoded(image, name, **settings))
    assert size == (201, 303)
    assert np.array_equal(got, np.asarray(image.convert("RGB")))


@pytest.mark.parametrize("settings", [{}, {"progressive": True}, {"subsampling": 0}], ids=str)
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_decode_jpeg_is_close_to_pillow(photo, mode, settings):
    data = encoded(photo.convert(mode), "JPEG", quality=90, **settings)
    wanted = np.asarray(PIL.Image.open(io.BytesIO(data)).convert("RGB")).astype(int)
    assert np.abs(decode(data)[0].astype(int) - wanted).mean() < 0.5


def test_decode_cmyk_alpha_and_16_bits_give_rgb(photo):
    data = encoded(photo.convert("CMYK"), "JPEG", quality=95)
    assert np.abs(decode(data)[0].astype(int) - np.asarray(photo).astype(int)).mean() < 6
    clear = PIL.Image.new("RGBA", (5, 4), (255, 0, 0, 0))
    assert (decode(encoded(clear, "PNG"))[0] == 255).all()
    deep = PIL.Image.fromarray((np.arange(200, dtype=np.uint16) * 300).reshape(10, 20))
    assert np.array_equal(decode(encoded(deep, "PNG"))[0][..., 1], np.asarray(deep) // 257)


@pytest.mark.parametrize("turn", range(1, 9))
def test_decode_jpeg_with_orientation_is_upright(photo, turn):
    exif = PIL.Image.Exif()
    exif[0x0112] = turn
    data = encoded(photo, "JPEG", quality=95, exif=exif)
    wanted = np.asarray(PIL.ImageOps.exif_transpose(PIL.Image.open(io.BytesIO(data)))).astype(int)
    got, size = decode(data)
    assert got.shape == wanted.shape
    assert size == wanted.shape[:2]
    assert np.abs(got.astype(int) - wanted).mean() < 0.5


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF"])
def test_read_image_truncated_file_raises_with_its_path(photo, kind, tmp_path):
    data = encoded(photo, kind)
    for tenth in range(10):
        (tmp_path / "x").write_bytes(data[: len(data) * tenth // 10])
        with pytest.raises(ImageError, match=str(tmp_path / "x")):
            read_image(str(tmp_path / "x"))


def test_read_image_not_an_image_raises(tmp_path, photo):
    (tmp_path / "text.jpg").write_text("hello")
    for path in ("text.jpg", "gone.jpg", "."):
        with pytest.raises(ImageError):
            read_image(str(tmp_path / path))
    (tmp_path / "png.jpg").write_bytes(encoded(photo, "PNG"))
    assert read_image(str(tmp_path / "png.jpg"))[1] == (201, 303)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "BMP", "WEBP", "GIF", "TIFF"])
def test_decode_over_max_pixels_raises_and_at_limit_passes(photo, kind):
    data = encoded(photo.crop((0, 0, 40, 30)), kind)
    assert decode(data, max_pixels=1200)[1] == (30, 40)
    with pytest.raises(ImageError, match="40x30 is over 1199 pixels.*bomb.*--max_pixels"):
        decode(data, lambda height, width: 0.1, max_pixels=1199)


@pytest.mark.parametrize(("scale", "zoom"), [(256, 0.8), (224, 0.08)])
def test_decode_scaled_is_nearer_to_antialias_than_bilinear(photos, scale, zoom):
    """Over random crops of fine textures, against Pillow; the usual way is a full decode and OpenCV's bilinear."""
    photos = [cv2.resize(photo, None, fx=1.6, fy=1.6, interpolation=cv2.INTER_CUBIC) for photo in photos]
    crop = RandomCrop(scale, zoom, 0.75)
    ours, usual = [], []
    for k in range(24):
        data = encoded(PIL.Image.fromarray(photos[k % 3]), "JPEG", quality=90)
        placed = []
        rng = np.random.default_rng(k)

        def need(height, width, rng=rng, placed=placed):
            placed.append(crop.choose_region(height, width, rng))
            return placed[0].decode_scale()

        image, full = decode(data, need)
        region = placed[0]
        box = (region.left, region.top, region.left + region.width, region.top + region.height)
        whole = PIL.Image.open(io.BytesIO(data)).convert("RGB")
        wanted = np.asarray(whole.resize((scale, scale), PIL.Image.Resampling.BILINEAR, box=box)).astype(int)
        part = np.asarray(whole)[box[1] : box[3], box[0] : box[2]]
        ours.append(np.abs(crop_resize(image, full, region).astype(int) - wanted).mean())
        usual.append(np.abs(cv2.resize(part, (scale, scale)).astype(int) - wanted).mean())
    assert np.mean(ours) < np.mean(usual)


# ------------------------------------------------------------------------ kinds of images


def over_white(picture):
    """A picture with alpha over white, by the plain formula; float."""
    rgba = np.asarray(picture.convert("RGBA")).astype(float)
    share = rgba[..., 3:] / 255
    return rgba[..., :3] * share + 255 * (1 - share)


def transparent(photo, mode):
    """The photograph with an alpha that runs from nought to full, in `mode`."""
    picture = photo.convert("RGBA")
    picture.putalpha(
        PIL.Image.fromarray(np.tile(np.linspace(0, 255, picture.width).astype(np.uint8), (picture.height, 1)))
    )
    return picture if mode == "RGBA" else picture.convert(mode)


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
@pytest.mark.parametrize("kind", ["PNG", "TIFF", "WEBP"])
def test_decode_alpha_is_blended_over_white(photo, kind, mode):
    picture = transparent(photo, mode)
    data = encoded(picture, kind, **({"lossless": True, "exact": True} if kind == "WEBP" else {}))
    assert np.abs(decode(data)[0] - over_white(picture)).max() <= 1


@pytest.mark.parametrize("kind", ["PNG", "GIF"])
def test_decode_palette_transparency_is_white(photo, kind):
    picture = photo.quantize(16)
    got = decode(encoded(picture, kind, transparency=3))[0]
    clear = np.asarray(picture) == 3
    assert clear.any()
    assert (got[clear] == 255).all()
    assert np.array_equal(got[~clear], np.asarray(picture.convert("RGB"))[~clear])


def chunk(name, body):
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


@pytest.mark.parametrize("before", [0, 5000, 100_000])
def test_decode_png_late_trns_chunk_is_white(photo, before):
    data = encoded(photo, "PNG")
    colour = np.asarray(photo)[100, 100]
    note = chunk(b"tEXt", b"note\0" + b"x" * before) + chunk(b"tRNS", struct.pack(">3H", *colour.tolist()))
    got = decode(data[:33] + note + data[33:])[0]
    clear = (np.asarray(photo) == colour).all(axis=2)
    assert (got[clear] == 255).all()
    assert np.array_equal(got[~clear], np.asarray(photo)[~clear])


def test_decode_bmp_with_alpha_is_blended_over_white(photo):
    """Version 4 of the header, which names an alpha mask; Pillow writes none such."""
    picture = transparent(photo, "RGBA")
    pixels = np.ascontiguousarray(np.asarray(picture)[::-1, :, [2, 1, 0, 3]]).tobytes()
    head = struct.pack("<IiiHHIIiiII", 108, *picture.size, 1, 32, 3, len(pixels), 0, 0, 0, 0)
    head += struct.pack("<4I", 0xFF0000, 0xFF00, 0xFF, 0xFF000000) + b"BGRs" + bytes(48)
    data = b"BM" + struct.pack("<IHHI", 14 + len(head) + len(pixels), 0, 0, 14 + len(head)) + head + pixels
    assert np.abs(decode(data)[0] - over_white(picture)).max() <= 1


@pytest.mark.parametrize(
    "kind", ["1 bit png", "palette bmp", "grey bmp", "interlaced png", "animated gif", "animated webp", "two-page tiff"]
)
def test_decode_odd_kinds_equal_pillows_first_frame(photo, kind):
    other = photo.transpose(PIL.Image.Transpose.ROTATE_180)
    several = {"save_all": True, "append_images": [other]}
    data = {
        "1 bit png": lambda: encoded(photo.convert("1"), "PNG"),
        "palette bmp": lambda: encoded(photo.quantize(200), "BMP"),
        "grey bmp": lambda: encoded(photo.convert("L"), "BMP"),
        "interlaced png": lambda: cv2.imencode(".png", np.asarray(photo)[..., ::-1])[1].tobytes(),
        "animated gif": lambda: encoded(photo.quantize(64), "GIF", **several),
        "animated webp": lambda: encoded(photo, "WEBP", lossless=True, **several),
        "two-page tiff": lambda: encoded(photo, "TIFF", **several),
    }[kind]()
    wanted = np.asarray(PIL.Image.open(io.BytesIO(data)).convert("RGB"))
    assert np.array_equal(decode(data)[0], wanted)


@pytest.mark.parametrize("kind", [".png", ".tiff"])
@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_decode_16_bits_keeps_upper_8(photo, kind, mode):
    small = np.asarray(photo.convert(mode))
    deep = small.astype(np.uint16) * 257
    data = cv2.imencode(kind, deep[..., ::-1] if mode == "RGB" else deep)[1].tobytes()
    assert np.array_equal(decode(data)[0], np.asarray(photo.convert(mode).convert("RGB")))


@pytest.mark.parametrize("kind", [".png", ".tiff"])
@pytest.mark.parametrize("channels", [3, 4])
@pytest.mark.parametrize("from_path", [True, False])
def test_from_pillow_of_12_bits_in_16_is_that_of_the_file(tmp_path, kind, channels, from_path):
    """Pillow keeps the upper 8 bits alone, in which an image of 12 bits is nearly black."""
    samples = np.random.default_rng(0).integers(0, 4096, (16, 16, channels), dtype=np.uint16)
    data = cv2.imencode(kind, samples)[1].tobytes()
    (tmp_path / "a").write_bytes(data)
    with PIL.Image.open(tmp_path / "a" if from_path else io.BytesIO(data)) as image:
        assert np.array_equal(from_pillow(image), decode(data)[0])
    assert decode(data)[0].mean() > 100


# ------------------------------------------------------------------------ orientation


def directory(order, *entries):
    """An EXIF block of one directory: (tag, value) each, 16-bit values, in byte order "<" or ">"."""
    body = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(order + "IH", 8, len(entries))
    return body + b"".join(struct.pack(order + "HHIHH", tag, 3, 1, value, 0) for tag, value in entries) + bytes(4)


def segment(marker, body):
    return bytes([0xFF, marker]) + struct.pack(">H", len(body) + 2) + body


def upright(data):
    return PIL.ImageOps.exif_transpose(PIL.Image.open(io.BytesIO(data)))


@pytest.mark.parametrize("turn", range(1, 9))
@pytest.mark.parametrize("order", ["<", ">"])
def test_decode_exif_of_either_byte_order_is_upright(photo, turn, order):
    data = encoded(photo, "JPEG", quality=95)
    exif = segment(0xE1, b"Exif\0\0" + directory(order, (0x010F, 1), (0x0112, turn), (0x0128, 2)))
    others = (
        segment(0xE1, b"http://ns.adobe.com/xap/1.0/\0<x/>") + segment(0xFE, b"a comment") + segment(0xE2, b"ICC" * 900)
    )
    data = data[:2] + others + exif + data[2:]
    wanted = np.asarray(upright(data)).astype(int)
    got, size = decode(data)
    assert size == got.shape[:2] == wanted.shape[:2]
    assert np.abs(got - wanted).mean() < 0.5


@pytest.mark.parametrize("turn", range(1, 9))
@pytest.mark.parametrize("kind", ["PNG", "WEBP", "TIFF"])
def test_decode_other_format_with_orientation_is_upright(photo, turn, kind):
    exif = PIL.Image.Exif()
    exif[0x0112] = turn
    data = encoded(photo, kind, exif=exif, **({"lossless": True} if kind == "WEBP" else {}))
    assert np.array_equal(decode(data)[0], np.asarray(upright(data)))


@pytest.mark.parametrize("turn", range(1, 9))
def test_decode_need_gets_upright_size_and_scaled_is_turned(photo, turn):
    exif = PIL.Image.Exif()
    exif[0x0112] = turn
    asked = []
    data = encoded(photo, "JPEG", quality=95, exif=exif)
    small, size = decode(data, lambda height, width: asked.append((height, width)) or 0.25)
    whole = upright(data)
    assert asked == [size] == [(whole.height, whole.width)]
    wanted = np.asarray(whole.resize(small.shape[1::-1], PIL.Image.Resampling.BOX)).astype(int)
    assert np.abs(small - wanted).mean() < 10
    turned = [np.abs(view - wanted).mean() for view in (small[::-1], small[:, ::-1], small[::-1, ::-1])]
    assert np.abs(small - wanted).mean() < min(turned) / 2


DAMAGED = {
    "nought": directory("<", (0x0112, 0)),
    "nine": directory(">", (0x0112, 9)),
    "no directory": b"II*\0" + struct.pack("<I", 4_000_000_000),
    "cut short": directory("<", (0x0112, 6))[:15],
    "other letters": b"XX*\0" + bytes(30),
    "nothing": b"",
}


@pytest.mark.parametrize("kind", DAMAGED)
def test_decode_damaged_exif_is_ignored(photo, kind):
    data = encoded(photo, "JPEG", quality=95)
    got, size = decode(data[:2] + segment(0xE1, b"Exif\0\0" + DAMAGED[kind]) + data[2:])
    assert size == (201, 303)
    assert np.array_equal(got, decode(data)[0])


# ------------------------------------------------------------------------ scaled decoding


@pytest.mark.parametrize("factor", [0.01, 0.125, 0.126, 0.25, 0.374, 0.5, 0.62, 0.75, 0.876, 1.0, 3.0])
def test_decode_jpeg_uses_smallest_sufficient_scale(photo, factor):
    image, size = decode(encoded(photo, "JPEG"), lambda *_: factor)
    eighths = next(n for n in (1, 2, 3, 4, 8) if n == 8 or n / 8 >= factor)
    assert size == (201, 303)
    assert image.shape == (-(-201 * eighths // 8), -(-303 * eighths // 8), 3)


@pytest.mark.parametrize("kind", ["PNG", "BMP", "WEBP"])
def test_decode_other_formats_ignore_scale(photo, kind):
    image, size = decode(encoded(photo, kind), lambda *_: 0.1)
    assert image.shape[:2] == size == (201, 303)


# ------------------------------------------------------------------------ damage


FORMATS = {
    "JPEG": ("JPEG", {}),
    "progressive": ("JPEG", {"progressive": True}),
    "PNG": ("PNG", {}),
    "WEBP": ("WEBP", {}),
    "BMP": ("BMP", {}),
    "GIF": ("GIF", {}),
    "TIFF": ("TIFF", {}),
    "LZW": ("TIFF", {"compression": "tiff_lzw"}),
}


def test_decode_jpeg_with_trailing_bytes_is_accepted(photo):
    """Some cameras pad before the end marker; libjpeg warns, and everyone shows the picture."""
    data = encoded(photo, "JPEG")
    for padded in (data[:-2] + bytes(12) + data[-2:], data + b"junk" * 99):
        assert np.array_equal(decode(padded)[0], decode(data)[0])
        assert decode(padded, lambda *_: 0.25)[0].shape == (51, 76, 3)


@pytest.mark.parametrize("sampling", [0x31, 0x13, 0x41, 0x14])
def test_decode_jpeg_with_unnamed_sampling_equals_pillow(photo, sampling):
    """Of the second component; the picture is scrambled, since the data are as they were."""
    data = bytearray(encoded(photo.crop((0, 0, 16, 16)), "JPEG", subsampling=0))
    data[data.index(b"\xff\xc0") + 14] = sampling
    wanted = np.asarray(PIL.Image.open(io.BytesIO(bytes(data))).convert("RGB"))
    assert np.array_equal(decode(bytes(data))[0], wanted)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", [*FORMATS, "grey PNG"])
def test_decode_truncated_at_any_byte_is_whole_or_refused(photo, kind):
    """Down to the last byte: an error, or the whole picture."""
    data = (
        encoded(photo.convert("L"), "PNG")
        if kind == "grey PNG"
        else encoded(photo, FORMATS[kind][0], **FORMATS[kind][1])
    )
    whole = decode(data)[0]
    refused = 0
    for missing in (1, 2, 3, 4, 5, 8, 12, 13, 16, 20, 50, 200, 1000):
        try:
            got = decode(data[:-missing])[0]
        except ImageError:
            refused += 1
        else:
            assert np.array_equal(got, whole)
    assert refused > 0


@pytest.mark.filterwarnings("ignore")  # Pillow's of damaged TIFF directories
@pytest.mark.parametrize("kind", FORMATS)
def test_decode_changed_bytes_equal_pillow_or_raise_image_error(photo, kind):
    whole = encoded(photo.crop((0, 0, 40, 30)), FORMATS[kind][0], **FORMATS[kind][1])
    rng = np.random.default_rng(0)
    refused = 0
    for k in range(120):
        data = bytearray(whole)
        for at in rng.integers(len(data) if k % 2 else min(80, len(data)), size=rng.integers(1, 4)):
            data[at] = rng.integers(256)
        try:
            image, size = decode(bytes(data), max_pixels=1_000_000)  # or changed sizes take seconds
        except ImageError:
            refused += 1
            continue
        assert image.dtype == np.uint8
        assert image.shape == (*size, 3)
        if kind in ("JPEG", "progressive", "PNG"):  # ours; what is damaged elsewhere may have become transparent
            assert np.array_equal(image, upright(bytes(data)).convert("RGB"))
    assert 0 < refused < 120


BROKEN = {
    "nothing": (b"", "empty"),
    "text": (b"hello, this is text", "not a readable image"),
    "zeros": (bytes(1000), "not a readable image"),
    "the start of a jpeg": (b"\xff\xd8\xff", "not a readable image|damaged JPEG"),
    "the start of a png": (b"\x89PNG\r\n\x1a\n", "not a readable image"),
    "the start of a bmp": (b"BM", "not a readable image"),
    "a web page": (b"\n<!DOCTYPE html><html>404</html>" * 20, ": a web page, not the image$"),
    "a pointer": (
        b"version https://git-lfs.github.com/spec/v1\n",
        r": a Git LFS pointer, not the image \(try: git lfs pull\)$",
    ),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_read_image_broken_file_repeats_path_and_reason(tmp_path, kind):
    path = tmp_path / "x y.jpg"
    path.write_bytes(BROKEN[kind][0])
    texts = set()
    for _ in range(2):
        with pytest.raises(ImageError, match=BROKEN[kind][1]) as error:
            read_image(str(path))
        texts.add(str(error.value))
    assert len(texts) == 1
    assert f"{path}: " in texts.copy().pop()
    assert " at 0x" not in texts.pop()  # an address in memory


@pytest.mark.parametrize(
    ("name", "reason"), [("gone.jpg", "No such file"), (".", "Is a directory"), ("x" * 300, "File name too long")]
)
def test_read_image_unopenable_names_systems_reason(tmp_path, name, reason):
    with pytest.raises(ImageError, match=reason) as error:
        read_image(str(tmp_path / name))
    assert str(tmp_path / name) in str(error.value)


@pytest.mark.parametrize("side", [13_400, 60_000])
@pytest.mark.parametrize("kind", ["PNG", "BMP", "JPEG", "GIF", "TIFF"])
def test_decode_huge_header_is_refused_without_allocation(photo, kind, side):
    """Just above the limit, and far above Pillow's own double of it."""
    data = bytearray(encoded(photo.crop((0, 0, 8, 8)), kind))
    if kind == "PNG":
        data[16:24] = struct.pack(">II", side, side)
        data[29:33] = struct.pack(">I", zlib.crc32(data[12:29]))
    elif kind == "BMP":
        data[18:26] = struct.pack("<ii", side, side)
    elif kind == "JPEG":
        at = data.index(b"\xff\xc0")
        data[at + 5 : at + 9] = struct.pack(">HH", side, side)
    elif kind == "GIF":
        data[6:10] = struct.pack("<HH", side, side)
    else:
        for tag in (256, 257):  # width, height
            at = data.index(struct.pack("<HHI", tag, 4, 1))
            data[at + 8 : at + 12] = struct.pack("<I", side)
    with pytest.raises(ImageError, match=rf"{side}x{side} is over|{side * side} pixels"):
        decode(bytes(data))


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF"])
def test_decode_truncated_prints_nothing(photo, kind, capfd):
    """OpenCV and libpng would print a line for each epoch's attempt, without the path."""
    data = encoded(photo, FORMATS[kind][0], **FORMATS[kind][1])
    with pytest.raises(ImageError):
        decode(data[: len(data) // 2])
    assert capfd.readouterr().err == ""


def test_thumbnail_is_upright_small_and_over_white(photo, tmp_path):
    exif = PIL.Image.Exif()
    exif[0x0112] = 6
    (tmp_path / "turned.jpg").write_bytes(encoded(photo, "JPEG", quality=95, exif=exif))
    PIL.Image.new("RGBA", (30, 20), (200, 0, 0, 0)).save(tmp_path / "clear.png")
    (tmp_path / "list.txt").write_text("turned.jpg 0\nclear.png 1\nnone.jpg 0\n")
    files = read_list(tmp_path / "list.txt")
    turned, clear, none = (files.thumbnail(index, 64) for index in range(3))
    assert max(turned.shape) == 64
    wanted = PIL.ImageOps.exif_transpose(PIL.Image.open(tmp_path / "turned.jpg")).resize(
        turned.shape[1::-1], PIL.Image.Resampling.BOX
    )
    assert (
        np.abs(turned.astype(int) - np.asarray(wanted)).mean()
        < 9
        < np.abs(turned[::-1].astype(int) - np.asarray(wanted)).mean()
    )
    assert clear.shape == (20, 30, 3) and (clear == 255).all()
    assert none is None
