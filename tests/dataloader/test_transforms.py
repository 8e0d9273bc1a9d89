"""Augmentations, each beside an independent reference; named pipelines, which draw from (seed, epoch, index) alone."""

import math
from concurrent.futures import ThreadPoolExecutor

import cv2
import numpy as np
import pytest
from scipy.stats import chisquare, kstest

from dataloader.transforms import Pipeline, build_stages, get_transform, ops, transforms
from options import parse_train
from options.choices import TRANSFORM_FLAGS
from utils.errors import ImageError, UserError
from utils.preprocess import Preprocess
from utils.rng import sample_rng

WAY = Preprocess(48, "squash", (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
EVERYTHING = ["--rotate", 15, "--blur", 1, "--cutout", 1, "--jitter", 1]
NOTHING = "--hflip=0 --vflip=0 --transpose=0 --jitter=0 --blur=0 --cutout=0 --zoom=1 --crop_ratio=1"


class Fixed:
    """A generator that gives what it was told: `random()` 0, `uniform` the given number, whatever the bounds."""

    def __init__(self, number):
        self.number = number

    def random(self):
        return 0.0

    def uniform(self, low, high, count=None):
        return self.number if count is None else np.array(self.number)


def rng(seed=0):
    return np.random.default_rng(seed)


@pytest.fixture(scope="module")
def square(photos):
    return np.ascontiguousarray(photos[1][100:164, 200:264])


def pipeline(name, *words):
    return get_transform(parse_train(["--transform", name, *map(str, words)]), WAY)


def reading(image):
    """A Reader's `read` for one index, of an image that is held in full size."""

    def read(need):
        need(*image.shape[:2])
        return image, image.shape[:2]

    return read


# ------------------------------------------------------------------------ orientation


VIEWS = {
    (0, 0, 0): lambda x: x,
    (1, 0, 0): lambda x: x[:, ::-1],
    (0, 1, 0): lambda x: x[::-1],
    (1, 1, 0): lambda x: x[::-1, ::-1],
    (0, 0, 1): lambda x: x.swapaxes(0, 1),
    (1, 0, 1): lambda x: x.swapaxes(0, 1)[:, ::-1],
    (0, 1, 1): lambda x: x.swapaxes(0, 1)[::-1],
    (1, 1, 1): lambda x: x.swapaxes(0, 1)[::-1, ::-1],
}


@pytest.mark.parametrize("turns", VIEWS, ids=str)
def test_random_flip_transpose_transposes_then_flips(square, turns):
    assert np.array_equal(ops.random_flip_transpose(*turns)(square.copy(), rng()), VIEWS[turns](square))


def test_random_flip_transpose_draws_eight_views_evenly(square):
    names = {np.ascontiguousarray(view(square)).tobytes(): turns for turns, view in VIEWS.items()}
    assert len(names) == 8
    op = ops.random_flip_transpose(0.5, 0.5, 0.5)
    seen = [names[np.ascontiguousarray(op(square.copy(), rng(k))).tobytes()] for k in range(1600)]
    assert chisquare([seen.count(turns) for turns in VIEWS]).pvalue > 1e-3


@pytest.mark.parametrize("place", [0, 1, 2])
def test_random_flip_transpose_obeys_each_probability(square, place):
    probabilities = [0.0, 0.0, 0.0]
    probabilities[place] = 0.2
    turned = [
        not np.array_equal(ops.random_flip_transpose(*probabilities)(square.copy(), rng(k)), square)
        for k in range(1000)
    ]
    assert 0.15 < np.mean(turned) < 0.25


# ------------------------------------------------------------------------ rotation


def test_rotate_zero_degrees_is_identity(square):
    assert np.array_equal(ops.rotate(0)(square, rng()), square)


@pytest.mark.parametrize("side", [63, 64])
@pytest.mark.parametrize(("degrees", "quarters"), [(90, 1), (-90, -1), (180, 2)])
def test_rotate_quarter_turns_equal_rot90(square, side, degrees, quarters):
    image = square[:side, :side]
    assert np.array_equal(ops.rotate(180)(image, Fixed(degrees)), np.rot90(image, quarters))


def test_rotate_fills_corners_and_draws_angles_evenly(square):
    white = np.full((64, 64, 3), 255, np.uint8)
    assert all((ops.rotate(180)(white, rng(k)) == 255).all() for k in range(20))
    ramp = np.tile(np.arange(201, dtype=np.uint8)[None, :, None], (201, 1, 3))
    angles = []
    for k in range(200):
        out = ops.rotate(30)(ramp, rng(k))[80:121, 80:121, 0].astype(float)
        angles.append(math.degrees(math.atan2(np.diff(out, axis=0).mean(), np.diff(out, axis=1).mean())))
    assert kstest(angles, "uniform", (-30, 60)).pvalue > 1e-3


# ------------------------------------------------------------------------ colour


def coloured(image, brightness=0.0, contrast=0.0, saturation=0.0, hue=0.0):
    """Colour with the given changes, of which each is the whole range."""
    return ops.color_jitter(1, 1, 1, 1, 1)(image, Fixed((brightness, contrast, saturation, hue))).astype(int)


def test_color_matrix_neutral_is_identity(square):
    assert ops.color_matrix(1, 1, 1, 0) == pytest.approx(np.eye(3, 4), abs=1e-12)
    assert ops.color_matrix(1, 1, 1, 1) == pytest.approx(np.eye(3, 4), abs=1e-12)  # a whole turn
    assert np.array_equal(coloured(square), square)


@pytest.mark.parametrize("change", [-1, -0.4, 0.3, 1])
def test_brightness_multiplies_pixels(square, change):
    wanted = np.clip(square * (1.0 + change), 0, 255)
    assert np.abs(coloured(square, brightness=change) - wanted).max() <= 0.51


@pytest.mark.parametrize("change", [-1, -0.4, 0.3, 1])
def test_contrast_stretches_about_mid_grey(square, change):
    wanted = np.clip((square - 127.5) * (1 + change) + 127.5, 0, 255)
    assert np.abs(coloured(square, contrast=change) - wanted).max() <= 0.51


@pytest.mark.parametrize("change", [-1, -0.4, 0.3, 1])
def test_saturation_stretches_about_luma(square, change):
    luma = square @ np.array([0.299, 0.587, 0.114])
    wanted = np.clip(luma[..., None] + (square - luma[..., None]) * (1 + change), 0, 255)
    assert np.abs(coloured(square, saturation=change) - wanted).max() <= 1


@pytest.mark.parametrize("turn", [-0.5, -0.1, 0.03, 0.25])
def test_hue_keeps_grey_and_luma(turn):
    grey = np.repeat(np.arange(256, dtype=np.uint8)[:, None, None], 3, axis=2)
    assert np.abs(coloured(grey, hue=turn) - grey).max() <= 1
    matrix = ops.color_matrix(1, 1, 1, turn)[:, :3]
    weights = np.array([0.299, 0.587, 0.114])
    assert weights @ matrix == pytest.approx(weights, abs=1e-3)
    assert np.linalg.matrix_power(matrix, 100) == pytest.approx(
        np.linalg.matrix_power(ops.color_matrix(1, 1, 1, 1)[:, :3], 100), abs=1e-6
    )


def test_hue_thirds_turn_red_through_others_and_back():
    red = np.array([200.0, 40, 40])
    third = ops.color_matrix(1, 1, 1, 1 / 3)[:, :3]
    first, second = third @ red, third @ third @ red
    assert {int(first.argmax()), int(second.argmax())} == {1, 2}
    assert third @ second == pytest.approx(red)


def test_color_jitter_obeys_probability_and_bounds():
    image = np.full((2, 2, 3), 100, np.uint8)
    op = ops.color_jitter(0.3, 0.2, 0, 0, 0)
    values = np.array([op(image, rng(k))[0, 0, 0] for k in range(2000)])
    assert 0.25 < np.mean(values != 100) < 0.32
    assert values.min() >= 80
    assert values.max() <= 120
    assert values.min() < 82
    assert values.max() > 118
    assert ops.color_jitter(0, 1, 1, 1, 0.5)(image, rng()) is image


# ------------------------------------------------------------------------ blur, cutout


def test_blur_equals_small_gaussian(square):
    wanted = {side: cv2.GaussianBlur(square, (side, side), 0).tobytes() for side in (3, 5)}
    seen = [ops.blur(1)(square, rng(k)).tobytes() for k in range(60)]
    assert set(seen) == set(wanted.values())
    changed = [ops.blur(0.2)(square, rng(k)).tobytes() != square.tobytes() for k in range(1000)]
    assert 0.16 < np.mean(changed) < 0.24


@pytest.mark.parametrize("size", [0.05, 0.3, 1.0])
def test_cutout_box_obeys_size_and_lies_anywhere(size):
    image = np.full((100, 100, 3), 7, np.uint8)
    heights, widths, corners = [], [], []
    for k in range(400):
        box = (ops.cutout(1, size)(image.copy(), rng(k)) == 128).all(axis=2)
        rows, columns = np.nonzero(box)
        heights.append(np.ptp(rows) + 1)
        widths.append(np.ptp(columns) + 1)
        assert box.sum() == heights[-1] * widths[-1]
        corners.append((rows.min() / (101 - heights[-1]), columns.min() / (101 - widths[-1])))
    assert min(heights + widths) >= 50 * size - 1
    assert max(heights) == max(widths) == pytest.approx(100 * size, abs=1)
    assert heights != widths
    assert np.mean(corners, axis=0) == pytest.approx([0.5, 0.5], abs=0.06) or size == 1
    assert (image == 7).all()  # the input may be a cache's own


def test_cutout_obeys_probability_and_covers_tiny_image():
    image = np.full((1, 1, 3), 7, np.uint8)
    assert (ops.cutout(1, 0.01)(image.copy(), rng()) == 128).all()
    blanked = [(ops.cutout(0.3, 0.5)(image.copy(), rng(k)) == 128).all() for k in range(1000)]
    assert 0.25 < np.mean(blanked) < 0.35


# ------------------------------------------------------------------------ pipelines


def test_get_transform_unknown_name_suggests_near_ones():
    with pytest.raises(UserError, match="no transform 'resise'. Did you mean resize") as error:
        pipeline("resise")
    assert all(name in str(error.value) for name in transforms)


@pytest.mark.parametrize("name", transforms)
@pytest.mark.parametrize("shape", [(120, 90), (1, 1), (1, 200), (200, 3), (48, 48)], ids=str)
def test_pipeline_of_any_image_gives_uint8_square(photos, name, shape):
    image = np.ascontiguousarray(photos[0][: shape[0], : shape[1]])
    image.flags.writeable = False  # as from a cache
    run = pipeline(name, *EVERYTHING)
    for k in range(8):
        out = run(reading(image), sample_rng(1, 1, k))
        assert out.shape == (48, 48, 3)
        assert out.dtype == np.uint8
        assert np.ascontiguousarray(out).flags.c_contiguous
    assert run.size == 48


@pytest.mark.parametrize("name", transforms)
def test_pipeline_depends_on_seed_epoch_index_and_copy_only(photos, name):
    keys = [(seed, epoch, index, copy) for seed in (1, 2) for epoch in (1, 2) for index in range(3) for copy in (0, 1)]
    one, other = pipeline(name), pipeline(name)
    first = {key: one(reading(photos[0]), sample_rng(*key)).tobytes() for key in keys}
    np.random.seed(0)
    for key in reversed(keys):  # another order, another pipeline, another state of every global generator
        assert other(reading(photos[0]), sample_rng(*key)).tobytes() == first[key]
    assert len(set(first.values())) == (1 if name == "none" else len(keys))


@pytest.mark.parametrize("name", transforms)
def test_pipeline_shared_by_threads_gives_same_images(photos, name):
    """Each sample's result under eight threads is that of one."""
    image = np.ascontiguousarray(photos[2][:100, :100])
    run = pipeline(name)

    def result(k):
        return run(reading(image), sample_rng(5, 1, k)).tobytes()

    alone = [result(k) for k in range(160)]
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(result, range(160))) == alone


def test_pipeline_with_reader_that_ignores_need_draws_same_crop(photos):
    """A CMYK JPEG or a PNG is decoded in full: `need` is not called, and the crop is drawn afterwards, the same."""
    run = pipeline("light")

    def silent(need):
        return photos[0], photos[0].shape[:2]

    for k in range(5):
        assert np.array_equal(run(silent, sample_rng(1, 1, k)), run(reading(photos[0]), sample_rng(1, 1, k)))


def test_pipeline_reader_error_passes_through():
    def broken(need):
        raise ImageError("x.jpg: damaged")

    with pytest.raises(ImageError, match=r"x\.jpg"):
        pipeline("resize")(broken, rng())


def test_transform_none_equals_evaluation(photos):
    from dataloader.geometry import EvalGeometry

    for fit in ("squash", "crop", "pad"):
        way = Preprocess(48, fit, WAY.mean, WAY.std)
        run = get_transform(parse_train(["--transform", "none"]), way)
        place = EvalGeometry(way)
        wanted = np.empty((48, 48, 3), np.uint8)
        place.render(photos[0], photos[0].shape[:2], place.choose_region(*photos[0].shape[:2]), wanted)
        assert np.array_equal(run(reading(photos[0]), rng()), wanted)


@pytest.mark.parametrize("name", ["resize", "light", "albumentations"])
def test_transform_with_all_flags_zero_is_identity(square, name):
    run = get_transform(
        parse_train(["--transform", name, *NOTHING.split()]), Preprocess(64, "squash", WAY.mean, WAY.std)
    )
    assert all(np.array_equal(run(reading(square), rng(k)), square) for k in range(10))


@pytest.mark.parametrize(
    "flag", ["hflip=1", "vflip=1", "transpose=1", "jitter=1", "blur=1", "cutout=1", "rotate=40", "zoom=0.1"]
)
def test_transform_with_any_single_flag_changes_image(square, flag):
    words = ["--transform", "resize", *NOTHING.split(), f"--{flag}"]
    run = get_transform(parse_train(words), Preprocess(64, "squash", WAY.mean, WAY.std))
    assert not np.array_equal(run(reading(square), rng()), square)


def test_albumentations_extreme_flags_are_accepted(square):
    """Its own checks refuse a box from 0.1 to 0.01, say."""
    for words in (
        "--cutout_size 0.01 --cutout 1",
        "--cutout_size 1 --cutout 1",
        "--brightness 1 --contrast 1 --saturation 1 --hue 0.5",
    ):
        assert pipeline("albumentations", *words.split())(reading(square), rng()).shape == (48, 48, 3)


@pytest.mark.parametrize("name", TRANSFORM_FLAGS)
def test_transform_reads_the_flags_of_its_table(name):
    """Short runs and warnings read the table. A flag that it lacks would be ignored in silence."""
    read = set()

    class Recorder:
        def __getattribute__(self, flag):
            read.add(flag)
            return getattr(opt, flag)

    opt = parse_train(["--rotate", "9"])
    transforms[name](Recorder(), WAY)
    assert read == set(TRANSFORM_FLAGS[name])


def test_build_stages_has_one_pipeline_per_scale():
    assert [(first, run.size) for first, run in build_stages(parse_train([]), WAY)] == [(1, 48)]
    stages = build_stages(parse_train(["--scale_schedule", "1:16, 3:32,9:64"]), WAY)
    assert [(first, run.size) for first, run in stages] == [(1, 16), (3, 32), (9, 64)]
    assert all(isinstance(run, Pipeline) for _, run in stages)
