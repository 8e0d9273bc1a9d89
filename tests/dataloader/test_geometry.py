"""Which part of an image is shown, and how exactly.

Draws are compared with torchvision's, cuts with Pillow's; then come the fits of evaluation.
"""

import io
import math

import cv2
import numpy as np
import PIL.Image
import pytest
import simplejpeg
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import ks_2samp
from torchvision.transforms import v2

from dataloader.decode import decode
from dataloader.geometry import (
    EvalGeometry,
    RandomCrop,
    Region,
    crop_resize,
    crop_resize_fast,
    decode_ratios,
    snap_region,
)
from utils.preprocess import CROP_FRACTION, Preprocess

GREY = (0.5, 0.5, 0.5)


def jpeg(image, **how):
    file = io.BytesIO()
    PIL.Image.fromarray(image).save(file, "JPEG", **how)
    return file.getvalue()


def by_pillow(image, region):
    """Cut the region and resize it by Pillow, antialiased bilinear, as int: the reference for all cuts."""
    part = image[region.top : region.top + region.height, region.left : region.left + region.width]
    size = (region.out_width, region.out_height)
    return np.asarray(PIL.Image.fromarray(part).resize(size, PIL.Image.Resampling.BILINEAR, reducing_gap=None)).astype(
        int
    )


def apart(first, second):
    return np.abs(first.astype(int) - second).mean()


@pytest.fixture(scope="module")
def large(photos):
    """The photographs at 1.2 to 2 times their size: 768 to 1024 px, without finer texture than a camera gives."""
    return [
        cv2.resize(photo, None, fx=f, fy=f, interpolation=cv2.INTER_CUBIC)
        for photo, f in zip(photos, (1.6, 1.2, 1.7), strict=True)
    ]


# ------------------------------------------------------------------------ where crops lie


@pytest.mark.parametrize("size", [(400, 600), (333, 333), (600, 350), (120, 700), (900, 90)], ids=str)
@pytest.mark.parametrize(("zoom", "ratio"), [(0.08, 0.75), (0.5, 0.75), (0.3, 0.4)])
def test_random_crop_distribution_equals_torchvision(size, zoom, ratio):
    height, width = size
    image = torch.zeros(1, height, width)
    theirs = v2.RandomResizedCrop(8, scale=(zoom, 1.0), ratio=(ratio, 1 / ratio))
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    drawn = [theirs.make_params([image]) for _ in range(600)]
    wanted = np.array([[box[name] for name in ("top", "left", "height", "width")] for box in drawn], float)
    ours = np.array([RandomCrop(8, zoom, ratio).choose_region(height, width, rng)[:4] for _ in range(600)], float)
    for of in (
        lambda box: box[:, 2] * box[:, 3],  # area
        lambda box: box[:, 3] / box[:, 2],  # ratio
        lambda box: box[:, 0] / np.maximum(height - box[:, 2], 1),  # place, as a share of the free way
        lambda box: box[:, 1] / np.maximum(width - box[:, 3], 1),
    ):
        assert ks_2samp(of(ours), of(wanted)).pvalue > 1e-3


@pytest.mark.parametrize("size", [(10, 1000), (1000, 10), (7, 100), (1, 5), (300, 1)], ids=str)
def test_random_crop_of_thin_image_is_torchvisions_centre(size):
    box = v2.RandomResizedCrop(8, scale=(0.9, 1.0), ratio=(0.75, 4 / 3)).make_params([torch.zeros(1, *size)])
    region = RandomCrop(8, 0.9, 0.75).choose_region(*size, np.random.default_rng(0))
    assert region.height == max(1, box["height"])
    assert region.width == max(1, box["width"])
    assert (region.top, region.left) == (box["top"], box["left"])


@settings(max_examples=300, deadline=None, database=None)
@given(
    height=st.integers(1, 3000),
    width=st.integers(1, 3000),
    zoom=st.floats(0.01, 1),
    ratio=st.floats(0.1, 1),
    seed=st.integers(0, 9),
)
def test_random_crop_of_any_image_obeys_its_bounds(height, width, zoom, ratio, seed):
    region = RandomCrop(64, zoom, ratio).choose_region(height, width, np.random.default_rng(seed))
    assert 0 <= region.top <= region.top + region.height <= height
    assert 0 <= region.left <= region.left + region.width <= width
    assert region.height >= 1
    assert region.width >= 1
    assert 0 < region.decode_scale() <= 1
    if min(height, width) > 40 and region.height < height and region.width < width:  # rounding shows on small ones
        assert region.height * region.width >= zoom * height * width * 0.9
        assert ratio * 0.9 <= region.width / region.height <= 1 / ratio / 0.9


def test_random_crop_full_zoom_of_square_is_whole_image():
    assert RandomCrop(32, 1.0, 1.0).choose_region(50, 50, np.random.default_rng(0)) == Region(0, 0, 50, 50, 32, 32)


@pytest.mark.parametrize("zoom", [0.08, 0.3, 1.0])
def test_min_source_side_suffices_for_every_square_crop(zoom):
    crop = RandomCrop(224, zoom, 1.0)
    side = crop.min_source_side()
    least = min(crop.choose_region(side, side, np.random.default_rng(k)).height for k in range(300))
    assert 224 - 1 <= least <= 1.2 * 224
    assert EvalGeometry(Preprocess(224, "crop", GREY, GREY)).choose_region(256, 256).height == 224
    assert EvalGeometry(Preprocess(224, "crop", GREY, GREY)).min_source_side() == 256


# ------------------------------------------------------------------------ what a cut shows


def cuts_of(photos, crop):
    """Yield 24 random cuts of each photograph: the whole decode, the region, what was decoded for it, the full size."""
    for photo in photos:
        data = jpeg(photo, quality=90)
        whole = np.asarray(PIL.Image.open(io.BytesIO(data)))
        for k in range(24):
            region = crop.choose_region(*whole.shape[:2], np.random.default_rng(k))
            image, full = decode(data, lambda height, width, region=region: region.decode_scale())
            yield whole, region, image, full


@pytest.mark.parametrize("zoom", [0.08, 0.5, 0.8])
def test_crop_resize_of_scaled_decode_is_close_to_full_antialias(large, zoom):
    """JPEG quality 90, 24 random crops to 224 px of each photograph; the mean over the crops of the mean difference."""
    crop = RandomCrop(224, zoom, 0.75)
    differences, smaller = [], 0
    for whole, region, image, full in cuts_of(large, crop):
        assert full == whole.shape[:2]
        smaller += image.shape[0] < full[0]
        differences.append(apart(crop_resize(image, full, region), by_pillow(whole, region)))
    assert smaller > 24
    assert np.mean(differences) <= 1.5
    assert max(differences) < 3.5


@pytest.mark.parametrize("scale", [64, 224])
@pytest.mark.parametrize("zoom", [0.08, 0.5, 0.8])
def test_crop_resize_fast_is_within_half_a_decoded_pixel(large, zoom, scale):
    """Where it says it was cut, and at that very box a full decode with an antialiased resize, to 1.5 of 255."""
    crop = RandomCrop(scale, zoom, 0.75)
    differences = []
    for whole, region, image, full in cuts_of(large, crop):
        down, right = decode_ratios(image.shape[:2], full)
        top, left, height, width = snap_region(image.shape[:2], full, region)
        assert abs(top - region.top * down) <= 0.5
        assert abs(left - region.left * right) <= 0.5
        assert abs(height - region.height * down) <= 1
        assert abs(width - region.width * right) <= 1
        box = left / right, top / down, min(full[1], (left + width) / right), min(full[0], (top + height) / down)
        wanted = np.asarray(PIL.Image.fromarray(whole).resize((scale, scale), PIL.Image.Resampling.BILINEAR, box))
        out = np.empty((scale, scale, 3), np.uint8)
        crop_resize_fast(image, full, region, out)
        differences.append(apart(out, wanted))
    assert np.mean(differences) <= 1.5
    assert max(differences) < (3.5 if scale == 224 else 5.5)  # at 1/8 the DCT's own way of shrinking shows


@pytest.mark.parametrize("size", [(1, 1), (1, 9), (7, 1), (3, 3)], ids=str)
def test_snap_region_of_tiny_image_stays_inside(size):
    image = np.full((*size, 3), 77, np.uint8)
    for full in (size, (8 * size[0], 8 * size[1])):
        for k in range(50):
            region = RandomCrop(16, 0.08, 0.5).choose_region(*full, np.random.default_rng(k))
            top, left, height, width = snap_region(size, full, region)
            assert 0 <= top < top + height <= size[0]
            assert 0 <= left < left + width <= size[1]
            out = np.empty((16, 16, 3), np.uint8)
            crop_resize_fast(image, full, region, out)
            assert (out == 77).all()


def least(size, eighths):
    return {f"min_{name}": -(-side * eighths // 8) for name, side in zip(("height", "width"), size, strict=True)}


@pytest.mark.parametrize("eighths", range(1, 9))
def test_crop_resize_of_scaled_decode_is_not_shifted(eighths):
    """On a slope of a level a pixel, a shift of a pixel is a level: the mean of any region tells where it was cut."""
    height, width = 427, 243
    slope = np.linspace(5, 5 + (width - 1), width)[None, :, None] * np.ones((height, 1, 3))
    for image in (slope, slope.transpose(1, 0, 2)):
        image = np.ascontiguousarray(image.round().astype(np.uint8))
        size = image.shape[:2]
        small = simplejpeg.decode_jpeg(jpeg(image, quality=100, subsampling=0), "RGB", **least(size, eighths))
        full = size
        assert small.shape[:2] == tuple(-(-side * eighths // 8) for side in size)
        for top, left in ((0, 0), (size[0] - 64, size[1] - 64), (size[0] // 2 - 3, size[1] // 2 + 1)):
            region = Region(top, left, 64, 64, 16, 16)
            wanted = image[top : top + 64, left : left + 64].mean()
            assert abs(crop_resize(small, full, region).mean() - wanted) < 0.75


@pytest.mark.parametrize("out", [(20, 20), (90, 70), (100, 31), (30, 200), (224, 224), (1, 1)], ids=str)
def test_crop_resize_of_full_decode_equals_pillow(photos, out):
    """To rounding, shrunk far or slightly, enlarged, or one way each."""
    image = np.ascontiguousarray(photos[2][50:350, 40:340])
    for region in (Region(0, 0, 300, 300, *out), Region(37, 11, 130, 97, *out)):
        assert apart(crop_resize(image, (300, 300), region), by_pillow(image, region)) < 0.25


@pytest.mark.parametrize("out", [32, 64, 100, 150, 400])
@pytest.mark.parametrize("full", [(427, 643), (430, 640), (401, 639)], ids=str)
def test_crop_resize_of_half_decode_with_odd_size_equals_pillow(photos, full, out):
    """213.5 x 321.5 pixels lie in 214 x 322: the last row and column count by half."""
    image = np.ascontiguousarray(photos[1][: -(-full[0] // 2), : -(-full[1] // 2)])
    box = 0, 0, full[1] / 2, full[0] / 2
    wanted = np.asarray(PIL.Image.fromarray(image).resize((out, out), PIL.Image.Resampling.BILINEAR, box)).astype(int)
    assert apart(crop_resize(image, full, Region(0, 0, *full, out, out)), wanted) < 0.25
    region = Region(1, 3, full[0] - 9, full[1] - 8, out, out)  # begins within a pixel
    box = 1.5, 0.5, 1.5 + region.width / 2, 0.5 + region.height / 2
    wanted = np.asarray(PIL.Image.fromarray(image).resize((out, out), PIL.Image.Resampling.BILINEAR, box)).astype(int)
    assert apart(crop_resize(image, full, region), wanted) < 1.6


def test_crop_resize_fast_writes_only_its_output(photos):
    image = photos[0][:300, :300].copy()
    image.flags.writeable = False  # as a cache's own memory is
    rows = np.zeros((3, 128, 128, 3), np.uint8)
    for region in (
        Region(3, 5, 140, 150, 128, 128),
        Region(3, 5, 290, 280, 128, 128),
        Region(9, 9, 128, 128, 128, 128),
    ):
        rows[:] = 0
        crop_resize_fast(image, (300, 300), region, rows[1])
        assert apart(rows[1], by_pillow(image, region)) < 1.6
        assert not rows[[0, 2]].any()


def test_crop_resize_to_same_size_copies_pixels(photos):
    image = photos[0]
    got = crop_resize(image, image.shape[:2], Region(13, 200, 64, 64, 64, 64))
    assert np.array_equal(got, image[13:77, 200:264])


@pytest.mark.parametrize("shape", [(5, 70000), (70000, 5)], ids=str)
def test_crop_resize_fast_beyond_opencv_coordinates_equals_pillow(shape):
    image = np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8)
    image = image // 4 + (np.arange(max(shape)) % 190).astype(np.uint8).reshape(
        (-1, 1, 1) if shape[0] > shape[1] else (1, -1, 1)
    )
    region = RandomCrop(32, 0.5, 0.75).choose_region(*shape, np.random.default_rng(0))
    for place in (
        region,
        region._replace(top=shape[0] - region.height, left=shape[1] - region.width),
        Region(0, 0, *shape, 32, 32),
    ):
        out = np.empty((32, 32, 3), np.uint8)
        crop_resize_fast(image, shape, place, out)
        assert apart(out, by_pillow(image, place)) < 1
        # enlarged, the rim shows half a pixel of what lies beyond it
        assert apart(crop_resize(image, shape, place), by_pillow(image, place)) < 1


@pytest.mark.parametrize(
    ("size", "full", "wanted"),
    [
        ((427, 643), (427, 643), (1, 1)),
        ((161, 242), (427, 643), (3 / 8, 3 / 8)),
        ((54, 81), (427, 643), (1 / 8, 1 / 8)),
        ((1, 1), (1, 1), (1, 1)),
        ((256, 385), (427, 643), (256 / 427, 385 / 643)),  # from a cache
        ((100, 300), (200, 300), (0.5, 1)),
    ],
)
def test_decode_ratios_of_scaled_image_are_eighths(size, full, wanted):
    assert decode_ratios(size, full) == wanted


# ------------------------------------------------------------------------ evaluation's square


def fitted(image, scale, fit, mean=GREY):
    way, out = EvalGeometry(Preprocess(scale, fit, mean, GREY)), np.empty((scale, scale, 3), np.uint8)
    way.render(image, image.shape[:2], way.choose_region(*image.shape[:2]), out)
    return out


def test_squash_shows_whole_image():
    image = np.zeros((100, 300, 3), np.uint8)
    image[:50, :150] = (255, 0, 0)
    image[50:, 150:] = (0, 255, 0)
    out = fitted(image, 50, "squash")
    assert (out[:24, :24] == (255, 0, 0)).all()
    assert (out[26:, 26:] == (0, 255, 0)).all()
    assert (out[:24, 26:] == 0).all()


@pytest.mark.parametrize(("height", "width"), [(256, 256), (256, 512), (512, 256), (301, 257)])
def test_crop_shows_centre_fraction_of_short_side(height, width):
    rows, columns = np.mgrid[:height, :width].astype(np.float64)
    image = np.stack([rows * 255 / (height - 1), columns * 255 / (width - 1), rows * 0], 2).round().astype(np.uint8)
    out = fitted(image, 224, "crop").astype(float)
    for axis, size in ((0, height), (1, width)):
        assert out[..., axis].mean() == pytest.approx(127.5, abs=0.6)  # in the middle
        ends = np.ptp(out[..., axis].mean(axis=1 - axis))
        # that much of the short side
        assert ends == pytest.approx(CROP_FRACTION * min(height, width) * 255 / size, abs=2.5)


@pytest.mark.parametrize(
    ("height", "width", "rows", "columns"),
    [
        (100, 200, (16, 48), (0, 64)),
        (200, 100, (0, 64), (16, 48)),
        (300, 300, (0, 64), (0, 64)),
        (30, 90, (21, 42), (0, 64)),
    ],
)
def test_pad_centres_image_and_fills_with_mean(height, width, rows, columns):
    image = np.full((height, width, 3), (200, 100, 50), np.uint8)
    out = fitted(image, 64, "pad", mean=(0.485, 0.456, 0.406))
    inside = np.zeros((64, 64), bool)
    inside[slice(*rows), slice(*columns)] = True
    assert (out[inside] == (200, 100, 50)).all()
    assert (out[~inside] == (124, 116, 104)).all()


def test_pad_keeps_aspect_ratio():
    image = np.zeros((150, 300, 3), np.uint8)
    cv2.circle(image, (180, 70), 50, (255, 255, 255), -1)
    rows, columns = np.nonzero(fitted(image, 100, "pad")[25:75, :, 0] > 127)
    assert np.ptp(rows) == pytest.approx(np.ptp(columns), abs=1)
    assert columns.mean() == pytest.approx(180 / 3, abs=0.6)
    assert rows.mean() == pytest.approx(70 / 3, abs=0.6)


@pytest.mark.parametrize("shape", [(1, 1), (1, 50), (50, 1), (1, 3000), (2, 3)], ids=str)
def test_fits_of_tiny_image_show_it_whole(shape):
    image = np.full((*shape, 3), (10, 128, 250), np.uint8)
    for fit in ("squash", "crop"):
        out = fitted(image, 32, fit)
        assert out.shape == (32, 32, 3)
        assert (out == (10, 128, 250)).all()
    out = fitted(image, 32, "pad")
    assert out.shape == (32, 32, 3)
    shown = (out == (10, 128, 250)).all(axis=2)
    assert shown.sum() == math.prod(max(1, round(32 * side / max(shape))) for side in shape)
    assert (out[~shown] == 128).all()
    for k in range(10):
        region = RandomCrop(32, 0.08, 0.75).choose_region(*shape, np.random.default_rng(k))
        assert (crop_resize(image, shape, region) == np.full((32, 32, 3), (10, 128, 250))).all()


@pytest.mark.parametrize("fit", ["squash", "crop", "pad"])
@pytest.mark.parametrize("scale", [7, 64, 224])
def test_render_any_size_and_scale_fills_its_square(fit, scale):
    """White stays white to the edges, whatever rounding does to the sizes on the way."""
    rng = np.random.default_rng(scale)
    geometry, crop = EvalGeometry(Preprocess(scale, fit, GREY, GREY)), RandomCrop(scale, 0.08, 4 / 3)
    for _ in range(600):
        full = tuple(int(side) for side in np.exp(rng.uniform(0, math.log(700), 2)))
        eighths = int(rng.choice((1, 2, 3, 4, 8)))
        image = np.full((*(-(-side * eighths // 8) for side in full), 3), 255, np.uint8)
        region, square = geometry.choose_region(*full), np.zeros((scale, scale, 3), np.uint8)
        geometry.render(image, full, region, square)
        shown = (square == 255).all(axis=2)
        assert shown.sum() == region.out_height * region.out_width, (full, eighths)
        crop.render(image, full, crop.choose_region(*full, rng), square)
        assert (square == 255).all(), (full, eighths)
