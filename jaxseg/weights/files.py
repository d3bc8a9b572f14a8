"""A file of weights, of any format that is safe to read, to a flat dict of arrays."""

import math
import pathlib
import warnings
import zipfile
from collections.abc import Mapping

import jax.numpy as jnp
import numpy as np

from jaxseg.weights.pth import read_pth
from jaxseg.weights.wrapped import averaged

__all__ = ["DESCRIPTIONS", "of_run", "read_weights", "warn_not_finite", "weights_file", "weights_header"]

WEIGHTS = ("model.safetensors", "pytorch_model.bin")  # in a folder of weights
DESCRIPTIONS = ("model.json", "config.json")  # beside them


# An archive of weights may expand as far, and to so many bytes in any case; deflate's bombs do a thousandfold
RATIO = 32
FREE = 2**26


def _read_safetensors(path: pathlib.Path) -> dict[str, np.ndarray]:
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    try:
        return load_file(path)
    except (SafetensorError, ValueError) as error:  # ValueError is NumPy's, for a shape that it refuses
        raise ValueError(f"{path} is no whole .safetensors file: {error}") from error
    except (AttributeError, KeyError) as error:  # its name in NumPy, which has none
        raise ValueError(
            f"{path} has arrays of a type that NumPy does not have ({error}); save it as float32"
        ) from error


def _check_npz_sizes(path: pathlib.Path) -> None:
    """Raises ValueError where an array claims more than its entry can hold: NumPy allocates before it reads."""
    with zipfile.ZipFile(path) as archive:
        entries, held = archive.infolist(), path.stat().st_size
        if sum(info.compress_size for info in entries) > held:
            raise ValueError("its entries overlap")
        if (total := sum(info.file_size for info in entries)) > max(RATIO * held, FREE):
            raise ValueError(f"its {held} bytes expand to {total}")
        for info in entries:
            with archive.open(info) as entry:
                version = np.lib.format.read_magic(entry)
                read_header = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
                if version not in read_header:
                    raise ValueError(f"{info.filename} has the unknown version {version}")
                shape, _, dtype = read_header[version](entry)
            claimed = math.prod(shape) * dtype.itemsize
            if claimed > info.file_size:
                raise ValueError(f"{info.filename} claims {claimed} bytes in an entry of {info.file_size}")


def _read_npz(path: pathlib.Path) -> dict[str, np.ndarray]:
    try:
        _check_npz_sizes(path)
        with np.load(path, allow_pickle=False) as arrays:
            return dict(arrays)
    except FileNotFoundError:
        raise
    except Exception as error:  # whatever a damaged header, archive or stream comes to
        raise ValueError(f"{path} is no whole .npz file: {error}") from error


def _holds_arrays(tree: dict) -> bool:
    return all(isinstance(name, str) and isinstance(value, np.ndarray) for name, value in tree.items())


def _networks(tree: dict) -> dict[str, dict[str, np.ndarray]]:
    return {name: part for name, part in tree.items() if isinstance(part, dict) and part and _holds_arrays(part)}


def _inside(tree: dict) -> dict | None:
    """What a training checkpoint wraps: the average of the weights, where it is as whole as they are, or they."""
    plain = [tree[key] for key in ("state_dict", "model", "models", "params") if isinstance(tree.get(key), dict)]
    networks = _networks(tree)
    copies = [networks[key] for key in averaged(map(str, tree)) if key in networks]
    whole = [copy for copy in copies if not plain or len(copy) >= len(plain[0])]
    return next(iter([*whole, *plain]), None)


def _read_state_dict(path: pathlib.Path) -> dict[str, np.ndarray]:
    tree = read_pth(path)
    while isinstance(tree, dict) and (inside := _inside(tree)) is not None:
        tree = inside
    if not isinstance(tree, dict):
        tree = {}
    if networks := _networks(tree):
        if sum(map(len, networks.values())) > path.stat().st_size:
            raise ValueError(f"{path} holds one network under {len(networks)} names: it repeats itself beyond its size")
        tree = {f"{network}.{name}": array for network, part in networks.items() for name, array in part.items()}
    if not tree or not _holds_arrays(tree):
        raise ValueError(f"{path} holds no state_dict: names with one tensor each")
    return tree


def warn_not_finite(path: pathlib.Path, state: Mapping[str, np.ndarray]) -> None:
    """Warns, with the first one's name, where arrays of a file hold NaN or infinite values."""
    bad = []
    room = max(RATIO * path.stat().st_size, FREE)  # views may repeat what the file holds, however often
    for name, array in state.items():
        room -= array.nbytes
        if room < 0:
            break
        if jnp.issubdtype(array.dtype, jnp.inexact) and not np.isfinite(array).all():
            bad.append(name)
    if bad:
        count, size = np.count_nonzero(~np.isfinite(state[bad[0]])), state[bad[0]].size
        more = f", and so {'does' if len(bad) == 2 else 'do'} {len(bad) - 1} more" if len(bad) > 1 else ""
        warnings.warn(
            f"{path}: {bad[0]} holds NaN or infinite values, {count} of {size}{more}; a run that diverged leaves "
            "such a file: outputs will not be finite, take an earlier checkpoint",
            stacklevel=3,
        )


READERS = {
    ".pth": _read_state_dict,
    ".pt": _read_state_dict,
    ".bin": _read_state_dict,
    ".ckpt": _read_state_dict,  # Lightning's
    ".tar": _read_state_dict,  # `.pth.tar`, as PyTorch's examples write, which is none
    ".safetensors": _read_safetensors,
    ".npz": _read_npz,
}


def read_weights(path: str | pathlib.Path) -> dict[str, np.ndarray]:
    """Arrays by name, from `.pth`, `.pt`, `.bin`, `.ckpt` or `.pth.tar` (read without PyTorch), `.safetensors`, `.npz`.

    Of a checkpoint with several networks each one's name comes first: `generator.` and `discriminator.`; of weights
    and their average, `model` and `model_ema`, it is the average. Warns, with the first one's name, of arrays that
    are not finite.

    Raises ValueError for another suffix, or a file that is not whole or expands beyond reason; `UnsafePickle` as
    `read_pth`; OSError for one that is not there.
    """
    path = pathlib.Path(path)
    if not path.exists():  # before its suffix: a run's folder, misspelt, has none
        raise FileNotFoundError(f"{path}: no such file or folder")
    if path.suffix not in READERS:
        networks = "; NVlabs' networks are jaxseg.weights.read_nvlabs' to read" if path.suffix == ".pkl" else ""
        raise ValueError(
            f"{path}: weights come as {', '.join(READERS)}, not {path.suffix or 'without suffix'}{networks}"
        )
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a folder, not a file of weights")
    state = READERS[path.suffix](path)
    warn_not_finite(path, state)
    return state


def weights_header(path: pathlib.Path) -> dict[str, tuple[tuple[int, ...], str]] | None:
    """Shape and type of each array that `read_weights` gives, by the header alone of a `.safetensors` file.

    None for a file that it refuses, which has not said yet why.
    """
    from safetensors import SafetensorError, safe_open

    try:
        if path.suffix != ".safetensors":
            return {name: (array.shape, str(array.dtype)) for name, array in READERS[path.suffix](path).items()}
        with safe_open(path, framework="numpy") as file:
            parts = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118 (it is no mapping)
            return {name: (tuple(part.get_shape()), part.get_dtype()) for name, part in parts.items()}
    except (SafetensorError, KeyError, ValueError, OSError):
        return None


def weights_file(folder: pathlib.Path) -> pathlib.Path:
    """The file of weights in a folder; FileNotFoundError where there is none."""
    for name in WEIGHTS:
        if (folder / name).is_file():
            return folder / name
    raise FileNotFoundError(f"{folder} holds no weights: neither {' nor '.join(WEIGHTS)}{of_run(folder)}")


def of_run(folder: pathlib.Path) -> str:
    """What to do with the folder of a run where one of weights was asked for."""
    found = (folder / "checkpoints").is_dir()
    return "; it is a run's: jaxseg.load_run opens it, and `jaxseg convert` makes such a folder of it" if found else ""
