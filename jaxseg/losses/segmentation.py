"""Losses of semantic segmentation. Logits `[N, H, W, K]`, labels `[N, H, W]` with 255 = ignore.

One logit, a binary model's, is that of class 1, and class 0 has 0: softmax is then the sigmoid, class weights are two.
Each is the mean over the valid pixels of the **global** batch, not a mean of the devices' means: the sums go
through `batch_sum`, so shards with few valid pixels weigh what they hold. With no valid pixel a loss is 0.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxseg.ops.batch import batch_gather, batch_sum
from jaxseg.ops.logits import two_class_logits

__all__ = ["IGNORE", "cross_entropy", "dice_loss", "focal_loss", "jaccard_loss", "ohem_cross_entropy", "tversky_loss"]

IGNORE = 255

Logits = Float[Array, "n h w k"]
Labels = Int[Array, "n h w"]


def _weighted_mean(values: Float[Array, "n h w"], weights: Float[Array, "n h w"]) -> Float[Array, ""]:
    total, weight = batch_sum((jnp.sum(values * weights), jnp.sum(weights)))
    return total / jnp.where(weight > 0, weight, 1)


def _at_label(values: Float[Array, "n h w k"] | Float[Array, "k"], labels: Labels) -> Float[Array, "n h w"]:
    """The value of each pixel's class, NaN for a class that there is not; no gather, which TPUs do one by one."""
    classes = jnp.arange(values.shape[-1])
    picked = jnp.sum(jnp.where(labels[..., None] == classes, values, 0), -1)
    return jnp.where((labels >= 0) & (labels < len(classes)), picked, jnp.nan)


def probabilities(logits: Logits) -> Float[Array, "n h w k2"]:
    """Softmax in float32, of two classes at least."""
    return jax.nn.softmax(two_class_logits(logits).astype(jnp.float32))


def _log_probability(logits: Logits, labels: Labels) -> tuple[Float[Array, "n h w k2"], Float[Array, "n h w"], Labels]:
    log_p = jax.nn.log_softmax(two_class_logits(logits).astype(jnp.float32))
    safe = jnp.where(labels == IGNORE, 0, labels)  # 255 would index past the classes
    return log_p, _at_label(log_p, safe), safe


def weights_of(logits: Logits, labels: Labels, class_weights: Any | None) -> Float[Array, "k2"] | None:
    """The class weights in float32.

    Raises ValueError for labels that are not one of each pixel, and weights that are not one of each class, which
    would spread over what they do not fit.
    """
    if labels.shape != logits.shape[:-1]:
        raise ValueError(
            f"labels are {logits.shape[:-1]}, one of each pixel, got {labels.shape} for logits of {logits.shape}; "
            "both have the channels last, and labels have none"
        )
    if class_weights is None:
        return None
    weights, classes = jnp.asarray(class_weights, jnp.float32), max(logits.shape[-1], 2)
    if weights.shape != (classes,):
        raise ValueError(f"class_weights are {classes}, one of each class, got shape {weights.shape}")
    return weights


def cross_entropy(
    logits: Logits,
    labels: Labels,
    *,
    class_weights: Float[Array, "c"] | None = None,
    pixel_weights: Float[Array, "n h w"] | None = None,
    label_smoothing: float = 0.0,
) -> Float[Array, ""]:
    """Softmax cross-entropy, a weighted mean over valid pixels as PyTorch's `CrossEntropyLoss`.

    `class_weights` count in the denominator, as in PyTorch; `pixel_weights` (the border weights of U-Net,
    Ronneberger et al. 2015, eq. 1) do not: the paper sums. With both, the denominator is that of the class
    weights. `label_smoothing` mixes the target with the uniform distribution (Szegedy et al. 2016, sec. 7).
    """
    class_weights = weights_of(logits, labels, class_weights)
    log_p, picked, safe = _log_probability(logits, labels)
    valid = (labels != IGNORE).astype(jnp.float32)
    weights = valid if class_weights is None else valid * _at_label(class_weights, safe)
    values = -picked * weights
    if label_smoothing:
        per_class = jnp.ones(log_p.shape[-1]) if class_weights is None else class_weights
        uniform = -jnp.mean(log_p * per_class, -1) * valid
        values = (1 - label_smoothing) * values + label_smoothing * uniform
    if pixel_weights is not None:
        values = values * pixel_weights
    total, weight = batch_sum((jnp.sum(values), jnp.sum(weights)))
    return total / jnp.where(weight > 0, weight, 1)


def ohem_cross_entropy(
    logits: Logits,
    labels: Labels,
    *,
    threshold: float = 0.7,
    min_kept: int = 100_000,
    class_weights: Float[Array, "c"] | None = None,
    pixel_weights: Float[Array, "n h w"] | None = None,
    label_smoothing: float = 0.0,
) -> Float[Array, ""]:
    """Cross-entropy over the hard pixels (online hard example mining; Shrivastava et al. 2016, Wu et al. 2016).

    Kept are the valid pixels whose true class has a probability below `threshold`, and at least the `min_kept` of
    the lowest in the global batch; with fewer valid pixels than that, all. The rest is `cross_entropy`.
    """
    class_weights = weights_of(logits, labels, class_weights)
    _, picked, _ = _log_probability(logits, labels)
    # an ignored pixel sorts after all that count
    p = jax.lax.stop_gradient(jnp.where(labels == IGNORE, 2.0, jnp.exp(picked)))
    kept = ~(p >= threshold)  # a label that is no class's, which is NaN, too
    everyone = batch_gather(p).ravel()
    if (k := min(min_kept, everyone.size)) > 0:
        kept |= p <= jnp.sort(everyone)[k - 1]
    return cross_entropy(
        logits,
        jnp.where(kept, labels, IGNORE),
        class_weights=class_weights,
        pixel_weights=pixel_weights,
        label_smoothing=label_smoothing,
    )


def mean_of_present(
    values: Float[Array, "k"], truth: Float[Array, "k"], class_weights: Float[Array, "k"] | None
) -> Float[Array, ""]:
    """The mean of `values`, weighted by class, over the classes that have `truth` pixels; 0 without any."""
    weights = (truth > 0).astype(jnp.float32)
    if class_weights is not None:
        weights = weights * class_weights
    total = weights.sum()
    return jnp.sum(values * weights) / jnp.where(total > 0, total, 1)


def tversky_loss(
    logits: Logits,
    labels: Labels,
    *,
    alpha: float = 0.3,
    beta: float = 0.7,
    smooth: float = 1.0,
    class_weights: Float[Array, "c"] | None = None,
) -> Float[Array, ""]:
    """1 - mean over present classes of (TP + s) / (TP + alpha FP + beta FN + s) (Salehi et al. 2017, eq. 3).

    TP, FP and FN are sums of softmax probability over the valid pixels of the global batch; a class without a
    labelled pixel has no part. `class_weights` weigh the mean.
    """
    class_weights = weights_of(logits, labels, class_weights)
    valid = labels != IGNORE
    p = jnp.where(valid[..., None], probabilities(logits), 0)
    g = jax.nn.one_hot(jnp.where(valid, labels, -1), p.shape[-1])
    axes = (0, 1, 2)
    overlap, mass, truth = batch_sum(((p * g).sum(axes), p.sum(axes), g.sum(axes)))
    index = (overlap + smooth) / (overlap + alpha * (mass - overlap) + beta * (truth - overlap) + smooth)
    return mean_of_present(1 - index, truth, class_weights)


def dice_loss(
    logits: Logits, labels: Labels, *, smooth: float = 1.0, class_weights: Float[Array, "c"] | None = None
) -> Float[Array, ""]:
    """Soft Dice: 1 - mean over present classes of (2 sum pg + s) / (sum p + sum g + s) (Milletari et al. 2016).

    Tversky's with alpha = beta = 1/2; the rest is as there.
    """
    return tversky_loss(logits, labels, alpha=0.5, beta=0.5, smooth=smooth / 2, class_weights=class_weights)


def jaccard_loss(
    logits: Logits, labels: Labels, *, smooth: float = 1.0, class_weights: Float[Array, "c"] | None = None
) -> Float[Array, ""]:
    """Soft IoU: 1 - mean over present classes of (sum pg + s) / (sum p + sum g - sum pg + s) (Rahman and Wang 2016).

    Tversky's with alpha = beta = 1; the rest is as there.
    """
    return tversky_loss(logits, labels, alpha=1.0, beta=1.0, smooth=smooth, class_weights=class_weights)


def focal_loss(
    logits: Logits, labels: Labels, *, gamma: float = 2.0, class_weights: Float[Array, "c"] | None = None
) -> Float[Array, ""]:
    """Focal loss -alpha (1 - p)^gamma log p over softmax classes (Lin et al. 2017, eq. 5).

    `class_weights` is the paper's alpha: it scales the loss and, as there, has no part in the denominator.
    """
    class_weights = weights_of(logits, labels, class_weights)
    _, picked, safe = _log_probability(logits, labels)
    valid = (labels != IGNORE).astype(jnp.float32)
    alpha = 1.0 if class_weights is None else _at_label(class_weights, safe)
    # 1 - p from log p; its gradient at p = 1 stays finite for any gamma >= 1, and for gamma < 1 by the floor
    miss = jnp.maximum(-jnp.expm1(picked), 1e-12)
    return _weighted_mean(-alpha * miss**gamma * picked, valid)
