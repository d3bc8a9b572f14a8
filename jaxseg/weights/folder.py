"""Folders of weights that say what model they are of: `jaxseg convert`'s, and the hub's of SMP."""

import contextlib
import dataclasses
import functools
import json
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

import flax.linen as nn
from flax.errors import FlaxError

from jaxseg.backbones import BACKBONES
from jaxseg.models import create_model
from jaxseg.weights.wrapped import WeightsMismatch

__all__ = ["demand_described", "describing", "description", "read_json", "smp_model"]

OPTIONS = (  # of SMP's that are read; others may be anything
    *("_model_class", "encoder_name", "encoder_depth", "encoder_output_stride"),
    *("decoder_", "psp_", "classes", "upsampling"),
)
CLASSES = {  # of SMP, and the names of ours on any of its encoders
    "Unet": "unet_resnet34",
    "PSPNet": "pspnet_smp_resnet34",
    "DeepLabV3": "deeplabv3_resnet50",
    "DeepLabV3Plus": "deeplabv3plus_resnet50",
}
# Fields of config.json that no model of ours computes otherwise than by these values
FIXED: dict[str, tuple[Any, ...]] = {
    "in_channels": (3,),
    "activation": (None, "identity"),
    "aux_params": (None,),
    "decoder_use_norm": ("batchnorm", True),
    "decoder_use_batchnorm": (True,),
    "psp_use_batchnorm": (True,),
    "decoder_attention_type": (None,),
    "decoder_interpolation": ("nearest",),
}


MOST_BLOCKS = 512  # of a backbone: as many are traced in a minute
LARGEST = 2**16  # number in a description: no model has as many classes, features or pixels on a side


def read_json(path: pathlib.Path) -> dict[str, Any]:
    """A JSON object; raises ValueError, naming the file, for anything else."""
    try:
        tree = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: not a JSON file ({error})") from None
    if not isinstance(tree, dict):
        raise ValueError(f"{path}: no description of a model, which is a JSON object")
    return tree


def _is_plain(value: Any, depth: int = 2) -> bool:
    if isinstance(value, list):
        return depth > 0 and len(value) <= 32 and all(_is_plain(part, depth - 1) for part in value)
    return isinstance(value, str | bool | None) or (type(value) in (int, float) and abs(value) <= LARGEST)


def _demand_plain(where: Any, fields: Mapping[str, Any]) -> None:
    for name, value in fields.items():
        if not _is_plain(value):
            raise WeightsMismatch(f"{where}: {name} is {str(value)[:80]}, which no model has")


def smp_model(config: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of `create_model` for what a `config.json` of segmentation-models-pytorch describes.

    Raises WeightsMismatch, naming it, for a class, an encoder or an option that no model here has.
    """
    _demand_plain("config.json", {k: v for k, v in config.items() if k.startswith(OPTIONS)})
    kind, encoder = config.get("_model_class"), config.get("encoder_name", "resnet34")
    if not isinstance(kind, str) or not isinstance(encoder, str):
        raise WeightsMismatch(f"config.json names no class and encoder of SMP: {kind}, {encoder}")
    if kind not in CLASSES:
        raise WeightsMismatch(f"SMP's {kind} is not in the zoo; there are {', '.join(CLASSES)}")
    if encoder not in BACKBONES:
        raise WeightsMismatch(f"SMP's {kind} has the encoder {encoder}; there are {', '.join(BACKBONES)}")
    for option, values in FIXED.items():
        if option in config and config[option] not in values:
            raise WeightsMismatch(f"SMP's {kind} has {option}={config[option]!r}, and here it is {values[0]!r}")
    depth, default_depth = config.get("encoder_depth"), 3 if kind == "PSPNet" else 5
    if depth not in ((None, 3, 4, 5) if kind == "PSPNet" else (None, default_depth)):
        raise WeightsMismatch(f"SMP's {kind} has encoder_depth={depth!r}, and here it is {default_depth}")
    fields: dict[str, Any] = {"encoder" if kind in ("Unet", "PSPNet") else "backbone": encoder}
    stride = config.get("encoder_output_stride", 8 if kind == "DeepLabV3" else 16)
    if kind == "Unet":
        fields["decoder_features"] = _numbers(config, "decoder_channels", (256, 128, 64, 32, 16))
        fields["center"] = encoder.startswith("vgg")
        upsampling = None
    elif kind == "PSPNet":
        fields["stride"] = upsampling = 2 ** (depth or default_depth)
        fields |= {"features": config.get("psp_out_channels", 512), "dropout": config.get("psp_dropout", 0.2)}
    else:
        fields |= {"output_stride": stride, "features": config.get("decoder_channels", 256)}
        fields["atrous_rates"] = _numbers(config, "decoder_atrous_rates", (12, 24, 36))
        fields["dropout"] = config.get("decoder_aspp_dropout", 0.5)
        separable, upsampling = kind == "DeepLabV3Plus", 4 if kind == "DeepLabV3Plus" else stride
        if config.get("decoder_aspp_separable", separable) != separable:
            raise WeightsMismatch(
                f"SMP's {kind} has decoder_aspp_separable={not separable}, and here it is {separable}"
            )
    if config.get("upsampling", upsampling) not in (None, upsampling):
        raise WeightsMismatch(f"SMP's {kind} has upsampling={config['upsampling']}, and here it is {upsampling}")
    if kind == "DeepLabV3":
        fields |= {"aux": None, "align_corners": True, "dilate_first": True}
    return {"name": CLASSES[kind], "num_classes": config.get("classes", 1), **fields}


def _numbers(config: Mapping[str, Any], option: str, default: tuple[int, ...]) -> tuple[int, ...]:
    value = config.get(option, default)
    if not isinstance(value, list | tuple):
        raise WeightsMismatch(f"config.json: {option} is {value!r}, which is a list of numbers")
    return tuple(value)


def description(folder: pathlib.Path) -> dict[str, Any] | None:
    """Arguments of `create_model` for the model that a folder describes, or None where it describes none."""
    path = folder / "model.json"
    if path.is_file():
        described = read_json(path).get("model")
        if not isinstance(described, dict) or not isinstance(described.get("name"), str):
            raise WeightsMismatch(f"{path} describes no model: it has no field model with a name")
        backbones = {k: v for k, v in described.items() if k in ("backbone", "encoder") and isinstance(v, dict)}
        for of_its_own in backbones.values():
            _demand_plain(path, of_its_own)
            depths = of_its_own.get("depths")
            if isinstance(depths, list) and sum(n for n in depths if isinstance(n, int)) > MOST_BLOCKS:
                raise WeightsMismatch(f"{path}: depths are {str(depths)[:80]}, which no backbone has")
        _demand_plain(path, {k: v for k, v in described.items() if k not in backbones})
        return described
    if (folder / "config.json").is_file():
        return smp_model(read_json(folder / "config.json"))
    return None


@contextlib.contextmanager
def describing(folder: pathlib.Path) -> Iterator[None]:
    """Whatever a model comes to that is made of wrong fields, as a WeightsMismatch that names the folder."""
    try:
        yield
    except (TypeError, AttributeError, ArithmeticError, LookupError, AssertionError, FlaxError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
        raise WeightsMismatch(f"{folder} describes no model that can be made: {reason}") from error


def _same(a: Any, b: Any) -> bool:
    """Equal fields, where constructors are so by their parts."""
    if isinstance(a, functools.partial) and isinstance(b, functools.partial):
        return a.func is b.func and a.args == b.args and a.keywords == b.keywords
    return a == b


def demand_described(folder: pathlib.Path, model: nn.Module) -> None:
    """Raises WeightsMismatch where the folder describes another model, its classes and its dropout apart."""
    described = description(folder)
    if described is None:
        return
    with describing(folder):
        other = create_model(**described)
    wanted = {k: v for k, v in described.items() if k not in ("name", "num_classes")}
    if type(other) is not type(model):
        raise WeightsMismatch(
            f"{folder} is of {type(other).__name__}, not {type(model).__name__}; {_remedy(described)}"
        )
    for field in (f.name for f in dataclasses.fields(other)):
        if field in ("parent", "name", "num_classes", "dtype", "remat") or "dropout" in field:
            continue
        if not _same(getattr(other, field), getattr(model, field)):
            value = wanted.get(field, getattr(other, field))
            raise WeightsMismatch(f"{folder} is of a model with {field}={value}; {_remedy(described)}")


def _remedy(described: Mapping[str, Any]) -> str:
    words = [repr(described["name"]), str(described["num_classes"])]
    words += [f"{k}={v!r}" for k, v in described.items() if k not in ("name", "num_classes")]
    return f"jaxseg.load_model gives it, or jaxseg.create_model({', '.join(words)})"
