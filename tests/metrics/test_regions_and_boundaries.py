"""Segmentation scores against hand-made cases, definitions and identities."""

import itertools

import numpy as np
import pytest
from scipy.sparse import csr_array
from scipy.sparse.csgraph import maximum_bipartite_matching

from jaxseg.metrics.boundaries import boundaries, boundary_counts, boundary_scores, f_measure, match, thin
from jaxseg.metrics.regions import covering, image_scores, rand_index, region_scores, variation_of_information

A = np.array([[0, 0, 1, 1], [0, 0, 1, 1]])
B = np.array([[0, 0, 0, 1], [0, 0, 0, 1]])


def random_labels(seed, k=4, shape=(6, 5)):
    return np.random.default_rng(seed).integers(k, size=shape)


def test_covering_by_hand():
    # regions of A (4 pixels each) against those of B (6 and 2): 4/6 and max(2/8, 2/4)
    assert covering(B, A) == pytest.approx((4 * 4 / 6 + 4 * 2 / 4) / 8)
    # and of B against A: max(4/6, 2/8) of 6 pixels, 2/4 of 2
    assert covering(A, B) == pytest.approx((6 * 4 / 6 + 2 * 2 / 4) / 8)


def test_rand_index_is_the_share_of_pairs():
    a, b = random_labels(0), random_labels(1)
    pairs = list(itertools.combinations(range(a.size), 2))
    agree = sum((a.flat[i] == a.flat[j]) == (b.flat[i] == b.flat[j]) for i, j in pairs)
    assert rand_index(a, b) == pytest.approx(agree / len(pairs))
    assert rand_index(A, 5 - A) == 1.0
    assert rand_index(np.zeros((1, 1)), np.zeros((1, 1))) == 1.0


def test_variation_of_information_is_a_metric_in_bits():
    a, b, c = random_labels(0), random_labels(1), random_labels(2)
    assert variation_of_information(A, np.zeros_like(A)) == pytest.approx(1.0)  # one bit: which half
    assert variation_of_information(a, a + 7) == pytest.approx(0.0, abs=1e-12)
    assert variation_of_information(a, b) == pytest.approx(variation_of_information(b, a))
    assert variation_of_information(a, c) <= variation_of_information(a, b) + variation_of_information(b, c) + 1e-12


def test_scores_of_a_data_set_choose_scales():
    scales = [[np.zeros_like(A), A, B], [np.zeros_like(A), A, B]]
    truths = [[A, A], [B, B]]
    scores = region_scores([image_scores(s, t) for s, t in zip(scales, truths, strict=True)])
    assert scores.covering_ois == scores.pri_ois == 1.0
    assert scores.vi_ois == pytest.approx(0.0, abs=1e-12)
    assert scores.covering_ods == pytest.approx(max((1 + covering(A, B)) / 2, (1 + covering(B, A)) / 2))
    assert scores.covering_best == 1.0
    assert scores.vi_ods == pytest.approx(variation_of_information(A, B) / 2)


def test_best_covering_takes_each_region_from_its_own_scale():
    left = np.array([[0, 0, 1, 1, 1, 2]])
    right = np.array([[0, 1, 1, 2, 2, 2]])
    truth = np.array([[0, 0, 1, 2, 2, 2]])
    scores = region_scores([image_scores([left, right], [truth])])
    assert scores.covering_best == pytest.approx((2 * 1 + 1 * 0.5 + 3 * 1) / 6)
    assert scores.covering_best > scores.covering_ois


def test_an_image_with_more_humans_counts_more_in_covering_and_not_in_rand_index():
    scores = region_scores([image_scores([A], [A]), image_scores([A], [B, B, B])])
    assert scores.covering_ods == pytest.approx((1 + 3 * covering(A, B)) / 4)
    assert scores.pri_ods == pytest.approx((1 + rand_index(A, B)) / 2)


def test_boundary_of_two_halves_is_a_column():
    np.testing.assert_array_equal(boundaries(A), [[0, 1, 0, 0], [0, 1, 0, 0]])


def test_boundaries_are_a_pixel_wide():
    y, x = np.mgrid[:40, :50]
    labels = (x + y > 44).astype(int) + 2 * ((x - 20) ** 2 + (y - 15) ** 2 < 100)
    edge = boundaries(labels)
    square = edge[:-1, :-1] & edge[1:, :-1] & edge[:-1, 1:] & edge[1:, 1:]
    assert not square.any()
    assert 90 < edge.sum() < 110  # the diagonal, 40, and the circle's 8-connected outline, 20 * 2 sqrt 2


def test_thinning_leaves_lines_and_points_alone():
    mask = np.zeros((7, 9), bool)
    mask[3, 1:8], mask[1, 1] = True, True
    np.testing.assert_array_equal(thin(mask), mask)
    mask[2:5, 2:7] = True
    assert thin(mask).sum() < mask.sum()


@pytest.mark.parity
def test_thinning_is_scikit_image_s():
    morphology = pytest.importorskip("skimage.morphology", reason="needs scikit-image, the parity extra")
    for seed in range(3):
        mask = np.random.default_rng(seed).random((60, 70)) < 0.4 + 0.2 * seed
        np.testing.assert_array_equal(thin(mask), morphology.thin(mask))


def test_matching_is_one_to_one_and_largest():
    a, b = np.zeros((1, 8), bool), np.zeros((1, 8), bool)
    a[0, [2, 3]] = True
    b[0, [3, 4]] = True
    matched_a, matched_b = match(a, b, 1.0)  # greedy 3-3 would leave 2 and 4 alone
    assert matched_a.sum() == matched_b.sum() == 2
    a[0, 1:6], b[0, 1:6] = True, False
    b[0, 3] = True
    assert match(a, b, 5.0)[0].sum() == 1


@pytest.mark.parametrize("seed", range(4))
def test_matching_is_as_large_as_scipy_s(seed):
    a, b = (np.random.default_rng([seed, i]).random((24, 31)) < (0.2, 0.25)[i] for i in range(2))
    here, there = np.argwhere(a), np.argwhere(b)
    near = np.linalg.norm(here[:, None] - there[None], axis=-1) <= 1.5
    largest = (maximum_bipartite_matching(csr_array(near), perm_type="column") >= 0).sum()
    ours, theirs = match(a, b, 1.5)
    assert ours.sum() == theirs.sum() == largest
    assert not (ours & ~a).any()
    assert not (theirs & ~b).any()


def test_boundary_f_by_hand():
    truth = np.zeros((20, 20), int)
    truth[:, 10:] = 1
    near, far = np.roll(truth, 1, axis=1), np.zeros((20, 20), int)
    near[:, 0] = 0
    far[:, 4:] = 1
    tolerance = 1.1 / np.hypot(20, 20)
    assert f_measure(boundary_counts(near, [truth], tolerance)) == 1.0
    assert f_measure(boundary_counts(far, [truth], tolerance)) == 0.0
    both = boundary_counts(truth, [truth, far], tolerance)  # precise by the first; half of the humans' pixels
    assert both == (20, 20, 20, 40)
    assert f_measure(both) == pytest.approx(2 * 0.5 / 1.5)
    assert f_measure(boundary_counts(far * 0, [truth], tolerance)) == 0.0
    assert f_measure(boundary_counts(far * 0, [far * 0], tolerance)) == 1.0
    scores = boundary_scores([[both, boundary_counts(far, [truth], tolerance)]] * 2)
    assert scores.f_ods == scores.f_ois == pytest.approx(2 / 3)


def test_label_maps_of_different_shapes_are_refused():
    with pytest.raises(ValueError, match="of one shape"):
        rand_index(A, A[:1])
