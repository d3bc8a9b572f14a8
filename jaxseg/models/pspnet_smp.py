"""PSPNet as segmentation-models-pytorch has it: on the features at stride 8."""

import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxseg.backbones import backbone_fields, features_named
from jaxseg.backbones.resnet import resnet34, resnet50
from jaxseg.layers import BatchNorm, Conv, ConvNormAct, Dropout, at_least_float32
from jaxseg.models.output import SegmentationOutput
from jaxseg.models.pspnet import pool_of
from jaxseg.ops.resize import resize_bilinear

__all__ = ["EncoderPSPNet", "pspnet_smp_resnet34", "pspnet_smp_resnet50"]


class EncoderPSPNet(nn.Module):
    """PSPNet (Zhao et al. 2017, Figure 3) on any backbone, segmentation-models-pytorch's in every number.

    The pyramid pools the encoder's features at `stride`, before any dilation; what lies deeper is there, as in
    SMP's files, and unused. The single region has a bias and no norm, and the pyramid comes before the
    features. Scores are resized with corners aligned. Any height and width will do, where SMP asks for
    multiples of `stride`.
    """

    num_classes: int
    encoder: Callable[..., nn.Module] = resnet34
    stride: int = 8
    features: int = 512
    bins: tuple[int, ...] = (1, 2, 3, 6)
    pool: str | Callable[..., Array] = "average"
    dropout: float = 0.2
    norm: Callable[..., nn.Module] = BatchNorm
    dtype: Any = jnp.float32
    remat: bool = False

    @nn.compact
    def __call__(self, images: Float[Array, "n h w c"], *, train: bool) -> SegmentationOutput:
        fields: dict[str, Any] = backbone_fields(self.encoder, deepest=self.stride)
        found = self.encoder(dtype=self.dtype, remat=self.remat, name="encoder", **fields)(images, train=train)
        deep = features_named(found, f"stride{self.stride}", "EncoderPSPNet's stride")
        size = deep.shape[1], deep.shape[2]
        conv = functools.partial(ConvNormAct, window=1, norm=self.norm, dtype=self.dtype)
        branches = []
        for i, bins in enumerate(self.bins):
            x, features, name = pool_of(self.pool)(deep, (bins, bins)), deep.shape[-1] // len(self.bins), f"psp_{i}"
            if bins == 1:
                x = nn.relu(Conv(features, (1, 1), dtype=self.dtype, name=name)(x))
            else:
                x = conv(features, name=name)(x, train=train)
            branches.append(resize_bilinear(x, size, align_corners=True))
        x = conv(self.features, name="conv")(jnp.concatenate([*branches, deep], -1), train=train)
        x = Dropout(self.dropout, (1, 2))(x, train=train)
        x = Conv(self.num_classes, (3, 3), padding=[(1, 1)] * 2, dtype=self.dtype, name="logits")(x)
        size = images.shape[1], images.shape[2]
        return SegmentationOutput(resize_bilinear(at_least_float32(x), size, align_corners=True))


pspnet_smp_resnet34 = functools.partial(EncoderPSPNet, encoder=resnet34)
pspnet_smp_resnet50 = functools.partial(EncoderPSPNet, encoder=resnet50)
