"""PSPNet: pyramid pooling on a dilated ResNet."""

import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxseg.backbones import backbone_fields
from jaxseg.backbones.resnet import resnet18, resnet34, resnet50, resnet101, resnet152
from jaxseg.layers import BatchNorm, ConvNormAct, FCNHead, at_least_float32
from jaxseg.models.output import SegmentationOutput
from jaxseg.ops.pooling import adaptive_average_pool, adaptive_max_pool
from jaxseg.ops.resize import resize_bilinear

__all__ = [
    "POOLS",
    "PSPNet",
    "PyramidPooling",
    "pool_of",
    "pspnet_resnet18",
    "pspnet_resnet34",
    "pspnet_resnet50",
    "pspnet_resnet101",
    "pspnet_resnet152",
]


POOLS: dict[str, Callable[..., Array]] = {"average": adaptive_average_pool, "max": adaptive_max_pool}


def pool_of(pool: str | Callable[..., Array]) -> Callable[..., Array]:
    """The pooling of that name, or what was given. Raises ValueError for a name that there is not."""
    if isinstance(pool, str) and pool not in POOLS:
        raise ValueError(f'no pooling "{pool}"; there is {", ".join(POOLS)}')
    return POOLS[pool] if isinstance(pool, str) else pool


class PyramidPooling(nn.Module):
    """The features, and what they pool to in `bins` x `bins` regions, resized (Zhao et al. 2017, Figure 3c)."""

    bins: tuple[int, ...] = (1, 2, 3, 6)
    pool: Callable[..., Array] = adaptive_average_pool
    norm: Callable[..., nn.Module] = BatchNorm
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "n h w c"], *, train: bool) -> Float[Array, "n h w c2"]:
        _, h, w, c = x.shape
        out = [x]
        for i, size in enumerate(self.bins):
            y = self.pool(x, (size, size))
            y = ConvNormAct(c // len(self.bins), 1, norm=self.norm, dtype=self.dtype, name=f"features_{i}")(
                y, train=train
            )
            out.append(resize_bilinear(y, (h, w), align_corners=True))
        return jnp.concatenate(out, -1)


class PSPNet(nn.Module):
    """PSPNet (Zhao et al. 2017, Figure 3), hszhao/semseg's in every number.

    The backbone has output stride 8 and, being a ResNet, the deep stem; the pyramid has `pool` of 1, 2, 3 and 6
    regions a side; an auxiliary head, unless `aux` is False, scores the stage before the last for a loss of
    weight 0.4 (section 3.3). `pool="max"` is the max-pooling of Table 1. A `norm` other than the default is the
    backbone's too. Scores are resized with corners aligned. Any height and width will do, also where the published
    code asks for 8 k + 1; in train mode the norm of the single region needs two images or more.
    """

    num_classes: int
    backbone: Callable[..., nn.Module] = resnet50
    bins: tuple[int, ...] = (1, 2, 3, 6)
    pool: str | Callable[..., Array] = "average"
    features: tuple[int, int] = (512, 256)  # of the head and the auxiliary head
    aux: bool = True
    dropout: float = 0.1
    norm: Callable[..., nn.Module] = BatchNorm
    dtype: Any = jnp.float32
    remat: bool = False

    @nn.compact
    def __call__(self, images: Float[Array, "n h w c"], *, train: bool) -> SegmentationOutput:
        _, h, w, _ = images.shape
        norm = {} if self.norm is BatchNorm else {"norm": self.norm}  # a VGG's own is none, a MobileNet's has its eps
        backbone = self.backbone(
            **backbone_fields(self.backbone, deep_stem=True, dilate_first=True, **norm),
            output_stride=8,
            dtype=self.dtype,
            remat=self.remat,
            name="backbone",
        )
        found = backbone(images, train=train)

        def score(name: str, features: int, x: Array) -> Array:
            head = FCNHead(self.num_classes, features, self.dropout, (1, 2), self.norm, self.dtype, name=name)
            return resize_bilinear(at_least_float32(head(x, train=train)), (h, w), align_corners=True)

        ppm = PyramidPooling(self.bins, pool_of(self.pool), self.norm, self.dtype, name="ppm")
        logits = score("cls", self.features[0], ppm(found["stride32"], train=train))
        aux = score("aux_classifier", self.features[1], found["stride16"]) if self.aux else None
        return SegmentationOutput(logits, aux)


pspnet_resnet18 = functools.partial(PSPNet, backbone=resnet18)
pspnet_resnet34 = functools.partial(PSPNet, backbone=resnet34)
pspnet_resnet50 = functools.partial(PSPNet, backbone=resnet50)
pspnet_resnet101 = functools.partial(PSPNet, backbone=resnet101)
pspnet_resnet152 = functools.partial(PSPNet, backbone=resnet152)
