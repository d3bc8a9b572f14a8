"""Boundary precision, recall and F by one-to-one matching of pixels (Martin et al. 2004)."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Int
from scipy.spatial import cKDTree

__all__ = [
    "BoundaryCounts",
    "BoundaryScores",
    "boundaries",
    "boundary_counts",
    "boundary_scores",
    "f_measure",
    "match",
    "thin",
]


def boundaries(labels: Any) -> Bool[np.ndarray, "h w"]:
    """Pixels at whose lower right corner labels meet (the benchmark's rule), thinned to a pixel's width."""
    labels = np.pad(np.asarray(labels), ((0, 1), (0, 1)), mode="edge")
    corner = labels[:-1, :-1]
    return thin((corner != labels[1:, :-1]) | (corner != labels[:-1, 1:]) | (corner != labels[1:, 1:]))


def thin(mask: Bool[np.ndarray, "h w"]) -> Bool[np.ndarray, "h w"]:
    """The mask worn down to lines (Guo & Hall 1989; the benchmark's `bwmorph(mask, 'thin', inf)`).

    Lam, Lee & Suen 1992, section 3.2: pixels are removed, two directions in turn, while that parts nothing.
    """
    mask = np.asarray(mask, bool)
    h, w = mask.shape
    around = ((0, 1), (-1, 1), (-1, 0), (-1, -1), (0, -1), (1, -1), (1, 0), (1, 1))  # from east, anticlockwise
    while True:
        before = mask
        for first in (0, 4):
            padded = np.pad(mask, 1)
            x = [padded[1 + dy : 1 + dy + h, 1 + dx : 1 + dx + w] for dy, dx in around]
            parts = sum((~x[i] & (x[i + 1] | x[(i + 2) % 8])).astype(np.int8) for i in (0, 2, 4, 6))
            pairs = [sum((x[i] | x[(i + 1) % 8]).astype(np.int8) for i in range(j, 8, 2)) for j in (0, 1)]
            ends = np.minimum(*pairs)
            facing = (x[first + 1] | x[first + 2] | ~x[(first + 7) % 8]) & x[first]
            mask = mask & ~((parts == 1) & (ends >= 2) & (ends <= 3) & ~facing)
        if (mask == before).all():
            return mask


def match(
    a: Bool[np.ndarray, "h w"], b: Bool[np.ndarray, "h w"], max_distance: float
) -> tuple[Bool[np.ndarray, "h w"], Bool[np.ndarray, "h w"]]:
    """Pixels of `a` and of `b` in a largest one-to-one matching within `max_distance` pixels.

    The benchmark minimises the summed distance with a price on an unmatched pixel that is far above any
    distance; the numbers matched, all that precision and recall count, are those of a largest matching.
    """
    points_a, points_b = np.argwhere(a), np.argwhere(b)
    matched_a, matched_b = np.zeros_like(a), np.zeros_like(b)
    if not len(points_a) or not len(points_b):
        return matched_a, matched_b
    near = cKDTree(points_a).sparse_distance_matrix(cKDTree(points_b), max_distance + 1e-9, output_type="ndarray")
    near = near[np.lexsort((near["j"], near["i"], near["v"]))]
    pairs = _largest_matching(near["i"], near["j"], len(points_a), len(points_b))
    matched_a[tuple(points_a[pairs >= 0].T)] = True
    matched_b[tuple(points_b[pairs[pairs >= 0]].T)] = True
    return matched_a, matched_b


def _largest_matching(
    i: Int[np.ndarray, "edges"], j: Int[np.ndarray, "edges"], rows: int, columns: int
) -> Int[np.ndarray, "rows"]:
    """The column of each row, -1 for none: the first edges first, then by augmenting paths (Kuhn 1955).

    In place of `scipy.sparse.csgraph.maximum_bipartite_matching`, which starts from nothing and takes seconds on
    boundaries that nearly agree.
    """
    partner, owner = [-1] * rows, [-1] * columns
    neighbours: list[list[int]] = [[] for _ in range(rows)]
    for a, b in zip(i.tolist(), j.tolist(), strict=True):
        neighbours[a].append(b)
        if partner[a] < 0 and owner[b] < 0:
            partner[a], owner[b] = b, a
    reached_from = [-1] * columns  # what a search without success has seen leads no later one anywhere
    for root in range(rows):
        if partner[root] >= 0:
            continue
        queue, seen, end = [root], [], -1
        for a in queue:
            for b in neighbours[a]:
                if reached_from[b] < 0:
                    reached_from[b] = a
                    seen.append(b)
                    if owner[b] < 0:
                        end = b
                        break
                    queue.append(owner[b])
            if end >= 0:
                break
        if end < 0:
            continue
        while end >= 0:
            a = reached_from[end]
            owner[end], partner[a], end = a, end, partner[a]
        for b in seen:
            reached_from[b] = -1
    return np.array(partner)


class BoundaryCounts(NamedTuple):
    """What adds up over images: matched and all pixels of the prediction, and of all human boundaries."""

    matched: int
    predicted: int
    recalled: int
    true: int


def boundary_counts(labels: Any, truths: Sequence[Any], max_distance: float = 0.0075) -> BoundaryCounts:
    """Matches boundaries with each human segmentation in turn; `max_distance` as a share of the diagonal.

    A predicted pixel counts as matched if any human's boundary matches it.
    """
    edge = boundaries(labels)
    pixels = max_distance * float(np.hypot(*edge.shape))
    matched, recalled, true = np.zeros_like(edge), 0, 0
    for truth in truths:
        theirs = boundaries(truth)
        ours_matched, theirs_matched = match(edge, theirs, pixels)
        matched |= ours_matched
        recalled += int(theirs_matched.sum())
        true += int(theirs.sum())
    return BoundaryCounts(int(matched.sum()), int(edge.sum()), recalled, true)


def f_measure(counts: BoundaryCounts) -> float:
    """Harmonic mean of precision and recall; 1 where neither side has boundaries, 0 where one has."""
    if counts.predicted == 0 or counts.true == 0:
        return float(counts.predicted == counts.true)
    precision, recall = counts.matched / counts.predicted, counts.recalled / counts.true
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


class BoundaryScores(NamedTuple):
    """F at the best scale for the data set, and at the best of each image."""

    f_ods: float
    f_ois: float


def boundary_scores(counts: Sequence[Sequence[BoundaryCounts]]) -> BoundaryScores:
    """Scores of a data set from the counts of each image at the same scales."""
    table = np.array(counts)  # [image, scale, 4]
    total = lambda rows: f_measure(BoundaryCounts(*(int(v) for v in rows.sum(axis=0))))  # noqa: E731
    best = np.array(
        [rows[int(np.argmax([f_measure(c) for c in by_scale]))] for rows, by_scale in zip(table, counts, strict=True)]
    )
    return BoundaryScores(max(total(table[:, s]) for s in range(table.shape[1])), total(best))
