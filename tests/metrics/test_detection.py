"""COCO's average precision on cases that can be counted by hand, and beside the sums of training."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxseg.metrics.coco import Objects, coco_average_precision, mask_to_rle
from jaxseg.metrics.detection import average_precision, mask_iou, pasted_mask_iou, score_histogram
from jaxseg.metrics.voc import voc_average_precision
from jaxseg.models import Detections
from jaxseg.ops.masks import instances_of, paste_masks

pytest.importorskip("pycocotools")

CLASSES = ("background", "cat", "dog")


def square(x, y, side, size=(64, 64)):
    mask = np.zeros(size, bool)
    mask[y : y + side, x : x + side] = True
    return np.array([x, y, x + side, y + side], np.float32), mask


def objects(*squares, **fields):
    boxes, masks = zip(*(square(*s) for s in squares), strict=True)
    classes = fields.pop("classes", [1] * len(squares))
    return Objects(np.stack(boxes), np.array(classes), np.stack(masks), **fields)


def test_perfect_shifted_and_missed():
    truth = [objects((4, 4, 20), (36, 36, 20), classes=[1, 2])]
    perfect = coco_average_precision(truth, [truth[0]._replace(scores=np.array([0.9, 0.8]))], CLASSES)
    assert perfect["box_ap"] == perfect["mask_ap"] == pytest.approx(1)
    assert np.isnan(perfect["mask_ap_large"])
    # moved by 4 of 20 pixels: IoU 320 / 480 = 2/3, right up to 0.65
    moved = objects((8, 4, 20), (40, 36, 20), classes=[1, 2], scores=np.array([0.9, 0.8]))
    shifted = coco_average_precision(truth, [moved], CLASSES)
    assert shifted["mask_ap50"] == pytest.approx(1)
    assert shifted["mask_ap75"] == 0
    assert shifted["mask_ap"] == pytest.approx(4 / 10)
    wrong = coco_average_precision(truth, [moved._replace(classes=np.array([2, 1]))], CLASSES)
    assert wrong["box_ap50"] == 0


def test_crowds_and_images_without_objects():
    none = Objects(np.zeros((0, 4), np.float32), np.zeros(0, int), np.zeros((0, 64, 64), bool), np.zeros(0))
    truth = [objects((4, 4, 20), (30, 4, 30), crowd=np.array([False, True])), none]
    found = [objects((4, 4, 20), (34, 8, 10), scores=np.array([0.8, 0.9])), none]
    scores = coco_average_precision(truth, found, CLASSES)
    assert scores["mask_ap"] == pytest.approx(1)  # what lies in the crowd is no mistake
    alarm = [found[0], objects((4, 4, 20), scores=np.array([0.95]))]
    assert coco_average_precision(truth, alarm, CLASSES)["mask_ap"] == pytest.approx(0.5)
    with pytest.raises(ValueError, match="each image in both, got 2 and 1"):
        coco_average_precision(truth, found[:1], CLASSES)
    with pytest.raises(ValueError, match=r"classes of the detections of image 0 must be in 1\.\.2"):
        coco_average_precision(truth[:1], [found[0]._replace(classes=np.array([3, 1]))], CLASSES)


def test_what_has_no_object_needs_no_masks_and_what_is_found_needs_scores():
    truth = [objects((4, 4, 20)), Objects(np.zeros((0, 4), np.float32), np.zeros(0, int))]
    found = [objects((4, 4, 20), scores=np.array([0.8])), truth[1]]
    assert coco_average_precision(truth, found, CLASSES)["mask_ap"] == pytest.approx(1)
    assert coco_average_precision(truth[::-1], found[::-1], CLASSES)["mask_ap"] == pytest.approx(1)
    assert "mask_ap" not in coco_average_precision(truth, [found[0]._replace(masks=None), found[1]], CLASSES)
    with pytest.raises(ValueError, match="each of the 1 detections of image 0 needs a score, got none"):
        coco_average_precision(truth, [truth[0], found[1]], CLASSES)
    with pytest.raises(ValueError, match="detections of image 1 needs a score, got 2"):
        coco_average_precision(truth[::-1], [found[1], found[0]._replace(scores=np.ones(2))], CLASSES)


@pytest.mark.parametrize("score", [coco_average_precision, voc_average_precision])
@pytest.mark.parametrize("field", ["boxes", "scores"])
def test_what_is_no_number_scores_nothing(score, field):
    truth = objects((4, 4, 20))
    found = truth._replace(scores=np.array([0.8]))
    wrong = found._replace(**{field: np.full_like(getattr(found, field), np.nan)})
    with pytest.raises(ValueError, match="boxes and scores of the detections of image 1 must be finite"):
        score([truth, truth], [found, wrong], CLASSES)


def test_run_lengths_decode():
    from pycocotools import mask

    _, square_mask = square(3, 5, 9, (20, 31))
    encoded = mask_to_rle(square_mask)
    assert isinstance(encoded["counts"], str)
    np.testing.assert_array_equal(mask.decode(encoded), square_mask)


def test_the_sums_of_training_give_cocos_ap50():
    """Random objects and noisy detections of three images; scores differ by more than a bin."""
    rng = np.random.default_rng(0)
    truth, found, sums = [], [], []
    for image in range(3):
        corners = rng.permutation(9)[:5]
        places = [(int(2 + 20 * (c % 3)), int(2 + 20 * (c // 3)), 16) for c in corners]
        moved = [(x + int(rng.integers(-3, 4)) % 4, y + int(rng.integers(0, 5)), 16) for x, y, _ in places]
        classes, guesses = rng.integers(1, 3, 5), rng.integers(1, 3, 5)
        scores = np.sort(rng.permutation(90)[:5] / 100 + 0.05 + image / 1000)[::-1]
        truth.append(objects(*places, classes=classes))
        found.append(objects(*moved, classes=guesses, scores=scores))
        ids = (truth[-1].masks * np.arange(1, 6)[:, None, None]).max(0).astype(np.int32)
        label = np.concatenate([[0], classes])[ids].astype(np.int32)
        ids, label = jnp.asarray(ids), jnp.asarray(label)
        boxes, guesses = jnp.asarray(found[-1].boxes), jnp.asarray(guesses, jnp.int32)
        detections = Detections(boxes, jnp.asarray(scores, jnp.float32), guesses, None, jnp.ones(5, bool))
        overlap = mask_iou(jnp.asarray(found[-1].masks), ids == jnp.arange(1, 6)[:, None, None])
        sums.append(score_histogram(detections, instances_of(ids, label, 5), overlap, 3))
    ours = average_precision(jax.tree.map(lambda *x: np.sum(x, 0), *sums))
    expected = coco_average_precision(truth, found, CLASSES)
    assert 0.1 < expected["mask_ap50"] < 0.9
    assert ours["box_ap50"] == pytest.approx(expected["box_ap50"], abs=1e-6)
    assert ours["mask_ap50"] == pytest.approx(expected["mask_ap50"], abs=1e-6)


@pytest.mark.parametrize(("h", "block"), [(50, 16), (33, 32), (7, 32)])
def test_rows_at_a_time_make_the_overlap_of_whole_masks(h, block):
    rng = np.random.default_rng(h)
    masks = jnp.asarray(rng.uniform(size=(6, 5, 5)), jnp.float32)
    corners = rng.uniform(-4, 0.6 * h, (6, 2))
    boxes = jnp.asarray(np.concatenate([corners, corners + rng.uniform(2, h, (6, 2))], 1), jnp.float32)
    ids = jnp.asarray(rng.integers(0, 4, (h, 40)), jnp.int32)
    truth = ids == jnp.arange(1, 6)[:, None, None]  # ids 4 and 5 are of no pixel
    expected = mask_iou(paste_masks(masks, boxes, ids.shape) > 0.5, truth)
    assert expected.max() > 0.05
    run = jax.jit(pasted_mask_iou, static_argnames=("count", "block"))
    for instances in (ids, truth):
        np.testing.assert_allclose(run(masks, boxes, instances, count=5, block=block), expected, atol=1e-6)
    assert run(masks, boxes, truth[:0], count=0).shape == (6, 0)


def test_overlap_of_many_masks_on_a_large_image_is_never_whole():
    """A hundred of each at 1344x1344 are 1.4 GB in float32, and in blocks of rows some dozens of MB."""
    shapes = [jax.ShapeDtypeStruct(s, d) for s, d in (((100, 28, 28), "f4"), ((100, 4), "f4"), ((1344, 1344), "i4"))]
    run = jax.jit(lambda *arrays: pasted_mask_iou(*arrays, count=100))
    assert run.lower(*shapes).compile().memory_analysis().temp_size_in_bytes < 150e6
