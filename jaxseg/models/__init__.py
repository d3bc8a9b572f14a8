"""The zoo: every architecture, and the one dict that names them."""

import dataclasses
import difflib
import functools
import numbers
import typing
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import numpy as np

from jaxseg.backbones import BACKBONES
from jaxseg.backbones.googlenet import GoogLeNet
from jaxseg.backbones.vgg import VGG
from jaxseg.layers import NORMS
from jaxseg.models.adain_transfer import ENCODERS, AdaINTransfer
from jaxseg.models.c4 import (
    fasterrcnn_resnet50_c4,
    fasterrcnn_resnet101_c4,
    maskrcnn_resnet50_c4,
    maskrcnn_resnet101_c4,
)
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
from jaxseg.models.fast_rcnn import fastrcnn_vgg16
from jaxseg.models.faster_rcnn import (
    fasterrcnn_mobilenet_v3_large_320_fpn,
    fasterrcnn_mobilenet_v3_large_fpn,
    fasterrcnn_resnet50_fpn,
    fasterrcnn_resnet50_fpn_v2,
    fasterrcnn_resnet101_fpn,
    fasterrcnn_vgg16,
)
from jaxseg.models.fcn import FCN, FCN1x1, fcn8s_vgg16, fcn8s_vgg16_at_once, fcn16s_vgg16, fcn32s_vgg16
from jaxseg.models.fcn_dilated import fcn_resnet50, fcn_resnet101
from jaxseg.models.fcn_googlenet import FCNGoogLeNet
from jaxseg.models.lraspp import LRASPP
from jaxseg.models.mask_rcnn import (
    maskrcnn_resnet50_fpn,
    maskrcnn_resnet50_fpn_v2,
    maskrcnn_resnet101_fpn,
    maskrcnn_small,
)
from jaxseg.models.output import Detections, SegmentationOutput
from jaxseg.models.progan import ProGANGenerator, progan_discriminator, stylegan_discriminator
from jaxseg.models.pspnet import (
    pspnet_resnet18,
    pspnet_resnet34,
    pspnet_resnet50,
    pspnet_resnet101,
    pspnet_resnet152,
)
from jaxseg.models.pspnet_smp import pspnet_smp_resnet34, pspnet_smp_resnet50
from jaxseg.models.rcnn import rcnn_vgg16
from jaxseg.models.segnet import SegNet, SegNetBasic
from jaxseg.models.stylegan import StyleGANGenerator
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
from jaxseg.ops.adain import Convention

__all__ = [
    "DETECTORS",
    "MODELS",
    "Detections",
    "SegmentationOutput",
    "create_model",
    "model_source",
    "scores_classes",
]

DETECTORS: dict[str, Callable[..., nn.Module]] = {  # which return Detections
    "rcnn_vgg16": rcnn_vgg16,
    "fastrcnn_vgg16": fastrcnn_vgg16,
    "fasterrcnn_vgg16": fasterrcnn_vgg16,
    "fasterrcnn_resnet50_c4": fasterrcnn_resnet50_c4,
    "fasterrcnn_resnet101_c4": fasterrcnn_resnet101_c4,
    "fasterrcnn_resnet101_fpn": fasterrcnn_resnet101_fpn,
    "maskrcnn_resnet50_c4": maskrcnn_resnet50_c4,
    "maskrcnn_resnet101_c4": maskrcnn_resnet101_c4,
    "maskrcnn_resnet101_fpn": maskrcnn_resnet101_fpn,
    "fasterrcnn_resnet50_fpn": fasterrcnn_resnet50_fpn,
    "fasterrcnn_resnet50_fpn_v2": fasterrcnn_resnet50_fpn_v2,
    "fasterrcnn_mobilenet_v3_large_fpn": fasterrcnn_mobilenet_v3_large_fpn,
    "fasterrcnn_mobilenet_v3_large_320_fpn": fasterrcnn_mobilenet_v3_large_320_fpn,
    "maskrcnn_resnet50_fpn": maskrcnn_resnet50_fpn,
    "maskrcnn_resnet50_fpn_v2": maskrcnn_resnet50_fpn_v2,
    "maskrcnn_small": maskrcnn_small,
}

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
    "adain_transfer": AdaINTransfer,
    "progan_generator": ProGANGenerator,
    "progan_discriminator": progan_discriminator,
    "stylegan_generator": StyleGANGenerator,
    "stylegan_discriminator": stylegan_discriminator,
    **DETECTORS,
}


ONLY: dict[type[nn.Module], type[nn.Module]] = {  # what a head that is drawn for one kind of backbone stands on
    FCN: VGG,
    FCN1x1: VGG,
    SegNet: VGG,
    DeepLabLargeFOV: VGG,
    FCNGoogLeNet: GoogLeNet,
}


def _demand_backbone(name: str, backbone: Callable[..., nn.Module]) -> None:
    """Raises ValueError where the model needs another kind of backbone, and names those that fit."""
    kind = ONLY.get(_model_class(MODELS[name]))
    made: Any = backbone
    while isinstance(made, functools.partial):
        made = made.func
    if kind is not None and isinstance(made, type) and not issubclass(made, kind):
        fit = ", ".join(n for n, constructor in BACKBONES.items() if _model_class(constructor) is kind)
        raise ValueError(
            f'model "{name}" is drawn for {kind.__name__} and takes {fit}, not {made.__name__}; '
            "fcn_resnet50 and the deeplabv3, pspnet and unet models take any backbone"
        )


def _kinds(constructor: Callable[..., nn.Module]) -> dict[str, Any]:
    """The fields of a module's class and their types."""
    return {f.name: f.type for f in dataclasses.fields(_model_class(constructor)) if f.name not in ("parent", "name")}


def _named_backbone(described: str | Mapping[str, Any]) -> Callable[..., nn.Module]:
    """The backbone of that name, or of `{"name": name, **fields}`; ValueError for one that there is not."""
    fields = {"name": described} if isinstance(described, str) else dict(described)
    name = fields.pop("name", None)
    if not isinstance(name, str) or name not in BACKBONES:
        raise ValueError(f'no backbone "{name}"{_nearest(str(name), BACKBONES)}')
    kinds = _kinds(BACKBONES[name])
    for field, value in fields.items():
        if field not in kinds:
            raise ValueError(
                f'backbone "{name}" has no field "{field}"{_nearest(field, kinds)} (fields: {", ".join(kinds)})'
            )
        _demand_kind(name, field, value, kinds[field])
    fields = {field: _tuples(value) for field, value in fields.items()}
    return functools.partial(BACKBONES[name], **fields) if fields else BACKBONES[name]


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


KINDS: dict[Any, tuple[Any, str, str]] = {  # Python's and NumPy's, one and several
    bool: ((bool, np.bool_), "true or false", "true or false"),
    int: (numbers.Integral, "a whole number", "whole numbers"),
    float: (numbers.Real, "a number", "numbers"),
}


def _demand_kind(name: str, field: str, value: Any, annotation: Any) -> None:
    """Raises ValueError where a number, a truth value, a tuple of numbers or one of a few words is another thing."""
    if typing.get_origin(annotation) is typing.Literal and value not in typing.get_args(annotation):
        words = ", ".join(typing.get_args(annotation))
        raise ValueError(f'the field "{field}" of model "{name}" is one of {words}, got {value!r}')
    kind, *rest = typing.get_args(annotation) if typing.get_origin(annotation) is tuple else (annotation,)
    if kind not in KINDS:
        return
    several, count = kind is not annotation, 0 if rest == [...] else 1 + len(rest)
    accepted, one, many = KINDS[kind]
    values = value if several and isinstance(value, (tuple, list)) else [value]
    sound = all(isinstance(v, accepted) and (kind is bool or not isinstance(v, (bool, np.bool_))) for v in values)
    if not sound or (several and (values is not value or count not in (0, len(values)))):
        wanted = one if not several else f"a list of {count} {many}" if count else f"a list of {many}"
        raise ValueError(f'the field "{field}" of model "{name}" is {wanted}, got {value!r}')


def scores_classes(name: str) -> bool:
    """Whether the model needs a `num_classes`; a generator has one only in its conditional form."""
    fields = {f.name: f for f in dataclasses.fields(_model_class(_constructor(name)))}
    return "num_classes" in fields and fields["num_classes"].default is dataclasses.MISSING


def _tuples(value: Any) -> Any:
    return tuple(map(_tuples, value)) if isinstance(value, list) else value


def create_model(name: str, num_classes: int | None = None, **fields: Any) -> nn.Module:
    """The model of that name in MODELS, with `fields` of its class replaced.

    `num_classes` is for models that score classes, and for the conditional form of a generator. As JSON has no
    others, a `backbone` or `encoder` may be a name in `jaxseg.backbones.BACKBONES`, or `{"name": "resnet50", **fields}`
    for one with fields of its own such as `"multi_grid": [1, 2, 4]`, the `vgg` of `adain_transfer`
    "vgg16" or "vgg19", a `norm` or `head_norm` a name in `jaxseg.layers.NORMS`, and a tuple a list. Raises ValueError,
    with the nearest name there is, for a model, a field or a backbone that does not exist, for a field of another kind
    than the model's, and, with those that fit, for a backbone that the model cannot stand on.
    """
    constructor = _constructor(name)
    if num_classes is not None:
        fields["num_classes"] = num_classes
    kinds = _kinds(constructor)
    if scores_classes(name) and "num_classes" not in fields:
        raise ValueError(f'model "{name}" scores classes: give num_classes')
    if "num_classes" in fields:
        _demand_kind(name, "num_classes", fields["num_classes"], kinds.get("num_classes"))
    if scores_classes(name) and fields["num_classes"] < 1:
        raise ValueError(f'model "{name}" scores at least 1 class, got num_classes={fields["num_classes"]}')
    for field in list(fields):
        if field not in kinds:
            raise ValueError(
                f'model "{name}" has no field "{field}"{_nearest(field, kinds)} (fields: {", ".join(kinds)})'
            )
        _demand_kind(name, field, fields[field], kinds[field])
        if field in ("backbone", "encoder") and isinstance(fields[field], (str, Mapping)):
            fields[field] = _named_backbone(fields[field])
        if field == "vgg" and isinstance(fields[field], str):
            if fields[field] not in ENCODERS:
                raise ValueError(f'no encoder "{fields[field]}"; there is {", ".join(ENCODERS)}')
            fields[field] = ENCODERS[fields[field]]
        if field in ("norm", "head_norm") and isinstance(fields[field], str):
            if fields[field] not in NORMS:
                raise ValueError(f'no norm "{fields[field]}"; there is {", ".join(NORMS)}')
            fields[field] = NORMS[fields[field]]
        if field in ("backbone", "encoder"):
            _demand_backbone(name, fields[field])
        fields[field] = _tuples(fields[field])
        if field == "convention":  # of AdaIN
            fields[field] = Convention(*fields[field])
    return constructor(**fields)


def model_source(name: str) -> str:
    """One line that names the architecture and the paper it is from."""
    return (_model_class(_constructor(name)).__doc__ or "").strip().splitlines()[0]
