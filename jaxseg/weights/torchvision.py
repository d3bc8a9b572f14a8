"""torchvision's names of its segmentation models, detectors and their backbones.

A layout is a list of substitutions, made one after the other on a module's path in our tree; `/` then becomes `.`.
"""

from collections.abc import Mapping
from typing import NamedTuple

import flax.linen as nn

from jaxseg.backbones.googlenet import GoogLeNet
from jaxseg.backbones.mobilenet_v2 import MobileNetV2
from jaxseg.backbones.mobilenet_v3 import MobileNetV3
from jaxseg.backbones.resnet import ResNet
from jaxseg.models.deeplabv3 import DeepLabV3
from jaxseg.models.faster_rcnn import FasterRCNN
from jaxseg.models.fcn_dilated import DilatedFCN
from jaxseg.models.lraspp import LRASPP
from jaxseg.models.mask_rcnn import MaskRCNN

__all__ = ["CONV_NORM", "HEAD", "MOBILE_V2", "NUMBERED", "TORCHVISION", "Layout", "Publisher"]

Layout = tuple[tuple[str, str], ...]


class Publisher(NamedTuple):
    """Names that one publisher gives, by the class of our model.

    `prefix` stands before every name of its files. `renamed` turns the names of its older files into today's.
    `fields` are those that our model must have to compute what the publisher's does.
    """

    name: str
    layouts: Mapping[type[nn.Module], Layout]
    prefix: str = ""
    renamed: Layout = ()
    fields: Mapping[type[nn.Module], Mapping[str, object]] = {}


NUMBERED: Layout = ((r"_(\d+)(?=/|$)", r".\1"),)  # layer1_0, downsample_1: places in a Sequential
CONV_NORM: Layout = ((r"/conv$", "/0"), (r"/bn$", "/1"))
HEAD: Layout = ((r"/block/conv$", "/0"), (r"/block/bn$", "/1"), (r"/logits$", "/4"))
MOBILE_V2: Layout = (  # a block is one Sequential, whose last two entries are a convolution and its norm
    (r"(features_\d+)/(conv|bn)$", r"\1/block/\2"),
    (r"(features_\d+)/conv_(\d)/", r"\1/conv/\2/block/"),
    (r"(features_\d+)/project_(\d)/conv$", r"\1/conv/\2"),
    (r"(features_\d+)/project_1/bn$", r"\1/conv/2"),
    (r"(features_\d+)/project_2/bn$", r"\1/conv/3"),
    (r"(features_.*)/block/conv$", r"\1/0"),
    (r"(features_.*)/block/bn$", r"\1/1"),
)
MOBILE: Layout = ((r"^(backbone/)?features_", r"\1"), *NUMBERED, *CONV_NORM)
DETECTOR: Layout = (
    (r"^backbone/(inner|layer)_", r"backbone/fpn/\1_blocks/"),
    (r"^backbone/body/features_", "backbone/body/"),
    (r"^rpn/", "rpn/head/"),
    (r"^(box|mask)_", r"roi_heads/\1_"),
    (r"_head/conv_", "_head/"),
    (r"box_head/fc$", "box_head/5"),
    *NUMBERED,
    *CONV_NORM,
)
OLD_DETECTOR: Layout = (  # before torchvision 0.13
    (r"^rpn\.head\.conv\.(weight|bias)$", r"rpn.head.conv.0.0.\1"),
    (r"((?:inner|layer)_blocks\.\d)\.(weight|bias)$", r"\1.0.\2"),
    *((rf"mask_head\.mask_fcn{i + 1}\.", f"mask_head.{i}.0.") for i in range(4)),
)

TORCHVISION = Publisher(
    "torchvision",
    {
        ResNet: NUMBERED,
        GoogLeNet: NUMBERED,
        MobileNetV2: (*MOBILE_V2, *NUMBERED),
        MobileNetV3: (*NUMBERED, *CONV_NORM),
        DilatedFCN: (*NUMBERED, *HEAD),
        DeepLabV3: (
            (r"^backbone/features_", "backbone/"),
            (r"^aspp/image_pooling/conv$", "classifier/0/convs/4/1"),
            (r"^aspp/image_pooling/bn$", "classifier/0/convs/4/2"),
            (r"^aspp/", "classifier/0/"),
            (r"^block/conv$", "classifier/1"),
            (r"^block/bn$", "classifier/2"),
            (r"^logits$", "classifier/4"),
            *HEAD,
            *NUMBERED,
            *CONV_NORM,
        ),
        LRASPP: (
            (r"^scale$", "classifier/scale/1"),
            (r"^(cbr|low_classifier|high_classifier)", r"classifier/\1"),
            *MOBILE,
        ),
        FasterRCNN: DETECTOR,
        MaskRCNN: DETECTOR,
    },
    renamed=OLD_DETECTOR,
    fields={DeepLabV3: {"align_corners": False, "dilate_first": False}},
)
