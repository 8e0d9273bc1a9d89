"""Counts in words."""

import pytest

from options.wording import count_of


@pytest.mark.parametrize(
    ("words", "text"),
    [
        ((1, "epoch"), "1 epoch"),
        ((0, "epoch"), "0 epochs"),
        ((12, "epoch"), "12 epochs"),
        (("1", "hour"), "1 hour"),
        (("0.5", "hour"), "0.5 hours"),
        (("1,200", "image"), "1,200 images"),
        ((1, "batch", "batches"), "1 batch"),
        ((2, "batch", "batches"), "2 batches"),
    ],
)
def test_count_of_one_is_singular(words, text):
    assert count_of(*words) == text
