"""Decoding against Pillow: every kind of image, every orientation, every cut; scaled decoding against a full resize."""

import io

import cv2
import numpy as np
import PIL.Image
import PIL.ImageOps
import pytest

from dataloader import decode as decoding
from dataloader.decode import decode, read_image
from dataloader.geometry import Fit, RandomCrop, cut
from utils.errors import ImageError
from utils.preprocess import Preprocess


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
def test_lossless_formats_are_pillows_to_the_bit(photo, kind):
    image, name, settings = LOSSLESS[kind](photo)
    got, size = decode(encoded(image, name, **settings))
    assert size == (201, 303)
    assert np.array_equal(got, np.asarray(image.convert("RGB")))


@pytest.mark.parametrize("settings", [{}, {"progressive": True}, {"subsampling": 0}], ids=str)
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_jpeg_is_pillows(photo, mode, settings):
    data = encoded(photo.convert(mode), "JPEG", quality=90, **settings)
    wanted = np.asarray(PIL.Image.open(io.BytesIO(data)).convert("RGB")).astype(int)
    assert np.abs(decode(data)[0].astype(int) - wanted).mean() < 0.5


def test_cmyk_alpha_and_16_bits(photo):
    data = encoded(photo.convert("CMYK"), "JPEG", quality=95)
    assert np.abs(decode(data)[0].astype(int) - np.asarray(photo).astype(int)).mean() < 6
    clear = PIL.Image.new("RGBA", (5, 4), (255, 0, 0, 0))
    assert (decode(encoded(clear, "PNG"))[0] == 255).all()
    deep = PIL.Image.fromarray((np.arange(200, dtype=np.uint16) * 300).reshape(10, 20))
    assert np.array_equal(decode(encoded(deep, "PNG"))[0][..., 1], np.asarray(deep) // 257)


@pytest.mark.parametrize("turn", range(1, 9))
def test_exif_orientation(photo, turn):
    exif = PIL.Image.Exif()
    exif[0x0112] = turn
    data = encoded(photo, "JPEG", quality=95, exif=exif)
    wanted = np.asarray(PIL.ImageOps.exif_transpose(PIL.Image.open(io.BytesIO(data)))).astype(int)
    got, size = decode(data)
    assert got.shape == wanted.shape
    assert size == wanted.shape[:2]
    assert np.abs(got.astype(int) - wanted).mean() < 0.5


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF"])
def test_a_cut_file_is_an_error_and_never_half_a_picture(photo, kind, tmp_path):
    data = encoded(photo, kind)
    for tenth in range(10):
        (tmp_path / "x").write_bytes(data[: len(data) * tenth // 10])
        with pytest.raises(ImageError, match=str(tmp_path / "x")):
            read_image(str(tmp_path / "x"))


def test_what_is_no_image(tmp_path, photo):
    (tmp_path / "text.jpg").write_text("hello")
    for path in ("text.jpg", "gone.jpg", "."):
        with pytest.raises(ImageError):
            read_image(str(tmp_path / path))
    (tmp_path / "png.jpg").write_bytes(encoded(photo, "PNG"))
    assert read_image(str(tmp_path / "png.jpg"))[1] == (201, 303)


def test_bombs_are_refused(photo, monkeypatch):
    monkeypatch.setattr(decoding, "MAX_PIXELS", 1000)
    for kind in ("JPEG", "PNG", "BMP", "WEBP"):
        with pytest.raises(ImageError, match="bomb"):
            decode(encoded(photo, kind))


@pytest.mark.parametrize(("scale", "zoom"), [(256, 0.8), (224, 0.08)])
def test_scaled_decoding_is_nearer_to_an_antialiased_resize_than_the_usual_way(photos, scale, zoom):
    """Over random crops of finely textured photographs, against Pillow; the usual way: decode in full, bilinear by OpenCV."""
    photos = [cv2.resize(photo, None, fx=1.6, fy=1.6, interpolation=cv2.INTER_CUBIC) for photo in photos]
    crop = RandomCrop(scale, zoom, 0.75)
    ours, usual = [], []
    for k in range(24):
        data = encoded(PIL.Image.fromarray(photos[k % 3]), "JPEG", quality=90)
        placed = []
        rng = np.random.default_rng(k)

        def need(height, width, rng=rng, placed=placed):
            placed.append(crop.place(height, width, rng))
            return placed[0].factor()

        image, full = decode(data, need)
        region = placed[0]
        box = (region.left, region.top, region.left + region.width, region.top + region.height)
        whole = PIL.Image.open(io.BytesIO(data)).convert("RGB")
        wanted = np.asarray(whole.resize((scale, scale), PIL.Image.Resampling.BILINEAR, box=box)).astype(int)
        part = np.asarray(whole)[box[1] : box[3], box[0] : box[2]]
        ours.append(np.abs(cut(image, full, region).astype(int) - wanted).mean())
        usual.append(np.abs(cv2.resize(part, (scale, scale)).astype(int) - wanted).mean())
    assert np.mean(ours) < np.mean(usual)


@pytest.mark.parametrize("size", [(400, 600), (300, 300), (60, 900), (1, 50)])
def test_random_crops_are_distributed_as_torchvisions(size):
    import torch
    from scipy.stats import ks_2samp
    from torchvision.transforms import RandomResizedCrop

    height, width = size
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    image = torch.zeros(1, height, width)
    theirs = np.array([RandomResizedCrop.get_params(image, [0.3, 1.0], [0.75, 1 / 0.75]) for _ in range(1500)])
    regions = [RandomCrop(64, 0.3, 0.75).place(height, width, rng) for _ in range(1500)]
    ours = np.array([[r.top, r.left, r.height, r.width] for r in regions])
    for column in range(4):
        assert ks_2samp(theirs[:, column], ours[:, column]).pvalue > 1e-3


@pytest.mark.parametrize("shape", [(100, 200), (200, 100), (1, 1), (1, 300), (64, 64)])
@pytest.mark.parametrize("fit", ["squash", "crop", "pad"])
def test_every_fit_gives_the_square(shape, fit):
    image = np.full((*shape, 3), 200, np.uint8)
    way = Fit(Preprocess(64, fit, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)))
    out = way.finish(cut(image, shape, way.place(*shape)))
    assert out.shape == (64, 64, 3)
    if fit == "pad" and shape == (100, 200):
        assert (out[16:48] == 200).all()
        assert (out[:16] == 128).all()
        assert (out[48:] == 128).all()
    elif fit != "pad":
        assert (out == 200).all()
