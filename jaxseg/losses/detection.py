"""Losses of detectors, given what was sampled. Means over the sample of the **global** batch, torchvision's."""

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int

from jaxseg.ops.batch import batch_sum

__all__ = ["BETA", "box_losses", "mask_errors", "mask_loss", "mean_mask_error", "proposal_losses", "smooth_l1"]

BETA = 1 / 9  # of torchvision and Detectron


def smooth_l1(error: Float[Array, "*n"], beta: float = BETA) -> Float[Array, "*n"]:
    """|error| - beta/2, and below `beta` error^2 / (2 beta) (Girshick 2015, equation 3)."""
    size = jnp.abs(error)
    return jnp.where(size < beta, 0.5 * error**2 / beta, size - 0.5 * beta)


def _share(values: Array, chosen: Array, count: Array) -> Array:
    """The sum of `values` where `chosen`, over the global `count`; 0 where that is 0."""
    total, count = batch_sum((jnp.sum(jnp.where(chosen, values, 0)), count))
    return total / jnp.maximum(count, 1)


def proposal_losses(
    logits: Float[Array, "n s"],
    deltas: Float[Array, "n s 4"],
    targets: Float[Array, "n s 4"],
    positive: Bool[Array, "n s"],
    valid: Bool[Array, "n s"],
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Objectness and box loss of sampled anchors (Ren et al. 2015, equation 1).

    The box loss sums over positives and is divided by the number of all that were sampled.
    """
    count = jnp.sum(valid.astype(jnp.float32))
    objectness = optax.sigmoid_binary_cross_entropy(logits, positive.astype(jnp.float32))
    error = jnp.where(positive[..., None], deltas - targets, 0)  # targets of others may be infinite
    return _share(objectness, valid, count), _share(smooth_l1(error).sum(-1), positive, count)


def box_losses(
    logits: Float[Array, "n r c"],
    deltas: Float[Array, "n r c 4"],
    classes: Int[Array, "n r"],
    targets: Float[Array, "n r 4"],
    valid: Bool[Array, "n r"],
    *,
    beta: float = BETA,
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Class and box loss of sampled boxes (Girshick 2015, equation 1), whose `classes` are 0 in the background.

    Only the refinement for the true class counts, and only of objects; divided by the number of all boxes.
    """
    count = jnp.sum(valid.astype(jnp.float32))
    log_p = jnp.take_along_axis(jax.nn.log_softmax(logits), classes[..., None], -1)[..., 0]
    chosen = jnp.take_along_axis(deltas, classes[..., None, None], 2)[..., 0, :]
    objects = valid & (classes > 0)
    error = jnp.where(objects[..., None], chosen - targets, 0)
    return _share(-log_p, valid, count), _share(smooth_l1(error, beta).sum(-1), objects, count)


def mask_errors(
    logits: Float[Array, "n p m m"], targets: Float[Array, "n p m m"], valid: Bool[Array, "n p"]
) -> Float[Array, ""]:
    """The sum over valid masks of the mean cross-entropy of a mask's pixels."""
    return jnp.sum(jnp.where(valid, optax.sigmoid_binary_cross_entropy(logits, targets).mean((-1, -2)), 0))


def mean_mask_error(errors: Float[Array, ""], valid: Bool[Array, "n p"]) -> Float[Array, ""]:
    """A sum of `mask_errors` over the number of valid masks."""
    return _share(errors, jnp.array(True), jnp.sum(valid.astype(jnp.float32)))


def mask_loss(
    logits: Float[Array, "n p m m"], targets: Float[Array, "n p m m"], valid: Bool[Array, "n p"]
) -> Float[Array, ""]:
    """Cross-entropy of every pixel of the masks of objects, each of its own class (He et al. 2017, section 3)."""
    return mean_mask_error(mask_errors(logits, targets, valid), valid)
