"""U-Net whose encoder is a classification backbone."""

import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxseg.backbones.resnet import resnet34, resnet50
from jaxseg.layers import BatchNorm, ConvNormAct
from jaxseg.models.output import SegmentationOutput
from jaxseg.ops.resize import resize_nearest

__all__ = ["EncoderUNet", "unet_resnet34", "unet_resnet50"]

STRIDES = (16, 8, 4, 2, 1)


class EncoderUNet(nn.Module):
    """U-Net (Ronneberger et al. 2015) on any backbone, segmentation-models-pytorch's Unet in every number.

    A decoder block doubles the resolution by repeating pixels, takes in the backbone's features of that
    stride where there are any (at stride 1 a ResNet has none), and has two 3x3 convolutions of
    `decoder_features` channels. Height and width must be divisible by 32, else ValueError.
    """

    num_classes: int
    encoder: Callable[..., nn.Module] = resnet34
    decoder_features: tuple[int, ...] = (256, 128, 64, 32, 16)
    norm: Callable[..., nn.Module] = BatchNorm
    dtype: Any = jnp.float32
    remat: bool = False

    @nn.compact
    def __call__(self, images: Float[Array, "n h w c"], *, train: bool) -> SegmentationOutput:
        size = images.shape[1:3]
        if size[0] % 32 or size[1] % 32 or not all(size):
            good = tuple(max(1, -(-s // 32)) * 32 for s in size)
            raise ValueError(f"EncoderUNet needs h, w divisible by 32, got {size}; pad to {good}")
        found = self.encoder(dtype=self.dtype, remat=self.remat, name="encoder")(images, train=train)
        conv = functools.partial(ConvNormAct, norm=self.norm, dtype=self.dtype)
        x = found["stride32"]
        for i, (features, stride) in enumerate(zip(self.decoder_features, STRIDES, strict=True)):
            x = resize_nearest(x, (size[0] // stride, size[1] // stride))
            if f"stride{stride}" in found:
                x = jnp.concatenate([x, found[f"stride{stride}"]], -1)
            for j in (1, 2):
                x = conv(features, name=f"blocks_{i}_conv{j}")(x, train=train)
        logits = nn.Conv(self.num_classes, (3, 3), padding=[(1, 1)] * 2, dtype=self.dtype, name="logits")(x)
        return SegmentationOutput(logits.astype(jnp.float32))


unet_resnet34 = functools.partial(EncoderUNet, encoder=resnet34)
unet_resnet50 = functools.partial(EncoderUNet, encoder=resnet50)
