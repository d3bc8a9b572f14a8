"""Losses of semantic segmentation. Logits `[N, H, W, K]`, labels `[N, H, W]` with 255 = ignore.

Each is the mean over the valid pixels of the **global** batch, not a mean of the devices' means: the sums go
through `batch_sum`, so shards with few valid pixels weigh what they hold. With no valid pixel a loss is 0.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxseg.ops.batch import batch_sum

__all__ = ["IGNORE", "cross_entropy", "dice_loss", "focal_loss"]

IGNORE = 255

Logits = Float[Array, "n h w k"]
Labels = Int[Array, "n h w"]


def _weighted_mean(values: Float[Array, "n h w"], weights: Float[Array, "n h w"]) -> Float[Array, ""]:
    total, weight = batch_sum((jnp.sum(values * weights), jnp.sum(weights)))
    return total / jnp.where(weight > 0, weight, 1)


def _log_probability(logits: Logits, labels: Labels) -> tuple[Float[Array, "n h w k"], Float[Array, "n h w"], Labels]:
    log_p = jax.nn.log_softmax(logits.astype(jnp.float32))
    safe = jnp.where(labels == IGNORE, 0, labels)  # 255 would index past the classes
    return log_p, jnp.take_along_axis(log_p, safe[..., None], -1)[..., 0], safe


def cross_entropy(
    logits: Logits,
    labels: Labels,
    *,
    class_weights: Float[Array, "k"] | None = None,
    pixel_weights: Float[Array, "n h w"] | None = None,
    label_smoothing: float = 0.0,
) -> Float[Array, ""]:
    """Softmax cross-entropy, a weighted mean over valid pixels as PyTorch's `CrossEntropyLoss`.

    `class_weights` count in the denominator, as in PyTorch; `pixel_weights` (the border weights of U-Net,
    Ronneberger et al. 2015, eq. 1) do not: the paper sums. With both, the denominator is that of the class
    weights. `label_smoothing` mixes the target with the uniform distribution (Szegedy et al. 2016, sec. 7).
    """
    log_p, picked, safe = _log_probability(logits, labels)
    valid = (labels != IGNORE).astype(jnp.float32)
    weights = valid if class_weights is None else valid * class_weights.astype(jnp.float32)[safe]
    values = -picked * weights
    if label_smoothing:
        per_class = jnp.ones(log_p.shape[-1]) if class_weights is None else class_weights
        uniform = -jnp.mean(log_p * per_class, -1) * valid
        values = (1 - label_smoothing) * values + label_smoothing * uniform
    if pixel_weights is not None:
        values = values * pixel_weights
    total, weight = batch_sum((jnp.sum(values), jnp.sum(weights)))
    return total / jnp.where(weight > 0, weight, 1)


def dice_loss(logits: Logits, labels: Labels, *, smooth: float = 1.0) -> Float[Array, ""]:
    """Soft Dice: 1 - mean over present classes of (2 sum pg + s) / (sum p + sum g + s) (Milletari et al. 2016).

    The sums run over the valid pixels of the global batch; a class without a labelled pixel has no part.
    """
    valid = labels != IGNORE
    p = jnp.where(valid[..., None], jax.nn.softmax(logits.astype(jnp.float32)), 0)
    g = jax.nn.one_hot(jnp.where(valid, labels, -1), logits.shape[-1])
    axes = (0, 1, 2)
    overlap, mass, truth = batch_sum(((p * g).sum(axes), p.sum(axes), g.sum(axes)))
    dice = (2 * overlap + smooth) / (mass + truth + smooth)
    present = (truth > 0).astype(jnp.float32)
    return jnp.sum((1 - dice) * present) / jnp.maximum(present.sum(), 1)


def focal_loss(
    logits: Logits, labels: Labels, *, gamma: float = 2.0, class_weights: Float[Array, "k"] | None = None
) -> Float[Array, ""]:
    """Focal loss -alpha (1 - p)^gamma log p over softmax classes (Lin et al. 2017, eq. 5).

    `class_weights` is the paper's alpha: it scales the loss and, as there, has no part in the denominator.
    """
    _, picked, safe = _log_probability(logits, labels)
    valid = (labels != IGNORE).astype(jnp.float32)
    alpha = 1.0 if class_weights is None else class_weights.astype(jnp.float32)[safe]
    # 1 - p from log p; its gradient at p = 1 stays finite for any gamma >= 1, and for gamma < 1 by the floor
    miss = jnp.maximum(-jnp.expm1(picked), 1e-12)
    return _weighted_mean(-alpha * miss**gamma * picked, valid)
