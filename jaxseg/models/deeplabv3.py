"""DeepLabV3: atrous spatial pyramid pooling on a dilated backbone."""

import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxseg.backbones import backbone_fields, features_named, first_at_stride8
from jaxseg.backbones.mobilenet_v2 import mobilenet_v2
from jaxseg.backbones.mobilenet_v3 import mobilenet_v3_large
from jaxseg.backbones.resnet import resnet50, resnet101
from jaxseg.layers import BatchNorm, Conv, ConvNormAct, Dropout, FCNHead, at_least_float32
from jaxseg.models.output import SegmentationOutput
from jaxseg.ops.depthwise import depthwise_conv
from jaxseg.ops.resize import resize_bilinear

__all__ = [
    "ASPP",
    "DeepLabV3",
    "SeparableConv",
    "deeplabv3_mobilenet_v2",
    "deeplabv3_mobilenet_v3_large",
    "deeplabv3_resnet50",
    "deeplabv3_resnet101",
]


class SeparableConv(nn.Module):
    """A 3x3 depthwise convolution, then 1x1, norm and ReLU (Chen et al. 2018, Figure 3).

    One norm and one ReLU, after the second, as in SMP; the paper's own code has them after both.
    """

    features: int
    dilation: int = 1
    norm: Callable[..., nn.Module] = BatchNorm
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "n h w c"], *, train: bool) -> Float[Array, "n h w c2"]:
        x = Conv(
            x.shape[-1],
            (3, 3),
            padding=[(self.dilation, self.dilation)] * 2,
            kernel_dilation=self.dilation,
            feature_group_count=x.shape[-1],
            use_bias=False,
            conv_general_dilated=depthwise_conv,
            dtype=self.dtype,
            name="depthwise",
        )(x)
        return ConvNormAct(self.features, 1, norm=self.norm, dtype=self.dtype, name="pointwise")(x, train=train)


class ASPP(nn.Module):
    """Atrous spatial pyramid pooling with image-level features (Chen et al. 2017, Figure 5).

    `separable` makes each atrous convolution depthwise and then 1x1 (Chen et al. 2018).
    """

    features: int = 256
    atrous_rates: tuple[int, ...] = (12, 24, 36)
    dropout: float = 0.5
    separable: bool = False
    norm: Callable[..., nn.Module] = BatchNorm
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "n h w c"], *, train: bool) -> Float[Array, "n h w c2"]:
        block = functools.partial(ConvNormAct, self.features, norm=self.norm, dtype=self.dtype)
        atrous = functools.partial(SeparableConv, self.features, norm=self.norm, dtype=self.dtype)
        branches = [block(window=1, name="convs_0")(x, train=train)]
        for i, rate in enumerate(self.atrous_rates, 1):
            conv: Any = atrous if self.separable else block
            branches.append(conv(dilation=rate, name=f"convs_{i}")(x, train=train))
        pooled = x.mean((1, 2), keepdims=True)
        pooled = block(window=1, name="image_pooling")(pooled, train=train)
        branches.append(jnp.broadcast_to(pooled, branches[0].shape))  # one value, resized to h, w
        x = block(window=1, name="project")(jnp.concatenate(branches, -1), train=train)
        return Dropout(self.dropout)(x, train=train)


class DeepLabV3(nn.Module):
    """DeepLabV3 (Chen et al. 2017, Figure 5), torchvision's in every number.

    Atrous spatial pyramid pooling on the deepest features, a 3x3 convolution and class scores, resized
    bilinearly to the image. `aux` names the features that an auxiliary head scores, "c2" for those of
    `first_at_stride8`, None for no such head.
    `align_corners` resizes, and `dilate_first` dilates (see `ResNet`), as segmentation-models-pytorch does.
    Any height and width will do; in train mode the image pooling's batch norm needs two images or more.
    """

    num_classes: int
    backbone: Callable[..., nn.Module] = resnet50
    output_stride: int = 8
    atrous_rates: tuple[int, ...] = (12, 24, 36)
    features: int = 256
    aux: str | None = "stride16"
    dropout: float = 0.5
    aux_dropout: float = 0.1
    align_corners: bool = False
    dilate_first: bool = False
    norm: Callable[..., nn.Module] = BatchNorm
    dtype: Any = jnp.float32
    remat: bool = False

    @nn.compact
    def __call__(self, images: Float[Array, "n h w c"], *, train: bool) -> SegmentationOutput:
        _, h, w, _ = images.shape
        fields: dict[str, Any] = backbone_fields(self.backbone, dilate_first=True) if self.dilate_first else {}
        backbone = self.backbone(
            output_stride=self.output_stride, dtype=self.dtype, remat=self.remat, name="backbone", **fields
        )
        features = backbone(images, train=train)
        common: dict[str, Any] = {"norm": self.norm, "dtype": self.dtype}
        x = ASPP(self.features, self.atrous_rates, self.dropout, **common, name="aspp")(
            features["stride32"], train=train
        )
        x = ConvNormAct(self.features, **common, name="block")(x, train=train)
        x = Conv(self.num_classes, (1, 1), dtype=self.dtype, name="logits")(x)
        logits = resize_bilinear(at_least_float32(x), (h, w), align_corners=self.align_corners)
        if self.aux is None:
            return SegmentationOutput(logits)
        name = first_at_stride8(backbone) if self.aux == "c2" else self.aux
        y = features_named(features, name, "DeepLabV3's aux, None for no auxiliary head,")
        head = FCNHead(self.num_classes, y.shape[-1] // 4, self.aux_dropout, **common, name="aux_classifier")
        scores = at_least_float32(head(y, train=train))
        return SegmentationOutput(logits, resize_bilinear(scores, (h, w), align_corners=self.align_corners))


deeplabv3_resnet50 = functools.partial(DeepLabV3, backbone=resnet50)
deeplabv3_resnet101 = functools.partial(DeepLabV3, backbone=resnet101)
deeplabv3_mobilenet_v3_large = functools.partial(DeepLabV3, backbone=mobilenet_v3_large, output_stride=16, aux="c2")
# segmentation-models-pytorch's
deeplabv3_mobilenet_v2 = functools.partial(
    DeepLabV3, backbone=mobilenet_v2, aux=None, align_corners=True, dilate_first=True
)
