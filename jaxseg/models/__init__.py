"""The zoo: every architecture, and the one dict that names them."""

import dataclasses
import difflib
import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn

from jaxseg.backbones import BACKBONES
from jaxseg.models.deeplab_largefov import DeepLabLargeFOV
from jaxseg.models.deeplabv3 import (
    deeplabv3_mobilenet_v2,
    deeplabv3_mobilenet_v3_large,
    deeplabv3_resnet50,
    deeplabv3_resnet101,
)
from jaxseg.models.deeplabv3plus import (
    deeplabv3plus_mobilenet_v2,
    deeplabv3plus_resnet34,
    deeplabv3plus_resnet50,
    deeplabv3plus_resnet101,
)
from jaxseg.models.fcn import FCN1x1, fcn8s_vgg16, fcn8s_vgg16_at_once, fcn16s_vgg16, fcn32s_vgg16
from jaxseg.models.fcn_dilated import fcn_resnet50, fcn_resnet101
from jaxseg.models.fcn_googlenet import FCNGoogLeNet
from jaxseg.models.lraspp import LRASPP
from jaxseg.models.output import SegmentationOutput
from jaxseg.models.pspnet import (
    pspnet_resnet18,
    pspnet_resnet34,
    pspnet_resnet50,
    pspnet_resnet101,
    pspnet_resnet152,
)
from jaxseg.models.pspnet_smp import pspnet_smp_resnet34, pspnet_smp_resnet50
from jaxseg.models.segnet import SegNet, SegNetBasic
from jaxseg.models.unet import UNet, UNetValid, unet_small
from jaxseg.models.unet_encoder import (
    unet_mobilenet_v2,
    unet_resnet18,
    unet_resnet34,
    unet_resnet50,
    unet_resnet101,
    unet_resnet152,
    unet_vgg16_bn,
)

__all__ = ["MODELS", "SegmentationOutput", "create_model", "model_source"]

MODELS: dict[str, Callable[..., nn.Module]] = {
    "fcn32s_vgg16": fcn32s_vgg16,
    "fcn16s_vgg16": fcn16s_vgg16,
    "fcn8s_vgg16": fcn8s_vgg16,
    "fcn8s_vgg16_at_once": fcn8s_vgg16_at_once,
    "fcn_vgg16_1x1": FCN1x1,
    "fcn_googlenet": FCNGoogLeNet,
    "fcn_resnet50": fcn_resnet50,
    "fcn_resnet101": fcn_resnet101,
    "deeplab_largefov_vgg16": DeepLabLargeFOV,
    "deeplabv3_resnet50": deeplabv3_resnet50,
    "deeplabv3_resnet101": deeplabv3_resnet101,
    "deeplabv3_mobilenet_v3_large": deeplabv3_mobilenet_v3_large,
    "deeplabv3_mobilenet_v2": deeplabv3_mobilenet_v2,
    "lraspp_mobilenet_v3_large": LRASPP,
    "pspnet_resnet18": pspnet_resnet18,
    "pspnet_resnet34": pspnet_resnet34,
    "pspnet_resnet50": pspnet_resnet50,
    "pspnet_resnet101": pspnet_resnet101,
    "pspnet_resnet152": pspnet_resnet152,
    "pspnet_smp_resnet34": pspnet_smp_resnet34,
    "pspnet_smp_resnet50": pspnet_smp_resnet50,
    "deeplabv3plus_resnet34": deeplabv3plus_resnet34,
    "deeplabv3plus_resnet50": deeplabv3plus_resnet50,
    "deeplabv3plus_resnet101": deeplabv3plus_resnet101,
    "deeplabv3plus_mobilenet_v2": deeplabv3plus_mobilenet_v2,
    "segnet_vgg16_bn": SegNet,
    "segnet_basic": SegNetBasic,
    "unet": UNet,
    "unet_small": unet_small,
    "unet_valid": UNetValid,
    "unet_resnet18": unet_resnet18,
    "unet_resnet34": unet_resnet34,
    "unet_resnet50": unet_resnet50,
    "unet_resnet101": unet_resnet101,
    "unet_resnet152": unet_resnet152,
    "unet_vgg16_bn": unet_vgg16_bn,
    "unet_mobilenet_v2": unet_mobilenet_v2,
}


def _constructor(name: str) -> Callable[..., nn.Module]:
    if name not in MODELS:
        raise ValueError(f'no model "{name}"{_nearest(name, MODELS)} jaxseg.MODELS lists all')
    return MODELS[name]


def _nearest(name: str, names: Any) -> str:
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.0)
    return f'; did you mean "{near[0]}"?' if near else "."


def _model_class(constructor: Callable[..., nn.Module]) -> type[nn.Module]:
    while isinstance(constructor, functools.partial):
        constructor = constructor.func
    assert isinstance(constructor, type)
    return constructor


def create_model(name: str, num_classes: int, **fields: Any) -> nn.Module:
    """The model of that name in MODELS, with `fields` of its class replaced.

    As JSON has no others, a `backbone` or `encoder` may be a name in `jaxseg.backbones.BACKBONES`, and a tuple a
    list. Raises ValueError, with the nearest name there is, for a model, a field or a backbone that does not exist.
    """
    constructor = _constructor(name)
    known = [f.name for f in dataclasses.fields(_model_class(constructor)) if f.name not in ("parent", "name")]
    for field in list(fields):
        if field not in known:
            raise ValueError(
                f'model "{name}" has no field "{field}"{_nearest(field, known)} (fields: {", ".join(known)})'
            )
        if field in ("backbone", "encoder") and isinstance(fields[field], str):
            if fields[field] not in BACKBONES:
                raise ValueError(f'no backbone "{fields[field]}"{_nearest(fields[field], BACKBONES)}')
            fields[field] = BACKBONES[fields[field]]
        if isinstance(fields[field], list):
            fields[field] = tuple(fields[field])
    return constructor(num_classes=num_classes, **fields)


def model_source(name: str) -> str:
    """One line that names the architecture and the paper it is from."""
    return (_model_class(_constructor(name)).__doc__ or "").strip().splitlines()[0]
