"""Agreement of segmentations as regions: covering, Rand index, variation of information.

Arbelaez et al. 2011, section 3.1. Host functions on integer label maps; ids need not be consecutive.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int

__all__ = [
    "ImageScores",
    "RegionScores",
    "contingency",
    "covering",
    "image_scores",
    "rand_index",
    "region_scores",
    "variation_of_information",
]


def contingency(a: Any, b: Any) -> Int[np.ndarray, "p q"]:
    """Pixels in region p of `a` and q of `b`."""
    a, b = np.asarray(a), np.asarray(b)
    if a.shape != b.shape or a.size == 0:
        raise ValueError(f"contingency needs two label maps of one shape with pixels, got {a.shape} and {b.shape}")
    a, b = _from_zero(a), _from_zero(b)
    q = int(b.max()) + 1
    table = np.bincount(a * q + b, minlength=(int(a.max()) + 1) * q).reshape(-1, q)
    return table[table.any(axis=1)][:, table.any(axis=0)]


def _from_zero(labels: np.ndarray) -> Int[np.ndarray, "n"]:
    """Ids that index a table: as they are where few could be unused, renumbered otherwise."""
    flat = labels.reshape(-1)
    if flat.min() >= 0 and flat.max() < 4096:
        return flat.astype(np.int64)
    return np.unique(flat, return_inverse=True)[1]


def _overlaps(table: Int[np.ndarray, "p q"]) -> Float[np.ndarray, "p q"]:
    sizes = table.sum(axis=1, keepdims=True) + table.sum(axis=0, keepdims=True)
    return table / (sizes - table)


def _coverings(table: Int[np.ndarray, "p q"]) -> Float[np.ndarray, "q"]:
    return _overlaps(table).max(axis=0)


def _rand(table: Int[np.ndarray, "p q"]) -> float:
    pairs = lambda n: (n * (n - 1.0) / 2).sum()  # noqa: E731
    every = pairs(table.sum())
    if every == 0:
        return 1.0
    return float(1 + (2 * pairs(table) - pairs(table.sum(axis=0)) - pairs(table.sum(axis=1))) / every)


def _information(table: Int[np.ndarray, "p q"]) -> float:
    p = table / table.sum()
    entropy = lambda q: -(q[q > 0] * np.log2(q[q > 0])).sum()  # noqa: E731
    return float(max(0.0, 2 * entropy(p) - entropy(p.sum(axis=0)) - entropy(p.sum(axis=1))))


def covering(labels: Any, truth: Any) -> float:
    """How well regions of `labels` cover those of `truth`: best intersection over union, weighted by size."""
    table = contingency(labels, truth)
    return float(_coverings(table) @ table.sum(axis=0) / table.sum())


def rand_index(a: Any, b: Any) -> float:
    """Share of pixel pairs that both put together or both put apart; 1 for a single pixel."""
    return _rand(contingency(a, b))


def variation_of_information(a: Any, b: Any) -> float:
    """H(a | b) + H(b | a), in bits (Meila 2005)."""
    return _information(contingency(a, b))


class RegionScores(NamedTuple):
    """ODS: one scale for the data set; OIS: the best scale of each image; best: of each true region."""

    covering_ods: float
    covering_ois: float
    covering_best: float
    pri_ods: float
    pri_ois: float
    vi_ods: float
    vi_ois: float


class ImageScores(NamedTuple):
    """One image's scores by scale: coverings of each human segmentation, and PRI and VI, means over the humans."""

    covering: Float[np.ndarray, "scales humans"]
    covering_best: Float[np.ndarray, "humans"]
    pri: Float[np.ndarray, "scales"]
    vi: Float[np.ndarray, "scales"]


def image_scores(scales: Sequence[Any], truths: Sequence[Any]) -> ImageScores:
    """Scores of one image's segmentations, from coarse to fine or the like, against the human ones."""
    coverings, best, pri, vi = [], [], [], []
    for truth in truths:
        tables = [contingency(labels, truth) for labels in scales]
        sizes = tables[0].sum(axis=0) / tables[0].sum()
        covered = [_coverings(t) for t in tables]
        coverings.append([float(c @ sizes) for c in covered])
        best.append(float(np.max(covered, axis=0) @ sizes))
        pri.append([_rand(t) for t in tables])
        vi.append([_information(t) for t in tables])
    return ImageScores(np.transpose(coverings), np.array(best), np.mean(pri, axis=0), np.mean(vi, axis=0))


def region_scores(images: Sequence[ImageScores]) -> RegionScores:
    """Scores of a data set of images segmented at the same scales.

    As the benchmark does it, covering is the mean over all human segmentations of all images (of one size), so
    that an image with more of them counts more; PRI and VI are means over images.
    """
    humans = sum(len(image.covering_best) for image in images)
    covered = np.stack([image.covering.sum(axis=1) for image in images])  # [image, scale]
    pri, vi = np.stack([image.pri for image in images]), np.stack([image.vi for image in images])
    return RegionScores(
        covering_ods=float(covered.sum(axis=0).max() / humans),
        covering_ois=float(covered.max(axis=1).sum() / humans),
        covering_best=float(sum(image.covering_best.sum() for image in images) / humans),
        pri_ods=float(pri.mean(axis=0).max()),
        pri_ois=float(pri.max(axis=1).mean()),
        vi_ods=float(vi.mean(axis=0).min()),
        vi_ois=float(vi.min(axis=1).mean()),
    )
