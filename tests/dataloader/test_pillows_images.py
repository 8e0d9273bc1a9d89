"""Pillow's own test images, of its source distribution: each is decoded as Pillow does, or refused by both."""

import io
import os
import subprocess
import sys
import tarfile
import warnings
from collections import Counter
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
from test_decode_families import pillows

from dataloader.decode import decode
from utils.errors import ImageError

CACHE = Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser() / "classifier-tests"
BROKEN = {"hopper_bad_exif.jpg"}  # its restart intervals are damaged, and Pillow shows what it gets
BOMBS = ("bomb", "_dos", "oom-")


@pytest.fixture(scope="module")
def images() -> dict[str, bytes]:
    """name -> bytes. pip fetches them once into the user's cache; where it cannot, tests are skipped, but not in CI."""
    name = f"pillow-{PIL.__version__}"
    archive = CACHE / f"{name}.tar.gz"
    if not archive.exists():
        words = ["--quiet", "--no-deps", "--no-binary", ":all:", "--dest", str(CACHE), f"pillow=={PIL.__version__}"]
        fetched = subprocess.run(
            [sys.executable, "-m", "pip", "download", *words], capture_output=True, text=True, check=False
        )
        if fetched.returncode and os.environ.get("CI_CHROMIUM"):
            pytest.fail(f"pip cannot fetch the source distribution of {name}: {fetched.stderr[-500:]}")
        if fetched.returncode:
            pytest.skip(f"pip cannot fetch the source distribution of {name}")
    with tarfile.open(archive) as source:
        within = f"{name}/Tests/images/"
        found = [one for one in source if one.isfile() and one.name.startswith(within)]
        return {one.name.removeprefix(within): source.extractfile(one).read() for one in found}


@pytest.mark.slow
def test_decode_of_pillows_test_images_equals_pillow(images):
    counts, wrong = Counter(), []
    for name, data in images.items():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            wanted = pillows(data)
            try:
                got = decode(data)[0]
            except ImageError:
                got = None
            what = compared(name, data, wanted, got)
        counts[what] += 1
        if what == "wrong":
            wrong.append(name)
    print(dict(counts))
    assert wrong == []
    assert counts["equal"] > 700 and counts["refused by both"] < 300 and counts["by range"] > 15, counts


def compared(name, data, wanted, got):
    """How the two pictures of a file compare; None for one is a refusal."""
    if wanted is None and got is None:
        return "refused by both"
    if wanted is None or got is None:
        return (
            "broken" if name in BROKEN and got is None else "bomb" if any(word in name for word in BOMBS) else "wrong"
        )
    if got.shape == wanted.shape and np.array_equal(got, wanted):
        return "equal"
    image = PIL.Image.open(io.BytesIO(data))
    if image.mode[0] not in "IF":
        return "wrong"
    samples = np.asarray(image).astype(np.float64)  # Pillow's RGB cuts them off at 255
    order = np.argsort(samples, axis=None)
    fine = got.shape[:2] == samples.shape and (np.diff(got[..., 0].ravel()[order].astype(int)) >= 0).all()
    return "by range" if fine and got.max() >= 63 else "wrong"
