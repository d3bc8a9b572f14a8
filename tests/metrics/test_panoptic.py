"""Panoptic quality against a definition with masks, and COCO's rules one by one by hand."""

import numpy as np
import pytest

from jaxseg.metrics import PanopticSums, panoptic_scores, panoptic_sums


def naive(prediction, predicted, truth, true, k, crowds):
    """Every pair of masks."""
    iou, tp, fp, fn = np.zeros(k), np.zeros(k, int), np.zeros(k, int), np.zeros(k, int)
    void, matched = truth == 0, {}
    for t, c in true.items():
        for p, d in predicted.items():
            a, b = truth == t, (prediction == p)
            value = (a & b).sum() / (a | (b & ~void)).sum()
            if c == d and t not in crowds and value > 0.5:
                matched[t] = p
                iou[c] += value
                tp[c] += 1
        fn[c] += t not in matched and t not in crowds
    for p, d in predicted.items():
        excused = void.copy()
        for t in crowds:
            excused |= (truth == t) & (true[t] == d)
        if p not in matched.values() and (excused & (prediction == p)).sum() <= (prediction == p).sum() / 2:
            fp[d] += 1
    return iou, tp, fp, fn


def random_segments(rng, k):
    ids = rng.integers(0, 7, (4, 5)).repeat(2, 0).repeat(2, 1) * 11  # any ids will do
    return ids, {int(i): int(rng.integers(0, k)) for i in np.unique(ids) if i}


def test_sums_are_the_definition_s_and_add_up():
    rng = np.random.default_rng(0)
    total, want, k = PanopticSums(*np.zeros((4, 3))), np.zeros((4, 3)), 3
    for _ in range(40):
        truth, true = random_segments(rng, k)
        prediction, predicted = random_segments(rng, k)
        if rng.random() < 0.8:  # alike, but for noise
            prediction, predicted = np.where(rng.random(truth.shape) < 0.3, 0, truth), dict(true)
            predicted = {i: c for i, c in predicted.items() if (prediction == i).any()}
        crowds = [i for i in true if rng.random() < 0.2]
        total = PanopticSums(*map(np.add, total, panoptic_sums(prediction, predicted, truth, true, k, crowds=crowds)))
        want += naive(prediction, predicted, truth, true, k, crowds)
    np.testing.assert_allclose(total, want)
    assert (want > 5).all(), "every rule had a case"
    iou, tp, fp, fn = want
    scores = panoptic_scores(total)
    np.testing.assert_allclose(scores.pq, np.mean(iou / (tp + (fp + fn) / 2)))
    np.testing.assert_allclose(scores.pq_per_class, scores.sq_per_class * scores.rq_per_class)
    np.testing.assert_allclose(panoptic_scores(total, [2]).sq, iou[2] / tp[2])


def row(*runs):
    """A map of one row: (id, pixels) in turn."""
    return np.repeat([i for i, _ in runs], [n for _, n in runs])[None]


@pytest.mark.parametrize(
    ("prediction", "truth", "crowds", "want"),
    [
        (row((5, 6), (0, 4)), row((1, 5), (0, 5)), (), (1.0, 1, 0, 0)),  # the pixel on VOID is not in the union
        (row((5, 6), (0, 4)), row((1, 5), (2, 5)), (), (5 / 6, 1, 0, 1)),
        (row((5, 5), (0, 5)), row((1, 10)), (), (0.0, 0, 1, 1)),  # an IoU of just 1/2 is no match
        (row((5, 5), (0, 5)), row((0, 3), (3, 2), (0, 5)), (), (0.0, 0, 0, 0)),  # most of it on VOID: not counted
        (row((5, 4), (0, 6)), row((0, 2), (1, 8)), (), (0.0, 0, 1, 1)),  # half on VOID: counted
        (row((5, 6), (0, 4)), row((1, 6), (0, 4)), (1,), (0.0, 0, 0, 0)),  # a crowd: neither found nor missed
        (row((5, 6), (0, 4)), row((1, 2), (0, 2), (2, 6)), (1,), (0.0, 0, 0, 1)),  # VOID and crowd add up
        (row((5, 6), (0, 4)), row((1, 6), (3, 4)), (1,), (0.0, 0, 0, 0)),  # 3 is of the other class
    ],
)
def test_rules_by_hand(prediction, truth, crowds, want):
    true = {int(i): int(i == 3) for i in np.unique(truth) if i}
    sums = panoptic_sums(prediction, {5: 0}, truth, true, 2, crowds=crowds)
    np.testing.assert_allclose([x[0] for x in sums], want)


def test_a_crowd_of_another_class_excuses_nothing():
    sums = panoptic_sums(row((5, 6)), {5: 1}, row((1, 6)), {1: 0}, 2, crowds=(1,))
    assert sums.fp.tolist() == [0, 1]


def test_means_leave_out_classes_that_never_occur():
    sums = PanopticSums(np.array([0.8, 0, 0]), np.array([1, 0, 0]), np.array([0, 0, 1]), np.array([0, 0, 0]))
    scores = panoptic_scores(sums)
    np.testing.assert_allclose((scores.pq, scores.sq, scores.rq), (0.4, 0.4, 0.5))
    np.testing.assert_allclose(scores.pq_per_class, [0.8, np.nan, 0])
    assert np.isnan(panoptic_scores(sums, [1]).pq)


def test_ids_and_classes_must_agree():
    one = row((1, 4))
    for words, says in (((one, {}, one, {1: 0}), "of the prediction have no class"),):
        with pytest.raises(ValueError, match=says):
            panoptic_sums(*words, 2)
    with pytest.raises(ValueError, match=r"\[9\] of the truth have no pixel"):
        panoptic_sums(one, {1: 0}, one, {1: 0, 9: 1}, 2)
    for outside in (2, -1):
        with pytest.raises(ValueError, match=r"\[1\] of the prediction are of classes outside 0\.\.1"):
            panoptic_sums(one, {1: outside}, one, {1: 0}, 2)
    with pytest.raises(ValueError, match="one shape"):
        panoptic_sums(one, {1: 0}, one[:, 1:], {1: 0}, 2)


def test_a_crowd_that_is_no_segment_is_named():
    ids = np.ones((2, 2), int)
    with pytest.raises(ValueError, match=r"crowd\(s\) \[9\] are no segment of the truth"):
        panoptic_sums(ids, {1: 0}, ids, {1: 1}, 2, crowds=[9])
