"""DeepLabV3+: DeepLabV3 with a decoder."""

import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxseg.backbones import backbone_fields
from jaxseg.backbones.mobilenet_v2 import mobilenet_v2
from jaxseg.backbones.resnet import resnet34, resnet50, resnet101
from jaxseg.layers import BatchNorm, Conv, ConvNormAct, at_least_float32
from jaxseg.models.deeplabv3 import ASPP, SeparableConv
from jaxseg.models.output import SegmentationOutput
from jaxseg.ops.resize import resize_bilinear

__all__ = [
    "DeepLabV3Plus",
    "deeplabv3plus_mobilenet_v2",
    "deeplabv3plus_resnet34",
    "deeplabv3plus_resnet50",
    "deeplabv3plus_resnet101",
]


class DeepLabV3Plus(nn.Module):
    """DeepLabV3+ (Chen et al. 2018, Figure 2), segmentation-models-pytorch's in every number.

    Pyramid pooling with atrous separable convolutions, then a decoder that adds the features at stride 4. Every
    resizing aligns corners, and the backbone's dilated stages dilate from their first block. Any height and
    width will do, where SMP asks for multiples of the output stride.
    """

    num_classes: int
    backbone: Callable[..., nn.Module] = resnet50
    output_stride: int = 16
    atrous_rates: tuple[int, ...] = (12, 24, 36)
    features: int = 256
    low_features: int = 48
    dropout: float = 0.5
    norm: Callable[..., nn.Module] = BatchNorm
    dtype: Any = jnp.float32
    remat: bool = False

    @nn.compact
    def __call__(self, images: Float[Array, "n h w c"], *, train: bool) -> SegmentationOutput:
        _, h, w, _ = images.shape
        backbone = self.backbone(
            **backbone_fields(self.backbone, dilate_first=True),
            output_stride=self.output_stride,
            dtype=self.dtype,
            remat=self.remat,
            name="backbone",
        )
        found = backbone(images, train=train)
        low, high = found["stride4"], found["stride32"]
        common: dict[str, Any] = {"norm": self.norm, "dtype": self.dtype}
        x = ASPP(self.features, self.atrous_rates, self.dropout, True, **common, name="aspp")(high, train=train)
        x = SeparableConv(self.features, **common, name="block")(x, train=train)
        x = resize_bilinear(x, (low.shape[1], low.shape[2]), align_corners=True)
        low = ConvNormAct(self.low_features, 1, **common, name="block1")(low, train=train)
        x = SeparableConv(self.features, **common, name="block2")(jnp.concatenate([x, low], -1), train=train)
        x = Conv(self.num_classes, (1, 1), dtype=self.dtype, name="logits")(x)
        return SegmentationOutput(resize_bilinear(at_least_float32(x), (h, w), align_corners=True))


deeplabv3plus_resnet34 = functools.partial(DeepLabV3Plus, backbone=resnet34)
deeplabv3plus_resnet50 = functools.partial(DeepLabV3Plus, backbone=resnet50)
deeplabv3plus_resnet101 = functools.partial(DeepLabV3Plus, backbone=resnet101)
deeplabv3plus_mobilenet_v2 = functools.partial(DeepLabV3Plus, backbone=mobilenet_v2)
