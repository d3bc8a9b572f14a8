"""Backbones: images to a dict of features, by name and by stride.

Each takes `output_stride` (32, 16 or 8), `dtype` and `remat`, and gives `stride2` ... `stride32`.
"""

import dataclasses
import functools
import itertools
import operator
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
from jaxtyping import Array

from jaxseg.backbones.googlenet import googlenet
from jaxseg.backbones.mobilenet_v2 import mobilenet_v2
from jaxseg.backbones.mobilenet_v3 import MobileNetV3, mobilenet_v3_large, mobilenet_v3_small
from jaxseg.backbones.resnet import (
    resnet18,
    resnet34,
    resnet50,
    resnet101,
    resnet152,
    resnext50_32x4d,
    wide_resnet50_2,
)
from jaxseg.backbones.vgg import vgg11, vgg11_bn, vgg13, vgg13_bn, vgg16, vgg16_bn, vgg19, vgg19_bn

__all__ = ["BACKBONES", "backbone_fields", "described_backbone", "features_named", "first_at_stride8"]

BACKBONES: dict[str, Callable[..., nn.Module]] = {  # by torchvision's names
    "googlenet": googlenet,
    "mobilenet_v2": mobilenet_v2,
    "mobilenet_v3_large": mobilenet_v3_large,
    "mobilenet_v3_small": mobilenet_v3_small,
    "resnet18": resnet18,
    "resnet34": resnet34,
    "resnet50": resnet50,
    "resnet101": resnet101,
    "resnet152": resnet152,
    "resnext50_32x4d": resnext50_32x4d,
    "vgg11": vgg11,
    "vgg11_bn": vgg11_bn,
    "vgg13": vgg13,
    "vgg13_bn": vgg13_bn,
    "vgg16": vgg16,
    "vgg16_bn": vgg16_bn,
    "vgg19": vgg19,
    "vgg19_bn": vgg19_bn,
    "wide_resnet50_2": wide_resnet50_2,
}


def backbone_fields(backbone: Callable[..., nn.Module], **fields: object) -> dict[str, object]:
    """Those of `fields` that the backbone has: a dilation of ResNets' is no matter of others."""
    constructor = backbone
    while isinstance(constructor, functools.partial):
        constructor = constructor.func
    assert isinstance(constructor, type)
    return {k: v for k, v in fields.items() if k in {f.name for f in dataclasses.fields(constructor)}}


def described_backbone(backbone: Any) -> Any:
    """A backbone as JSON has it: its name, with fields of its own `{"name": "resnet50", "multi_grid": [1, 2, 4]}`.

    What is neither of BACKBONES nor a `functools.partial` of one is given back.
    """
    if not isinstance(backbone, functools.partial):
        return backbone
    own = backbone.keywords
    fit = {  # a partial of a partial is one of the class: the name is that of the backbone it has most in common with
        name: {field: value for field, value in own.items() if named.keywords.get(field) != value}
        for name, named in BACKBONES.items()
        if isinstance(named, functools.partial)
        and (named.func, named.args) == (backbone.func, backbone.args)
        and named.keywords.keys() <= own.keys()
    }
    if not fit:
        return backbone
    name = min(fit, key=lambda name: len(fit[name]))
    return {"name": name, **fit[name]} if fit[name] else name


def first_at_stride8(backbone: nn.Module) -> str:
    """The name of the features that torchvision calls C2: MobileNetV3's first block at stride 8.

    Of other backbones the last, `stride8`.
    """
    if not isinstance(backbone, MobileNetV3):
        return "stride8"
    strides = itertools.accumulate((row.stride for row in backbone.rows), operator.mul, initial=2)
    return f"features_{list(strides).index(8)}"


def features_named(found: Mapping[str, Array], name: object, field: str) -> Array:
    """The features of that name, which a head's `field` asks for. Raises ValueError, with those that there are."""
    if not isinstance(name, str) or name not in found:
        raise ValueError(f"{field} names features of the backbone, {', '.join(found)}, not {name!r}")
    return found[name]
