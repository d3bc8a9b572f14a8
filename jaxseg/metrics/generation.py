"""Metrics of generated images on features of any network: FID, Inception score, precision, recall, path length.

Features are rows: 2048 of Inception-v3's last pooling for the published FID and, of VGG-16's fc7, for precision
and recall. These functions know no network: a number is comparable only with numbers on the same features.
"""

import itertools
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

__all__ = ["PrecisionRecall", "frechet_distance", "inception_score", "perceptual_path_length", "precision_recall"]


class PrecisionRecall(NamedTuple):
    """Shares of images that lie among reals, and of reals that lie among images."""

    precision: float
    recall: float


def _rows(*sets: np.ndarray, least: int, of: str = "") -> list[np.ndarray]:
    found = [np.asarray(rows, np.float64) for rows in sets]
    for rows in found:
        if rows.ndim != 2 or len(rows) < least or rows.shape[1] != found[0].shape[1]:
            shapes = " and ".join(str(r.shape) for r in found)
            raise ValueError(f"features are rows, {least} or more{of}, of one length in every set; got {shapes}")
        finite = np.isfinite(rows).all(1)
        if not finite.all():
            raise ValueError(f"features are finite; row {np.argmin(finite)} of a set is not, of {len(rows)}")
    return found


def frechet_distance(images: Float[np.ndarray, "n d"], reals: Float[np.ndarray, "m e"]) -> float:
    """|mu_1 - mu_2|^2 + tr(S_1 + S_2 - 2 (S_1 S_2)^(1/2)), covariances unbiased (Heusel et al. 2017, eq. 6).

    With S = R^T R of the centred rows' QR the trace of the root is the sum of R_1 R_2^T's singular values. A root of
    the covariances' product would make 1e-8 of each eigenvalue that should be zero, as most are of few images.
    """
    a, b = _rows(images, reals, least=2)
    roots: Any = [np.linalg.qr((rows - rows.mean(0)) / np.sqrt(len(rows) - 1), mode="r") for rows in (a, b)]
    first, second = roots
    root = np.linalg.svd(first @ second.T, compute_uv=False).sum()
    spread = np.square(first).sum() + np.square(second).sum() - 2 * root
    return float(np.square(a.mean(0) - b.mean(0)).sum() + max(spread, 0))


def inception_score(probabilities: Float[np.ndarray, "n k"], splits: int = 10) -> tuple[float, float]:
    """Mean and deviation over `splits` of exp(E KL(p(y|x) || p(y))) (Salimans et al. 2016, section 4)."""
    if splits < 1:
        raise ValueError(f"inception_score needs at least one split, got {splits}")
    (p,) = _rows(probabilities, least=splits, of=f" for {splits} splits")
    if (p < 0).any() or not np.allclose(p.sum(1), 1, atol=1e-3):
        raise ValueError("inception_score takes class probabilities, rows that sum to one; apply a softmax first")
    scores = []
    bounds = [i * len(p) // splits for i in range(splits + 1)]  # as in the published code
    for part in (p[i:j] for i, j in itertools.pairwise(bounds)):
        ratio = np.log(np.maximum(part, 1e-300)) - np.log(np.maximum(part.mean(0), 1e-300))
        scores.append(np.exp(np.sum(part * ratio, 1).mean()))
    return float(np.mean(scores)), float(np.std(scores))


def _squared_distances(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.maximum(np.square(a).sum(1)[:, None] + np.square(b).sum(1) - 2 * a @ b.T, 0)


def _covered(points: np.ndarray, centres: np.ndarray, k: int, block: int) -> float:
    """The share of `points` within some centre's ball, whose radius is the distance to its k-th neighbour."""
    radii = np.concatenate(
        [
            np.partition(_squared_distances(centres[i : i + block], centres), k)[:, k]
            for i in range(0, len(centres), block)
        ]
    )
    inside = [
        (_squared_distances(points[i : i + block], centres) <= radii).any(1) for i in range(0, len(points), block)
    ]
    return float(np.concatenate(inside).mean())


def precision_recall(
    images: Float[np.ndarray, "n d"], reals: Float[np.ndarray, "m e"], *, neighbours: int = 3, block: int = 4096
) -> PrecisionRecall:
    """Improved precision and recall: coverage by balls to the k-th neighbour (Kynkaanniemi et al. 2019, eq. 1-2)."""
    if neighbours < 1:
        raise ValueError(f"precision_recall needs one neighbour or more, got {neighbours}")
    if block < 1:
        raise ValueError(f"precision_recall compares a block of one row or more, got {block}")
    a, b = _rows(images, reals, least=neighbours + 1, of=f" for {neighbours} neighbours")
    return PrecisionRecall(_covered(a, b, neighbours, block), _covered(b, a, neighbours, block))


def _spherical(a: np.ndarray, b: np.ndarray, at: np.ndarray) -> np.ndarray:
    """Between unit vectors, along the great circle."""
    a, b = (x / np.linalg.norm(x, axis=-1, keepdims=True) for x in (a, b))
    angle = at * np.arccos(np.clip(np.sum(a * b, -1, keepdims=True), -1, 1))
    across = b - np.sum(a * b, -1, keepdims=True) * a
    across /= np.maximum(np.linalg.norm(across, axis=-1, keepdims=True), 1e-12)
    return a * np.cos(angle) + across * np.sin(angle)


def perceptual_path_length(
    generate: Callable[[np.ndarray], Any],
    distance: Callable[[Any, Any], Any],
    first: Float[np.ndarray, "n d"],
    second: Float[np.ndarray, "m d"],
    at: Float[np.ndarray, "_"],
    *,
    spherical: bool = False,
    epsilon: float = 1e-4,
) -> float:
    """Mean of distance(G(x(t)), G(x(t + epsilon))) / epsilon^2 between pairs of latents (Karras et al. 2019, sec. 4.1).

    `distance` is perceptual (LPIPS on VGG-16, published) and quadratic in small differences; `at` is t of each
    pair, uniform in [0, 1] for the full path and 0 for its ends. w is interpolated linearly, z spherically. As
    in the published code what lies below the first hundredth or above the last is left out. In float32 a step of
    1e-4 is near the images' rounding; give `generate` latents of the accuracy that it can see. Raises ValueError for
    latents that make no pairs, or are zero on a sphere, a step that is none, and distances that are not finite.
    """
    first, second = _rows(first, second, least=1)
    if len(first) != len(second) or np.shape(at) != (len(first),):
        raise ValueError(f"pairs are as many firsts, seconds and t: got {len(first)}, {len(second)}, {np.shape(at)}")
    if not epsilon > 0:
        raise ValueError(f"epsilon is a step above 0, got {epsilon}")
    if spherical and not (first.any(1).all() and second.any(1).all()):
        raise ValueError("a latent of zero lies on no sphere; draw others, or spherical=False")
    ends = []
    for t in (np.asarray(at, np.float64)[:, None], np.asarray(at, np.float64)[:, None] + epsilon):
        between = _spherical(first, second, t) if spherical else first + t * (second - first)
        ends.append(generate(between))
    distances = np.asarray(distance(*ends), np.float64) / epsilon**2
    if distances.size != len(first):
        raise ValueError(f"distance gives a number for each of {len(first)} pairs, got {distances.shape}")
    if not np.isfinite(distances).all():
        raise ValueError(f"distances are finite; that of pair {np.argmin(np.isfinite(distances))} is not")
    low, high = np.percentile(distances, 1, method="lower"), np.percentile(distances, 99, method="higher")
    return float(distances[(distances >= low) & (distances <= high)].mean())
