"""Fully convolutional networks on VGG-16: FCN-32s, 16s and 8s as released, and with 1x1 convolutions."""

import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxseg.backbones.vgg import VGG, vgg16
from jaxseg.layers import Conv, ConvTranspose, Dropout, at_least_float32, he_fan_in
from jaxseg.models.output import SegmentationOutput
from jaxseg.ops.conv import fully_connected_conv
from jaxseg.ops.dims import Dim
from jaxseg.ops.resize import bilinear_kernel, upsample_bilinear

__all__ = ["FCN", "FCN1x1", "Upsample", "crop", "fcn8s_vgg16", "fcn8s_vgg16_at_once", "fcn16s_vgg16", "fcn32s_vgg16"]

# "We zero-initialize the class scoring layer, as random initialization yielded neither better performance nor
# faster convergence" (section 4.1)
score_init = nn.initializers.zeros


def _bilinear_init(key: Array, shape: tuple[int, ...], dtype: Any = jnp.float32) -> Array:
    return jnp.asarray(bilinear_kernel(shape[0], 1), dtype) * jnp.eye(shape[-1], dtype=dtype)


class Upsample(nn.Module):
    """Upsampling by `factor` as a transposed convolution that starts bilinear, and where `fixed` stays so.

    Of an axis of n it makes (n + 1) * factor, as Caffe's Deconvolution of kernel 2 * factor without padding, and of
    that gives the part of `size` from (offset, offset), by default all.
    """

    factor: int
    fixed: bool
    dtype: Any

    @nn.compact
    def __call__(
        self, x: Float[Array, "n h w k"], offset: int = 0, size: tuple[Dim, ...] | None = None
    ) -> Float[Array, "n h2 w2 k"]:
        if self.fixed:  # a constant and no frozen parameter, which weight decay would still shrink
            return upsample_bilinear(x, self.factor, offset=offset, size=size)
        window = 2 * self.factor
        x = ConvTranspose(
            x.shape[-1],
            (window, window),
            (self.factor, self.factor),
            padding=[(window - 1, window - 1)] * 2,
            use_bias=False,
            kernel_init=_bilinear_init,
            dtype=self.dtype,
            name="deconv",
        )(x)
        return crop(x, offset, size) if size else x


def crop(x: Array, offset: int, size: tuple[Dim, ...]) -> Array:
    """The part of that size from (offset, offset), as Caffe crops."""
    return x[:, offset : offset + size[0], offset : offset + size[1]]


def _head(model: Any, x: Array, fc6_window: int, *, train: bool) -> Array:
    """fc6 and fc7 of VGG-16 as convolutions, and the class scores of every position."""
    for name, window in (("fc6", fc6_window), ("fc7", 1)):
        conv = Conv(
            model.fc_features,
            (window, window),
            padding=[(0, 0)] * 2,
            kernel_init=he_fan_in,
            dtype=model.dtype,
            conv_general_dilated=fully_connected_conv,
            name=name,
            parent=model,
        )
        x = Dropout(model.dropout, parent=model)(nn.relu(conv(x)), train=train)
    return _score(model, "score_fr", x)


def _score(model: Any, name: str, x: Array) -> Array:
    return Conv(model.num_classes, (1, 1), kernel_init=score_init, dtype=model.dtype, name=name, parent=model)(x)


class FCN(nn.Module):
    """Fully convolutional network on VGG-16, FCN-32s, 16s or 8s (Long et al. 2015, Figure 3).

    `stride` is that of the finest scores, 32, 16 or 8. As released: conv1_1 pads 100, poolings round up, and
    crops are at offsets 5 and 9 for the skips and 19, 27 or 31 for the output, so that any height and width
    will do. `fixed_upsampling` keeps the transposed convolutions bilinear, as the released nets do.
    `pool_scales` multiply pool4 and pool3 before they are scored: (0.01, 0.0001) in the released "at once"
    nets.
    """

    num_classes: int
    stride: int = 8
    encoder: Callable[..., VGG] = vgg16
    fc_features: int = 4096
    dropout: float = 0.5
    fixed_upsampling: bool = False
    pool_scales: tuple[float, float] = (1.0, 1.0)
    dtype: Any = jnp.float32
    remat: bool = False

    @nn.compact
    def __call__(self, images: Float[Array, "n h w c"], *, train: bool) -> SegmentationOutput:
        if self.stride not in (8, 16, 32):
            raise ValueError(f"FCN's stride is 8, 16 or 32, got {self.stride}")
        encoder = self.encoder(ceil_mode=True, first_padding=100, dtype=self.dtype, remat=self.remat, name="encoder")
        features = encoder(images, train=train)
        scores = _head(self, features["pool5"], 7, train=train)
        upsample = functools.partial(Upsample, fixed=self.fixed_upsampling, dtype=self.dtype)
        if self.stride <= 16:
            scores = upsample(2, name="upscore2")(scores)
            skip = _score(self, "score_pool4", features["pool4"] * self.pool_scales[0])
            scores += crop(skip, 5, scores.shape[1:3])
        if self.stride == 8:
            scores = upsample(2, name="upscore_pool4")(scores)
            skip = _score(self, "score_pool3", features["pool3"] * self.pool_scales[1])
            scores += crop(skip, 9, scores.shape[1:3])
        offset = {32: 19, 16: 27, 8: 31}[self.stride]
        scores = upsample(self.stride, name=f"upscore{self.stride}")(scores, offset, images.shape[1:3])
        return SegmentationOutput(at_least_float32(scores))


fcn32s_vgg16 = functools.partial(FCN, stride=32)
fcn16s_vgg16 = functools.partial(FCN, stride=16)
fcn8s_vgg16 = functools.partial(FCN, stride=8)
fcn8s_vgg16_at_once = functools.partial(FCN, stride=8, pool_scales=(0.01, 0.0001))


class FCN1x1(nn.Module):
    """VGG-16 with fc6 and fc7 as 1x1 convolutions and one upsampling (after Long et al. 2015, section 3.1).

    The form that lectures draw: every convolution keeps its size, fc6 sees one position instead of 7x7, and
    one transposed convolution returns from stride 32 to the image. Poolings round up, so that any height and
    width will do.
    """

    num_classes: int
    encoder: Callable[..., VGG] = vgg16
    fc_features: int = 4096
    dropout: float = 0.5
    fixed_upsampling: bool = False
    dtype: Any = jnp.float32
    remat: bool = False

    @nn.compact
    def __call__(self, images: Float[Array, "n h w c"], *, train: bool) -> SegmentationOutput:
        encoder = self.encoder(ceil_mode=True, dtype=self.dtype, remat=self.remat, name="encoder")
        scores = _head(self, encoder(images, train=train)["pool5"], 1, train=train)
        upsample = Upsample(32, self.fixed_upsampling, self.dtype, name="upscore32")
        return SegmentationOutput(at_least_float32(upsample(scores, 16, images.shape[1:3])))
