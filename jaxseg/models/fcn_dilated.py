"""FCN on any dilated backbone, as torchvision has it."""

import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxseg.backbones.resnet import resnet50, resnet101
from jaxseg.layers import BatchNorm, FCNHead, at_least_float32
from jaxseg.models.output import SegmentationOutput
from jaxseg.ops.resize import resize_bilinear

__all__ = ["DilatedFCN", "fcn_resnet50", "fcn_resnet101"]


class DilatedFCN(nn.Module):
    """Fully convolutional network (Long et al. 2015) on a dilated backbone, torchvision's in every number.

    One head scores the deepest features and bilinear resizing brings the scores to the image's size; an
    auxiliary head, unless `aux` is False, scores the last features before the fifth stride: a ResNet's stage 3.
    Any height and width that the backbone takes will do.
    """

    num_classes: int
    backbone: Callable[..., nn.Module] = resnet50
    output_stride: int = 8
    aux: bool = True
    dropout: float = 0.1
    norm: Callable[..., nn.Module] = BatchNorm
    dtype: Any = jnp.float32
    remat: bool = False

    @nn.compact
    def __call__(self, images: Float[Array, "n h w c"], *, train: bool) -> SegmentationOutput:
        _, h, w, _ = images.shape
        backbone = self.backbone(output_stride=self.output_stride, dtype=self.dtype, remat=self.remat, name="backbone")
        features = backbone(images, train=train)

        def score(name: str, x: Array) -> Array:
            head = FCNHead(
                self.num_classes, x.shape[-1] // 4, self.dropout, norm=self.norm, dtype=self.dtype, name=name
            )
            return resize_bilinear(at_least_float32(head(x, train=train)), (h, w))

        logits = score("classifier", features["stride32"])
        return SegmentationOutput(logits, score("aux_classifier", features["stride16"]) if self.aux else None)


fcn_resnet50 = functools.partial(DilatedFCN, backbone=resnet50)
fcn_resnet101 = functools.partial(DilatedFCN, backbone=resnet101)
