"""The feature pyramid network: one width and strong semantics at every stride."""

import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxseg.backbones.resnet import resnet50
from jaxseg.layers import BatchNorm, ConvNormAct
from jaxseg.ops.resize import resize_nearest

__all__ = ["FPN", "SingleLevel"]

line_init = nn.initializers.variance_scaling(1.0, "fan_in", "uniform")  # torchvision's kaiming_uniform_(a=1)


class FPN(nn.Module):
    """FPN (Lin et al. 2017, Figure 3) on `body`, torchvision's in every number.

    Returns `features` channels at each of `levels`, names of what `body` returns from fine to coarse, and
    `pool`, every second pixel of the last. `norm` is the body's, and `pyramid_norm`, if any, of the pyramid's
    own convolutions, which then have no bias. Any height and width will do.
    """

    body: Callable[..., nn.Module] = resnet50
    levels: tuple[str, ...] = ("stride4", "stride8", "stride16", "stride32")
    features: int = 256
    norm: Callable[..., nn.Module] = BatchNorm
    pyramid_norm: Callable[..., nn.Module] | None = None
    dtype: Any = jnp.float32
    remat: bool = False

    @nn.compact
    def __call__(self, images: Float[Array, "n h w c"], *, train: bool) -> dict[str, Array]:
        body = self.body(norm=self.norm, dtype=self.dtype, remat=self.remat, name="body")
        found = body(images, train=train)
        conv = functools.partial(
            ConvNormAct,
            self.features,
            activation=None,
            norm=self.pyramid_norm,
            kernel_init=line_init,
            dtype=self.dtype,
        )
        merged, out = None, {}
        for i, level in reversed(list(enumerate(self.levels))):
            x = conv(1, name=f"inner_{i}")(found[level], train=train)
            if merged is not None:
                x += resize_nearest(merged, (x.shape[1], x.shape[2]))
            merged = x
            out[level] = conv(3, name=f"layer_{i}")(x, train=train)
        ordered = {level: out[level] for level in self.levels}
        return {**ordered, "pool": ordered[self.levels[-1]][:, ::2, ::2]}


class SingleLevel(nn.Module):
    """One `level` of `body`, of `features` channels, in FPN's place: detectors before it, and C4 (He et al. 2017)."""

    body: Callable[..., nn.Module]
    level: str
    features: int
    norm: Callable[..., nn.Module] | None = None
    pyramid_norm: Callable[..., nn.Module] | None = None
    dtype: Any = jnp.float32
    remat: bool = False

    @nn.compact
    def __call__(self, images: Float[Array, "n h w c"], *, train: bool) -> dict[str, Array]:
        norm = {} if self.norm is None else {"norm": self.norm}
        body = self.body(**norm, dtype=self.dtype, remat=self.remat, name="body")
        return {self.level: body(images, train=train)[self.level]}
