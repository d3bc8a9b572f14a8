"""VGG: torchvision's names and layouts, and ImageNet weights in Caffe's, to Flax variables and back."""

import itertools
import pathlib
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from jaxseg.backbones.vgg import RGB_MEAN, RGB_STD
from jaxseg.weights.files import read_weights
from jaxseg.weights.wrapped import WeightsMismatch, unwrapped

__all__ = ["from_torchvision", "load_encoder", "to_torchvision", "vgg_names"]

# the mean that Caffe's VGG subtracts
CAFFE_MEAN_RGB = (123.68, 116.779, 103.939)

CLASSIFIER = {"fc6": "classifier.0", "fc7": "classifier.3", "fc8": "classifier.6"}
DETECTOR_HEADS = (("box_head",), ("backbone",))  # where Fast and Faster R-CNN, and R-CNN, have VGG's fc6 and fc7
BATCH_NORM = {
    ("params", "scale"): "weight",
    ("params", "bias"): "bias",
    ("batch_stats", "mean"): "running_mean",
    ("batch_stats", "var"): "running_var",
}

Path = tuple[str, ...]


def _encoder_prefix(flat: Iterable[Path]) -> Path:
    for prefix in ((), ("encoder",), ("backbone", "body")):
        if ("params", *prefix, "conv1_1", "kernel") in flat:
            return prefix
    raise WeightsMismatch("these variables hold no VGG: no conv1_1 in params, params/encoder or params/backbone/body")


def vgg_names(flat: Iterable[Path], *, batch_norm: bool) -> Iterator[tuple[str, Path]]:
    """torchvision's names, and paths of variables, of a VGG whose published form has `batch_norm` or not."""
    prefix = _encoder_prefix(flat)
    convs = sorted(
        tuple(map(int, match.groups()))
        for path in flat
        if path[:-2] == ("params", *prefix)
        and path[-1] == "kernel"
        and (match := re.fullmatch(r"conv(\d+)_(\d+)", path[-2]))
    )
    position, stage_before = 0, 1
    for stage, i in convs:
        position += stage != stage_before  # a pooling
        stage_before = stage
        for field, theirs in (("kernel", "weight"), ("bias", "bias")):
            yield f"features.{position}.{theirs}", ("params", *prefix, f"conv{stage}_{i}", field)
        if batch_norm:
            for (collection, field), theirs in BATCH_NORM.items():
                yield f"features.{position + 1}.{theirs}", (collection, *prefix, f"bn{stage}_{i}", field)
        position += 3 if batch_norm else 2
    for ours, theirs in CLASSIFIER.items():
        if ("params", ours, "kernel") in flat:
            yield f"{theirs}.weight", ("params", ours, "kernel")
            yield f"{theirs}.bias", ("params", ours, "bias")


def _to_flax(name: str, array: np.ndarray, shape: tuple[int, ...]) -> np.ndarray | None:
    """PyTorch's layout to Flax's, or None where the sizes are not those of `shape`."""
    if name == "classifier.0.weight" and array.ndim == 2 and array.shape[1] % 49 == 0:
        array = array.reshape(array.shape[0], -1, 7, 7)  # torchvision flattens channels first
    if array.ndim == 4:
        array = array.transpose(2, 3, 1, 0)
        if len(shape) == 2:
            array = array.reshape(-1, array.shape[-1])
    elif array.ndim == 2:
        array = array.T
        if len(shape) == 4:  # a fully connected layer as a 1x1 convolution
            array = array[None, None]
    return array if array.shape == shape else None


def _to_torch(name: str, array: np.ndarray) -> np.ndarray:
    if name == "classifier.0.weight":
        array = array.reshape(7, 7, -1, array.shape[-1])
        return array.transpose(3, 2, 0, 1).reshape(array.shape[-1], -1)
    if array.ndim == 4:
        return array.transpose(3, 2, 0, 1) if name.startswith("features") else array[0, 0].T
    return array.T


def _fill(flat: dict[Path, Any], names: Mapping[str, Path], state: Mapping[str, np.ndarray], where: str) -> None:
    """Puts every entry of `state` where `names` says, or raises one error that lists what does not fit."""
    missing = sorted(names.keys() - state.keys())
    unexpected = sorted(state.keys() - names.keys())
    misshapen = []
    for name in names.keys() & state.keys():
        target = flat[names[name]]
        array = _to_flax(name, np.asarray(state[name]), target.shape)
        if array is None:
            ours = "/".join(names[name])
            misshapen.append(f"{name} {tuple(state[name].shape)} for {ours} {tuple(target.shape)}")
        else:
            flat[names[name]] = jnp.asarray(array, target.dtype)
    problems = {"missing": missing, "unexpected": unexpected, "misshapen": sorted(misshapen)}
    if any(problems.values()):
        lists = "; ".join(f"{what}: {', '.join(which)}" for what, which in problems.items() if which)
        raise WeightsMismatch(f"{where} does not fit this VGG: {lists}")


def from_torchvision(state: Mapping[str, np.ndarray], variables: Mapping[str, Any]) -> dict[str, Any]:
    """Variables of a `VGG` or `VGGClassifier` with the values of torchvision's state_dict, every one of them.

    Raises WeightsMismatch, with the names, where anything is missing, unexpected or misshapen.
    """
    flat = dict(traverse_util.flatten_dict(dict(variables)))
    names = dict(vgg_names(flat, batch_norm="batch_stats" in variables))
    _fill(flat, names, unwrapped(state, names), "the state_dict")
    return traverse_util.unflatten_dict(flat)


def to_torchvision(variables: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """torchvision's state_dict, less `num_batches_tracked`, of a `VGG` or `VGGClassifier`'s variables."""
    flat = traverse_util.flatten_dict(dict(variables))
    names = vgg_names(flat, batch_norm="batch_stats" in variables)
    return {name: _to_torch(name, np.asarray(flat[path])) for name, path in names}


def _from_caffe(arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """torchvision's names, and its standardised RGB input, for kernels that take BGR of 0-255 less a mean.

    conv1_1 takes over the scale, the order and the difference of the means. At the border one thing differs:
    the original pads with its own mean colour, and this with torchvision's, 0.005, 0.5 and 0.4 grey levels
    away in red, green and blue.
    """
    state: dict[str, np.ndarray] = {}
    position, stage_before = 0, 1
    pattern = re.compile(r"block(\d+)_conv(\d+)/kernel_OIHW")
    for stage, i in sorted(tuple(map(int, m.groups())) for m in map(pattern.fullmatch, arrays) if m):
        position += stage != stage_before
        stage_before = stage
        for field, theirs in (("kernel_OIHW", "weight"), ("bias", "bias")):
            if (name := f"block{stage}_conv{i}/{field}") in arrays:
                state[f"features.{position}.{theirs}"] = arrays[name].astype(np.float64)
        position += 2
    if {"features.0.weight", "features.0.bias"} <= state.keys():
        kernel = state["features.0.weight"][:, ::-1]  # to RGB
        shift = 255 * np.array(RGB_MEAN) - np.array(CAFFE_MEAN_RGB)
        state["features.0.bias"] = state["features.0.bias"] + np.einsum("oihw,i->o", kernel, shift)
        state["features.0.weight"] = kernel * (255 * np.array(RGB_STD))[:, None, None]
    return {name: array.astype(np.float32) for name, array in state.items()}


def _detector_head(flat: Mapping[Path, Any], state: Mapping[str, np.ndarray]) -> dict[Path, Any]:
    """fc6 and fc7 of a detector on VGG, which flattens channels first as torchvision does, where they fit."""
    found: dict[Path, Any] = {}
    for place, ours in itertools.product(DETECTOR_HEADS, ("fc6", "fc7")):
        for field, theirs in (("kernel", "weight"), ("bias", "bias")):
            target = flat.get(("params", *place, ours, field))
            array = state.get(f"{CLASSIFIER[ours]}.{theirs}")
            if target is not None and array is not None and array.T.shape == target.shape:
                found["params", *place, ours, field] = jnp.asarray(array.T, target.dtype)
    return found


def load_encoder(path: str | pathlib.Path, variables: Mapping[str, Any]) -> dict[str, Any]:
    """`variables` of a model on VGG with the encoder's weights from a file; the rest of them as they are.

    The file is torchvision's state_dict (`.pth`, `.safetensors`), or an `.npz` of Caffe's convolutions by the keys
    `block1_conv1/kernel_OIHW` and `block1_conv1/bias`. fc6 and fc7 load too where the file has them and the model's
    fc6 sees 7x7 positions (FCN, and R-CNN's kin). A file without batch norm fills the convolutions of a model with it,
    and the norms stay. What lies deeper than a VGG that is cut short (style transfer's, at relu4_1) is left out.
    Raises WeightsMismatch, with the names, where an entry is missing, unexpected or misshapen; ValueError and
    UnsafePickle as `read_weights`.
    """
    state = read_weights(path)
    if any("/kernel_OIHW" in name for name in state):
        state = _from_caffe(state)
    flat = dict(traverse_util.flatten_dict(dict(variables)))
    batch_norm = any(name.endswith("running_mean") for name in state)
    names = dict(vgg_names(flat, batch_norm=batch_norm))
    state = unwrapped(state, names, str(path))
    fc6 = flat.get(("params", "fc6", "kernel"))
    with_head = fc6 is not None and fc6.shape[:-2] in ((7, 7), ()) and "classifier.0.weight" in state
    heads = ("classifier.0", "classifier.3") if with_head else ()  # classifier.6 scores ImageNet's classes
    names = {n: p for n, p in names.items() if n.startswith(("features", *heads))}
    flat |= _detector_head(flat, state)
    state = {n: a for n, a in state.items() if not n.startswith("classifier") or n.startswith(heads or "-")}
    last = max(int(n.split(".")[1]) for n in names if n.startswith("features"))
    state = {n: a for n, a in state.items() if not n.startswith("features") or int(n.split(".")[1]) <= last}
    if batch_norm and not any(path[-2].startswith("bn1_1") for path in flat):
        raise WeightsMismatch(f"{path} has batch norm and this VGG has none")
    _fill(flat, names, state, str(path))
    return traverse_util.unflatten_dict(flat)
