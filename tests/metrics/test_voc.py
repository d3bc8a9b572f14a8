"""VOC's average precision on cases that can be counted by hand, and beside a naive definition."""

import numpy as np
import pytest

from jaxseg.metrics.coco import Objects
from jaxseg.metrics.voc import precision_recall_area, voc_average_precision

CLASSES = ("background", "cat", "dog")


def objects(*boxes, classes=None, **fields):
    fields = {k: np.array(v) for k, v in fields.items()}
    return Objects(
        np.array(boxes, np.float32).reshape(-1, 4), np.array(classes or [1] * len(boxes), np.int32), **fields
    )


def test_the_two_areas_of_a_curve():
    # right, wrong, right, of four objects: recalls 1/4, 1/4, 1/2; precisions 1, 1/2, 2/3
    recall, precision = np.array([0.25, 0.25, 0.5]), np.array([1, 0.5, 2 / 3])
    assert precision_recall_area(recall, precision, 2012) == pytest.approx(0.25 * 1 + 0.25 * 2 / 3)
    assert precision_recall_area(recall, precision, 2007) == pytest.approx((3 * 1 + 3 * 2 / 3) / 11)
    assert precision_recall_area(np.zeros(0), np.zeros(0), 2007) == 0
    assert precision_recall_area(np.zeros(0), np.zeros(0), 2012) == 0


@pytest.mark.parametrize("year", [2007, 2012])
def test_difficult_objects_are_neither_right_nor_wrong(year):
    truth = [objects((0, 0, 10, 10), (20, 0, 30, 10), difficult=[False, True])]
    found = [objects((20, 0, 30, 10), (20, 1, 30, 10), (0, 0, 10, 10), scores=[0.9, 0.8, 0.7])]
    assert voc_average_precision(truth, found, CLASSES, year=year)["map"] == pytest.approx(
        1
    )  # two on the difficult one
    easy = [truth[0]._replace(difficult=None)]
    scores = voc_average_precision(easy, found, CLASSES, year=year)
    # right, wrong (taken), right: recalls 1/2, 1/2, 1
    expected = 0.5 + 0.5 * 2 / 3 if year == 2012 else (6 + 5 * 2 / 3) / 11
    assert scores["ap/cat"] == pytest.approx(expected)
    assert np.isnan(scores["ap/dog"])
    assert scores["map"] == scores["ap/cat"]


@pytest.mark.parametrize("year", [2007, 2012])
def test_crowds_are_no_objects_and_what_lies_in_them_does_not_count(year):
    truth = [objects((0, 0, 10, 10), (20, 0, 60, 40), crowd=[False, True])]
    inside = objects((21, 1, 29, 9), (40, 1, 50, 9), (20, 0, 60, 40), (0, 0, 10, 10), scores=[0.9, 0.8, 0.75, 0.7])
    assert voc_average_precision(truth, [inside], CLASSES, year=year)["map"] == pytest.approx(1)
    found = [objects((12, 0, 24, 8), (0, 0, 10, 10), scores=[0.9, 0.7])]  # a third of it lies in the crowd
    assert voc_average_precision(truth, found, CLASSES, year=year)["map"] == pytest.approx(0.5)
    found = [objects((21, 1, 29, 9), (0, 0, 10, 10), classes=[2, 1], scores=[0.9, 0.7])]
    truth.append(objects((0, 0, 10, 10), classes=[2]))
    found.append(objects((0, 0, 10, 10), classes=[2], scores=[0.5]))
    assert voc_average_precision(truth, found, CLASSES, year=year)["ap/dog"] == pytest.approx(0.5)  # a crowd of cats
    alone = [objects((0, 0, 10, 10), crowd=[True])]
    assert np.isnan(voc_average_precision(alone, [objects((0, 0, 10, 10), scores=[1])], CLASSES, year=year)["map"])


def test_an_object_that_a_crowd_surrounds_still_counts():
    truth = [objects((5, 5, 15, 15), (0, 0, 40, 40), crowd=[False, True])]
    found = [objects((5, 5, 15, 15), (5, 5, 15, 16), scores=[0.9, 0.8])]  # the second is of the crowd, as COCO has it
    assert voc_average_precision(truth, found, CLASSES, year=2012)["map"] == 1
    missed = [objects((25, 25, 35, 35), scores=[0.9])]
    assert voc_average_precision(truth, missed, CLASSES, year=2012)["map"] == 0


def test_a_detection_looks_at_the_object_it_overlaps_most_taken_or_not():
    truth = [objects((0, 0, 10, 10), (0, 0, 10, 6))]
    found = [objects((0, 0, 10, 10), (0, 0, 10, 9), scores=[0.9, 0.8])]
    scores = voc_average_precision(
        truth, found, CLASSES, year=2012
    )  # IoU 0.9 with the first, taken; 0.67 with the second
    assert scores["map"] == pytest.approx(0.5)


def test_the_threshold_itself_is_enough():
    truth, found = [objects((0, 0, 10, 10))], [objects((0, 0, 10, 5), scores=[0.5])]
    assert voc_average_precision(truth, found, CLASSES, year=2012)["map"] == 1  # an IoU of 0.5
    assert voc_average_precision(truth, found, CLASSES, year=2012, threshold=0.51)["map"] == 0
    with pytest.raises(ValueError, match="2007 or 2012, got year=2010"):
        voc_average_precision(truth, found, CLASSES, year=2010)
    with pytest.raises(ValueError, match="each image in both, got 1 and 0"):
        voc_average_precision(truth, [], CLASSES)
    with pytest.raises(ValueError, match=r"classes of the truth of image 0 must be in 1\.\.2"):
        voc_average_precision([objects((0, 0, 1, 1), classes=[3])], found, CLASSES)


def naive(truth, found, cls, year):
    """The devkit's VOCevaldet, in inclusive pixels counted from 1, as plain loops."""
    rows = []
    for i, f in enumerate(found):
        rows += [(s, i, b) for s, b, c in zip(f.scores, f.boxes, f.classes, strict=True) if c == cls]
    rows.sort(key=lambda r: -r[0])
    seen, hits, misses, curve = set(), 0, 0, []
    count = sum(1 for t in truth for c, d in zip(t.classes, t.difficult, strict=True) if c == cls and not d)
    for _, i, box in rows:
        best, at = -np.inf, None
        for j, (other, c) in enumerate(zip(truth[i].boxes, truth[i].classes, strict=True)):
            if c != cls:
                continue
            a, b = [box[0] + 1, box[1] + 1, box[2], box[3]], [other[0] + 1, other[1] + 1, other[2], other[3]]
            w, h = min(a[2], b[2]) - max(a[0], b[0]) + 1, min(a[3], b[3]) - max(a[1], b[1]) + 1
            if w > 0 and h > 0:
                area = [(x[2] - x[0] + 1) * (x[3] - x[1] + 1) for x in (a, b)]
                if w * h / (sum(area) - w * h) > best:
                    best, at = w * h / (sum(area) - w * h), j
        if best >= 0.5:
            if truth[i].difficult[at]:
                continue
            if (i, at) in seen:
                misses += 1
            else:
                hits += 1
                seen.add((i, at))
        else:
            misses += 1
        curve.append((hits / count, hits / (hits + misses)))
    if year == 2007:
        return sum(max([p for r, p in curve if r >= t / 10 - 1e-12] or [0]) for t in range(11)) / 11
    total, before = 0, 0
    for k, (r, _) in enumerate(curve):
        total += (r - before) * max(p for _, p in curve[k:])
        before = r
    return total


@pytest.mark.parametrize("year", [2007, 2012])
@pytest.mark.parametrize("seed", range(3))
def test_beside_the_definition(year, seed):
    rng = np.random.default_rng(seed)
    truth, found = [], []
    for _ in range(6):
        corners = rng.integers(0, 40, (7, 2))
        boxes = np.concatenate([corners, corners + rng.integers(4, 20, (7, 2))], 1)
        truth.append(objects(*boxes, classes=rng.integers(1, 3, 7).tolist(), difficult=rng.random(7) < 0.3))
        moved = np.concatenate([boxes, boxes[:4]]) + rng.integers(-3, 4, (11, 4))
        moved[:, 2:] = np.maximum(moved[:, 2:], moved[:, :2] + 1)
        classes = np.where(rng.random(11) < 0.8, np.concatenate([truth[-1].classes, truth[-1].classes[:4]]), 1)
        found.append(objects(*moved, classes=classes.tolist(), scores=rng.permutation(11) / 11 + 0.001 * len(found)))
    scores = voc_average_precision(truth, found, CLASSES, year=year)
    assert 0.1 < scores["map"] < 0.95
    for cls, name in enumerate(CLASSES[1:], 1):
        assert scores[f"ap/{name}"] == pytest.approx(naive(truth, found, cls, year))
