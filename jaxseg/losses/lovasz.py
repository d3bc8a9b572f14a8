"""Lovász-softmax: the convex surrogate of mean IoU."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxseg.losses.segmentation import IGNORE, Labels, Logits, mean_of_present, probabilities, weights_of
from jaxseg.ops.batch import batch_gather, batch_sum

__all__ = ["lovasz_softmax"]


def _extension(errors: Float[Array, "p"], truth: Float[Array, "p"]) -> Float[Array, ""]:
    """The Lovász extension of the Jaccard loss of one class at `errors`, which are -1 where a pixel is ignored."""
    descending, truth = jax.lax.sort((-errors, truth), num_keys=1)
    errors = jnp.maximum(-descending, 0)
    total = truth.sum()
    loss = 1 - (total - jnp.cumsum(truth)) / jnp.maximum(total + jnp.cumsum(1 - truth), 1)
    return jnp.sum(errors * jax.lax.stop_gradient(jnp.diff(loss, prepend=0.0)))


def _of_pixels(
    p: Float[Array, "p k"], labels: Int[Array, "p"], class_weights: Float[Array, "k"] | None
) -> Float[Array, ""]:
    valid = labels != IGNORE
    truth = jax.nn.one_hot(jnp.where(valid, labels, -1), p.shape[-1], axis=0)  # 255 is no class, were there 300
    errors = jnp.where(~valid, -1.0, jnp.where(truth > 0, 1 - p.T, p.T))
    return mean_of_present(jax.vmap(_extension)(errors, truth), truth.sum(1), class_weights)


def lovasz_softmax(
    logits: Logits, labels: Labels, *, per_image: bool = False, class_weights: Float[Array, "c"] | None = None
) -> Float[Array, ""]:
    """Lovász-softmax (Berman et al. 2018, eq. 12): mean over present classes of the extension of 1 - IoU.

    Over the pixels of the global batch as one, or `per_image` with the mean over images that have a valid pixel.
    `class_weights` weigh the mean over classes.
    """
    class_weights = weights_of(logits, labels, class_weights)
    p = probabilities(logits)
    n, h, w, k = p.shape
    pixels = p.reshape(n, h * w, k), labels.reshape(n, h * w)  # not -1, which no image leaves open
    if not per_image:
        p, labels = (batch_gather(x) for x in pixels)
        return _of_pixels(p.reshape(-1, k), labels.ravel(), class_weights)
    values = jax.vmap(lambda p, labels: _of_pixels(p, labels, class_weights))(*pixels)
    counted = (labels != IGNORE).any((1, 2)).astype(jnp.float32)
    total, images = batch_sum((jnp.sum(values * counted), counted.sum()))
    return total / jnp.maximum(images, 1)
