"""Boundary loss: probability weighted by the signed distance to the true boundary."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jaxseg.losses.segmentation import IGNORE, Labels, Logits, probabilities, weights_of
from jaxseg.ops.batch import batch_sum

__all__ = ["boundary_loss", "signed_distance"]


def _distance_to(mask: Bool[Array, "n h w k"]) -> Float[Array, "n h w k"]:
    """Euclidean distance of each pixel to the nearest of `mask` in its image and channel; 0 where there is none.

    Exact and separable (Felzenszwalb and Huttenlocher 2012): along rows by running maxima, then along columns by
    the minimum over every row, h steps of elementwise work in place of the envelope's data-dependent loop.
    """
    h, w = mask.shape[1:3]
    far = h + w
    x = jnp.arange(w)[:, None]
    before = x - jax.lax.cummax(jnp.where(mask, x, -far), axis=2)
    after = jax.lax.cummin(jnp.where(mask, x, w + far), axis=2, reverse=True) - x
    squares = jnp.square(jnp.minimum(before, after).astype(jnp.float32))
    rows = jnp.arange(h, dtype=jnp.float32)[:, None, None]

    def through(y: Array, best: Array) -> Array:
        return jnp.minimum(best, jax.lax.dynamic_slice_in_dim(squares, y, 1, 1) + jnp.square(rows - y))

    best = jax.lax.fori_loop(0, h, through, jnp.full(mask.shape, jnp.inf))
    return jnp.where(mask.any((1, 2), keepdims=True), jnp.sqrt(best), 0)


def signed_distance(labels: Labels, num_classes: int) -> Float[Array, "n h w {num_classes}"]:
    """Distance in pixels to each class's boundary: outside to its nearest pixel, inside 1 less than to another
    class's, and negative, as Kervadec et al.'s code has it. Ignored pixels are of no class; a class that an image
    lacks, or that is its only one, is 0 everywhere.
    """
    valid = (labels != IGNORE)[..., None]
    inside = valid & (labels[..., None] == jnp.arange(num_classes))
    outside = valid & ~inside
    both = inside.any((1, 2), keepdims=True) & outside.any((1, 2), keepdims=True)
    distance = jnp.where(inside, 1 - _distance_to(outside), _distance_to(inside))
    return jnp.where(both, distance, 0)


def boundary_loss(
    logits: Logits, labels: Labels, *, class_weights: Float[Array, "c"] | None = None
) -> Float[Array, ""]:
    """Mean over valid pixels and classes of probability x signed distance (Kervadec et al. 2019, eq. 5).

    Negative where the prediction is good; the paper adds it to a regional loss, with a growing weight, and
    leaves the background out: `class_weights` of 0 do that, and otherwise weigh the mean over classes. The
    distances are worked out on the device, from the labels as augmented and cropped.
    """
    class_weights = weights_of(logits, labels, class_weights)
    p = probabilities(logits)
    k = p.shape[-1]
    weights = jnp.ones(k) if class_weights is None else class_weights
    valid = (labels != IGNORE).astype(jnp.float32)
    cost = jnp.sum(p * signed_distance(labels, k) * weights, -1) * valid
    total, pixels = batch_sum((cost.sum(), valid.sum()))
    scale = pixels * weights.sum()
    return total / jnp.where(scale > 0, scale, 1)
