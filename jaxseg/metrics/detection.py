"""Average precision of detections: matches on the device as sums that add up over batches, shards and hosts."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, PyTree

from jaxseg.ops.boxes import box_iou
from jaxseg.ops.masks import paste_factors

__all__ = ["SCORE_BINS", "average_precision", "mask_iou", "match_detections", "pasted_mask_iou", "score_histogram"]

SCORE_BINS = 1000


def mask_iou(a: Bool[Array, "k h w"], b: Bool[Array, "g h w"]) -> Float[Array, "k g"]:
    """Intersection over union of every pair; 0 where both are empty."""
    a, b = (x.reshape(x.shape[0], -1).astype(jnp.float32) for x in (a, b))
    shared = jnp.matmul(a, b.T, precision=jax.lax.Precision.HIGHEST)
    union = a.sum(1)[:, None] + b.sum(1) - shared
    return shared / jnp.maximum(union, 1)


def pasted_mask_iou(
    masks: Float[Array, "k m m"],
    boxes: Float[Array, "k 4"],
    instances: Int[Array, "h w"] | Bool[Array, "g h w"],
    count: int,
    *,
    block: int = 32,
) -> Float[Array, "k g"]:
    """`mask_iou` of masks in the frames of their boxes, cut at 0.5 where they are pasted, with true ones.

    `instances` are ids 1 to `count` or `count` masks. Taken `block` rows of the image at a time, or a hundred of each
    would be gigabytes of a large image.
    """
    size = (instances.shape[-2], instances.shape[-1])
    if count == 0:
        return jnp.zeros((masks.shape[0], 0))
    lines, columns = paste_factors(masks, boxes, size)
    block = min(block, size[0])
    rest = -size[0] % block
    lines = jnp.pad(lines, ((0, 0), (0, rest), (0, 0)))
    instances = jnp.pad(instances, ((0, 0),) * (instances.ndim - 2) + ((0, rest), (0, 0)))

    def add(sums: tuple[Array, Array, Array], start: Array) -> tuple[tuple[Array, Array, Array], None]:
        shared, ours, theirs = sums
        part = jax.lax.dynamic_slice_in_dim(lines, start, block, 1)
        a = jnp.einsum("khj,kwj->khw", part, columns, precision=jax.lax.Precision.HIGHEST) > 0.5
        b = jax.lax.dynamic_slice_in_dim(instances, start, block, instances.ndim - 2)
        b = b == jnp.arange(1, count + 1)[:, None, None] if instances.ndim == 2 else b
        a, b = (x.reshape(x.shape[0], -1).astype(jnp.float32) for x in (a, b))
        both = jnp.matmul(a, b.T, precision=jax.lax.Precision.HIGHEST)
        return (shared + both, ours + a.sum(1), theirs + b.sum(1)), None

    zeros = jnp.zeros((masks.shape[0], count)), jnp.zeros(masks.shape[0]), jnp.zeros(count)
    (shared, ours, theirs), _ = jax.lax.scan(add, zeros, jnp.arange(0, size[0] + rest, block))
    return shared / jnp.maximum(ours[:, None] + theirs - shared, 1)


def match_detections(
    overlap: Float[Array, "k g"],
    classes: Int[Array, "k"],
    true_classes: Int[Array, "g"],
    valid: Bool[Array, "k"],
    true_valid: Bool[Array, "g"],
    threshold: float = 0.5,
) -> Bool[Array, "k"]:
    """Which detections, best first, are right: each takes the object of its class, not yet taken, that it
    overlaps most, if by `threshold` at least (Lin et al. 2014: COCO's rule, without crowds)."""
    if overlap.shape[1] == 0:
        return jnp.zeros(overlap.shape[0], bool)

    def take(free: Array, detection: tuple[Array, Array, Array]) -> tuple[Array, Array]:
        row, cls, there = detection
        row = jnp.where(free & (true_classes == cls), row, -1.0)
        best = row.argmax()
        right = there & (row[best] >= threshold)
        return free & ~(right & (jnp.arange(row.shape[0]) == best)), right

    return jax.lax.scan(take, true_valid, (overlap, classes, valid))[1]


def score_histogram(found: Any, truth: Any, of_masks: Float[Array, "k g"] | None, num_classes: int) -> PyTree:
    """Right and wrong detections of an image by class and score, `[c, SCORE_BINS]`, of boxes and masks, and objects.

    `found` is `Detections` and `truth` `Instances` of one image, `of_masks` the IoU of their masks; without it only
    boxes are judged.
    """
    overlaps = {"box": box_iou(found.boxes, truth.boxes)}
    if of_masks is not None:
        overlaps["mask"] = of_masks
    bins = jnp.clip((found.scores * SCORE_BINS).astype(jnp.int32), 0, SCORE_BINS - 1)
    empty = jnp.zeros((num_classes, SCORE_BINS), jnp.float32)
    sums: PyTree = {"objects": jnp.zeros(num_classes).at[truth.classes].add(truth.valid.astype(jnp.float32))}
    for kind, overlap in overlaps.items():
        right = match_detections(overlap, found.classes, truth.classes, found.valid, truth.valid)
        for name, which in (("right", right), ("wrong", found.valid & ~right)):
            sums[f"{kind}_{name}"] = empty.at[found.classes, bins].add(which.astype(jnp.float32))
    return sums


def average_precision(sums: PyTree) -> dict[str, float]:
    """AP at an IoU of 0.5, of boxes and masks, from `score_histogram`'s sums: COCO's 101 recalls, mean over classes.

    Classes without objects are left out. Scores within a bin of 1/1000 count as equal.
    """
    scores = {}
    for kind in ("box", "mask"):
        if f"{kind}_right" not in sums:
            continue
        values = []
        for c in np.flatnonzero(np.asarray(sums["objects"]) > 0):
            right = np.cumsum(np.asarray(sums[f"{kind}_right"])[c, ::-1])
            wrong = np.cumsum(np.asarray(sums[f"{kind}_wrong"])[c, ::-1])
            recall = right / np.asarray(sums["objects"])[c]
            precision = right / np.maximum(right + wrong, 1)
            envelope = np.append(np.maximum.accumulate(precision[::-1])[::-1], 0.0)
            values.append(envelope[np.searchsorted(recall, np.linspace(0, 1, 101))].mean())
        scores[f"{kind}_ap50"] = float(np.mean(values)) if values else float("nan")
    return scores
