"""The decoder of an exported folder turns an image upright as training does: every format and EXIF orientation."""

import io

import numpy as np
import PIL.Image
import pytest

from dataloader.decode import decode
from tools.export.shipped import preprocess as shipped

FORMS = {
    "JPEG": {},
    "MPO": {"save_all": True},  # as a phone saves a photo with a depth map
    "PNG": {},
    "TIFF": {},  # Pillow turns it while it loads it, and removes the tag
    "TIFF, LZW": {"compression": "tiff_lzw"},
    "WEBP": {"lossless": True},
    "AVIF": {},
}


@pytest.mark.parametrize("turn", range(1, 9))
@pytest.mark.parametrize("form", FORMS)
def test_shipped_decode_of_any_format_and_orientation_is_that_of_training(form, turn, photos):
    image = PIL.Image.fromarray(np.ascontiguousarray(photos[0][:121, :203]))
    exif = PIL.Image.Exif()
    exif[274] = turn
    more = {"append_images": [image.rotate(90)]} if form == "MPO" else {}
    block = exif if form.startswith("TIFF") else exif.tobytes()
    file = io.BytesIO()
    image.save(file, form.partition(",")[0], exif=block, **FORMS[form], **more)
    for scale in (0.3, 1.0):
        ours, full = decode(file.getvalue(), lambda height, width, scale=scale: scale)
        theirs, their_full = shipped.decode(file.getvalue(), lambda height, width, scale=scale: scale, 10**6)
        assert np.array_equal(ours, theirs) and tuple(full) == tuple(their_full)
        assert full == ((203, 121) if turn >= 5 else (121, 203))
