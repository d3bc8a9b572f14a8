"""BF against a loop over pixel pairs, and by hand."""

import numpy as np
import pytest

from jaxseg.metrics import BoundaryFSums, boundary_f_scores, boundary_f_sums
from jaxseg.metrics.boundaries import boundaries, thin
from jaxseg.metrics.boundary_f import _contour


def naive_contour(labels, truth, c):
    h, w = labels.shape
    found = set()
    for y, x in np.ndindex(h, w):
        for v, u in ((y, x + 1), (y + 1, x), (y + 1, x + 1)):
            counts = v < h and u < w and 255 not in (truth[y, x], truth[v, u])
            if counts and (labels[y, x] == c) != (labels[v, u] == c):
                found.add((y, x))
    return found


def naive_f(prediction, truth, c, reach):
    ours, theirs = naive_contour(prediction, truth, c), naive_contour(truth, truth, c)
    near = lambda a, b: np.mean([min(np.hypot(y - v, x - u) for v, u in b) <= reach for y, x in a])  # noqa: E731
    if not ours or not theirs:
        return 0.0
    p, r = near(ours, theirs), near(theirs, ours)
    return 2 * p * r / (p + r) if p + r else 0.0


@pytest.mark.parametrize("tolerance", [0.0, 0.05, 0.2])
def test_bf_is_its_definition_and_adds_up(tolerance):
    rng = np.random.default_rng(0)
    total, per_class, per_image = None, [[] for _ in range(4)], []
    for _ in range(4):
        truth = rng.choice([0, 1, 2, 255], (5, 6)).repeat(3, 0).repeat(3, 1)
        prediction = np.where(rng.random(truth.shape) < 0.1, rng.integers(0, 3, truth.shape), truth % 255)
        sums = boundary_f_sums(prediction, truth, 4, tolerance=tolerance)
        total = sums if total is None else BoundaryFSums(*map(np.add, total, sums))
        valid = truth != 255
        scores = []
        for c in set(truth[valid]) | set(prediction[valid]):
            scores.append(naive_f(prediction, truth, c, tolerance * np.hypot(15, 18)))
            per_class[c].append(scores[-1])
        per_image.append(np.mean(scores))
    got = boundary_f_scores(total)
    np.testing.assert_allclose(got.bf, np.mean(per_image))
    np.testing.assert_allclose(got.bf_per_class, [np.mean(f) if f else np.nan for f in per_class])
    assert np.isnan(got.bf_per_class[3])


def test_bf_by_hand():
    truth = np.zeros((30, 40), int)  # a diagonal of 50: 0.75 % is 0.375 pixels, 3 % is 1.5
    truth[:, 20:] = 1
    moved = np.roll(truth, 1, 1)
    moved[:, 0] = 0
    assert boundary_f_scores(boundary_f_sums(truth, truth, 2)).bf == 1
    assert boundary_f_scores(boundary_f_sums(moved, truth, 2)).bf == 0
    assert boundary_f_scores(boundary_f_sums(moved, truth, 2, tolerance=0.03)).bf == 1
    extra = truth.copy()
    extra[:, 5:] = np.where(truth[:, 5:] == 0, 2, 1)  # a class that is not there: its F is 0, class 0's too
    got = boundary_f_scores(boundary_f_sums(extra, truth, 3))
    np.testing.assert_allclose(got.bf_per_class, [0, 1, 0])
    np.testing.assert_allclose(got.bf, 1 / 3)
    assert boundary_f_scores(boundary_f_sums(truth * 0, truth * 0, 2)).bf == 1, "one class fills both"
    assert boundary_f_scores(boundary_f_sums(truth * 0, truth * 0 + 1, 2)).bf == 0, "each is filled by another"
    assert np.isnan(boundary_f_scores(boundary_f_sums(truth, truth * 0 + 255, 2)).bf)
    with pytest.raises(ValueError, match="one shape"):
        boundary_f_sums(truth, truth[1:], 2)
    with pytest.raises(ValueError, match=r"of 2 classes got label\(s\) 0 to 2"):
        boundary_f_sums(truth * 2, truth, 2)
    with pytest.raises(ValueError, match=r"of 2 classes got label\(s\) -1 to 1"):
        boundary_f_sums(truth * 2 - 1, truth, 2)


def test_contours_thinned_are_those_of_the_region_benchmark():
    labels = np.random.default_rng(1).integers(0, 2, (9, 11))
    contour = _contour(labels == 1, np.ones(labels.shape, bool))
    np.testing.assert_array_equal(thin(contour), boundaries(labels))
