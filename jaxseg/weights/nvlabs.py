"""The variables in NVlabs' StyleGAN `.pkl` files, read without TensorFlow and without running anything of them.

Such a pickle holds networks as objects whose state carries Python source to rebuild them. This reader makes
stand-ins of its own for every class, runs no source, and takes the names and the arrays.
"""

import io
import pathlib
import pickle
import re
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import numpy as np

from jaxseg.models.progan import GrowingDiscriminator
from jaxseg.models.stylegan import StyleGANGenerator
from jaxseg.weights.genforce import from_genforce, to_genforce
from jaxseg.weights.pth import UnsafePickle
from jaxseg.weights.vgg import WeightsMismatch

__all__ = ["from_nvlabs", "read_nvlabs", "to_nvlabs"]


class _Standin:
    """What stands for an object of any class: its state is kept, and nothing is called."""

    def __new__(cls, *args: Any, **kwargs: Any) -> "_Standin":
        return object.__new__(cls)

    def __init__(self, *args: Any, **kwargs: Any):
        pass

    def __setstate__(self, state: Any) -> None:
        self.state = state


class _Network(_Standin):
    """A network: `state["variables"]` are its names and arrays."""


class _Dict(dict):
    """dnnlib's dict with attributes."""

    def __setstate__(self, state: Any) -> None:
        pass


class _Dtype(_Standin):
    """A NumPy dtype, of numbers only."""

    name = ""

    def __new__(cls, name: Any = "", *rest: Any) -> "_Dtype":
        made = object.__new__(cls)
        made.name = name.decode() if isinstance(name, bytes) else str(name)
        if not re.fullmatch(r"[fiub][1248]", made.name):
            raise UnsafePickle(f"it holds an array of dtype {made.name[:20]}")
        return made

    def __setstate__(self, state: Any) -> None:
        self.order = state[1].decode() if isinstance(state[1], bytes) else state[1]

    def numpy(self) -> np.dtype:
        big = getattr(self, "order", "<") == ">"
        return np.dtype(self.name).newbyteorder(">" if big else "<")


class _Array(_Standin):
    """A NumPy array, read from its bytes."""

    array = np.zeros(0)

    def __setstate__(self, state: Any) -> None:
        _, shape, dtype, fortran, raw = state
        if not isinstance(dtype, _Dtype):
            raise UnsafePickle("it holds an array without a dtype")
        raw = raw.encode("latin1") if isinstance(raw, str) else raw
        flat = np.frombuffer(raw, dtype.numpy())
        if flat.size != int(np.prod(shape, dtype=np.int64)):
            raise ValueError(f"an array of shape {shape} has {flat.size} elements")
        self.array = flat.reshape(shape, order="F" if fortran else "C")


def _reconstruct(kind: Any, shape: Any, code: Any) -> _Array:
    return _Array()


def _scalar(dtype: Any, raw: Any = b"") -> Any:
    if not isinstance(dtype, _Dtype):
        raise UnsafePickle("it holds a number without a dtype")
    return np.frombuffer(raw.encode("latin1") if isinstance(raw, str) else raw, dtype.numpy())[0]


def _new(kind: Any, base: Any = object, state: Any = None) -> Any:
    if not (isinstance(kind, type) and issubclass(kind, _Standin | _Dict)):
        raise UnsafePickle("it makes an object of an unknown class")
    return kind()


def _encode(text: str, encoding: str = "latin1") -> bytes:
    return text.encode("latin1")


_NUMPY = {"_reconstruct": _reconstruct, "scalar": _scalar, "ndarray": _Array, "dtype": _Dtype}
_PLAIN = {
    ("collections", "OrderedDict"): dict,
    ("copy_reg", "_reconstructor"): _new,
    ("copyreg", "_reconstructor"): _new,
    ("_codecs", "encode"): _encode,
    ("__builtin__", "object"): object,
    ("builtins", "object"): object,
}


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in _PLAIN:
            return _PLAIN[module, name]
        if module.split(".")[0] == "numpy" and name in _NUMPY:
            return _NUMPY[name]
        if name == "EasyDict":
            return _Dict
        if name == "Network":
            return _Network
        raise UnsafePickle(f"it asks for {module}.{name}")

    def persistent_load(self, pid: Any) -> Any:
        raise UnsafePickle(f"it asks for the persistent object {str(pid)[:80]}")


def _networks(tree: Any) -> list[_Network]:
    if isinstance(tree, _Network):
        return [tree]
    return [n for part in tree for n in _networks(part)] if isinstance(tree, tuple | list) else []


def _variables(network: _Network) -> dict[str, np.ndarray]:
    """A network's own variables and those of its components, whose names do not meet."""
    state = getattr(network, "state", None)
    if not isinstance(state, dict):
        raise ValueError("a network has no state")
    found: dict[str, np.ndarray] = {}
    components = state.get("components", {})
    for part in components.values() if isinstance(components, dict) else ():
        found |= _variables(part) if isinstance(part, _Network) else {}
    for name, value in state.get("variables", ()):
        found[str(name).removesuffix(":0")] = value.array if isinstance(value, _Array) else np.asarray(value)
    return found


def read_nvlabs(path: str | pathlib.Path) -> tuple[dict[str, np.ndarray], ...]:
    """Arrays by TensorFlow's names, of each network in the file: generator, discriminator, averaged generator.

    Names are as `4x4/Const/const`, `Dense0/weight`, `dlatent_avg`. Raises `UnsafePickle`, having run nothing,
    for a file that asks for anything else, and ValueError for one that is not whole.
    """
    path = pathlib.Path(path)
    try:
        networks = _networks(_Unpickler(io.BytesIO(path.read_bytes()), encoding="latin1").load())
        found = tuple(_variables(network) for network in networks)
    except UnsafePickle as error:
        raise UnsafePickle(f"{path} is not loaded: {error}, and only networks, numbers and arrays are read") from error
    except FileNotFoundError:
        raise
    except Exception as error:  # whatever a damaged pickle comes to
        raise ValueError(f"{path} is no whole file of NVlabs' networks: {error!r}") from error
    if not found:
        raise ValueError(f"{path} holds no network")
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


def from_nvlabs(variables: Mapping[str, np.ndarray], model: nn.Module) -> dict[str, Any]:
    """Variables of a StyleGAN network with the values of one of `read_nvlabs`' networks.

    Raises WeightsMismatch, by genforce's names, where something is missing or misshapen.
    """
    _demand_stylegan(model)
    state = {
        name: _turned(name, np.asarray(variables[theirs], np.float32), (3, 2, 0, 1))
        for name, theirs in _names(model).items()
        if theirs in variables
    }
    return from_genforce(state, model, where="the network")


def to_nvlabs(model: nn.Module, variables: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Arrays by TensorFlow's names and in its layouts."""
    _demand_stylegan(model)
    state = to_genforce(model, variables)
    return {
        theirs: np.ascontiguousarray(_turned(name, state[name], (2, 3, 1, 0))) for name, theirs in _names(model).items()
    }
