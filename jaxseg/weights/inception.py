"""Inception-v3's published files: torchvision's, and pytorch-fid's of the network that FID is measured with."""

import pathlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from jaxseg.backbones.inception_v3 import InceptionV3
from jaxseg.weights.files import read_weights
from jaxseg.weights.vgg import BATCH_NORM
from jaxseg.weights.wrapped import WeightsMismatch, bare_entries

__all__ = ["LoadedInception", "from_inception", "load_inception"]

FID_CLASSES = 1008  # of the network of 2015; torchvision's has ImageNet's 1000
FIELDS = BATCH_NORM | {("params", "kernel"): "weight"}


class LoadedInception(NamedTuple):
    """The model that a file is of, and its variables."""

    model: InceptionV3
    variables: dict[str, Any]


def from_inception(state: Mapping[str, np.ndarray], *, where: str = "the state_dict") -> LoadedInception:
    """The Inception-v3 of a state_dict, torchvision's or pytorch-fid's, which the number of classes tells apart.

    The auxiliary classifier is left out. Raises WeightsMismatch with the names of what is missing, unexpected or
    misshapen.
    """
    state = bare_entries(state)
    if "fc.weight" not in state:
        raise WeightsMismatch(f"{where} is no Inception-v3's: it has no fc.weight")
    classes = len(state["fc.weight"])
    model = InceptionV3(num_classes=classes, fid=classes == FID_CLASSES)
    image = jax.ShapeDtypeStruct((1, 299, 299, 3), jnp.float32)
    shapes = jax.eval_shape(lambda k, x: model.init(k, x, train=False), jax.random.key(0), image)
    flat = traverse_util.flatten_dict(dict(shapes))
    names = {".".join((*path[1:-1], FIELDS[path[0], path[-1]])): path for path in flat}
    given = {name: array for name, array in state.items() if not name.startswith("AuxLogits.")}
    filled, misshapen = {}, []
    for name in sorted(names.keys() & given.keys()):
        array = np.asarray(given[name], np.float32)
        array = array.transpose(2, 3, 1, 0) if array.ndim == 4 else array.T
        if array.shape == flat[names[name]].shape:
            filled[names[name]] = jnp.asarray(array)
        else:
            misshapen.append(f"{name} {tuple(given[name].shape)} for {flat[names[name]].shape}")
    problems = {
        "missing": sorted(names.keys() - given.keys()),
        "unexpected": sorted(given.keys() - names.keys()),
        "misshapen": misshapen,
    }
    if any(problems.values()):
        lists = "; ".join(f"{what}: {', '.join(which)}" for what, which in problems.items() if which)
        raise WeightsMismatch(f"{where} is not Inception-v3's: {lists}")
    return LoadedInception(model, traverse_util.unflatten_dict(filled))


def load_inception(path: str | pathlib.Path) -> LoadedInception:
    """The Inception-v3 of a file: pytorch-fid's `pt_inception-2015-12-05-*.pth`, or torchvision's.

    Raises FileNotFoundError that says where both are published; WeightsMismatch as `from_inception`.
    """
    path = pathlib.Path(path)
    if not path.is_file():
        raise FileNotFoundError(
            f"{path}: no such file. FID and the Inception score are measured with the network in pytorch-fid's "
            "pt_inception-2015-12-05-6726825d.pth (github.com/mseitzer/pytorch-fid, releases); torchvision's "
            "inception_v3_google-0cc3c7bd.pth will do for comparisons of one's own. The sliced Wasserstein distance "
            "needs neither"
        )
    return from_inception(read_weights(path), where=str(path))
