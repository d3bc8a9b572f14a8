"""PyTorch's files without PyTorch, and without running what a pickle asks for.

`torch.save` writes a zip of one pickle and one file per storage, or, before 1.6, pickles one after the other
and then the storages. A pickle is a program: this reader runs none of it but tensors and plain containers.
"""

import collections
import io
import math
import mmap
import pathlib
import sys
import zipfile
from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np

from jaxseg.weights.unpickle import Name, PlainUnpickler, UnsafePickle, is_key, sizes

__all__ = ["UnsafePickle", "read_pth"]

LEGACY_MAGIC = 0x1950A86A20F9469CFC6C

DTYPES = {
    "bool": np.dtype(np.bool_),
    "uint8": np.dtype(np.uint8),
    "uint16": np.dtype(np.uint16),
    "uint32": np.dtype(np.uint32),
    "uint64": np.dtype(np.uint64),
    "int8": np.dtype(np.int8),
    "int16": np.dtype(np.int16),
    "int32": np.dtype(np.int32),
    "int64": np.dtype(np.int64),
    "float16": np.dtype(np.float16),
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
    "float32": np.dtype(np.float32),
    "float64": np.dtype(np.float64),
    "float8_e4m3fn": np.dtype(ml_dtypes.float8_e4m3fn),
    "float8_e4m3fnuz": np.dtype(ml_dtypes.float8_e4m3fnuz),
    "float8_e5m2": np.dtype(ml_dtypes.float8_e5m2),
    "float8_e5m2fnuz": np.dtype(ml_dtypes.float8_e5m2fnuz),
    "complex64": np.dtype(np.complex64),
    "complex128": np.dtype(np.complex128),
}
STORAGES = {
    "BoolStorage": "bool",
    "ByteStorage": "uint8",
    "CharStorage": "int8",
    "ShortStorage": "int16",
    "IntStorage": "int32",
    "LongStorage": "int64",
    "HalfStorage": "float16",
    "BFloat16Storage": "bfloat16",
    "FloatStorage": "float32",
    "DoubleStorage": "float64",
    "ComplexFloatStorage": "complex64",
    "ComplexDoubleStorage": "complex128",
}
EXPANDED = 2**26  # bytes that a tensor may have beyond its storage, by strides of 0


class _Dtype(Name):
    """value: NumPy dtype. Stands for torch.float32 and for torch.FloatStorage."""


class _Storage(Name):
    """value: (dtype, key, numel)."""


class _Tensor(Name):
    """value: (storage, dtype, offset, size, stride), the last three in elements."""


def _tensor(reader, storage, offset, size, stride, requires_grad=False, hooks=None, metadata=None, *, dtype=None):
    if not isinstance(storage, _Storage) or not isinstance(dtype, _Dtype | None) or metadata:
        raise UnsafePickle("it holds a tensor of an unknown kind")
    size, stride, (offset,) = sizes(size), sizes(stride), sizes((offset,))
    if len(size) != len(stride):
        raise ValueError(f"a tensor has the impossible size {size} with stride {stride}")
    return _Tensor((storage, dtype.value if dtype else storage.value[0], offset, size, stride))


def _tensor_v3(reader, storage, offset, size, stride, requires_grad, hooks, dtype, metadata=None):
    return _tensor(reader, storage, offset, size, stride, metadata=metadata, dtype=dtype)


def _parameter(reader, data, requires_grad=True, hooks=None):
    if not isinstance(data, _Tensor):
        raise UnsafePickle("it holds a parameter that is no tensor")
    return data


def _ordered(reader, items=()):
    """Python 2 wrote the items as an argument, `[[key, value], ...]`."""
    reader.take(len(items))
    if not all(isinstance(item, tuple | list) and len(item) == 2 and is_key(item[0]) for item in items):
        raise UnsafePickle("it holds a dict whose keys are neither strings nor numbers")
    return collections.OrderedDict(items)


GLOBALS: dict[tuple[str, str], Name] = {
    ("collections", "OrderedDict"): Name(_ordered),
    ("torch", "Size"): Name(lambda reader, size: sizes(size)),
    ("torch._utils", "_rebuild_tensor_v2"): Name(_tensor),
    ("torch._utils", "_rebuild_tensor_v3"): Name(_tensor_v3),
    ("torch._utils", "_rebuild_parameter"): Name(_parameter),
    ("torch.storage", "UntypedStorage"): _Dtype(np.dtype(np.uint8)),
    **{("torch", name): _Dtype(DTYPES[dtype]) for name, dtype in STORAGES.items()},
    **{("torch", name): _Dtype(dtype) for name, dtype in DTYPES.items()},
}


class _Unpickler(PlainUnpickler):
    """Reads a tree in which sealed objects stand for tensors, and notes the storages that these need."""

    def __init__(self, file: Any, size: int):
        super().__init__(file, size)  # Python 2's strings as torch.load takes them
        self.storages: dict[str, _Storage] = {}

    def find_class(self, module, name):
        return GLOBALS[module, name] if (module, name) in GLOBALS else super().find_class(module, name)

    def build(self, made, state):
        if not isinstance(made, collections.OrderedDict):  # whose state is a state_dict's _metadata: of no use
            super().build(made, state)

    def persistent_load(self, pid):
        fields = pid[:5] if isinstance(pid, tuple) and len(pid) >= 5 else (None,) * 5
        kind, dtype, key, _, numel = fields
        known = kind == "storage" and isinstance(dtype, _Dtype) and type(key) is str and type(numel) is int
        if not known or numel < 0:
            raise UnsafePickle("it asks for a persistent object that is no storage")
        if len(pid) > 6 or pid[5:] not in ((), (None,)):
            raise ValueError(f"storage {key[:20]} is a view, which only PyTorch before 0.4 wrote")
        storage = _Storage((dtype.value, key, numel))
        if self.storages.setdefault(key, storage).value != storage.value:
            raise ValueError(f"storage {key[:20]} has two sizes or dtypes")
        return storage


def _resolve(tree: Any, read: Callable[[str, int], memoryview], order: str, done: dict[int, Any]) -> Any:
    """`tree` with NumPy arrays in place of tensors."""
    if id(tree) in done:
        if done[id(tree)] is Name:
            raise ValueError("a container holds itself")
        return done[id(tree)]
    done[id(tree)] = Name  # until its parts are resolved
    result = tree
    if isinstance(tree, _Tensor):
        result = _array(tree, read, order)
    elif isinstance(tree, dict):
        result = {key: _resolve(value, read, order, done) for key, value in tree.items()}
    elif isinstance(tree, list | tuple):
        result = type(tree)([_resolve(value, read, order, done) for value in tree])
    elif not isinstance(tree, str | int | float | bool | bytes | None):
        raise UnsafePickle("it holds a function or a dtype")
    done[id(tree)] = result
    return result


def _array(tensor: _Tensor, read: Callable[[str, int], memoryview], order: str) -> np.ndarray:
    """A read-only view of a storage: allocates nothing, whatever the sizes claim."""
    storage, dtype, offset, size, stride = tensor.value
    stored, key, numel = storage.value
    count = numel * stored.itemsize // dtype.itemsize
    if 0 in size:
        return np.zeros(size, dtype)
    last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
    if last >= count:
        raise ValueError(f"a tensor of size {size} reaches element {last} of a storage of {count}")
    if math.prod(size) > count and math.prod(size) * dtype.itemsize > EXPANDED:  # somebody will want it whole
        raise ValueError(f"a tensor of size {size} repeats a storage of {count}")
    raw = np.frombuffer(read(key, numel * stored.itemsize), np.uint8, count * dtype.itemsize)
    if order != sys.byteorder and dtype.itemsize > 1:
        raw = raw.view(dtype).byteswap().view(np.uint8)
    strides = [step * dtype.itemsize for step in stride]
    array = np.ndarray(size, dtype, raw, offset * dtype.itemsize, strides)
    array.flags.writeable = False
    return array


def _read_zip(path: pathlib.Path) -> Any:
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
        pickles = [name for name in names if name.endswith("/data.pkl")]
        if len(pickles) != 1:
            raise ValueError("the archive holds no data.pkl")
        folder = pickles[0].removesuffix("data.pkl")
        if any(name.startswith(f"{folder}code/") for name in names):
            raise UnsafePickle("it is a TorchScript program")
        if any(info.compress_type != zipfile.ZIP_STORED for info in archive.infolist()):
            raise ValueError("the archive is compressed, which torch.save never does")
        held = path.stat().st_size
        for info in archive.infolist():  # zipfile allocates what an entry claims before it reads
            if max(info.file_size, info.compress_size) > held:
                raise ValueError(f"{info.filename} claims {info.file_size} bytes in a file of {held}")
        if sum(info.file_size for info in archive.infolist()) > held:
            raise ValueError("its entries overlap")
        order = archive.read(f"{folder}byteorder").decode() if f"{folder}byteorder" in names else "little"
        data = archive.read(pickles[0])
        storages: dict[str, bytes] = {}

        def read(key: str, size: int) -> memoryview:
            name = f"{folder}data/{key}"
            if name not in names:
                raise ValueError(f"storage {key} is missing")
            stored = archive.getinfo(name).file_size
            if stored < size:
                raise ValueError(f"storage {key} has {stored} bytes of {size}")
            if key not in storages:
                storages[key] = archive.read(name)
            return memoryview(storages[key])[:size]

        return _resolve(_Unpickler(io.BytesIO(data), len(data)).load(), read, order, {})


def _read_legacy(path: pathlib.Path) -> Any:
    with path.open("rb") as file:
        data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    if data[:1] != b"\x80" or _Unpickler(data, len(data)).load() != LEGACY_MAGIC:
        raise ValueError("it does not start with torch.save's magic number")
    _version, system = (_Unpickler(data, len(data)).load() for _ in range(2))
    reader = _Unpickler(data, len(data))
    tree = reader.load()
    keys = _Unpickler(data, len(data)).load()
    order = "little" if system["little_endian"] else "big"
    position = data.tell()
    places: dict[str, tuple[int, int]] = {}
    for key in keys:
        dtype, _, numel = reader.storages[key].value
        size = numel * dtype.itemsize
        stored = int.from_bytes(data[position : position + 8], order)  # type: ignore[arg-type]
        if stored != numel or position + 8 + size > len(data):
            raise ValueError(f"storage {key} of {numel} {dtype} is cut short")
        places[key] = (position + 8, size)
        position += 8 + size

    def read(key: str, size: int) -> memoryview:
        if key not in places:
            raise ValueError(f"storage {key} is missing")
        start = places[key][0]
        return memoryview(data)[start : start + size]

    return _resolve(tree, read, order, {})


def read_pth(path: str | pathlib.Path) -> Any:
    """What `torch.save` wrote: tensors as read-only NumPy arrays, in dicts, lists, tuples and scalars.

    Raises `UnsafePickle`, having run nothing, for a file that asks for anything else, and ValueError for a
    file that is truncated or contradicts itself. Both name the file.
    """
    path = pathlib.Path(path)
    with path.open("rb") as file:
        is_zip = file.read(2) == b"PK"
    try:
        return _read_zip(path) if is_zip else _read_legacy(path)
    except UnsafePickle as error:
        raise UnsafePickle(
            f"{path} is not loaded: {error}, and only tensors in dicts, lists and tuples, strings and "
            f"numbers are read; save `model.state_dict()` alone"
        ) from error
    except Exception as error:  # whatever a damaged pickle or archive comes to
        raise ValueError(f"{path} is no whole file of torch.save: {error!r}") from error
