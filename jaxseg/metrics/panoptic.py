"""Panoptic quality, with the rules of COCO's panopticapi for VOID and crowds."""

from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

__all__ = ["VOID", "PanopticScores", "PanopticSums", "panoptic_scores", "panoptic_sums"]

VOID = 0  # the id of pixels without a segment


class PanopticSums(NamedTuple):
    """What adds up over images, by class: summed IoU of the matches, matches, and segments left over on each side."""

    iou: Float[np.ndarray, "k"]
    tp: Int[np.ndarray, "k"]
    fp: Int[np.ndarray, "k"]
    fn: Int[np.ndarray, "k"]


class PanopticScores(NamedTuple):
    """Panoptic quality = segmentation quality x recognition quality, means over classes and by class, as fractions."""

    pq: float
    sq: float
    rq: float
    pq_per_class: Float[np.ndarray, "k"]  # NaN for a class in neither truth nor prediction
    sq_per_class: Float[np.ndarray, "k"]
    rq_per_class: Float[np.ndarray, "k"]


def _areas(ids: np.ndarray, classes: Mapping[int, int], num_classes: int, what: str) -> dict[int, int]:
    """Pixels of each segment; raises ValueError where the map and the classes do not name the same segments."""
    found = {int(i): int(n) for i, n in zip(*np.unique(ids, return_counts=True), strict=True) if i != VOID}
    if unknown := sorted(found.keys() - classes.keys()):
        raise ValueError(f"segment(s) {unknown[:5]} of the {what} have no class; give each id but {VOID} one")
    if missing := sorted(set(classes) - found.keys()):
        raise ValueError(f"segment(s) {missing[:5]} of the {what} have no pixel; leave them out of its classes")
    if outside := sorted(i for i, c in classes.items() if not 0 <= c < num_classes):
        raise ValueError(f"segment(s) {outside[:5]} of the {what} are of classes outside 0..{num_classes - 1}")
    return found


def panoptic_sums(
    prediction: Int[np.ndarray, "_ _"],
    predicted_classes: Mapping[int, int],
    truth: Int[np.ndarray, "_ _"],
    true_classes: Mapping[int, int],
    num_classes: int,
    *,
    crowds: Collection[int] = (),
) -> PanopticSums:
    """Matches the segments of one image (Kirillov et al. 2019, section 4); the sums add up over images.

    `prediction` and `truth` hold the id of each pixel's segment, 0 = VOID; the mappings give the class of each id,
    and `crowds` the ids of true segments that are crowds. Two segments of one class match where their IoU, less
    the predicted pixels that are VOID in truth, is above 1/2. A crowd is never matched and never missed. A
    predicted segment of which more than half is VOID in truth, or in crowds of its class, is not counted.
    Raises ValueError for maps of two shapes, and where ids and classes do not agree.
    """
    if prediction.shape != truth.shape:
        raise ValueError(f"panoptic quality compares maps of one shape, got {prediction.shape} and {truth.shape}")
    ours = _areas(prediction, predicted_classes, num_classes, "prediction")
    theirs = _areas(truth, true_classes, num_classes, "truth")
    if strangers := sorted(set(crowds) - theirs.keys()):
        raise ValueError(f"crowd(s) {strangers[:5]} are no segment of the truth; name those of its ids that are crowds")
    pairs, counts = np.unique(np.stack([truth.ravel(), prediction.ravel()]), axis=1, return_counts=True)
    shared = {(int(t), int(p)): int(n) for (t, p), n in zip(pairs.T, counts, strict=True)}
    sums = PanopticSums(np.zeros(num_classes), *(np.zeros(num_classes, np.int64) for _ in range(3)))
    matched_true, matched = set(), set()
    for (t, p), overlap in shared.items():
        if VOID in (t, p) or t in crowds or true_classes[t] != predicted_classes[p]:
            continue
        iou = overlap / (ours[p] + theirs[t] - overlap - shared.get((VOID, p), 0))
        if iou > 0.5:  # so a segment has one match at most
            sums.iou[true_classes[t]] += iou
            sums.tp[true_classes[t]] += 1
            matched_true.add(t)
            matched.add(p)
    for t in theirs.keys() - matched_true - set(crowds):
        sums.fn[true_classes[t]] += 1
    for p in ours.keys() - matched:
        c = predicted_classes[p]
        excused = shared.get((VOID, p), 0) + sum(shared.get((t, p), 0) for t in crowds if true_classes[t] == c)
        if excused <= 0.5 * ours[p]:
            sums.fp[c] += 1
    return sums


def panoptic_scores(sums: PanopticSums, classes: Sequence[int] | None = None) -> PanopticScores:
    """Scores from summed sums; the means are over those of `classes` (default all) that occur at all."""
    iou, tp, fp, fn = (np.asarray(x, np.float64) for x in sums)
    occurs = tp + fp + fn > 0
    with np.errstate(invalid="ignore", divide="ignore"):
        pq = iou / (tp + fp / 2 + fn / 2)
        rq = tp / (tp + fp / 2 + fn / 2)
        sq = np.where(occurs, np.where(tp > 0, iou / tp, 0.0), np.nan)
    chosen = np.zeros(len(tp), bool)
    chosen[slice(None) if classes is None else list(classes)] = True
    chosen &= occurs
    mean = lambda x: float(x[chosen].mean()) if chosen.any() else float("nan")  # noqa: E731
    return PanopticScores(mean(pq), mean(sq), mean(rq), pq, sq, rq)
