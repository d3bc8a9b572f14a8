"""k-means over batches of pixels that are never held together (Sculley 2010)."""

from collections.abc import Iterable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray, Real

from jaxseg.clustering.kmeans import as_points, default_block_size, require_finite
from jaxseg.clustering.lloyd import block_sums, to_blocks
from jaxseg.clustering.seeding import kmeans_plus_plus

__all__ = ["MiniBatchState", "minibatch_init", "minibatch_kmeans", "minibatch_update"]


class MiniBatchState(NamedTuple):
    """Centroids and how many points each has seen."""

    centroids: Float[Array, "k d"]
    counts: Float[Array, "k"]


def _points(batch: Array | np.ndarray, num_clusters: int = 1) -> Float[Array, "n d"]:
    """Finite points, float32 or wider: counts beyond 65,504 are no float16."""
    batch = as_points("mini-batch k-means", batch, num_clusters)
    require_finite("batch", batch)
    return batch


def minibatch_init(batch: Array | np.ndarray, num_clusters: int, *, key: PRNGKeyArray) -> MiniBatchState:
    """k-means++ on a first batch, which holds at least `num_clusters` points."""
    batch = _points(batch, num_clusters)
    if num_clusters < 1:
        raise ValueError(f"minibatch_init needs num_clusters of 1 or more, got {num_clusters}")
    if batch.shape[0] < num_clusters:
        raise ValueError(f"minibatch_init needs a batch of at least {num_clusters} points, got {batch.shape[0]}")
    seeds = jax.jit(kmeans_plus_plus, static_argnums=3)(key, batch, jnp.ones_like(batch[:, 0]), num_clusters)
    return MiniBatchState(seeds, jnp.zeros(num_clusters, batch.dtype))


@jax.jit
def minibatch_update(state: MiniBatchState, batch: Real[Array, "n _"] | Real[np.ndarray, "n _"]) -> MiniBatchState:
    """One step of Sculley 2010: each centroid becomes the mean of all points it was ever given."""
    batch = as_points("mini-batch k-means", batch)
    if batch.shape[1] != state.centroids.shape[1]:
        raise ValueError(f"mini-batches need {state.centroids.shape[1]} dimensions as centroids, got {batch.shape[1]}")
    mean = state.centroids.mean(axis=0)
    blocks = to_blocks(batch - mean, None, default_block_size())
    sums, new = block_sums(blocks, state.centroids - mean)
    counts = state.counts + new
    step = (sums - new[:, None] * (state.centroids - mean)) / jnp.maximum(counts, 1.0)[:, None]
    return MiniBatchState(state.centroids + step, counts)


def minibatch_kmeans(batches: Iterable[Array | np.ndarray], num_clusters: int, *, key: PRNGKeyArray) -> MiniBatchState:
    """k-means over batches `[N, D]` of pixels that are never held together; label them afterwards with `assign`.

    Seeds come from the first batch. Batches of one size compile once.
    """
    state = None
    for batch in batches:
        batch = _points(batch)
        if state is None:
            state = minibatch_init(batch, num_clusters, key=key)
        state = minibatch_update(state, batch)
    if state is None:
        raise ValueError("minibatch_kmeans got no batches")
    return state
