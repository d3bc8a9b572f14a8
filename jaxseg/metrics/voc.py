"""PASCAL VOC's average precision of boxes: 2007's over eleven recalls, 2010's and later ones' area under the curve."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Float

from jaxseg.metrics.coco import Objects, check_objects

__all__ = ["precision_recall_area", "voc_average_precision"]


def precision_recall_area(recall: Float[np.ndarray, "k"], precision: Float[np.ndarray, "k"], year: int) -> float:
    """Average precision of a curve whose points are in order of falling score (Everingham et al. 2010, section 4.2).

    2007: the mean over the recalls 0, 0.1, ..., 1 of the best precision at that recall or beyond. 2012: the area
    under the precision made to fall with recall.
    """
    if year == 2007:
        best = [precision[recall >= level].max(initial=0.0) for level in np.arange(11) / 10]
        return float(np.mean(best))
    envelope = np.maximum.accumulate(precision[::-1])[::-1]
    return float(np.sum(np.diff(recall, prepend=0.0) * envelope))


def _overlap(
    box: Float[np.ndarray, "4"], boxes: Float[np.ndarray, "g 4"], *, crowds: bool = False
) -> Float[np.ndarray, "g"]:
    """IoU of a box with others; with crowds the share of the box that lies in each, as COCO has it."""
    inner = np.clip(np.minimum(box[2:], boxes[:, 2:]) - np.maximum(box[:2], boxes[:, :2]), 0, None).prod(1)
    areas = (boxes[:, 2:] - boxes[:, :2]).prod(1) + (box[2:] - box[:2]).prod()
    whole = np.full_like(inner, (box[2:] - box[:2]).prod()) if crowds else areas - inner
    return np.divide(inner, whole, out=np.zeros_like(inner), where=whole > 0)


def _judged(
    truth: Sequence[Objects], found: Sequence[Objects], cls: int, threshold: float
) -> tuple[Bool[np.ndarray, "k"], int]:
    """Which detections of a class, best first, are right, without those that do not count; and how many objects do."""
    true_boxes, difficult, crowds, rows = [], [], [], []
    for i, (objects, detections) in enumerate(zip(truth, found, strict=True)):
        of_class = np.asarray(objects.classes) == cls
        hard, crowd = (
            np.zeros(len(of_class), bool) if flags is None else np.asarray(flags, bool)
            for flags in (objects.difficult, objects.crowd)
        )
        of_boxes = np.asarray(objects.boxes, float).reshape(-1, 4)
        true_boxes.append(of_boxes[of_class & ~crowd])
        difficult.append(hard[of_class & ~crowd])
        crowds.append(of_boxes[of_class & crowd])
        boxes = np.asarray(detections.boxes, float).reshape(-1, 4)
        scores: Any = detections.scores  # None where nothing was found
        rows += [(float(scores[j]), i, boxes[j]) for j in np.flatnonzero(np.asarray(detections.classes) == cls)]
    rows.sort(key=lambda row: -row[0])  # stable: equal scores in the order of the images
    taken = [np.zeros(len(flags), bool) for flags in difficult]
    right = []
    for _, i, box in rows:
        overlap = _overlap(box, true_boxes[i])
        best = int(overlap.argmax()) if overlap.size else -1
        if best >= 0 and overlap[best] >= threshold:
            if difficult[i][best]:  # neither right nor wrong to find, however often
                continue
            if not taken[i][best]:
                taken[i][best] = True
                right.append(True)
                continue
        if not (_overlap(box, crowds[i], crowds=True) >= threshold).any():  # what is of a crowd does not count either
            right.append(False)
    return np.array(right, bool), int(sum((~flags).sum() for flags in difficult))


def voc_average_precision(
    truth: Sequence[Objects],
    found: Sequence[Objects],
    class_names: Sequence[str],
    *,
    year: int = 2007,
    threshold: float = 0.5,
) -> dict[str, float]:
    """VOC's AP of each class, `ap/NAME`, and their mean, `map`, at an IoU of `threshold`.

    One `Objects` an image in both; `class_names` include the background, 0. A detection is held against the object of
    its class that it overlaps most: right if that is not taken yet, and not counted if that is `difficult`. A `crowd`
    is no object: one that would be wrong is not counted where a share of `threshold` of it lies in a crowd of its
    class, as COCO has it. A class without objects that count has NaN and is left out of the mean. Boxes have their
    edges outside the last pixel, so that IoU is VOC's, which counts both end pixels. Raises ValueError as
    `coco_average_precision`, and for another year.
    """
    if year not in (2007, 2012):
        raise ValueError(f"VOC's average precision is of 2007 or 2012, got year={year}")
    check_objects(truth, found, len(class_names))
    scores: dict[str, float] = {}
    for cls in range(1, len(class_names)):
        right, count = _judged(truth, found, cls, threshold)
        hits = np.cumsum(right)
        curve = hits / max(count, 1), hits / np.arange(1, len(hits) + 1)
        scores[f"ap/{class_names[cls]}"] = precision_recall_area(*curve, year) if count else float("nan")
    finite = [v for v in scores.values() if np.isfinite(v)]
    return {"map": float(np.mean(finite)) if finite else float("nan"), **scores}
