"""U-Net whose encoder is a classification backbone."""

import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxseg.backbones.mobilenet_v2 import mobilenet_v2
from jaxseg.backbones.resnet import resnet18, resnet34, resnet50, resnet101, resnet152
from jaxseg.backbones.vgg import vgg16_bn
from jaxseg.layers import BatchNorm, Conv, ConvNormAct, at_least_float32
from jaxseg.models.output import SegmentationOutput
from jaxseg.ops.resize import resize_nearest

__all__ = [
    "EncoderUNet",
    "unet_mobilenet_v2",
    "unet_resnet18",
    "unet_resnet34",
    "unet_resnet50",
    "unet_resnet101",
    "unet_resnet152",
    "unet_vgg16_bn",
]

SKIPS = ("stride16", "stride8", "stride4", "stride2", None)  # none at stride 1, though VGG would have one


class EncoderUNet(nn.Module):
    """U-Net (Ronneberger et al. 2015) on any backbone, segmentation-models-pytorch's Unet in every number.

    A decoder block enlarges to the next features of the backbone by repeating pixels, takes these in, and has
    two 3x3 convolutions of `decoder_features` channels; the last enlarges to the image. `center` has two more
    convolutions before the decoder, as SMP's with VGG. Any height and width that the backbone takes will do.
    """

    num_classes: int
    encoder: Callable[..., nn.Module] = resnet34
    decoder_features: tuple[int, ...] = (256, 128, 64, 32, 16)
    center: bool = False
    norm: Callable[..., nn.Module] = BatchNorm
    dtype: Any = jnp.float32
    remat: bool = False

    @nn.compact
    def __call__(self, images: Float[Array, "n h w c"], *, train: bool) -> SegmentationOutput:
        found = self.encoder(dtype=self.dtype, remat=self.remat, name="encoder")(images, train=train)
        conv = functools.partial(ConvNormAct, norm=self.norm, dtype=self.dtype)
        x = found["stride32"]
        for i in range(2 if self.center else 0):
            x = conv(x.shape[-1], name=f"center_{i}")(x, train=train)
        for i, (features, name) in enumerate(zip(self.decoder_features, SKIPS, strict=True)):
            to = found[name] if name else images
            x = resize_nearest(x, (to.shape[1], to.shape[2]))
            if name:
                x = jnp.concatenate([x, to], -1)
            for j in (1, 2):
                x = conv(features, name=f"blocks_{i}_conv{j}")(x, train=train)
        logits = Conv(self.num_classes, (3, 3), padding=[(1, 1)] * 2, dtype=self.dtype, name="logits")(x)
        return SegmentationOutput(at_least_float32(logits))


unet_resnet18 = functools.partial(EncoderUNet, encoder=resnet18)
unet_resnet34 = functools.partial(EncoderUNet, encoder=resnet34)
unet_resnet50 = functools.partial(EncoderUNet, encoder=resnet50)
unet_resnet101 = functools.partial(EncoderUNet, encoder=resnet101)
unet_resnet152 = functools.partial(EncoderUNet, encoder=resnet152)
unet_vgg16_bn = functools.partial(EncoderUNet, encoder=vgg16_bn, center=True)
unet_mobilenet_v2 = functools.partial(EncoderUNet, encoder=mobilenet_v2)
