"""Normalized Cut on a region adjacency graph: superpixels or k-means cells for vertices.

Region weights are sums of pixel weights, so that a partition of regions has the Ncut of its pixels.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray

from jaxseg.clustering.kmeans import kmeans
from jaxseg.ops.affinity import Affinity

__all__ = ["RegionCutResult", "ncut_regions", "region_affinity"]


class RegionCutResult(NamedTuple):
    """`labels` by region; eigenpairs without the trivial one."""

    labels: Int[Array, "r"]
    eigenvectors: Float[Array, "k r"]
    eigenvalues: Float[Array, "k"]
    ncut_value: Float[Array, ""]


def region_affinity(affinity: Affinity, labels: Int[Array, "h w"], num_regions: int) -> Float[Array, "r r"]:
    """Summed pixel weights between regions, symmetric; within a region an edge counts twice.

    Raises ValueError on labels of another shape than the graph's or, where they can be looked at, outside
    0..num_regions - 1.
    """
    r = affinity.reach
    h, w = affinity.degree.shape
    if labels.shape != (h, w):
        raise ValueError(f"region_affinity needs labels of the graph's shape {(h, w)}, got {labels.shape}")
    if not isinstance(labels, jax.core.Tracer) and not bool(((labels >= 0) & (labels < num_regions)).all()):
        raise ValueError(
            f"region_affinity needs labels from 0 to {num_regions - 1}, got {int(labels.min())} to {int(labels.max())}"
        )
    own = affinity.degree - affinity.diagonal
    total = jnp.zeros((num_regions, num_regions)).at[labels, labels].add(own)
    padded = jnp.pad(labels, ((0, r), (r, r)))
    for plane, (dy, dx) in zip(affinity.weights, affinity.offsets, strict=True):
        other = padded[dy : dy + h, r + dx : r + dx + w]
        weight = plane[r:, r : r + w]  # 0 where the edge leaves the image
        total = total.at[labels, other].add(weight).at[other, labels].add(weight)
    return total


def _value(weights: Array, labels: Array, num_segments: int) -> Array:
    s = jax.nn.one_hot(labels, num_segments)
    links = s.T @ weights @ s
    volume = links.sum(axis=1)
    return jnp.sum(jnp.where(volume > 0, 1 - jnp.diag(links) / jnp.where(volume > 0, volume, 1.0), 0.0))


@functools.partial(jax.jit, static_argnames=("num_segments", "restarts"))
def ncut_regions(
    weights: Float[Array, "r _"], num_segments: int, *, key: PRNGKeyArray, restarts: int = 8
) -> RegionCutResult:
    """Simultaneous k-way cut of a region graph of a few thousand regions or less: the dense eigenproblem.

    Empty regions (no weights) are harmless. Raises ValueError when num_segments is not in 1..r.
    """
    if weights.ndim != 2 or weights.shape[0] != weights.shape[1]:
        raise ValueError(f"ncut_regions needs a symmetric matrix of weights [R, R], got {weights.shape}")
    n = weights.shape[0]
    if not 1 <= num_segments <= n:
        raise ValueError(f"ncut_regions needs num_segments from 1 to the number of regions {n}, got {num_segments}")
    degree = weights.sum(axis=1)
    root = jnp.where(degree > 0, jax.lax.rsqrt(jnp.maximum(degree, 1e-30)), 0.0)
    laplacian = jnp.diag(jnp.where(degree > 0, 1.0, 2.0)) - root[:, None] * weights * root
    values, vectors = jnp.linalg.eigh(laplacian)
    y = vectors * root[:, None]
    rows = y[:, :num_segments] * jnp.sqrt(degree.sum())

    def attempt(carry, key):
        best, least = carry
        labels = kmeans(rows, num_segments, key=key, weights=degree).labels
        value = _value(weights, labels, num_segments)
        return (jnp.where(value < least, labels, best), jnp.minimum(value, least)), None

    start = (jnp.zeros(n, jnp.int32), jnp.array(jnp.inf, weights.dtype))
    (labels, value), _ = jax.lax.scan(attempt, start, jax.random.split(key, restarts))
    return RegionCutResult(labels, y[:, 1 : max(2, num_segments)].T, values[1 : max(2, num_segments)], value)
