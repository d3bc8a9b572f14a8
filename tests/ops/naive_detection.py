"""Detection's operations in NumPy, loop by loop from their definitions."""

import math

import numpy as np


def iou(a, b):
    w = max(min(a[2], b[2]) - max(a[0], b[0]), 0)
    h = max(min(a[3], b[3]) - max(a[1], b[1]), 0)
    union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - w * h
    return w * h / union if union > 0 else 0.0


def giou(a, b):
    hull = (max(a[2], b[2]) - min(a[0], b[0])) * (max(a[3], b[3]) - min(a[1], b[1]))
    w = max(min(a[2], b[2]) - max(a[0], b[0]), 0)
    h = max(min(a[3], b[3]) - max(a[1], b[1]), 0)
    union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - w * h
    return w * h / union - (hull - union) / hull


def greedy_nms(boxes, scores, threshold, classes=None):
    """Take the best box that is left, drop what overlaps it, and again."""
    overlap = np.array([[iou(a, b) for b in boxes] for a in boxes], np.float32)
    left = [int(i) for i in np.argsort(-scores, kind="stable")]
    kept = []
    while left:
        best = left.pop(0)
        kept.append(best)
        left = [
            i
            for i in left
            if (classes is not None and classes[i] != classes[best]) or not overlap[best, i] > np.float32(threshold)
        ]
    return kept


def bilinear(x, y, at_x, border=False):
    """One sample of x [h, w, c] at (y, at_x) in pixel indices; beyond the border zero, or the border."""
    h, w = x.shape[:2]
    if not border and (y < -1 or y > h or at_x < -1 or at_x > w):
        return np.zeros(x.shape[2])
    y, at_x = min(max(y, 0), h - 1), min(max(at_x, 0), w - 1)
    i, j = int(y), int(at_x)
    i1, j1 = min(i + 1, h - 1), min(j + 1, w - 1)
    u, v = y - i, at_x - j
    return (1 - u) * ((1 - v) * x[i, j] + v * x[i, j1]) + u * ((1 - v) * x[i1, j] + v * x[i1, j1])


def roi_align(x, box, size, scale=1.0, ratio=2, aligned=False, bound=math.inf, border=False):
    x = np.asarray(x)  # a device array's elements cost a dispatch each
    x0, y0, x1, y1 = (v * scale - (0.5 if aligned else 0.0) for v in box)
    w, h = x1 - x0, y1 - y0
    if not aligned:
        w, h = max(w, 1.0), max(h, 1.0)
    out = np.zeros((size, size, x.shape[2]))
    ny = ratio if ratio > 0 else min(math.ceil(h / size), bound)
    nx = ratio if ratio > 0 else min(math.ceil(w / size), bound)
    for p in range(size):
        for q in range(size):
            for i in range(ny):
                for j in range(nx):
                    y = y0 + (p + (i + 0.5) / ny) * h / size
                    at_x = x0 + (q + (j + 0.5) / nx) * w / size
                    out[p, q] += bilinear(x, y, at_x, border)
    return out / max(nx * ny, 1)


def roi_pool_windows(box, size, shape, scale=1.0):
    """(p, q, rows, columns) of each bin: Caffe's roundings, in float32."""
    x0, y0, x1, y1 = (int(math.copysign(int(abs(v * scale) + 0.5), v)) for v in box)  # C's round
    h, w = (np.float32(max(extent, 1)) / np.float32(size) for extent in (y1 - y0 + 1, x1 - x0 + 1))
    for p in map(np.float32, range(size)):
        for q in map(np.float32, range(size)):
            rows = range(max(math.floor(p * h) + y0, 0), min(math.ceil((p + 1) * h) + y0, shape[0]))
            columns = range(max(math.floor(q * w) + x0, 0), min(math.ceil((q + 1) * w) + x0, shape[1]))
            yield int(p), int(q), rows, columns


def roi_pool(x, box, size, scale=1.0):
    """Maxima, and the gradient of their sum weighted by 1, 2, ... in row-major order of the result."""
    x = np.asarray(x)
    out, gradient = np.zeros((size, size, x.shape[2])), np.zeros(x.shape)
    for p, q, rows, columns in roi_pool_windows(box, size, x.shape, scale):
        places = [(i, j) for i in rows for j in columns]
        for c in range(x.shape[2] if places else 0):
            best = max(places, key=lambda at: x[(*at, c)])  # the first of equals
            out[p, q, c] = x[(*best, c)]
            gradient[(*best, c)] += (p * size + q) * x.shape[2] + c + 1
    return out, gradient


def paste(mask, box, size):
    m = len(mask)
    padded = np.pad(mask, 1)
    half = [(box[2 + a] - box[a]) / 2 * (m + 2) / m for a in (0, 1)]
    centre = [(box[2 + a] + box[a]) / 2 for a in (0, 1)]
    x0, y0 = (int(centre[a] - half[a]) for a in (0, 1))
    x1, y1 = (int(centre[a] + half[a]) for a in (0, 1))
    w, h = max(x1 - x0 + 1, 1), max(y1 - y0 + 1, 1)
    out = np.zeros(size)
    for i in range(max(y0, 0), min(y0 + h, size[0])):
        for j in range(max(x0, 0), min(x0 + w, size[1])):
            y = max((i - y0 + 0.5) * (m + 2) / h - 0.5, 0)
            x = max((j - x0 + 0.5) * (m + 2) / w - 0.5, 0)
            out[i, j] = bilinear(padded[..., None], y, x)[0]
    return out
