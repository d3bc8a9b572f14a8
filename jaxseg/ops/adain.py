"""Adaptive instance normalisation: content features take the channel means and deviations of style features."""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

__all__ = [
    "OFFICIAL",
    "PORT",
    "ChannelStatistics",
    "Convention",
    "adaptive_instance_norm",
    "blend_statistics",
    "channel_statistics",
    "instance_norm",
]


class Convention(NamedTuple):
    """How the standard deviations are taken: sqrt(sum of squares / (n - ddof) + epsilon), n pixels."""

    content_ddof: int
    content_epsilon: float
    style_ddof: int
    style_epsilon: float


OFFICIAL = Convention(0, 1e-5, 1, 0.0)  # xunhuang1995/AdaIN-style: Torch's batch norm, and its std
PORT = Convention(1, 1e-5, 1, 1e-5)  # naoto0804/pytorch-AdaIN; 0.22 from the official one at 4x4, 0.001 at 64x64


class ChannelStatistics(NamedTuple):
    """Mean and standard deviation of each channel of each example, float32."""

    mean: Float[Array, "n 1 1 c"]
    std: Float[Array, "n 1 1 c"]


def channel_statistics(
    x: Float[Array, "n h w c"],
    mask: Float[Array, "n h w"] | None = None,
    *,
    ddof: int = 1,
    epsilon: float = 1e-5,
) -> ChannelStatistics:
    """Statistics over the pixels of each channel, or, weighted, over those of `mask` in [0, 1].

    A variance of no more than `ddof` pixels is 0, where NumPy and PyTorch have NaN; the gradient of a
    deviation of zero is zero. Weights say how much of the region a pixel is: all of them halved change nothing.
    Raises ValueError for other shapes.
    """
    if x.ndim != 4 or (mask is not None and (mask.shape[1:] != x.shape[1:3] or mask.shape[0] not in (1, x.shape[0]))):
        raise ValueError(
            "statistics are of features (n, h, w, c), and of a mask (n, h, w) over them: got "
            f"{x.shape}{'' if mask is None else f' and {mask.shape}'}"
        )
    x = x.astype(jnp.float32)
    weights = jnp.ones((1, *x.shape[1:3], 1)) if mask is None else mask.astype(jnp.float32)[..., None]
    n = weights.sum((1, 2), keepdims=True)
    mean = (x * weights).sum((1, 2), keepdims=True) / jnp.where(n > 0, n, 1)
    squares = (jnp.square(x - mean) * weights).sum((1, 2), keepdims=True)
    one = jnp.square(weights).sum((1, 2), keepdims=True) / jnp.where(n > 0, n, 1)  # what a pixel counts: 1 of 0 and 1
    rest = n - ddof * one
    var = squares / jnp.where(rest > 0, rest, 1) * (rest > 0) + epsilon
    positive = var > 0
    return ChannelStatistics(mean, jnp.where(positive, jnp.sqrt(jnp.where(positive, var, 1)), 0))


def instance_norm(
    x: Float[Array, "n h w c"], mask: Float[Array, "n h w"] | None = None, *, ddof: int = 0, epsilon: float = 1e-8
) -> Float[Array, "n h w c"]:
    """Each channel of each example less its mean, over its deviation (within `mask`); 0 where that is 0."""
    mean, std = channel_statistics(x, mask, ddof=ddof, epsilon=epsilon)
    return ((x.astype(jnp.float32) - mean) / jnp.where(std > 0, std, 1)).astype(x.dtype)


def blend_statistics(
    styles: Sequence[ChannelStatistics], weights: Float[Array, "k"] | np.ndarray | Sequence[float]
) -> ChannelStatistics:
    """Statistics between those of several styles, by weights that are normalised to a sum of one.

    AdaIN is affine in the statistics of the style, so this is the weighted sum of the AdaINs that the paper
    decodes (section 7.3). Raises ValueError for weights, where they are known, that sum to nothing.
    """
    weights = jnp.asarray(weights, jnp.float32)
    if weights.shape != (len(styles),):
        raise ValueError(f"blend_statistics needs one weight a style, got {weights.shape[0]} for {len(styles)}")
    if not isinstance(weights, jax.core.Tracer) and not weights.sum() > 0:
        raise ValueError(f"blend_statistics needs weights of a sum above zero, got {np.asarray(weights).tolist()}")
    weights = weights / weights.sum()
    mean = sum(w * style.mean for w, style in zip(weights, styles, strict=True))
    std = sum(w * style.std for w, style in zip(weights, styles, strict=True))
    return ChannelStatistics(jnp.asarray(mean), jnp.asarray(std))


def adaptive_instance_norm(
    content: Float[Array, "n h w c"],
    style: Float[Array, "m h2 w2 c2"] | ChannelStatistics,
    convention: Convention = PORT,
    *,
    mask: Float[Array, "n h w"] | None = None,
) -> Float[Array, "n h w c"]:
    """sigma(style) (content - mu(content)) / sigma(content) + mu(style) (Huang and Belongie 2017, eq. 8).

    `style` are features of any height and width, of one example or of `n`, or their statistics. With `mask`
    the content's statistics are those of a region. Statistics are float32 and the result has the content's
    dtype. Constant channels become the style's mean: nothing is divided by zero.
    """
    if not isinstance(style, ChannelStatistics):
        style = channel_statistics(style, ddof=convention.style_ddof, epsilon=convention.style_epsilon)
    if style.mean.shape[-1] != content.shape[-1]:
        raise ValueError(
            f"adaptive_instance_norm needs style features of {content.shape[-1]} channels as the content's, "
            f"got {style.mean.shape[-1]}"
        )
    if style.mean.shape[0] not in (1, content.shape[0]):
        raise ValueError(
            f"adaptive_instance_norm needs one style, or one for each of {content.shape[0]} contents, got "
            f"{style.mean.shape[0]}"
        )
    normalized = instance_norm(
        content.astype(jnp.float32), mask, ddof=convention.content_ddof, epsilon=convention.content_epsilon
    )
    return (normalized * style.std + style.mean).astype(content.dtype)
