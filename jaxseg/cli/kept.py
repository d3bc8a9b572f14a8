"""What a start of `jaxseg predict` has compiled, kept for the next with the entries of the file that it takes.

JAX finds a compiled program by what a model traces to, and a trace takes a second. What lies here, in a folder within
JAX's, is found by a hash of all that the trace comes from: this package's sources, JAX with its settings, the device,
the words of the command, names and shapes in the file. Like JAX's own cache it is code, and only as safe as its folder.
"""

import concurrent.futures
import contextlib
import functools
import hashlib
import importlib.metadata
import json
import math
import os
import pathlib
import platform
import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jaxlib
import numpy as np
from jax.experimental import serialize_executable
from jaxtyping import Array, PyTree

__all__ = ["Kept", "compiled_for", "find", "keep", "programs_folder", "question"]

MOST = 64  # programs that are kept; of more the oldest go


class Kept(NamedTuple):
    """The logits of images, as a compiled program with its weights, and what else was kept with it."""

    logits: Callable[[Any], Array]
    about: Mapping[str, Any]


def programs_folder() -> pathlib.Path | None:
    """Where programs are kept; None where JAX keeps none, or not in a folder."""
    cache = jax.config.values["jax_compilation_cache_dir"]
    if not cache or "://" in cache or not jax.config.values["jax_enable_compilation_cache"]:
        return None
    return pathlib.Path(cache) / "jaxseg"


def _processor() -> str:
    """What a program compiled for this processor may use."""
    with contextlib.suppress(OSError), open("/proc/cpuinfo") as file:
        for line in file:
            if line.startswith(("flags", "Features")):
                return line
    return f"{platform.machine()} {platform.processor()}"


def question(asked: Mapping[str, Any], shapes: Mapping[str, tuple[tuple[int, ...], str]]) -> str:
    """The name of what is kept for `asked` of a file whose arrays have those shapes and types."""
    root = pathlib.Path(__file__).parents[1]
    hashed = hashlib.sha256()
    for path in sorted(root.rglob("*.py")):
        hashed.update(f"{path.relative_to(root)}\n".encode() + path.read_bytes())
    device = jax.devices()[0]
    versions = jax.__version__, jaxlib.__version__, importlib.metadata.version("flax"), device.client.platform_version
    flags = [os.environ.get(name) for name in ("XLA_FLAGS", "LIBTPU_INIT_ARGS")]
    machine = device.platform, device.device_kind, _processor(), flags
    hashed.update(repr((versions, machine, sorted(jax.config.values.items()))).encode())
    hashed.update(repr((sorted(asked.items()), sorted(shapes.items()))).encode())
    return hashed.hexdigest()


def find(name: str, read: Callable[[], Mapping[str, np.ndarray]]) -> Kept | None:
    """What is kept under that name, with the arrays that `read` gives; None where nothing is, or not the whole of it.

    Raises what `read` does.
    """
    folder = programs_folder()
    if folder is None:
        return None
    try:
        header, _, data = zlib.decompress((folder / name).read_bytes()).partition(b"\n")  # a checksum is in it
        os.utime(folder / name)
    except (OSError, zlib.error):
        return None
    told = json.loads(header)
    with concurrent.futures.ThreadPoolExecutor(1) as pool:  # the one reads a program while the other reads arrays
        loading = pool.submit(_load, data, len(told["entries"]))
        arrays = _in_order(read(), told["entries"])
        try:
            return Kept(functools.partial(loading.result(), arrays), told["about"])
        except jax.errors.JaxRuntimeError:  # it was compiled for something else than this machine, after all
            return None


def _in_order(state: Mapping[str, np.ndarray], entries: Sequence[Sequence[Any]]) -> list[Array]:
    """The arrays that a program takes, in one block at places where XLA on a CPU reads them without another copy."""
    step = 64  # bytes, XLA's alignment
    room = [-(-state[name].size * np.dtype(dtype).itemsize // step) * step for name, _, dtype in entries]
    block = np.empty(sum(room) + step, np.uint8)
    at = -block.ctypes.data % step
    arrays = []
    for (name, axes, dtype), size in zip(entries, room, strict=True):
        array = state[name].transpose(axes)
        here = block[at : at + array.size * np.dtype(dtype).itemsize].view(dtype).reshape(array.shape)
        here[...] = array
        arrays.append(jax.device_put(here))
        at += size
    return arrays


def _load(data: bytes, arrays: int) -> jax.stages.Compiled:
    structure = jax.tree.structure((([0] * arrays, 0), {}))
    device = jax.devices()[0]
    return serialize_executable.deserialize_and_load(
        data, structure, jax.tree.structure(0), device.client, execution_devices=[device]
    )


def compiled_for(
    apply: Callable[[PyTree, Array], Array], variables: PyTree, images: Sequence[int]
) -> jax.stages.Compiled:
    """`apply`, of (variables, images), as a compiled program of (the variables' arrays, images of that shape).

    JAX's own cache does not get it: XLA cannot write a CPU program again that it has read, and what is written of one
    is found to lack functions when it runs. Nobody else's program has the name of this one.
    """
    leaves, structure = jax.tree.flatten(variables)

    def jaxseg_predict(arrays: Sequence[Array], images: Array) -> Array:
        return apply(jax.tree.unflatten(structure, arrays), images)

    lowered = jax.jit(jaxseg_predict).lower(leaves, jax.ShapeDtypeStruct(images, np.uint8))
    least = "jax_persistent_cache_min_compile_time_secs"
    before = jax.config.values[least]
    jax.config.update(least, math.inf)
    try:
        return lowered.compile()
    finally:
        jax.config.update(least, before)


def keep(
    name: str,
    program: jax.stages.Compiled,
    variables: PyTree,
    entries: Mapping[tuple[str, ...], tuple[str, tuple[int, ...]]],
    about: Mapping[str, Any],
) -> None:
    """Writes `compiled_for`'s program for the next start, if there is where to.

    `entries` has of each variable's path the name in the file, and the axes there in the variable's order. `about` is
    anything that JSON holds.
    """
    folder = programs_folder()
    if folder is None:
        return
    named = [(tuple(key.key for key in path), x) for path, x in jax.tree.leaves_with_path(variables)]
    data, _, _ = serialize_executable.serialize(program)
    told = {
        "entries": [(*entries[path], str(x.dtype)) for path, x in named],
        "about": dict(about),
    }
    staged = folder / f"{name}.{os.getpid()}.tmp"
    with contextlib.suppress(OSError):  # of a folder that cannot be written JAX warns, for its own programs
        folder.mkdir(parents=True, exist_ok=True)
        staged.write_bytes(zlib.compress(json.dumps(told).encode() + b"\n" + data, 1))
        os.replace(staged, folder / name)
        for old in sorted(folder.iterdir(), key=lambda path: path.stat().st_mtime)[:-MOST]:
            old.unlink()
