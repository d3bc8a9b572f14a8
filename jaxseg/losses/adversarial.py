"""Losses of generative adversarial networks: means over the global batch of float32 scores `[n]`."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxseg.ops.batch import batch_mean, example_index

__all__ = [
    "class_loss",
    "drift",
    "gradient_penalty",
    "logistic",
    "non_saturating",
    "r1_penalty",
    "wasserstein",
]

Scores = Float[Array, "n"]


def logistic(real: Scores, fake: Scores) -> Float[Array, ""]:
    """The discriminator's: -log of its probabilities of the truth (Goodfellow et al. 2014, eq. 1)."""
    return batch_mean(jnp.mean(jax.nn.softplus(-real) + jax.nn.softplus(fake)))


def non_saturating(fake: Scores) -> Float[Array, ""]:
    """The generator's: -log of the probability that its images are real (Goodfellow et al. 2014, section 3)."""
    return batch_mean(jnp.mean(jax.nn.softplus(-fake)))


def wasserstein(real: Scores, fake: Scores) -> Float[Array, ""]:
    """The critic's: what it scores images above reals by (Arjovsky et al. 2017)."""
    return batch_mean(jnp.mean(fake - real))


def drift(real: Scores) -> Float[Array, ""]:
    """The mean square of the reals' scores, which keeps them near zero (Karras et al. 2018, appendix A.1)."""
    return batch_mean(jnp.mean(jnp.square(real)))


def class_loss(logits: Float[Array, "n k"], labels: Int[Array, "n"]) -> Float[Array, ""]:
    """Cross-entropy of the auxiliary classifier (Odena et al. 2017); NaN where a label is of no class."""
    picked = jnp.take_along_axis(jax.nn.log_softmax(logits.astype(jnp.float32)), labels[:, None], 1)[:, 0]
    return -batch_mean(jnp.mean(jnp.where(labels < 0, jnp.nan, picked)))  # -1 would be the last class's


def _squared_gradients(score: Callable[[Array], Scores], images: Array) -> Float[Array, "n"]:
    # the sum of the global batch: examples meet in minibatch statistics, whose gradient crosses devices by itself
    gradient = jax.grad(lambda x: jnp.sum(score(x)))(images)
    return jnp.sum(jnp.square(gradient.astype(jnp.float32)), (1, 2, 3))


def r1_penalty(
    score: Callable[[Array], Scores], images: Float[Array, "n h w c"], *, doublings: int = 0
) -> Float[Array, ""]:
    """E |grad D(x)|^2 on reals (Mescheder et al. 2018, eq. 9), to be weighted by gamma / 2.

    The published discriminators see images at full resolution, `doublings` above these, where each of the
    4^doublings copies of a pixel has its share of the gradient: the penalty there is 4^-doublings of this one's.
    """
    return batch_mean(jnp.mean(_squared_gradients(score, images))) / 4**doublings


def gradient_penalty(
    score: Callable[[Array], Scores],
    real: Float[Array, "n h w c"],
    fake: Float[Array, "n h w c"],
    key: jax.Array,
    *,
    doublings: int = 0,
) -> Float[Array, ""]:
    """E (|grad D(x)| - 1)^2 between reals and images (Gulrajani et al. 2017, eq. 3), to be weighted by lambda.

    The norm is that of the gradient at full resolution, `doublings` above: 2^-doublings of this one's.
    """
    keys = jax.vmap(jax.random.fold_in, (None, 0))(key, example_index(real.shape[0]))
    at = jax.vmap(jax.random.uniform)(keys)[:, None, None, None]
    norms = jnp.sqrt(_squared_gradients(score, real + at * (fake - real)) + 1e-12) / 2**doublings
    return batch_mean(jnp.mean(jnp.square(norms - 1)))
