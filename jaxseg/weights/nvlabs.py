"""The variables in NVlabs' StyleGAN `.pkl` files, read without TensorFlow and without running anything of them.

Such a pickle holds networks as objects whose state carries Python source to rebuild them. This reader makes
stand-ins of its own for every class, runs no source, and takes the names and the arrays.
"""

import io
import math
import pathlib
import re
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import numpy as np

from jaxseg.models.progan import GrowingDiscriminator
from jaxseg.models.stylegan import StyleGANGenerator
from jaxseg.weights.files import warn_not_finite
from jaxseg.weights.genforce import from_genforce, to_genforce
from jaxseg.weights.unpickle import Name, PlainUnpickler, UnsafePickle, sizes
from jaxseg.weights.wrapped import WeightsMismatch

__all__ = ["from_nvlabs", "read_nvlabs", "to_nvlabs"]


GENERATOR = {"constant_input": True, "noise": True}  # of the published configuration, F


class _Object:
    """An object of a class of numpy or dnnlib, as much of it as is read."""

    def set_state(self, reader: "_Unpickler", state: Any) -> None:
        raise UnsafePickle("it sets the state of a class")


class _Network(_Object):
    """A network: `state["variables"]` are its names and arrays."""

    state: Any = None

    def set_state(self, reader: "_Unpickler", state: Any) -> None:
        self.state = state


class _Dict(dict):
    """dnnlib's dict with attributes."""


class _Dtype(_Object):
    """A NumPy dtype, of numbers only."""

    def __init__(self, name: str):
        if not re.fullmatch(r"[fiub][1248]", name):
            raise UnsafePickle(f"it holds an array of dtype {name[:20]}")
        self.numpy = np.dtype(name)

    def set_state(self, reader: "_Unpickler", state: Any) -> None:
        if state[1] in (">", b">"):
            self.numpy = self.numpy.newbyteorder(">")


class _Array(_Object):
    """A NumPy array, read from its bytes."""

    array = np.zeros(0)

    def set_state(self, reader: "_Unpickler", state: Any) -> None:
        _, shape, dtype, fortran, raw = state
        if not isinstance(dtype, _Dtype):
            raise UnsafePickle("it holds an array without a dtype")
        flat, shape = np.frombuffer(_encode(reader, raw), dtype.numpy), sizes(shape)
        if flat.size != math.prod(shape):
            raise ValueError(f"an array of shape {shape[:8]} has {flat.size} elements")
        self.array = flat.reshape(shape, order="F" if fortran else "C")


def _dtype(reader: "_Unpickler", name: Any, *rest: Any) -> _Dtype:
    return _Dtype(_encode(reader, name).decode())


def _reconstruct(reader: "_Unpickler", kind: Any, shape: Any, code: Any) -> _Array:
    return _Array()


def _scalar(reader: "_Unpickler", dtype: Any, raw: Any = b"") -> Any:
    if not isinstance(dtype, _Dtype):
        raise UnsafePickle("it holds a number without a dtype")
    return np.frombuffer(_encode(reader, raw), dtype.numpy)[0]


def _new(reader: "_Unpickler", kind: Any = None, *rest: Any) -> Any:
    if kind not in _CLASSES:
        raise UnsafePickle("it makes an object of an unknown class")
    return kind.value(reader)


def _encode(reader: "_Unpickler", text: Any, encoding: str = "latin1") -> bytes:
    """The bytes of what Python 2 called a string."""
    if isinstance(text, bytes):
        return text
    reader.take(len(text))
    return text.encode("latin1")


_ARRAY, _NETWORK, _EASY_DICT, _OBJECT = (
    Name(lambda reader, *_: _Array()),
    Name(lambda reader, *_: _Network()),
    Name(lambda reader, *_: _Dict()),
    Name(None),
)
_CLASSES = (_NETWORK, _EASY_DICT)
_NUMPY = {"_reconstruct": Name(_reconstruct), "scalar": Name(_scalar), "ndarray": _ARRAY, "dtype": Name(_dtype)}
_PLAIN = {
    ("collections", "OrderedDict"): Name(lambda reader: {}),
    ("copy_reg", "_reconstructor"): Name(_new),
    ("copyreg", "_reconstructor"): Name(_new),
    ("_codecs", "encode"): Name(_encode),
    ("__builtin__", "object"): _OBJECT,
    ("builtins", "object"): _OBJECT,
}


class _Unpickler(PlainUnpickler):
    OPCODES = PlainUnpickler.OPCODES | {"NEWOBJ"}

    def find_class(self, module: str, name: str) -> Name:
        if (module, name) in _PLAIN:
            return _PLAIN[module, name]
        if module.split(".")[0] == "numpy" and name in _NUMPY:
            return _NUMPY[name]
        if name in ("EasyDict", "Network"):
            return _EASY_DICT if name == "EasyDict" else _NETWORK
        return super().find_class(module, name)

    def build(self, made: Any, state: Any) -> None:
        if isinstance(made, _Object):
            made.set_state(self, state)
        elif not isinstance(made, dict):
            super().build(made, state)

    def make(self, kind: Any, arguments: Any) -> Any:
        return _new(self, kind)


def _networks(tree: Any) -> list[_Network]:
    """Those of a tuple or list, or of one that holds it alone."""
    parts = tree if isinstance(tree, tuple | list) else [tree]
    return [part for part in parts if isinstance(part, _Network)]


def _variables(reader: _Unpickler, network: _Network) -> dict[str, np.ndarray]:
    """A network's own variables and those of its components, whose names do not meet."""
    if not isinstance(network.state, dict):
        raise ValueError("a network has no state")
    found: dict[str, np.ndarray] = {}
    components = network.state.get("components", {})
    parts = [p for p in components.values() if isinstance(p, _Network)] if isinstance(components, dict) else []
    for state in (*(part.state for part in parts), network.state):
        reader.take(1)
        for name, value in state.get("variables", ()) if isinstance(state, dict) else ():
            reader.take(1)  # networks may share what they hold
            if not isinstance(name, str) or not isinstance(value, _Array | np.number | int | float):
                raise ValueError("a variable is no array, or has no name")
            found[name.removesuffix(":0")] = value.array if isinstance(value, _Array) else np.asarray(value)
    return found


def read_nvlabs(path: str | pathlib.Path) -> tuple[dict[str, np.ndarray], ...]:
    """Arrays by TensorFlow's names, of each network in the file: generator, discriminator, averaged generator.

    Names are as `4x4/Const/const`, `Dense0/weight`, `dlatent_avg`. Warns as `read_weights`. Raises `UnsafePickle`,
    having run nothing, for a file that asks for anything else, and ValueError for one that is not whole.
    """
    path = pathlib.Path(path)
    try:
        data = path.read_bytes()
        reader = _Unpickler(io.BytesIO(data), len(data), encoding="latin1")
        found = tuple(_variables(reader, network) for network in _networks(reader.load()))
    except UnsafePickle as error:
        raise UnsafePickle(f"{path} is not loaded: {error}, and only networks, numbers and arrays are read") from error
    except FileNotFoundError:
        raise
    except Exception as error:  # whatever a damaged pickle comes to
        raise ValueError(f"{path} is no whole file of NVlabs' networks: {error!r}") from error
    if not found:
        raise ValueError(f"{path} holds no network")
    warn_not_finite(path, {f"network {i}'s {name}": x for i, part in enumerate(found) for name, x in part.items()})
    return found


def _names(model: Any) -> dict[str, str]:
    """TensorFlow's names by genforce's, which tell the same story."""
    names: dict[str, str] = {}
    stages = model.resolution.bit_length() - 3

    def both(theirs: str, tf: str) -> None:
        names[f"{theirs}.weight"], names[f"{theirs}.bias"] = f"{tf}/weight", f"{tf}/bias"

    if isinstance(model, GrowingDiscriminator):
        for block in range(stages + 1):
            size = model.resolution >> block
            both(f"input{block}", f"FromRGB_lod{block}")
            if size > 4:
                both(f"layer{2 * block}", f"{size}x{size}/Conv0")
                both(f"layer{2 * block + 1}", f"{size}x{size}/Conv1_down")
        for i, layer in enumerate(("Conv", "Dense0", "Dense1")):
            both(f"layer{2 * stages + i}", f"4x4/{layer}")
        return names
    for n in range(model.layers):
        size, layer = 4 << n // 2, f"synthesis.layer{n}"
        kind = ("Const", "Conv")[n] if n < 2 else ("Conv0_up", "Conv1")[n % 2]
        both(layer, f"{size}x{size}/{kind}")
        both(f"{layer}.style", f"{size}x{size}/{kind}/StyleMod")
        names[f"{layer}.apply_noise.weight"] = f"{size}x{size}/{kind}/Noise/weight"
        names[f"{layer}.apply_noise.noise"] = f"noise{n}"
        if n % 2:
            both(f"synthesis.output{n // 2}", f"ToRGB_lod{stages - n // 2}")
    names["synthesis.layer0.const"] = "4x4/Const/const"
    del names["synthesis.layer0.weight"]
    for i in range(model.mapping_layers):
        both(f"mapping.dense{i}", f"Dense{i}")
    if model.num_classes:
        names["mapping.label_weight"] = "LabelConcat/weight"
    return names | {"truncation.w_avg": "dlatent_avg"}


def _turned(name: str, array: np.ndarray, to: tuple[int, int, int, int]) -> np.ndarray:
    """A weight with its axes in the other publisher's order; what is no kernel is the same in both."""
    if not name.endswith(".weight"):
        return array
    return array.transpose(to) if array.ndim == 4 else array.T


def _demand_stylegan(model: nn.Module) -> None:
    if not isinstance(model, StyleGANGenerator | GrowingDiscriminator):
        raise WeightsMismatch(f"NVlabs published StyleGAN's networks in this form, not {type(model).__name__}")
    wanted = {"blur": True, "pool_first": True} if isinstance(model, GrowingDiscriminator) else GENERATOR
    for field, value in wanted.items():
        if getattr(model, field) != value:
            raise WeightsMismatch(
                f"NVlabs' {type(model).__name__} has {field}={value}, this one {getattr(model, field)}; create it so"
            )


def from_nvlabs(variables: Mapping[str, np.ndarray], model: nn.Module) -> dict[str, Any]:
    """Variables of a StyleGAN network with the values of one of `read_nvlabs`' networks.

    Raises WeightsMismatch, by genforce's names, where something is missing or misshapen, and by TensorFlow's for
    layers that the model has not.
    """
    _demand_stylegan(model)
    names = _names(model)
    state = {
        name: _turned(name, np.asarray(variables[theirs], np.float32), (3, 2, 0, 1))
        for name, theirs in names.items()
        if theirs in variables
    }
    # of what is no layer's, the stage of growth, a model has no need
    layers = {name for name in variables if name.endswith(("/weight", "/bias"))}
    if state and (rest := sorted(layers.difference(names.values()))):
        raise WeightsMismatch(f"the network has layers that this {type(model).__name__} has not: {', '.join(rest)}")
    return from_genforce(state, model, where="the network")


def to_nvlabs(model: nn.Module, variables: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Arrays by TensorFlow's names and in its layouts."""
    _demand_stylegan(model)
    state = to_genforce(model, variables)
    return {
        theirs: np.ascontiguousarray(_turned(name, state[name], (2, 3, 1, 0))) for name, theirs in _names(model).items()
    }
