"""k-means (Lloyd 1982): jitted, batched by vmap, sharded by placing `features` on devices.

features = pixel_features(image, space="lab", position_weight=0.3)
result = kmeans(features, 8, key=jax.random.key(0))
labels = result.labels.reshape(image.shape[:2])
"""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray, Real

from jaxseg.clustering.lloyd import Blocks, block_distances, block_labels, block_sums, moments, nearest, to_blocks
from jaxseg.clustering.seeding import kmeans_parallel, kmeans_plus_plus, random_points

__all__ = ["KMeansResult", "as_points", "assign", "default_block_size", "kmeans", "require_finite"]

INITS = ("k-means++", "k-means||", "random")


class KMeansResult(NamedTuple):
    """`labels` belong to `centroids`; `inertia` is the weighted sum of squared L2 distances between them."""

    centroids: Float[Array, "*batch k d"]
    labels: Int[Array, "*batch n"]
    inertia: Float[Array, "*batch"]
    num_iterations: Int[Array, "*batch"]
    converged: Bool[Array, "*batch"]


def _reseed_empty(blocks: Blocks, old: Array, sums: Array, counts: Array) -> tuple[Array, Array]:
    """Moves empty clusters to the points farthest from their centroids, one after another.

    A cluster of equal points gives none away, though rounding puts their mean beside them: with fewer distinct
    points than clusters the surplus stays empty, and the iteration comes to rest.
    """

    # in the blocks' own layout: flattened, pixels that are sharded over devices would be gathered on each
    place = [jax.lax.broadcasted_iota(jnp.int32, blocks.rows.shape[:3], axis) for axis in range(3)]

    def farthest(state):
        sums, counts, squared, labels, _ = state
        lane = jnp.argmax(squared.max(axis=(0, 1)))[None]  # a list of one: a scalar index gathers what is sharded
        step, piece = jnp.unravel_index(jnp.argmax(squared[:, :, lane]), squared.shape[:2])
        row, label = blocks.rows[:, :, lane][step, piece, 0], labels[:, :, lane][step, piece, 0]
        empty = jnp.argmin(counts)
        useful, x = squared[:, :, lane][step, piece, 0] > 0, row[:-1]
        inside = labels == label
        # column by column, as in `moments`
        differs = functools.reduce(jnp.logical_or, [blocks.rows[..., i] != x[i] for i in range(x.shape[0])])
        apart = jnp.any(inside & differs & (blocks.rows[..., -1] > 0))
        moved = jnp.where(useful & apart, row[-1], 0.0)
        sums = sums.at[label].add(-moved * x).at[empty].add(moved * x)
        counts = counts.at[label].add(-moved).at[empty].add(moved)
        taken = (place[0] == step) & (place[1] == piece) & (place[2] == lane)
        squared = jnp.where(taken | (inside & ~apart), 0.0, squared)
        return sums, counts, squared, jnp.where(taken & apart, empty, labels), useful

    def reseed(sums, counts):
        labels, squared = block_distances(blocks, old)
        state = (sums, counts, jnp.where(blocks.rows[..., -1] > 0, squared, 0.0), labels, jnp.array(True))
        return jax.lax.while_loop(lambda s: jnp.any(s[1] <= 0) & s[4], farthest, state)[:2]

    return jax.lax.cond(jnp.any(counts <= 0), reseed, lambda *s: s, sums, counts)


def _means(sums: Array, counts: Array, old: Array) -> Array:
    """Centroids; those of clusters that stay empty become equal to the nearest, so that ties go by number alone."""
    filled = counts[:, None] > 0
    new = jnp.where(filled, sums / jnp.maximum(counts[:, None], 1e-30), jnp.inf)  # infinitely far from all points
    # the barrier: fused with the lookup, XLA of jax 0.12 takes the exponential of k to compile
    near = lambda: new[jax.lax.optimization_barrier(nearest(old, new))]  # noqa: E731
    return jax.lax.cond(jnp.all(filled), lambda: new, lambda: jnp.where(filled, new, near()))


def _lloyd(blocks: Blocks, centroids: Array, max_iterations: int, tolerance: Array):
    """Lloyd's iteration until the centroids move by `tolerance` (squared, in sum) or less."""

    def iterate(state):
        old, step, _ = state
        sums, counts = block_sums(blocks, old)
        sums, counts = _reseed_empty(blocks, old, sums, counts)
        new = _means(sums, counts, old)
        return new, step + 1, jnp.sum((new - old) ** 2)

    def moving(state):
        _, step, shift = state
        # not (shift <= tolerance) would spin on NaN
        return (step < max_iterations) & (shift > tolerance)

    start = (centroids, jnp.int32(0), jnp.array(jnp.inf, centroids.dtype))
    centroids, steps, shift = jax.lax.while_loop(moving, iterate, start)
    return centroids, steps, shift <= tolerance


@functools.partial(jax.custom_jvp, nondiff_argnums=(0, 1, 2, 3, 4))
def _solve(k, init, max_iterations, num_restarts, block_size, points, weights, key, given, tolerance):
    # scores |c|^2 / 2 - c.x cancel less near the origin; the mean of a few thousand points is near enough
    # (a gather by index gives every device the same few points, a strided slice a part of them each)
    n = points.shape[0]
    mean = points[jnp.arange(0, n, -(-n // 4096))].mean(axis=0)
    blocks = to_blocks(points - mean, weights, block_size)
    mass, first, second = moments(blocks)
    variance = jnp.mean(second / mass - (first / mass) ** 2)
    if weights is None:
        weights = jnp.ones_like(points[:, 0])
    centred = points - mean

    def once(key):
        if given is not None:
            start = given - mean
        elif init == "k-means++":
            start = kmeans_plus_plus(key, centred, weights, k)
        elif init == "k-means||":
            start = kmeans_parallel(key, centred, weights, k, block_size=block_size)
        else:
            start = random_points(key, centred, weights, k)
        centroids, steps, converged = _lloyd(blocks, start, max_iterations, tolerance * variance)
        labels, inertia = block_labels(blocks, centroids)
        return KMeansResult(centroids + mean, labels, inertia, steps, converged)

    if num_restarts == 1 or given is not None:
        return once(key)

    def best(carry, key):
        new = once(key)
        return jax.tree.map(lambda a, b: jnp.where(new.inertia < carry.inertia, a, b), new, carry), None

    keys = jax.random.split(key, num_restarts)
    return jax.lax.scan(best, once(keys[0]), keys[1:])[0]


@_solve.defjvp
def _solve_jvp(k, init, max_iterations, num_restarts, block_size, primals, tangents):
    """Labels do not move under a small change; centroids are means and inertia is at its minimum in them."""
    (points, weights), (dx, dw) = primals[:2], tangents[:2]
    result = _solve(k, init, max_iterations, num_restarts, block_size, *primals)
    away = points - result.centroids[result.labels]
    if weights is None:
        weights, dw = jnp.ones_like(points[:, 0]), jnp.zeros_like(points[:, 0])
    count = jax.ops.segment_sum(weights, result.labels, k)
    dsum = jax.ops.segment_sum(weights[:, None] * dx + dw[:, None] * away, result.labels, k)
    dc = dsum / jnp.maximum(count, 1e-30)[:, None]
    dinertia = jnp.sum(2 * weights[:, None] * away * dx + dw[:, None] * away**2)
    zero = np.zeros((), jax.dtypes.float0)
    labels_zero = np.zeros(result.labels.shape, jax.dtypes.float0)
    return result, KMeansResult(dc, labels_zero, dinertia, zero, zero)


_jitted = functools.partial(jax.jit, static_argnums=(0, 1, 2, 3, 4))(_solve)


def default_block_size() -> int:
    """Points per scan step."""
    # four pieces of 16,384 stay in the level-2 cache of a core; accelerators want few, large steps
    return 65_536 if jax.default_backend() == "cpu" else 4_194_304


def require_finite(name: str, x: Any) -> None:
    """Raises on NaN or infinity in a concrete array; a traced one cannot be looked at."""
    if isinstance(x, jax.core.Tracer):
        return
    if not bool(jnp.isfinite(x).all()):
        bad = int(jnp.sum(~jnp.isfinite(x)))
        raise ValueError(f"kmeans needs finite {name}, got {bad} NaN or infinite of {x.size}; mask or fill them")


def as_points(name: str, features: Any, num_clusters: Any = 1) -> Float[Array, "n d"]:
    """Points [N, D] in float32 or wider; raises on another shape, complex numbers, no integer of clusters."""
    if features.ndim != 2 or features.shape[1] == 0:
        raise ValueError(f"{name} needs points [N, D], got {tuple(features.shape)}; reshape an image to [H*W, C]")
    if jnp.issubdtype(features.dtype, jnp.complexfloating):
        raise ValueError(f"{name} needs real numbers, got {features.dtype}; stack real and imaginary parts")
    if isinstance(num_clusters, bool) or not isinstance(num_clusters, (int, np.integer)):
        raise ValueError(f"{name} needs num_clusters as an integer, got {num_clusters!r}")
    points = jnp.asarray(features)
    floating = jnp.issubdtype(points.dtype, jnp.floating)
    return points.astype(jnp.promote_types(points.dtype, jnp.float32) if floating else jnp.float32)


def _block_size(block_size: int | None) -> int:
    if block_size is not None and block_size < 1:
        raise ValueError(f"k-means needs a block_size of 1 or more points, or None, got {block_size}")
    return block_size or default_block_size()


def kmeans(
    features: Real[Array, "n d"] | Real[np.ndarray, "n d"],
    num_clusters: int,
    *,
    key: PRNGKeyArray | None = None,
    init: str | Float[Array, "k d"] | Float[np.ndarray, "k d"] = "k-means++",
    weights: Real[Array, "_"] | Real[np.ndarray, "_"] | Sequence[float] | None = None,
    max_iterations: int = 300,
    tolerance: float = 1e-4,
    num_restarts: int = 1,
    block_size: int | None = None,
) -> KMeansResult:
    """Partitions points into clusters of small squared L2 distance to their means.

    Stops when the centroids' squared movement is at most `tolerance` times the mean variance of the features
    (scikit-learn's rule; 0 asks for a fixed point). An empty cluster moves to the point farthest from its
    centroid; with fewer distinct points than clusters the surplus stays empty. Differentiable in `features` and
    `weights` at fixed labels: d inertia = 2 w (x - c) . dx + |x - c|^2 dw, a centroid is the mean of its points.

    Under `vmap` or `jit` non-finite features cannot raise: they give NaN inertia and `converged` false.

    Args:
      features: points; integers are taken as float32.
      num_clusters: from 1 to n.
      key: for the random inits; not needed with an array.
      init: "k-means++", "k-means||" (few passes, for many points and clusters), "random", or centroids.
      weights: how many points each row stands for; 1 by default.
      num_restarts: keeps the least inertia of so many seeds.
      block_size: points per scan step; the memory beyond the features is O(n) at any value.

    Raises:
      ValueError: bad shapes, num_clusters outside 1..n, non-finite features or weights, unknown init.
    """
    points = as_points("kmeans", features, num_clusters)
    n, d = points.shape
    if not 1 <= num_clusters <= n:
        raise ValueError(f"kmeans needs num_clusters from 1 to the number of points {n}, got {num_clusters}")
    given = None
    if isinstance(init, str):
        if init not in INITS:
            raise ValueError(f"kmeans init is one of {', '.join(INITS)} or an array [k, d], got {init!r}")
        if key is None:
            raise ValueError(f"kmeans init {init!r} is random: pass key=jax.random.key(seed)")
    else:
        given = jnp.asarray(init, points.dtype)
        if given.shape != (num_clusters, d):
            raise ValueError(f"kmeans needs init centroids {(num_clusters, d)}, got {given.shape}")
        require_finite("init", given)
        key = jax.random.key(0) if key is None else key  # unused
    if weights is not None:
        weights = jnp.asarray(weights, points.dtype)
        if weights.shape != (n,):
            raise ValueError(f"kmeans needs one weight a point, ({n},), got {tuple(weights.shape)}")
        require_finite("weights", weights)
        if not isinstance(weights, jax.core.Tracer) and not bool((weights >= 0).all() & (weights > 0).any()):
            raise ValueError("kmeans needs weights of 0 or more that are not all 0")
    if max_iterations < 0 or num_restarts < 1 or not tolerance >= 0:
        raise ValueError(
            "kmeans needs max_iterations >= 0, num_restarts >= 1, tolerance >= 0, "
            f"got {max_iterations}, {num_restarts}, {tolerance}"
        )
    result = _jitted(
        num_clusters,
        init if isinstance(init, str) else "given",
        max_iterations,
        num_restarts,
        _block_size(block_size),
        points,
        weights,
        key,
        given,
        jnp.asarray(tolerance, points.dtype),
    )
    # asked of the result, which any bad feature spoils, so that good features are not read once more
    if not isinstance(result.inertia, jax.core.Tracer) and not bool(jnp.isfinite(result.inertia)):
        require_finite("features", points)
        raise ValueError("kmeans: squared distances overflow float32; scale the features down")
    return result


@functools.partial(jax.jit, static_argnames="block_size")
def _assign(features, centroids, block_size):
    mean = centroids.mean(axis=0)
    return block_labels(to_blocks(features - mean, None, block_size), centroids - mean)[0]


def assign(
    features: Real[Array, "n d"] | Real[np.ndarray, "n d"],
    centroids: Float[Array, "k _"] | Float[np.ndarray, "k _"],
    *,
    block_size: int | None = None,
) -> Int[Array, "n"]:
    """Index of the nearest centroid of each point, without an N x K matrix; ValueError on what `kmeans` refuses."""
    points, centres = as_points("assign", features), as_points("assign", centroids)
    if points.shape[1] != centres.shape[1]:
        raise ValueError(f"assign needs features of {centres.shape[1]} dimensions as centroids, got {points.shape[1]}")
    require_finite("features", points)
    return _assign(points, centres, _block_size(block_size))
