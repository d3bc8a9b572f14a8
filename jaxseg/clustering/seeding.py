"""Initial centroids: k-means++ (Arthur & Vassilvitskii 2007) and k-means|| (Bahmani et al. 2012)."""

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray

from jaxseg.clustering.lloyd import CHUNKS, block_labels, block_sums, to_blocks

__all__ = ["kmeans_parallel", "kmeans_plus_plus", "random_points", "sample"]


def _squared_distance(points: Float[Array, "n d"], centre: Float[Array, "d"]) -> Float[Array, "n"]:
    if points.shape[1] > 8:
        return jnp.sum((points - centre) ** 2, axis=1)
    # columns rather than a reduction over a minor axis of three, which does not vectorise
    columns = [(points[:, i] - centre[i]) ** 2 for i in range(points.shape[1])]
    return sum(columns[1:], columns[0])


def sample(key: PRNGKeyArray, mass: Float[Array, "n"], shape: tuple[int, ...]) -> Int[Array, "..."]:
    """Indices drawn in proportion to `mass`, with replacement: inverse cumulative sum in two levels.

    The last index of positive mass is drawn where rounding runs past the end; index 0 where all mass is 0.
    """
    n = mass.shape[0]
    # rows of about 1024, a multiple of the chunks in number: where points are sharded a row lies on one device
    m = -(-n // (CHUNKS * -(-n // (CHUNKS * 1024)))) if n > 4096 else max(1, math.isqrt(n))
    rows = jnp.pad(mass, (0, -n % (CHUNKS * m if n > 4096 else m))).reshape(-1, m)
    row_ends = jnp.cumsum(rows.sum(axis=1))
    u = jax.random.uniform(key, shape, mass.dtype) * row_ends[-1]
    row = jnp.minimum(jnp.searchsorted(row_ends, u, side="right"), rows.shape[0] - 1)
    inside = u - jnp.where(row > 0, row_ends[row - 1], 0.0)
    ends = jnp.cumsum(rows[row], axis=-1)
    column = jnp.sum(ends <= inside[..., None], axis=-1)
    last = m - 1 - jnp.argmax(rows[row][..., ::-1] > 0, axis=-1)
    return jnp.minimum(row * m + jnp.minimum(column, last), n - 1).astype(jnp.int32)


def random_points(
    key: PRNGKeyArray, points: Float[Array, "n d"], weights: Float[Array, "n"], k: int
) -> Float[Array, "k d"]:
    """k different points, drawn in proportion to their weights."""
    race = jax.random.exponential(key, weights.shape, points.dtype) / weights
    return points[jax.lax.top_k(-race, k)[1]]


def kmeans_plus_plus(
    key: PRNGKeyArray, points: Float[Array, "n d"], weights: Float[Array, "n"], k: int
) -> Float[Array, "k d"]:
    """Each next centroid is drawn in proportion to squared distance, the best of 2 + log k draws (greedy)."""
    trials = 2 + int(math.log(k))
    keys = jax.random.split(key, k)
    first = points[sample(keys[0], weights, (1,))][0]  # a scalar index gathers what is sharded
    centroids = jnp.zeros((k, points.shape[1]), points.dtype).at[0].set(first)

    def add(j, state):
        centroids, squared = state
        candidates = points[sample(keys[j], squared * weights, (trials,))]
        potentials = jnp.stack(
            [jnp.sum(jnp.minimum(squared, _squared_distance(points, candidates[t])) * weights) for t in range(trials)]
        )
        best = candidates[jnp.argmin(potentials)]
        return centroids.at[j].set(best), jnp.minimum(squared, _squared_distance(points, best))

    return jax.lax.fori_loop(1, k, add, (centroids, _squared_distance(points, first)))[0]


def kmeans_parallel(
    key: PRNGKeyArray,
    points: Float[Array, "n d"],
    weights: Float[Array, "n"],
    k: int,
    *,
    block_size: int,
    rounds: int = 5,
    oversampling: int = 2,
) -> Float[Array, "k d"]:
    """A few rounds that draw `oversampling` x k points each, then weighted k-means++ among those.

    Exactly that many are drawn, without replacement, where the paper draws each point by itself and so a
    number that depends on data.
    """
    n = points.shape[0]
    per_round = min(n, oversampling * k)
    keys = jax.random.split(key, rounds + 2)
    first = points[sample(keys[0], weights, (1,))][0]  # a scalar index gathers what is sharded
    squared = _squared_distance(points, first)
    candidates = [first[None]]
    for r in range(rounds):
        race = jax.random.exponential(keys[r + 1], (n,), points.dtype) / (squared * weights)
        new = points[jax.lax.top_k(-race, per_round)[1]]
        candidates.append(new)
        if r + 1 < rounds:
            own = new[block_labels(to_blocks(points, None, block_size), new)[0]]
            distance = sum((points[:, i] - own[:, i]) ** 2 for i in range(points.shape[1]))
            squared = jnp.minimum(squared, distance)
    every = jnp.concatenate(candidates)
    _, mass = block_sums(to_blocks(points, weights, block_size), every)
    return kmeans_plus_plus(keys[-1], every, mass, k)
