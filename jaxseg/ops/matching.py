"""References against true boxes: which is whose, and a fair sample of them."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from jaxseg.ops.boxes import box_iou

__all__ = ["IGNORED", "NEGATIVE", "POSITIVE", "Matches", "Sampled", "match", "sample"]

POSITIVE, NEGATIVE, IGNORED = 1, 0, -1


class Matches(NamedTuple):
    """For each reference the true box that it overlaps most, and what that makes of it."""

    indices: Any  # int32 [a]; 0 where there is no true box
    labels: Any  # int32 [a]: POSITIVE, NEGATIVE or IGNORED


class Sampled(NamedTuple):
    """A fixed number of places in a sample: positives first, then negatives, then what is not `valid`."""

    indices: Any  # int32 [count]; 0 where not valid
    positive: Any  # bool [count]
    valid: Any  # bool [count]


def match(
    boxes: Float[Array, "g 4"],
    valid: Bool[Array, "g"],
    references: Float[Array, "a 4"],
    *,
    high: float,
    low: float,
    rescue: bool = False,
) -> Matches:
    """Positive from an IoU of `high`, negative below `low` (Ren et al. 2015, section 3.1.2), else ignored.

    Only `valid` true boxes count; without any all references are negative. `rescue` makes positive, besides,
    every reference that overlaps a true box, and that no other overlaps more, ties included.
    """
    overlap = jnp.where(valid[:, None], box_iou(boxes, references), -1.0)
    if boxes.shape[0] == 0:
        zeros = jnp.zeros(references.shape[0], jnp.int32)
        return Matches(zeros, zeros)
    best = overlap.max(0)
    labels = jnp.where(best >= high, POSITIVE, jnp.where(best < low, NEGATIVE, IGNORED))
    if rescue:
        # the first by its place: two fusions of one overlap may round it apart, and then nothing equals the maximum
        first = jnp.arange(overlap.shape[1]) == overlap.argmax(1, keepdims=True)
        nearest = (first | (overlap == overlap.max(1, keepdims=True))) & (overlap > 0)
        labels = jnp.where(nearest.any(0), POSITIVE, labels)
    labels = jnp.where(valid.any(), labels, NEGATIVE)
    return Matches(overlap.argmax(0).astype(jnp.int32), labels.astype(jnp.int32))


def sample(key: PRNGKeyArray, labels: Int[Array, "a"], count: int, positive_fraction: float) -> Sampled:
    """`count` of the references by chance, of which positives at most that fraction; negatives fill up.

    Where there are too few of both, some places are not valid.
    """
    a = labels.shape[0]
    chance = jax.random.uniform(key, (a,))
    most = min(int(count * positive_fraction), a)
    rank, positives = jax.lax.top_k(jnp.where(labels > 0, chance, -1.0), most)
    taken = rank >= 0
    rank, negatives = jax.lax.top_k(jnp.where(labels == 0, chance, -1.0), min(count, a))
    fills = (rank >= 0) & (jnp.arange(rank.shape[0]) < count - taken.sum())
    indices, valid = jnp.concatenate([positives, negatives]), jnp.concatenate([taken, fills])
    positive = jnp.arange(valid.shape[0]) < most
    short = max(count - valid.shape[0], 0)
    indices, valid, positive = (jnp.pad(x, (0, short)) for x in (indices, valid, positive & valid))
    order = jnp.argsort(~valid, stable=True)[:count]
    indices, positive, valid = indices[order], positive[order], valid[order]
    return Sampled(jnp.where(valid, indices, 0).astype(jnp.int32), positive, valid)
