"""One additive confusion matrix, and every semantic score that is read off it."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Integer

__all__ = [
    "SegmentationScores",
    "confusion_matrix",
    "mean_iou",
    "named_scores",
    "segmentation_scores",
]


def _scattered(cells: Int[Array, "*n"], k: int) -> Int[Array, "k2"]:
    return jnp.zeros(k**2 + 1, jnp.int32).at[cells.ravel()].add(1)[:-1]


def _multiplied(cells: Int[Array, "*n"], k: int) -> Int[Array, "k2"]:
    """As a product of one-hot rows, which a matrix unit adds up at once and a TPU's scatter one by one."""
    classes, axes = jnp.arange(k), tuple(range(cells.ndim))  # what is left out is of class k, which has no column
    truth, predicted = ((part[..., None] == classes).astype(jnp.int8) for part in (cells // k, cells % k))
    return jnp.tensordot(truth, predicted, (axes, axes), preferred_element_type=jnp.int32).ravel()


def confusion_matrix(
    predictions: Integer[Array, "*n"], labels: Integer[Array, "*n"], num_classes: int
) -> Int[Array, "{num_classes} {num_classes}"]:
    """Counts pixels by (true class, predicted class); pixels labelled 255 (or out of range) are left out.

    Matrices of parts of a data set add up to that of the whole, so shards, hosts and a ragged last batch
    (padded with 255) are exact. int32: a single call counts up to 2^31 pixels.
    """
    predictions, labels = (x.astype(jnp.int32) for x in (predictions, labels))  # a product of bytes would wrap
    counted = (labels >= 0) & (labels < num_classes)
    cells = jnp.where(counted, labels * num_classes + predictions, num_classes**2)
    scattered, multiplied = (functools.partial(f, k=num_classes) for f in (_scattered, _multiplied))
    counts = jax.lax.platform_dependent(cells, tpu=multiplied, default=scattered)
    return counts.reshape(num_classes, num_classes)


def mean_iou(confusion: Int[Array, "k k"]) -> Float[Array, ""]:
    """Mean intersection over union on the device, over classes that occur in truth or prediction."""
    c = confusion.astype(jnp.float32)
    overlap = jnp.diagonal(c)
    union = c.sum(0) + c.sum(1) - overlap
    return jnp.sum(overlap / jnp.maximum(union, 1)) / jnp.maximum(jnp.sum(union > 0), 1)


class SegmentationScores(NamedTuple):
    """Scores of Long et al. 2015 (sec. 5) and Badrinarayanan et al. 2017 (sec. 4), as fractions."""

    miou: float  # mean over classes of IoU
    global_accuracy: float  # correct pixels / pixels
    class_accuracy: float  # mean over classes of recall
    dice: float  # mean over classes of 2 overlap / (true + predicted)
    iou_per_class: np.ndarray  # [K], NaN for a class in neither truth nor prediction
    accuracy_per_class: np.ndarray  # [K], NaN for a class without a labelled pixel
    dice_per_class: np.ndarray  # [K], NaN for a class in neither truth nor prediction


def _nanmean(x: np.ndarray) -> float:
    return float(np.nanmean(x)) if np.isfinite(x).any() else float("nan")


def segmentation_scores(confusion: Int[np.ndarray, "k k"] | Float[np.ndarray, "k k"]) -> SegmentationScores:
    """Scores from a summed confusion matrix (rows truth, columns prediction), in float64."""
    c = np.asarray(confusion, np.float64)
    overlap, true, predicted = np.diagonal(c), c.sum(1), c.sum(0)
    with np.errstate(invalid="ignore", divide="ignore"):
        iou = overlap / (true + predicted - overlap)
        accuracy = overlap / true
        dice = 2 * overlap / (true + predicted)
        global_accuracy = overlap.sum() / c.sum()
    means = _nanmean(iou), float(global_accuracy), _nanmean(accuracy), _nanmean(dice)
    return SegmentationScores(*means, iou, accuracy, dice)


def named_scores(confusion: Int[np.ndarray, "k k"] | Float[np.ndarray, "k k"]) -> dict[str, float]:
    """The scores of a summed confusion matrix by the names that logs and result files have."""
    scores = segmentation_scores(confusion)
    return {
        "miou": scores.miou,
        "global_accuracy": scores.global_accuracy,
        "class_accuracy": scores.class_accuracy,
        "dice": scores.dice,
        **{f"iou/{k}": float(iou) for k, iou in enumerate(scores.iou_per_class)},
        **{f"accuracy/{k}": float(x) for k, x in enumerate(scores.accuracy_per_class)},
    }
