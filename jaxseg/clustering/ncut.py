"""Normalized Cut (Shi & Malik 2000): values, eigenvectors, two-way, recursive and simultaneous k-way cuts.

result = ncut(image, 8)
labels = result.labels                      # [H, W]
"""

import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PRNGKeyArray, Real

from jaxseg.clustering.contours import contour_strength
from jaxseg.clustering.cuts import is_stable, ncut_value, splitting_point
from jaxseg.clustering.eigen import Eigenpairs, smallest_eigenpairs
from jaxseg.clustering.features import as_rgb, pixel_features
from jaxseg.clustering.kmeans import kmeans
from jaxseg.ops.affinity import Affinity, pixel_affinity, subgraph

__all__ = ["NCutResult", "discretise", "graph", "ncut", "ncut_graph"]


class NCutResult(NamedTuple):
    """Eigenpairs ascend and leave out the trivial one; `ncut_value` sums cut / assoc over segments."""

    labels: Int[Array, "*batch h w"]
    eigenvectors: Float[Array, "*batch k h w"]
    eigenvalues: Float[Array, "*batch k"]
    ncut_value: Float[Array, "*batch"]


def _two_way(affinity: Affinity, inside: Array, key: PRNGKeyArray, tolerance: float) -> tuple[Array, Array, Array]:
    """Half of a segment, the Ncut of that split of its subgraph, and the eigenvector's stability."""
    part = subgraph(affinity, inside.astype(affinity.degree.dtype))
    y = smallest_eigenpairs(part, 1, key=key, tolerance=tolerance, max_iterations=40, guard=3).vectors[0]
    threshold, value = splitting_point(part, y)
    return inside & (y > threshold), value, is_stable(y, inside)


def _recursive(
    affinity: Affinity,
    num_segments: int,
    key: PRNGKeyArray,
    max_ncut: Any,
    stability: Any,
    tolerance: float,
) -> Int[Array, "h w"]:
    """Splits the segment of least Ncut, while that is below `max_ncut` and stable, until there are enough."""
    shape = affinity.degree.shape

    def candidate(inside, key):
        half, value, stable = _two_way(affinity, inside, key, tolerance)
        usable = (stable | jnp.logical_not(stability)) & (value <= max_ncut)
        return half, jnp.where(usable, value, jnp.inf)

    def split(step, state):
        labels, halves, values = state
        j = jnp.argmin(values)
        first = step == 0  # nothing to split yet, only the whole image to look at
        going = first | jnp.isfinite(values[j])
        labels = jnp.where((labels == j) & halves[j] & ~first & going, step, labels)

        def renew(i, state):
            half, value = candidate(labels == i, jax.random.fold_in(key, 2 * step + (i == step)))
            return state[0].at[i].set(half), state[1].at[i].set(value)

        def both(state):
            children = jnp.stack([j, step])
            return jax.lax.fori_loop(first.astype(jnp.int32), 2, lambda c, s: renew(children[c], s), state)

        halves, values = jax.lax.cond(going, both, lambda s: s, (halves, values))
        return labels, halves, values

    halves = jnp.zeros((num_segments, *shape), bool)
    values = jnp.full(num_segments, jnp.inf)
    start = (jnp.zeros(shape, jnp.int32), halves, values)
    return jax.lax.fori_loop(0, num_segments, split, start)[0]


def discretise(
    affinity: Affinity,
    pairs: Eigenpairs,
    num_segments: int,
    *,
    key: PRNGKeyArray,
    restarts: int = 4,
) -> Int[Array, "h w"]:
    """The simultaneous k-way cut: the best Ncut of several k-means partitions of pixels by eigenvectors.

    Coordinates, in turn: the first num_segments - 1 vectors weighted by D (the relaxation's metric); the same
    with the trivial one, scaled to unit length (Ng et al. 2002); all vectors given, over sqrt(lambda).
    """
    shape = affinity.degree.shape
    volume = jnp.sum(affinity.degree)
    every = jnp.moveaxis(pairs.vectors, 0, -1).reshape(shape[0] * shape[1], -1) * jnp.sqrt(volume)
    first = every[:, : max(1, num_segments - 1)]
    full = jnp.concatenate([jnp.ones_like(first[:, :1]), first], axis=1)
    unit = full / jnp.maximum(jnp.linalg.norm(full, axis=1, keepdims=True), 1e-20)
    scaled = every * jnp.sqrt(pairs.values[:1] + 1e-6) / jnp.sqrt(pairs.values + 1e-6)
    # of one width, so that XLA compiles k-means once
    width = max(x.shape[1] for x in (first, unit, scaled))
    wide = jnp.stack([jnp.pad(x, ((0, 0), (0, width - x.shape[1]))) for x in (first, unit, scaled)])
    degree = affinity.degree.reshape(-1)
    weights = jnp.stack([degree, jnp.ones_like(degree), degree])

    def attempt(carry, trial):
        best, least = carry
        which, key = trial
        result = kmeans(wide[which], num_segments, key=key, weights=weights[which], max_iterations=60)
        labels = result.labels.reshape(shape)
        value = ncut_value(affinity, labels, num_segments)
        better = value < (1 - 1e-5) * least  # by more than rounding, which would number one partition now so, now so
        return (jnp.where(better, labels, best), jnp.where(better, value, least)), None

    start = (jnp.zeros(shape, jnp.int32), jnp.array(jnp.inf, jnp.float32))
    trials = (jnp.arange(3 * restarts) % 3, jax.random.split(key, 3 * restarts))
    return jax.lax.scan(attempt, start, trials)[0][0]


@functools.partial(jax.jit, static_argnames=("num_segments", "method", "restarts", "tolerance"))
def _cut(
    affinity: Affinity,
    pairs: Eigenpairs,
    num_segments: int,
    key: PRNGKeyArray,
    method: str,
    max_ncut: Any,
    stability: Any,
    restarts: int,
    tolerance: float,
) -> tuple[Int[Array, "h w"], Float[Array, ""]]:
    """Labels, and their Ncut value."""
    if num_segments == 1:
        labels = jnp.zeros(affinity.degree.shape, jnp.int32)
    elif method == "recursive":
        labels = _recursive(affinity, num_segments, key, max_ncut, stability, tolerance)
    else:
        labels = discretise(affinity, pairs, num_segments, key=key, restarts=restarts)
        if num_segments == 2:  # where the best split is known better than by k-means
            threshold, _ = splitting_point(affinity, pairs.vectors[0])
            split = (pairs.vectors[0] > threshold).astype(jnp.int32)
            better = ncut_value(affinity, split, 2) < ncut_value(affinity, labels, 2)
            both = (split.min() == 0) & (split.max() == 1)
            labels = jnp.where(better & both, split, labels)
    return labels, ncut_value(affinity, labels, num_segments)


def _check(
    pixels: int,
    num_segments: Any,
    method: str,
    num_eigenvectors: int | None,
    max_ncut: float,
    restarts: int,
    tolerance: float,
) -> None:
    if isinstance(num_segments, bool) or not isinstance(num_segments, (int, np.integer)):
        raise ValueError(f"ncut needs num_segments as an integer, got {num_segments!r}")
    if not 1 <= num_segments <= pixels:
        raise ValueError(f"ncut needs num_segments from 1 to the number of pixels {pixels}, got {num_segments}")
    if method not in ("k-way", "recursive"):
        raise ValueError(f"ncut method is 'k-way' or 'recursive', got {method!r}")
    if num_eigenvectors is not None and num_eigenvectors < 1:
        raise ValueError(f"ncut needs num_eigenvectors of 1 or more, or None, got {num_eigenvectors}")
    if restarts < 1 or not tolerance >= 0 or not max_ncut >= 0:
        raise ValueError(
            f"ncut needs restarts >= 1, tolerance >= 0, max_ncut >= 0, got {restarts}, {tolerance}, {max_ncut}"
        )


def ncut_graph(
    affinity: Affinity,
    num_segments: int,
    *,
    key: PRNGKeyArray,
    method: str = "k-way",
    num_eigenvectors: int | None = None,
    max_ncut: float = float("inf"),
    stability: bool = True,
    restarts: int = 4,
    tolerance: float = 1e-5,
) -> NCutResult:
    """Normalized Cut of a given graph; the arguments are those of `ncut`.

    Compiled apart from the eigenpairs, since to compile both as one takes the memory of both.
    """
    size = affinity.degree.size
    _check(size, num_segments, method, num_eigenvectors, max_ncut, restarts, tolerance)
    k = min(num_eigenvectors or max(1, num_segments - 1), size - 1)
    solve_key, cut_key = jax.random.split(key)
    pairs = smallest_eigenpairs(affinity, max(1, k), key=solve_key, tolerance=tolerance)
    labels, value = _cut(affinity, pairs, num_segments, cut_key, method, max_ncut, stability, restarts, tolerance)
    return NCutResult(labels, pairs.vectors, pairs.values, value)


@functools.partial(jax.jit, static_argnames=("space", "radius", "contour_scale"))
def _graph(
    image: Array,
    sigma_feature: Any,
    sigma_distance: Any,
    sigma_contour: Any,
    *,
    space: str,
    radius: float,
    contour_scale: float | None,
) -> Affinity:
    return pixel_affinity(
        pixel_features(image, space=space),
        radius=radius,
        sigma_feature=sigma_feature,
        sigma_distance=sigma_distance,
        contour=None if sigma_contour is None else contour_strength(image, contour_scale),
        sigma_contour=1.0 if sigma_contour is None else sigma_contour,
    )


def graph(
    image: Real[Array, "*s"] | Real[np.ndarray, "*s"],
    *,
    space: str = "lab",
    radius: float = 5.0,
    sigma_feature: float | Real[Array, ""] = 0.4,
    sigma_distance: float | Real[Array, ""] = 8.0,
    sigma_contour: float | Real[Array, ""] | None = 0.1,
    contour_scale: float | None = None,
) -> Affinity:
    """The graph of an RGB image in [0, 1]; with `sigma_contour` None, without intervening contours.

    `contour_scale`, in pixels, is in proportion to the image unless given. The defaults are those of
    `experiments/bsds.py`, found on photographs reduced to 240 pixels. Raises ValueError on a scale that is none.
    """
    if not 1 < radius < math.inf:
        raise ValueError(f"ncut needs a finite radius above 1 pixel to have edges, got {radius}")
    sigmas = {"sigma_feature": sigma_feature, "sigma_distance": sigma_distance, "sigma_contour": sigma_contour}
    for name, sigma in sigmas.items():
        if not (sigma is None or isinstance(sigma, jax.core.Tracer) or sigma > 0):
            raise ValueError(f"ncut needs {name} above 0, got {sigma}")
    return _graph(image, **sigmas, space=space, radius=radius, contour_scale=contour_scale)


def ncut(
    image: Real[Array, "*s"] | Real[np.ndarray, "*s"],
    num_segments: int,
    *,
    key: PRNGKeyArray | None = None,
    method: str = "k-way",
    space: str = "lab",
    radius: float = 5.0,
    sigma_feature: float = 0.4,
    sigma_distance: float = 8.0,
    sigma_contour: float | None = 0.1,
    num_eigenvectors: int | None = None,
    max_ncut: float = float("inf"),
    stability: bool = True,
    restarts: int = 4,
    tolerance: float = 1e-5,
) -> NCutResult:
    """Segments an image by Normalized Cut on its pixel graph; `jax.vmap` over float images does a batch.

    Args:
      image: [H, W] or [H, W, C] with C of 1 to 4, 8 or 16 bit or float in [0, 1]; alpha is laid on white.
      num_segments: exactly so many with "k-way", at most with "recursive".
      key: of the solver's start and k-means; `jax.random.key(0)` unless given.
      method: "k-way" (eigenvectors clustered) or "recursive" (two-way, the segment of least Ncut first).
      space: "rgb", "lab" (divided by 100) or "grey": what sigma_feature measures.
      sigma_contour: the scale of intervening contours (0 to about 1); None for Shi & Malik's weights alone.
      max_ncut: recursive: no cut above this Ncut.
      stability: recursive: no cut along an eigenvector that varies smoothly (`is_stable`).
      tolerance: largest residual |D^-1/2 (D - W - lambda D) y| of an eigenpair with y^T D y = 1.

    Raises:
      ValueError: a shape, dtype or value that is no image, num_segments outside 1..H*W, an unknown method.
    """
    rgb = as_rgb(image)
    h, w, _ = rgb.shape
    _check(h * w, num_segments, method, num_eigenvectors, max_ncut, restarts, tolerance)
    if h * w == 1:
        one = jnp.ones((1, 1, 1)), jnp.zeros(1)
        return NCutResult(jnp.zeros((1, 1), jnp.int32), *one, jnp.float32(0.0))
    affinity = graph(
        rgb,
        space=space,
        radius=radius,
        sigma_feature=sigma_feature,
        sigma_distance=sigma_distance,
        sigma_contour=sigma_contour,
    )
    return ncut_graph(
        affinity,
        num_segments,
        key=jax.random.key(0) if key is None else key,
        method=method,
        num_eigenvectors=num_eigenvectors,
        max_ncut=max_ncut,
        stability=stability,
        restarts=restarts,
        tolerance=tolerance,
    )
