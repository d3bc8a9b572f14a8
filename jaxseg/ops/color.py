"""Colour distributions of images."""

import jax.numpy as jnp
from jaxtyping import Array, Float

__all__ = ["match_colors"]


def _sqrt(matrix: Float[Array, "3 3"]) -> Float[Array, "3 3"]:
    values, vectors = jnp.linalg.eigh(matrix)
    return (vectors * jnp.sqrt(jnp.maximum(values, 0))) @ vectors.T


def _standardized(image: Float[Array, "h w 3"]) -> tuple[Array, Array, Array]:
    pixels = image.reshape(-1, 3).astype(jnp.float32)
    shifted = pixels - pixels[0]  # of one colour exactly zero, where a mean's rounding would pass for a deviation
    mean = shifted.mean(0)
    centred = shifted - mean
    std = jnp.sqrt(jnp.sum(centred**2, 0) / max(len(pixels) - 1, 1))
    return centred / jnp.where(std > 0, std, 1), pixels[0] + mean, std


def match_colors(source: Float[Array, "h w 3"], target: Float[Array, "h2 w2 3"]) -> Float[Array, "h w 3"]:
    """`source` with the means, deviations and correlations of `target`'s colours, not clipped.

    CORAL (Sun et al. 2016) on standardised channels, with the identity added to the sums of products. It is
    pytorch-AdaIN's for images of as many pixels; for others the port also scales the deviations by the square
    root of the ratio, and this does not. Matching the style's colours to the content's before the transfer
    keeps the content's (Huang and Belongie 2017, section 7.3). Raises ValueError for batches, whose images would lend
    each other their colours: `jax.vmap` takes one after the other.
    """
    if source.ndim != 3 or target.ndim != 3:
        raise ValueError(
            f"match_colors takes images (h, w, 3), got {source.shape} and {target.shape}; jax.vmap takes batches"
        )
    x, _, _ = _standardized(source)
    y, mean, std = _standardized(target)
    eye = jnp.eye(3)
    whiten = jnp.linalg.inv(_sqrt((x.T @ x + eye) / len(x)))
    matched = x @ (_sqrt((y.T @ y + eye) / len(y)) @ whiten).T
    return (matched * std + mean).reshape(source.shape)
