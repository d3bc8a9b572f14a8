"""Lloyd's iteration over blocks of pixels: nearest centroids and cluster sums without an N x K matrix.

Pixels are laid out in `CHUNKS` contiguous chunks, and every step of the scan takes a slice of each chunk.
Sums are kept apart by chunk and added up at the end. When pixels are sharded over devices, a chunk lies on
one device, so that what the devices exchange are arrays with disjoint supports, and x + 0 is exact: labels do
not depend on the number of devices, be it 1, 2, 4 ... 64. (XLA on GPU adds within a chunk in any order.)
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

__all__ = ["CHUNKS", "Blocks", "block_distances", "block_labels", "block_sums", "moments", "nearest", "to_blocks"]

CHUNKS = 64
# One XLA program for up to this many centroids, written out; more are visited in groups of this many.
UNROLL = 64
# Up to this many feature dimensions, c.x as multiply-adds in registers beats a matrix product.
ELEMENTWISE_DIMENSIONS = 8


class Blocks(NamedTuple):
    """Rows [x, weight] by scan step and piece; weight 0 at padding. `unit`: no other weights than 0 and 1."""

    rows: Float[Array, "steps pieces n width"]
    unit: bool
    length: int


def to_blocks(points: Float[Array, "n d"], weights: Float[Array, "n"] | None, block_size: int) -> Blocks:
    """Pads and regroups `points` into steps of about `block_size` points, four concurrent pieces each."""
    n, d = points.shape
    per_chunk = -(-n // CHUNKS)
    pieces = 4 if n > 4096 else 1  # XLA's CPU runtime runs independent scatters on different cores
    steps = max(1, -(-n // block_size))
    b = -(-per_chunk // (steps * pieces))
    ones = jnp.ones((n, 1), points.dtype) if weights is None else weights[:, None]
    rows = jnp.pad(jnp.concatenate([points, ones], axis=1), ((0, CHUNKS * steps * pieces * b - n), (0, 0)))
    rows = rows.reshape(CHUNKS, steps, pieces, b, d + 1).transpose(1, 2, 0, 3, 4)
    return Blocks(rows.reshape(steps, pieces, CHUNKS * b, d + 1), weights is None, n)


def _in_order(values: Array, length: int) -> Array:
    """[steps, pieces, CHUNKS * b] back to the order of the points, without the padding."""
    steps, pieces, n = values.shape
    values = values.reshape(steps, pieces, CHUNKS, n // CHUNKS).transpose(2, 0, 1, 3)
    return values.reshape(-1)[:length]


def _ordered_sum(parts: Float[Array, "chunks ..."]) -> Float[Array, "..."]:
    """Adds chunks pairwise, in the same order wherever they lie."""
    while parts.shape[0] > 1:
        parts = parts[0::2] + parts[1::2]
    return parts[0]


def moments(blocks: Blocks) -> tuple[Float[Array, ""], Float[Array, "d"], Float[Array, "d"]]:
    """Sum of weights, and weighted sums of x and x^2."""
    width = blocks.rows.shape[-1]

    def step(lanes, rows):
        # column by column: XLA's CPU code for a reduction over the minor axes is ten times slower
        for piece in rows:
            w, columns = piece[:, -1], [piece[:, i] for i in range(width - 1)]
            powers = [w, *(w * x for x in columns), *(w * x**2 for x in columns)]
            lanes = tuple(lane + x for lane, x in zip(lanes, powers, strict=True))
        return lanes, None

    zeros = (jnp.zeros(blocks.rows.shape[2], blocks.rows.dtype),) * (2 * width - 1)
    lanes, _ = jax.lax.scan(step, zeros, blocks.rows)
    sums = jnp.stack([_ordered_sum(lane.reshape(CHUNKS, -1).sum(axis=1)) for lane in lanes])
    return sums[0], sums[1:width], sums[width:]


def _group_scores(points: Float[Array, "n d"], centroids: Float[Array, "k d"], half: Float[Array, "k"]):
    """|c|^2 / 2 - c.x for each centroid in turn: half the squared distance, less |x|^2 / 2."""
    d = points.shape[1]
    if d <= ELEMENTWISE_DIMENSIONS:
        for j in range(centroids.shape[0]):
            score = half[j]
            for i in range(d):
                score = score - centroids[j, i] * points[:, i]
            yield score
    else:
        products = jnp.matmul(centroids, points.T, precision=jax.lax.Precision.HIGHEST)
        for j in range(centroids.shape[0]):
            yield half[j] - products[j]


def nearest(points: Float[Array, "n d"], centroids: Float[Array, "k d"]) -> Int[Array, "n"]:
    """Index of the nearest centroid in L2, the lowest of equals. A running minimum: O(n) memory, any k.

    Scores cancel for points far from the origin: subtract the mean from points and centroids first.
    """
    k = centroids.shape[0]
    half = 0.5 * jnp.sum(centroids**2, axis=1)

    def group(best, label, centroids, half, first):
        # labels are float in the loop: with one type XLA keeps both selections in vector registers
        for j, score in enumerate(_group_scores(points, centroids, half)):
            closer = score < best
            label = jnp.where(closer, first + j, label)
            best = jnp.where(closer, score, best)
        return best, label

    # points[:, 0] * 0 rather than zeros: a sharded or batched constant
    best, label = jnp.full_like(points[:, 0], jnp.inf), jnp.zeros_like(points[:, 0])
    if k <= UNROLL:
        return group(best, label, centroids, half, 0.0)[1].astype(jnp.int32)
    groups = -(-k // UNROLL)
    pad = groups * UNROLL - k
    xs = (
        jnp.pad(centroids, ((0, pad), (0, 0))).reshape(groups, UNROLL, -1),
        jnp.pad(half, (0, pad), constant_values=jnp.inf).reshape(groups, UNROLL),
        jnp.arange(groups, dtype=points.dtype) * UNROLL,
    )
    (_, label), _ = jax.lax.scan(lambda carry, x: (group(*carry, *x), None), (best, label), xs)
    return label.astype(jnp.int32)


def _segment_sum(updates: Float[Array, "n d"], labels: Int[Array, "n"], k: int) -> Float[Array, "chunks k d"]:
    chunk = jnp.arange(labels.shape[0], dtype=jnp.int32) // (labels.shape[0] // CHUNKS)
    sums = jax.ops.segment_sum(updates, labels + k * chunk, CHUNKS * k, mode="promise_in_bounds")
    return sums.reshape(CHUNKS, k, -1)


def block_sums(blocks: Blocks, centroids: Float[Array, "k d"]) -> tuple[Float[Array, "k d"], Float[Array, "k"]]:
    """Weighted sum of the points nearest to each centroid, and their weight."""
    k, d = centroids.shape

    def step(sums, rows):
        parts = []
        for p in range(rows.shape[0]):
            labels = nearest(rows[p, :, :d], centroids)
            updates = rows[p]
            if not blocks.unit:
                updates = jnp.concatenate([updates[:, :d] * updates[:, d:], updates[:, d:]], axis=1)
            # the barrier keeps XLA from adding straight into another sum, in an order that sharding changes
            parts.append(jax.lax.optimization_barrier(_segment_sum(updates, labels, k)))
        return sums + sum(parts[1:], parts[0]), None

    zeros = jnp.zeros((CHUNKS, k, d + 1), blocks.rows.dtype)
    sums = _ordered_sum(jax.lax.scan(step, zeros, blocks.rows)[0])
    return sums[:, :d], sums[:, d]


def _own_distances(
    rows: Float[Array, "n width"], centroids: Float[Array, "k d"]
) -> tuple[Int[Array, "n"], Float[Array, "n"]]:
    """Nearest centroid of each row, and |x - c|^2 itself, which does not cancel as the scores do."""
    d = centroids.shape[1]
    labels = nearest(rows[:, :d], centroids)
    own = [centroids[:, i].at[labels].get(mode="promise_in_bounds") for i in range(d)]
    squared = [(rows[:, i] - own[i]) ** 2 for i in range(d)]
    return labels, sum(squared[1:], squared[0])


def block_distances(
    blocks: Blocks, centroids: Float[Array, "k d"]
) -> tuple[Int[Array, "steps pieces n"], Float[Array, "steps pieces n"]]:
    """Nearest centroid of each point and the squared distance to it, in the order of the blocks."""

    def step(_, rows):
        labels, squared = zip(*(_own_distances(piece, centroids) for piece in rows), strict=True)
        return None, (jnp.stack(labels), jnp.stack(squared))

    return jax.lax.scan(step, None, blocks.rows)[1]


def block_labels(blocks: Blocks, centroids: Float[Array, "k d"]) -> tuple[Int[Array, "n"], Float[Array, ""]]:
    """Nearest centroid of each point in the points' own order, and the weighted sum of squared distances."""

    def step(inertia, rows):
        labels = []
        for piece in rows:
            label, squared = _own_distances(piece, centroids)
            labels.append(label)
            inertia = inertia + squared * piece[:, -1]
        return inertia, jnp.stack(labels)

    lanes = jnp.zeros(blocks.rows.shape[2], blocks.rows.dtype)
    lanes, labels = jax.lax.scan(step, lanes, blocks.rows)
    return _in_order(labels, blocks.length), _ordered_sum(lanes.reshape(CHUNKS, -1).sum(axis=1))
