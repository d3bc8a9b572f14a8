"""Segmentations from coarse to fine by merging the cells of a contour map across their weakest borders.

After Arbelaez et al. 2011, section 4: a watershed makes cells, borders weigh their mean contour strength. On the
host: a merge sequence has no fixed shape.
"""

import heapq
from typing import Any, NamedTuple

import numpy as np
import scipy.ndimage
from jaxtyping import Float, Int

__all__ = ["Hierarchy", "hierarchy", "segmentation_at", "segmentation_of", "watershed_cells"]


class Hierarchy(NamedTuple):
    """Cells, and the merges of pairs of them in order, with the height at which each happens."""

    cells: Int[np.ndarray, "h w"]
    pairs: Int[np.ndarray, "merges 2"]
    heights: Float[np.ndarray, "merges"]


def watershed_cells(strength: Float[np.ndarray, "h w"]) -> Int[np.ndarray, "h w"]:
    """Catchment basins of the strength's local minima, numbered from 0; they meet on its crests.

    Flooding in the order of height (Meyer 1991). Not `scipy.ndimage.watershed_ift`, which goes by differences
    of height between neighbours, so that its basins meet on a crest's flank.
    """
    h, w = strength.shape
    top = np.percentile(strength, 99.9)
    levels = np.clip(strength / max(float(top), 1e-9) * 4000, 0, 65535).astype(np.int64)
    minima = levels == scipy.ndimage.minimum_filter(levels, size=3)
    parts, _ = scipy.ndimage.label(minima, structure=np.ones((3, 3)))
    drained = minima & (levels == scipy.ndimage.minimum_filter(np.where(minima, 65536, levels), size=3))
    minima &= ~np.isin(parts, parts[drained])  # shelves with a way down
    markers, _ = scipy.ndimage.label(minima, structure=np.ones((3, 3)))
    cells = np.pad(markers, 1, constant_values=-1).reshape(-1).tolist()  # within a wall
    heights = np.pad(levels, 1).reshape(-1).tolist()
    heap = [(heights[i], 0, i) for i, cell in enumerate(cells) if cell > 0]
    heapq.heapify(heap)
    turn = 0  # of equal heights, first come, first served: a plateau is shared by distance
    while heap:
        level, _, i = heapq.heappop(heap)
        for j in (i - w - 2, i - 1, i + 1, i + w + 2):
            if cells[j] == 0:
                turn += 1
                cells[j] = cells[i]
                heapq.heappush(heap, (max(level, heights[j]), turn, j))
    return np.array(cells).reshape(h + 2, w + 2)[1:-1, 1:-1] - 1


def _borders(cells: Int[np.ndarray, "h w"], strength: Float[np.ndarray, "h w"]) -> list[dict[int, list[float]]]:
    """By cell, the summed strength and the length of its border with each neighbour."""
    n = int(cells.max()) + 1
    keys, values = [], []
    for a, b in ((np.s_[:, :-1], np.s_[:, 1:]), (np.s_[:-1], np.s_[1:])):
        across = cells[a] != cells[b]
        low, high = np.minimum(cells[a], cells[b])[across], np.maximum(cells[a], cells[b])[across]
        keys.append(low.astype(np.int64) * n + high)
        values.append(np.maximum(strength[a], strength[b])[across])
    unique, at = np.unique(np.concatenate(keys), return_inverse=True)
    sums, lengths = np.bincount(at, np.concatenate(values)), np.bincount(at).astype(np.float64)
    borders: list[dict[int, list[float]]] = [{} for _ in range(n)]
    for key, total, length in zip(unique.tolist(), sums.tolist(), lengths.tolist(), strict=True):
        a, b = divmod(key, n)
        borders[a][b] = borders[b][a] = [total, length]
    return borders


def hierarchy(strength: Any, size_power: float = 0.07) -> Hierarchy:
    """Merges, one after another, the two neighbours of least border height, until all is one.

    The height is the border's mean strength times (smaller segment / image) ** size_power: small segments go
    first. With little of that the level says how many segments an image has; with more (0.5), a given number
    of segments is not spent on specks.
    """
    strength = np.asarray(strength, np.float64)
    cells = watershed_cells(strength)
    borders = _borders(cells, strength)
    share = (np.bincount(cells.reshape(-1)) / cells.size).tolist()

    def height(a: int, b: int) -> float:
        total, length = borders[a][b]
        return total / length * min(share[a], share[b]) ** size_power

    heap = [(height(a, b), a, b) for a in range(len(borders)) for b in borders[a] if a < b]
    heapq.heapify(heap)
    pairs, heights, level = [], [], 0.0
    while heap:
        at, a, b = heapq.heappop(heap)
        if b not in borders[a] or height(a, b) != at:
            continue  # one of them has changed since, or is no more
        level = max(level, at)
        pairs.append((a, b))
        heights.append(level)
        if len(borders[a]) < len(borders[b]):
            a, b = b, a
        del borders[a][b], borders[b][a]
        share[a] += share[b]
        for other, (total, length) in borders[b].items():
            del borders[other][b]
            joined = borders[a].setdefault(other, [0.0, 0.0])
            joined[0] += total
            joined[1] += length
            borders[other][a] = joined
        borders[b] = {}
        for other in borders[a]:
            heapq.heappush(heap, (height(a, other), min(a, other), max(a, other)))
    return Hierarchy(cells, np.array(pairs, np.int64).reshape(-1, 2), np.array(heights))


def _merged(tree: Hierarchy, count: int) -> Int[np.ndarray, "h w"]:
    parent = list(range(int(tree.cells.max()) + 1))

    def root(i: int) -> int:
        while parent[i] != i:
            parent[i] = parent[parent[i]]
            i = parent[i]
        return i

    for a, b in tree.pairs[:count].tolist():
        parent[root(a)] = root(b)
    _, labels = np.unique([root(i) for i in range(len(parent))], return_inverse=True)
    return labels.astype(np.int32)[tree.cells]


def segmentation_at(tree: Hierarchy, level: float) -> Int[np.ndarray, "h w"]:
    """Segments with no border lower than `level`, numbered from 0."""
    return _merged(tree, int(np.searchsorted(tree.heights, level, side="right")))


def segmentation_of(tree: Hierarchy, num_segments: int) -> Int[np.ndarray, "h w"]:
    """`num_segments` segments, or as many as there are cells if that is fewer."""
    cells = int(tree.cells.max()) + 1
    return _merged(tree, max(0, cells - num_segments))
