"""Fitting to a canvas: aspect, padding, alignment of image and label, and the way back."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxseg.data import MEAN_COLOUR, fit_geometry, fit_to

sizes = st.tuples(st.integers(1, 60), st.integers(1, 60))


def test_right_size_passes_untouched():
    image, label = np.ones((6, 8, 3), np.uint8), np.ones((6, 8), np.int32)
    out_image, out_label, fit = fit_to(image, label, (6, 8))
    assert out_image is image
    assert out_label is label
    assert fit == ((6, 8), (6, 8), (6, 8))


@settings(max_examples=60, deadline=None)
@given(sizes, sizes)
def test_geometry_fills_the_canvas_and_keeps_the_aspect(original, size):
    fit = fit_geometry(original, size)
    assert all(1 <= s <= c for s, c in zip(fit.scaled, size, strict=True))
    assert fit.scaled[0] == size[0] or fit.scaled[1] == size[1]
    scale = min(size[0] / original[0], size[1] / original[1])
    assert all(abs(s - max(1, scale * o)) <= 0.5 + 1e-9 for s, o in zip(fit.scaled, original, strict=True))


@settings(max_examples=30, deadline=None)
@given(sizes, sizes)
def test_padding_is_mean_colour_and_ignored(original, size):
    image, label, fit = fit_to(np.zeros((*original, 3), np.uint8), np.zeros(original, np.int32), size)
    inside = np.zeros(size, bool)
    inside[: fit.scaled[0], : fit.scaled[1]] = True
    assert image.shape == (*size, 3)
    assert (image[inside] == 0).all()
    assert (image[~inside] == MEAN_COLOUR).all()
    np.testing.assert_array_equal(label, np.where(inside, 0, 255))


def test_image_and_label_stay_aligned():
    label = np.zeros((60, 90), np.int32)
    label[20:40, 30:75] = 1
    image = np.repeat(label[..., None] * 200, 3, -1).astype(np.uint8)
    for size in ((30, 45), (40, 100), (90, 135), (31, 47)):
        out_image, out_label, _ = fit_to(image, label, size)
        valid = out_label != 255
        disagree = ((out_image[..., 0] > 100) != (out_label == 1)) & valid
        assert disagree.sum() <= 2 * (out_label == 1).sum() ** 0.5 + 2, size  # at most along the outline
    assert fit_to(image, None, (30, 45))[1] is None


def test_shrinking_is_antialiased():
    checks = (np.indices((64, 64)).sum(0) % 2 * 255).astype(np.uint8)
    image, _, _ = fit_to(np.repeat(checks[..., None], 3, -1), None, (16, 16))
    assert np.abs(image.astype(int) - 127).max() < 20
