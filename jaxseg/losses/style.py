"""Losses of style transfer: means over the global batch, of features of the output and of what it should match."""

from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxseg.ops.adain import channel_statistics
from jaxseg.ops.batch import batch_mean

__all__ = ["OFFICIAL_WEIGHTS", "PORT_WEIGHTS", "StyleWeights", "content_loss", "style_loss"]


class StyleWeights(NamedTuple):
    """The weight of the style loss beside the content loss, and its reduction over channels."""

    style: float
    reduction: Literal["mean", "sum"]


OFFICIAL_WEIGHTS = StyleWeights(1e-2, "sum")  # xunhuang1995/AdaIN-style
PORT_WEIGHTS = StyleWeights(10.0, "mean")  # naoto0804/pytorch-AdaIN


def content_loss(features: Float[Array, "n h w c"], target: Float[Array, "n h w c"]) -> Float[Array, ""]:
    """The mean squared difference; `target` is the output of AdaIN (Huang and Belongie 2017, eq. 12)."""
    difference = features.astype(jnp.float32) - target.astype(jnp.float32)
    return batch_mean(jnp.mean(jnp.square(difference)))


def style_loss(
    features: Mapping[str, Array],
    style: Mapping[str, Array],
    layers: Sequence[str],
    *,
    reduction: Literal["mean", "sum"] = "mean",
) -> Float[Array, ""]:
    """Squared differences of channel means and of channel deviations, summed over `layers` (the same, eq. 13).

    Over channels they are averaged or summed (`StyleWeights`), and averaged over examples. Both deviations
    are sqrt(unbiased variance + 1e-5), whose gradient is finite at constant channels.
    """
    reduce = {"mean": jnp.mean, "sum": jnp.sum}[reduction]
    total = jnp.zeros(())
    for layer in layers:
        ours, theirs = channel_statistics(features[layer]), channel_statistics(style[layer])
        for a, b in zip(ours, theirs, strict=True):
            total += jnp.mean(reduce(jnp.square(a - b), axis=(1, 2, 3)))
    return batch_mean(total)
