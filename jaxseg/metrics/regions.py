"""Agreement of segmentations as regions: covering, Rand index, variation of information.

Arbelaez et al. 2011, section 3.1. Host functions on integer label maps; ids need not be consecutive.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int

__all__ = [
    "RegionScores",
    "contingency",
    "covering",
    "rand_index",
    "region_scores",
    "variation_of_information",
]


def contingency(a: Any, b: Any) -> Int[np.ndarray, "p q"]:
    """Pixels in region p of `a` and q of `b`."""
    a, b = np.asarray(a), np.asarray(b)
    if a.shape != b.shape or a.size == 0:
        raise ValueError(f"contingency needs two label maps of one shape with pixels, got {a.shape} and {b.shape}")
    _, a = np.unique(a.reshape(-1), return_inverse=True)
    _, b = np.unique(b.reshape(-1), return_inverse=True)
    q = b.max() + 1
    return np.bincount(a * q + b, minlength=(a.max() + 1) * q).reshape(-1, q)


def _overlaps(table: Int[np.ndarray, "p q"]) -> Float[np.ndarray, "p q"]:
    sizes = table.sum(axis=1, keepdims=True) + table.sum(axis=0, keepdims=True)
    return table / (sizes - table)


def covering(labels: Any, truth: Any) -> float:
    """How well regions of `labels` cover those of `truth`: best intersection over union, weighted by size."""
    table = contingency(labels, truth)
    return float(_overlaps(table).max(axis=0) @ table.sum(axis=0) / table.sum())


def rand_index(a: Any, b: Any) -> float:
    """Share of pixel pairs that both put together or both put apart; 1 for a single pixel."""
    table = contingency(a, b).astype(np.float64)
    pairs = lambda n: (n * (n - 1) / 2).sum()  # noqa: E731
    every = pairs(table.sum())
    if every == 0:
        return 1.0
    return float(1 + (2 * pairs(table) - pairs(table.sum(axis=0)) - pairs(table.sum(axis=1))) / every)


def variation_of_information(a: Any, b: Any) -> float:
    """H(a | b) + H(b | a), in bits (Meila 2005)."""
    p = contingency(a, b) / np.asarray(a).size
    entropy = lambda q: -(q[q > 0] * np.log2(q[q > 0])).sum()  # noqa: E731
    return float(max(0.0, 2 * entropy(p) - entropy(p.sum(axis=0)) - entropy(p.sum(axis=1))))


class RegionScores(NamedTuple):
    """ODS: one scale for the data set; OIS: the best scale of each image; best: of each true region."""

    covering_ods: float
    covering_ois: float
    covering_best: float
    pri_ods: float
    pri_ois: float
    vi_ods: float
    vi_ois: float


def _image_scores(scales: Sequence[Any], truths: Sequence[Any]) -> tuple[np.ndarray, float]:
    """[scale, (covering, PRI, VI)] as means over the human segmentations, and the best covering."""
    rows, best = [], [np.zeros(len(np.unique(t))) for t in truths]
    for labels in scales:
        row = []
        for i, truth in enumerate(truths):
            best[i] = np.maximum(best[i], _overlaps(contingency(labels, truth)).max(axis=0))
            row.append([covering(labels, truth), rand_index(labels, truth), variation_of_information(labels, truth)])
        rows.append(np.mean(row, axis=0))
    sizes = [np.unique(t, return_counts=True)[1] for t in truths]
    return np.array(rows), float(np.mean([b @ s / s.sum() for b, s in zip(best, sizes, strict=True)]))


def region_scores(segmentations: Sequence[Sequence[Any]], truths: Sequence[Sequence[Any]]) -> RegionScores:
    """Scores of a data set: by image, segmentations at the same scales in order, and human segmentations."""
    images = [_image_scores(s, t) for s, t in zip(segmentations, truths, strict=True)]
    table = np.stack([rows for rows, _ in images])  # [image, scale, measure]
    mean = table.mean(axis=0)
    return RegionScores(
        covering_ods=float(mean[:, 0].max()),
        covering_ois=float(table[:, :, 0].max(axis=1).mean()),
        covering_best=float(np.mean([best for _, best in images])),
        pri_ods=float(mean[:, 1].max()),
        pri_ois=float(table[:, :, 1].max(axis=1).mean()),
        vi_ods=float(mean[:, 2].min()),
        vi_ois=float(table[:, :, 2].min(axis=1).mean()),
    )
