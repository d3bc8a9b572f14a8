"""BF: how well the contours of semantic classes agree (Csurka et al. 2013, "What is a good evaluation measure?")."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

__all__ = ["BoundaryF", "BoundaryFSums", "boundary_f_scores", "boundary_f_sums"]

IGNORE = 255


class BoundaryFSums(NamedTuple):
    """What adds up over images, by `np.add` field by field.

    `f [K]` sums F over the `images [K]` that have the class in truth or prediction; `image_f` sums the means over
    the classes of an image, of `image_count` images.
    """

    f: Float[np.ndarray, "k"]
    images: Int[np.ndarray, "k"]
    image_f: float
    image_count: int


class BoundaryF(NamedTuple):
    """Scores of a data set, as fractions."""

    bf: float  # mean over images of the mean over an image's classes, SegNet's BF
    bf_per_class: Float[np.ndarray, "k"]  # mean over images that have the class; NaN for a class that none has


def _contour(inside: Bool[np.ndarray, "h w"], valid: Bool[np.ndarray, "h w"]) -> Bool[np.ndarray, "h w"]:
    """Pixels whose right, lower or lower right neighbour is on the other side, where neither is ignored."""
    edge = np.zeros(inside.shape, bool)
    for dy, dx in ((0, 1), (1, 0), (1, 1)):
        h, w = inside.shape[0] - dy, inside.shape[1] - dx
        here, there = (slice(0, h), slice(0, w)), (slice(dy, None), slice(dx, None))
        edge[here] |= (inside[here] != inside[there]) & valid[here] & valid[there]
    return edge


def _share_near(contour: Bool[np.ndarray, "h w"], other: Bool[np.ndarray, "h w"], reach: float) -> float:
    """The share of the pixels of `contour` that are within `reach` of one of `other`."""
    from scipy.ndimage import distance_transform_edt  # slow to import

    if not contour.any() or not other.any():
        return 0.0
    return float((distance_transform_edt(~other)[contour] <= reach).mean())


def boundary_f_sums(
    prediction: Int[np.ndarray, "_ _"],
    truth: Int[np.ndarray, "_ _"],
    num_classes: int,
    *,
    tolerance: float = 0.0075,
) -> BoundaryFSums:
    """F of each class's contour in one image, as sums that add up over images.

    Precision is the share of the predicted contour's pixels within `tolerance`, a share of the image's diagonal,
    of the true contour; recall the other way round; F their harmonic mean. A class in truth or prediction counts:
    with 0 where only one has a contour, and 1 where it fills the image in both. Pixels that are 255 in `truth`
    are no part of the image: they have no class, and no contour runs along them. Raises ValueError for maps of
    two shapes, and for a label that is no class.
    """
    if prediction.shape != truth.shape:
        raise ValueError(f"boundary F compares maps of one shape, got {prediction.shape} and {truth.shape}")
    reach = tolerance * float(np.hypot(*truth.shape))
    valid = truth != IGNORE
    f, images = np.zeros(num_classes), np.zeros(num_classes, np.int64)
    classes = np.union1d(prediction[valid], truth[valid])
    if len(classes) and not 0 <= classes[0] <= classes[-1] < num_classes:
        raise ValueError(f"boundary F of {num_classes} classes got label(s) {classes[0]} to {classes[-1]}")
    for c in classes:
        ours, theirs = (_contour(labels == c, valid) for labels in (prediction, truth))
        images[c] = 1
        if not ours.any() and not theirs.any():
            f[c] = float((prediction == c)[valid].any() and (truth == c)[valid].any())
            continue
        precision, recall = _share_near(ours, theirs, reach), _share_near(theirs, ours, reach)
        f[c] = 2 * precision * recall / (precision + recall) if precision + recall else 0.0
    any_class = int(images.any())
    return BoundaryFSums(f, images, float(f.sum() / max(images.sum(), 1)), any_class)


def boundary_f_scores(sums: BoundaryFSums) -> BoundaryF:
    """Scores from summed sums; NaN where nothing was counted."""
    with np.errstate(invalid="ignore"):
        per_class = np.asarray(sums.f) / np.asarray(sums.images)
    return BoundaryF(sums.image_f / sums.image_count if sums.image_count else float("nan"), per_class)
