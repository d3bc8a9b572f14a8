"""LR-ASPP, the lite decoder of MobileNetV3."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxseg.backbones import features_named, first_at_stride8
from jaxseg.backbones.mobilenet_v3 import mobilenet_v3_large
from jaxseg.layers import BatchNorm, Conv, ConvNormAct, at_least_float32
from jaxseg.models.output import SegmentationOutput
from jaxseg.ops.resize import resize_bilinear

__all__ = ["LRASPP"]


class LRASPP(nn.Module):
    """LR-ASPP on MobileNetV3 (Howard et al. 2019, Figure 10), torchvision's in every number.

    The deepest features, weighed by a sigmoid of their means, and the `low` ones, by default those at stride 8
    (`first_at_stride8`), are scored, and the sum is resized to the image. As in torchvision the means go over the
    whole image, where the paper takes large windows. Any height and width will do.
    """

    num_classes: int
    backbone: Callable[..., nn.Module] = mobilenet_v3_large
    output_stride: int = 16
    low: str = "c2"
    features: int = 128
    norm: Callable[..., nn.Module] = BatchNorm
    dtype: Any = jnp.float32
    remat: bool = False

    @nn.compact
    def __call__(self, images: Float[Array, "n h w c"], *, train: bool) -> SegmentationOutput:
        backbone = self.backbone(output_stride=self.output_stride, dtype=self.dtype, remat=self.remat, name="backbone")
        found = backbone(images, train=train)
        name = first_at_stride8(backbone) if self.low == "c2" else self.low
        low, high = features_named(found, name, "LRASPP's low"), found["stride32"]
        x = ConvNormAct(self.features, 1, norm=self.norm, dtype=self.dtype, name="cbr")(high, train=train)
        mean = high.mean((1, 2), keepdims=True)
        x *= nn.sigmoid(Conv(self.features, (1, 1), use_bias=False, dtype=self.dtype, name="scale")(mean))
        x = resize_bilinear(x, (low.shape[1], low.shape[2]))
        scores = Conv(self.num_classes, (1, 1), dtype=self.dtype, name="low_classifier")(low)
        scores += Conv(self.num_classes, (1, 1), dtype=self.dtype, name="high_classifier")(x)
        return SegmentationOutput(resize_bilinear(at_least_float32(scores), (images.shape[1], images.shape[2])))
