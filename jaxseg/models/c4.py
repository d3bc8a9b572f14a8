"""Faster and Mask R-CNN on ResNet's fourth stage, whose fifth is the head of every box (ResNet-C4)."""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxseg.backbones.fpn import SingleLevel
from jaxseg.backbones.resnet import Bottleneck, ResNet
from jaxseg.layers import FrozenBatchNorm
from jaxseg.models.faster_rcnn import FasterRCNN
from jaxseg.models.mask_rcnn import MaskPredictor, MaskRCNN

__all__ = [
    "MaskRCNNC4",
    "Res5Head",
    "fasterrcnn_resnet50_c4",
    "fasterrcnn_resnet101_c4",
    "maskrcnn_resnet50_c4",
    "maskrcnn_resnet101_c4",
]


class Res5Head(nn.Module):
    """ResNet's last stage on the features of a box, and their mean (He et al. 2016; He et al. 2017, Figure 4, left)."""

    features: int = 512
    blocks: int = 3
    norm: Callable[..., nn.Module] = FrozenBatchNorm
    dtype: Any = jnp.float32

    def setup(self) -> None:
        self.layer4 = [
            Bottleneck(self.features, 2 if i == 0 else 1, norm=self.norm, dtype=self.dtype) for i in range(self.blocks)
        ]

    def spatial(self, x: Float[Array, "k s s c"], *, train: bool) -> Float[Array, "k t t f"]:
        """The features before the mean, at half the resolution."""
        for block in self.layer4:
            x = block(x, train=train)
        return x

    def __call__(self, x: Float[Array, "k s s c"], *, train: bool) -> Float[Array, "k f"]:
        return self.spatial(x, train=train).mean((1, 2))


class MaskRCNNC4(MaskRCNN):
    """Mask R-CNN (He et al. 2017, Figure 4, left) on ResNet-C4: boxes and masks share the fifth stage.

    As `MaskRCNN`, with masks of as many pixels as a box has bins: 14x14.
    """

    def setup(self) -> None:
        FasterRCNN.setup(self)
        self.mask_predictor = MaskPredictor(self.num_classes, 256, self.dtype)

    @property
    def mask_size(self) -> int:
        return self.box_size

    def mask_logits(
        self, features: Mapping[str, Array], boxes: Float[Array, "n k 4"], classes: Int[Array, "n k"], *, train: bool
    ) -> Float[Array, "n k 14 14"]:
        x = self.box_head.spatial(self.pool(features, boxes, self.box_size), train=train)
        masks = self.mask_predictor(x, classes.reshape(-1))
        return masks.reshape(*boxes.shape[:2], *masks.shape[1:])

    def mask_sum(
        self,
        f: Callable[[Array, Array, Array], Array],
        features: Mapping[str, Array],
        boxes: Float[Array, "n k 4"],
        classes: Int[Array, "n k"],
        targets: Float[Array, "n k 14 14"],
        valid: Bool[Array, "n k"],
    ) -> Float[Array, ""]:
        return f(self.mask_logits(features, boxes, classes, train=True), targets, valid)


def _c4(depths: tuple[int, ...]) -> dict[str, Any]:
    """Fields that Faster and Mask R-CNN share; the numbers are Detectron's."""
    return {
        "pyramid": functools.partial(
            SingleLevel, body=functools.partial(ResNet, depths=depths), level="stride16", features=1024
        ),
        "norm": FrozenBatchNorm,
        "head_norm": FrozenBatchNorm,
        "box": Res5Head,
        "box_size": 14,
        "roi_strides": (16,),
        "anchor_sizes": ((32, 64, 128, 256, 512),),
        "rpn_pre_nms_top_n_train": 12000,
        "rpn_pre_nms_top_n_test": 6000,
    }


# COCO box and mask AP of Detectron2's model zoo, 1x / 3x: Faster R50-C4 35.7 / 38.4, R101-C4 - / 41.1;
# Mask R50-C4 36.8, 32.2 / 39.8, 34.4, R101-C4 - / 42.6, 36.7. Its stride is the 1x1 convolution's, here the 3x3's.
fasterrcnn_resnet50_c4 = functools.partial(FasterRCNN, **_c4((3, 4, 6)))
fasterrcnn_resnet101_c4 = functools.partial(FasterRCNN, **_c4((3, 4, 23)))
maskrcnn_resnet50_c4 = functools.partial(MaskRCNNC4, **_c4((3, 4, 6)))
maskrcnn_resnet101_c4 = functools.partial(MaskRCNNC4, **_c4((3, 4, 23)))
