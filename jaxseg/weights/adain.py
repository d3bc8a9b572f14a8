"""pytorch-AdaIN's `vgg_normalised.pth` and `decoder.pth` to an `AdaINTransfer`'s variables, and back.

Both are state_dicts of a flat Sequential: a reflection padding, a convolution and a ReLU at a time, with a
pooling (or an upsampling) between stages; so the place of a convolution follows from the depths.
"""

import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util
from jaxtyping import Array, Float

from jaxseg.models.adain_transfer import AdaINTransfer
from jaxseg.weights.files import read_weights
from jaxseg.weights.vgg import load_encoder
from jaxseg.weights.wrapped import WeightsMismatch, bare_entries

__all__ = ["from_pytorch_adain", "load_adain_transfer", "normalize_encoder", "to_pytorch_adain"]

Path = tuple[str, ...]


def _places(flat: Mapping[Path, Any], part: str) -> Iterator[tuple[str, Path]]:
    """The port's names and our paths of the encoder's or the decoder's convolutions."""
    convs = {path[2] for path in flat if path[:2] == ("params", part) and path[2] != "conv0"}
    order = sorted((tuple(map(int, name.removeprefix("conv").split("_"))) for name in convs), reverse=part == "decoder")
    position, stage_before = (0, order[0][0])
    if part == "encoder":
        yield "0", ("params", part, "conv0")
        position = 1
    for stage, i in order:
        position += stage != stage_before  # a pooling or an upsampling
        stage_before = stage
        yield str(position + 1), ("params", part, f"conv{stage}_{i}")
        position += 3


def _deepest(names: Mapping[str, Path]) -> int:
    return max(int(name.split(".")[0]) for name in names)


def from_pytorch_adain(
    state: Mapping[str, np.ndarray], variables: Mapping[str, Any], part: str, *, where: str = "the state_dict"
) -> dict[str, Any]:
    """`variables` with the `part` ("encoder" or "decoder") from the port's state_dict, the rest as it is.

    What lies deeper than relu4_1 in the encoder's file is left out. Raises WeightsMismatch with the names of
    what is missing, unexpected or misshapen.
    """
    flat, state = dict(traverse_util.flatten_dict(dict(variables))), bare_entries(state)
    names = {
        f"{place}.{theirs}": (*path, ours)
        for place, path in _places(flat, part)
        for ours, theirs in (("kernel", "weight"), ("bias", "bias"))
    }
    if part == "encoder":
        last = _deepest(names)
        state = {n: a for n, a in state.items() if not n.split(".")[0].isdigit() or int(n.split(".")[0]) <= last}
    misshapen = []
    for name in names.keys() & state.keys():
        array = np.asarray(state[name])
        array = array.transpose(2, 3, 1, 0) if array.ndim == 4 else array
        target = flat[names[name]]
        if array.shape == target.shape:
            flat[names[name]] = jnp.asarray(array, jnp.float32)
        else:
            misshapen.append(f"{name} {tuple(state[name].shape)} for {'/'.join(names[name])} {tuple(target.shape)}")
    problems = {
        "missing": sorted(names.keys() - state.keys()),
        "unexpected": sorted(state.keys() - names.keys()),
        "misshapen": sorted(misshapen),
    }
    if any(problems.values()):
        lists = "; ".join(f"{what}: {', '.join(which)}" for what, which in problems.items() if which)
        raise WeightsMismatch(f"{where} is not pytorch-AdaIN's {part}: {lists}")
    return traverse_util.unflatten_dict(flat)


def to_pytorch_adain(variables: Mapping[str, Any], part: str) -> dict[str, np.ndarray]:
    """The port's state_dict of the `part`, as far as relu4_1."""
    flat = traverse_util.flatten_dict(dict(variables))
    state = {}
    for place, path in _places(flat, part):
        kernel = np.asarray(flat[(*path, "kernel")])
        state[f"{place}.weight"] = np.ascontiguousarray(kernel.transpose(3, 2, 0, 1))
        state[f"{place}.bias"] = np.asarray(flat[(*path, "bias")])
    return state


def load_adain_transfer(
    model: nn.Module,
    *,
    encoder: str | pathlib.Path | None = None,
    decoder: str | pathlib.Path | None = None,
    variables: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Variables of an `AdaINTransfer` with an encoder and a decoder from files; without one it stays as it was.

    `encoder` is pytorch-AdaIN's `vgg_normalised.pth`, torchvision's VGG-19 (or VGG-16, for a model with
    `vgg16_relu4_1`), or Caffe's convolutions in an `.npz`. `decoder` is pytorch-AdaIN's `decoder.pth`.
    `variables` default to zeros but for the standardisation in `conv0`. Raises as `read_weights` and
    `load_encoder`.
    """
    if not isinstance(model, AdaINTransfer):
        raise WeightsMismatch(f"load_adain_transfer fills an AdaINTransfer, not a {type(model).__name__}")
    if variables is None:
        image = jnp.zeros((1, 16, 16, 3))
        shapes = jax.eval_shape(lambda k: model.init(k, image, image, train=False), jax.random.key(0))
        variables = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
        fresh = model.vgg(depths=(1,), features=(1,)).init(jax.random.key(0), image, train=False)
        variables["params"]["encoder"]["conv0"] = fresh["params"]["conv0"]
    if encoder is not None:
        state = bare_entries(read_weights(encoder))
        if "0.weight" in state:
            variables = from_pytorch_adain(state, variables, "encoder", where=str(encoder))
        else:
            variables = load_encoder(encoder, variables)
    if decoder is not None:
        variables = from_pytorch_adain(read_weights(decoder), variables, "decoder", where=str(decoder))
    return dict(variables)


def normalize_encoder(
    model: nn.Module, variables: Mapping[str, Any], images: Float[Array, "n h w 3"]
) -> dict[str, Any]:
    """`variables` with each layer of the encoder scaled to a mean activation of one over `images` in [0, 1].

    ImageNet's activations grow to hundreds with depth, and the losses with their squares. A ReLU network that
    is scaled layer by layer computes the same but for those scales. `vgg_normalised.pth` is scaled filter by
    filter (Gatys et al. 2016, section 2), for which a few images do not do: a filter that they hardly excite
    would outweigh the rest.
    """
    features = jax.jit(lambda v, x: model.apply(v, x, method="encode"))(variables, images)
    encoder = dict(variables["params"]["encoder"])
    before = jnp.ones(())
    for _, (_, _, name) in list(_places(traverse_util.flatten_dict(dict(variables)), "encoder"))[1:]:
        mean = features[name.replace("conv", "relu")].mean()
        scale = jnp.where(mean > 0, mean, 1)
        kernel, bias = encoder[name]["kernel"], encoder[name]["bias"]
        encoder[name] = {"kernel": kernel * before / scale, "bias": bias / scale}
        before = scale
    return {**variables, "params": {**variables["params"], "encoder": encoder}}
