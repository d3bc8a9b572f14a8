"""Arbitrary style transfer by adaptive instance normalisation."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Shaped

from jaxseg.backbones.vgg import VGG, vgg16, vgg19
from jaxseg.layers import Conv, he_fan_in
from jaxseg.ops.adain import (
    PORT,
    ChannelStatistics,
    Convention,
    adaptive_instance_norm,
    blend_statistics,
    channel_statistics,
)
from jaxseg.ops.doubling import conv_after_doubling
from jaxseg.ops.resize import resize_bilinear

__all__ = ["ENCODERS", "LEAST", "STYLE_FEATURES", "AdaINTransfer", "vgg16_relu4_1", "vgg19_relu4_1"]

STYLE_FEATURES = ("relu1_1", "relu2_1", "relu3_1", "relu4_1")
LEAST = 9  # pixels: three poolings leave two rows, and a reflection needs two

_encoder = {"reflect": True, "preprocess": True, "ceil_mode": True}
vgg19_relu4_1 = functools.partial(vgg19, depths=(2, 2, 4, 1), features=(64, 128, 256, 512), **_encoder)
vgg16_relu4_1 = functools.partial(vgg16, depths=(2, 2, 3, 1), features=(64, 128, 256, 512), **_encoder)
ENCODERS = {"vgg16": vgg16_relu4_1, "vgg19": vgg19_relu4_1}


class DoublingConv(nn.Module):
    """A 3x3 convolution of the image doubled by copies and reflected, which of a doubled one is the border again."""

    features: int
    kernel_init: Callable[..., Array]
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "n h w c"]) -> Float[Array, "n h2 w2 features"]:
        kernel = self.param("kernel", self.kernel_init, (3, 3, x.shape[-1], self.features), jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, (self.features,), jnp.float32)
        x, kernel, bias = nn.dtypes.promote_dtype(x, kernel, bias, dtype=self.dtype)
        return conv_after_doubling(x, kernel, edge=True) + bias


class Decoder(nn.Module):
    """The encoder's mirror: nearest-neighbour upsampling for pooling, no norm, no activation at the end.

    `conv4_1` undoes the encoder's `conv4_1`, from 512 to 256 channels, and so on to `conv1_1`, which gives RGB. Kernels
    start as in He et al. 2015, where PyTorch's default, as published, lets signals fade layer by layer; the last starts
    small about mid grey, since colours far outside [0, 1] are pulled back so hard that rectifiers die of it.
    """

    depths: tuple[int, ...]
    features: tuple[int, ...]
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "n h w c"]) -> Float[Array, "n h2 w2 3"]:
        narrower = (3, *self.features)
        for stage in range(len(self.depths), 0, -1):
            for i in range(self.depths[stage - 1], 0, -1):
                features = narrower[stage] if i > 1 else narrower[stage - 1]
                name = f"conv{stage}_{i}"
                last = (stage, i) == (1, 1)
                if i == self.depths[stage - 1] and stage < len(self.depths):
                    x = DoublingConv(features, he_fan_in, self.dtype, name=name)(x)
                else:
                    x = Conv(
                        features,
                        (3, 3),
                        padding="REFLECT",
                        kernel_init=nn.initializers.variance_scaling(0.01, "fan_in", "normal") if last else he_fan_in,
                        bias_init=nn.initializers.constant(0.5 if last else 0.0),
                        dtype=jnp.float32 if last else self.dtype,
                        name=name,
                    )(x)
                x = x if last else nn.relu(x)
        return x


class AdaINTransfer(nn.Module):
    """AdaIN style transfer (Huang et al. 2017, Figure 2): VGG to relu4_1, AdaIN, a mirrored decoder.

    Images are RGB in [0, 1]; the output `[n, 8 ceil(h / 8), 8 ceil(w / 8), 3]` is float32 and not clipped, and
    its top left `h x w` lies over the content. `vgg` makes the encoder, which training leaves fixed. Any height
    and width from 9 will do; less is a ValueError.
    """

    vgg: Callable[..., VGG] = vgg19_relu4_1
    convention: Convention = PORT
    dtype: Any = jnp.float32

    def setup(self) -> None:
        self.encoder = self.vgg(dtype=self.dtype)
        self.decoder = Decoder(self.encoder.depths, self.encoder.features, self.dtype)

    def encode(self, images: Shaped[Array, "n h w 3"]) -> dict[str, Array]:
        """The encoder's features by name; `relu4_1` is what AdaIN acts on, `STYLE_FEATURES` the style loss."""
        if images.ndim != 4 or images.shape[-1] != 3:
            raise ValueError(f"AdaINTransfer takes RGB images (n, h, w, 3), got {images.shape}; leave alpha out")
        if not jnp.issubdtype(images.dtype, jnp.floating):
            raise ValueError(f"AdaINTransfer takes images in [0, 1], got {images.dtype}; divide bytes by 255")
        if any(side < LEAST for side in images.shape[1:3]):  # sides of an export are symbols, which min() cannot order
            h, w = (max(size, LEAST) for size in images.shape[1:3])
            raise ValueError(f"AdaINTransfer needs h, w of at least {LEAST}, got {images.shape[1:3]}; use ({h}, {w})")
        return self.encoder(images, train=False)

    def decode(self, features: Float[Array, "n h w c"]) -> Float[Array, "n h8 w8 3"]:
        """Features at relu4_1 to an image."""
        return self.decoder(features)

    def style(self, images: Float[Array, "n h w 3"]) -> ChannelStatistics:
        """What a transfer needs of a style image."""
        return channel_statistics(
            self.encode(images)["relu4_1"], ddof=self.convention.style_ddof, epsilon=self.convention.style_epsilon
        )

    def stylize(
        self, content: Float[Array, "n h w c"], style: Float[Array, "m h2 w2 c"] | ChannelStatistics
    ) -> Float[Array, "n h w c"]:
        """AdaIN of features, in the model's convention."""
        return adaptive_instance_norm(content, style, self.convention)

    def transfer(
        self,
        content: Float[Array, "n h w 3"],
        styles: Sequence[ChannelStatistics],
        *,
        weights: Float[Array, "k"] | Sequence[float] | None = None,
        masks: Float[Array, "n h w k"] | None = None,
        alpha: float | Float[Array, ""] = 1.0,
    ) -> Float[Array, "n h8 w8 3"]:
        """`content` in several styles: blended by `weights` (equal by default), or one a region by `masks`.

        `masks` share out the pixels of the content among the styles and sum to one, and each feature as the pixels
        of its cell; the content is normalised within each region. `alpha` goes from the content's own features, 0,
        to the style's, 1.
        """
        features = self.encode(content)["relu4_1"]
        if masks is None:
            style = blend_statistics(styles, [1.0] * len(styles) if weights is None else weights)
            target = adaptive_instance_norm(features, style, self.convention)
        else:
            if weights is not None or masks.shape[-1] != len(styles):
                raise ValueError(
                    f"give masks or weights, and a mask for each style: got {masks.shape[-1]} masks for "
                    f"{len(styles)} styles, and {'no ' if weights is None else ''}weights"
                )
            if not isinstance(masks, jax.core.Tracer) and not np.allclose(masks.sum(-1), 1, atol=1e-2):
                total = np.asarray(masks.sum(-1))
                raise ValueError(
                    f"masks sum to one at each pixel, got sums of {total.min():g} to {total.max():g}; divide them by "
                    "their sum, and give what none covers to one"
                )
            cell = 2 ** (len(self.encoder.depths) - 1)
            h, w = features.shape[1:3]
            masks = resize_bilinear(masks, (content.shape[1], content.shape[2]))
            beyond = [(0, cell * side - n) for side, n in zip((h, w), content.shape[1:3], strict=True)]
            masks = jnp.pad(masks, ((0, 0), *beyond, (0, 0)), mode="edge")
            regions = masks.reshape(masks.shape[0], h, cell, w, cell, -1).mean((2, 4))
            target = jnp.zeros_like(features)
            for k, style in enumerate(styles):
                region = regions[..., k]
                restyled = adaptive_instance_norm(features, style, self.convention, mask=region)
                target = target + restyled * region[..., None].astype(features.dtype)
        return self.decode(alpha * target + (1 - alpha) * features)

    def inputs(self, images: jax.ShapeDtypeStruct) -> tuple[jax.ShapeDtypeStruct, ...]:
        """What `__call__` takes, for images of that shape."""
        return images, images

    def __call__(
        self,
        content: Float[Array, "n h w 3"],
        style: Float[Array, "m h2 w2 3"],
        *,
        alpha: float | Float[Array, ""] = 1.0,
        train: bool,
    ) -> Float[Array, "n h8 w8 3"]:
        return self.transfer(content, [self.style(style)], alpha=alpha)
