"""k-means over batches of pixels that are never held together (Sculley 2010)."""

from collections.abc import Iterable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

from jaxseg.clustering.kmeans import default_block_size, require_finite
from jaxseg.clustering.lloyd import block_sums, to_blocks
from jaxseg.clustering.seeding import kmeans_plus_plus

__all__ = ["MiniBatchState", "minibatch_init", "minibatch_kmeans", "minibatch_update"]


class MiniBatchState(NamedTuple):
    """Centroids and how many points each has seen."""

    centroids: Float[Array, "k d"]
    counts: Float[Array, "k"]


def minibatch_init(batch: Float[Array, "n d"], num_clusters: int, *, key: PRNGKeyArray) -> MiniBatchState:
    """k-means++ on a first batch, which holds at least `num_clusters` points."""
    require_finite("batch", batch)
    if batch.shape[0] < num_clusters:
        raise ValueError(f"minibatch_init needs a batch of at least {num_clusters} points, got {batch.shape[0]}")
    seeds = jax.jit(kmeans_plus_plus, static_argnums=3)(key, batch, jnp.ones_like(batch[:, 0]), num_clusters)
    return MiniBatchState(seeds, jnp.zeros(num_clusters, batch.dtype))


@jax.jit
def minibatch_update(state: MiniBatchState, batch: Float[Array, "n d"]) -> MiniBatchState:
    """One step of Sculley 2010: each centroid becomes the mean of all points it was ever given."""
    mean = state.centroids.mean(axis=0)
    blocks = to_blocks(batch - mean, None, default_block_size())
    sums, new = block_sums(blocks, state.centroids - mean)
    counts = state.counts + new
    step = (sums - new[:, None] * (state.centroids - mean)) / jnp.maximum(counts, 1.0)[:, None]
    return MiniBatchState(state.centroids + step, counts)


def minibatch_kmeans(
    batches: Iterable[Float[Array, "n d"] | Float[np.ndarray, "n d"]], num_clusters: int, *, key: PRNGKeyArray
) -> MiniBatchState:
    """k-means over batches of pixels that are never held together; label them afterwards with `assign`.

    Seeds come from the first batch. Batches of one size compile once.
    """
    state = None
    for batch in batches:
        batch = jnp.asarray(batch)
        require_finite("batch", batch)
        if state is None:
            state = minibatch_init(batch, num_clusters, key=key)
        state = minibatch_update(state, batch)
    if state is None:
        raise ValueError("minibatch_kmeans got no batches")
    return state
