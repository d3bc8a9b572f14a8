"""The confusion matrix against a loop, and scores against their definitions."""

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxseg.metrics import confusion_matrix, segmentation_scores
from jaxseg.metrics.confusion import _multiplied, _scattered, mean_iou


def naive(predictions, labels, k):
    counts = np.zeros((k, k), np.int64)
    for p, y in zip(predictions.ravel(), labels.ravel(), strict=True):
        if y != 255:
            counts[y, p] += 1
    return counts


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(2, 6))
def test_parts_add_up_to_the_whole(seed, k):
    rng = np.random.default_rng(seed)
    predictions = rng.integers(0, k, (4, 6, 5)).astype(np.int32)
    labels = rng.choice([*range(k), 255], (4, 6, 5)).astype(np.int32)
    halves = zip(np.split(predictions, 2), np.split(labels, 2), strict=True)
    parts = sum(np.asarray(confusion_matrix(jnp.array(p), jnp.array(y), k)) for p, y in halves)
    np.testing.assert_array_equal(parts, naive(predictions, labels, k))
    scores = segmentation_scores(parts)
    ious = []
    for c in range(k):
        truth, found = (labels == c), (predictions == c) & (labels != 255)
        union = (truth | found).sum()
        if union:
            ious.append((truth & found).sum() / union)
    np.testing.assert_allclose(scores.miou, np.mean(ious))
    np.testing.assert_allclose(mean_iou(jnp.array(parts)), np.mean(ious), rtol=1e-6)
    valid = labels != 255
    np.testing.assert_allclose(scores.global_accuracy, (predictions == labels)[valid].mean())


def test_hand_made_scores():
    scores = segmentation_scores(np.array([[3, 1, 0], [0, 2, 0], [0, 0, 0]]))
    np.testing.assert_allclose(scores.iou_per_class, [3 / 4, 2 / 3, np.nan])
    np.testing.assert_allclose(scores.miou, (3 / 4 + 2 / 3) / 2)  # the class that never occurs has no part
    np.testing.assert_allclose(scores.class_accuracy, (3 / 4 + 1) / 2)
    np.testing.assert_allclose(scores.dice, (6 / 7 + 4 / 5) / 2)
    np.testing.assert_allclose(scores.dice_per_class, [6 / 7, 4 / 5, np.nan])
    np.testing.assert_allclose(scores.global_accuracy, 5 / 6)


def test_out_of_range_labels_are_left_out():
    counts = confusion_matrix(jnp.array([0, 1, 1]), jnp.array([-1, 3, 255]), 2)
    assert np.asarray(counts).sum() == 0


@pytest.mark.parametrize("dtype", [np.uint8, np.int8])
def test_labels_of_a_byte_are_counted_as_others(dtype):
    rng = np.random.default_rng(0)
    predictions, labels = rng.integers(0, 21, (2, 50))
    want = naive(predictions, labels, 21)
    counts = confusion_matrix(jnp.array(predictions.astype(dtype)), jnp.array(labels.astype(dtype)), 21)
    np.testing.assert_array_equal(counts, want)


def test_nothing_labelled_is_nan_not_a_crash():
    assert np.isnan(segmentation_scores(np.zeros((2, 2), np.int64)).miou)


def test_the_form_of_tpus_counts_the_same():
    rng = np.random.default_rng(3)
    cells = rng.integers(0, 5**2 + 1, (3, 7, 6)).astype(np.int32)  # 25 is what is left out
    expected = np.bincount(cells.ravel(), minlength=26)[:25]
    for form in (_scattered, _multiplied):
        np.testing.assert_array_equal(form(jnp.array(cells), 5), expected)
