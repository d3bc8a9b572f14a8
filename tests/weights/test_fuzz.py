"""Strangers' files, changed at random: each is read or refused with a ValueError, at once and in little memory.

JAXSEG_FUZZ=20000 python -m pytest tests/weights/test_fuzz.py     # as many examples as one has time for
"""

import io
import os
import pickle
import struct
import tracemalloc
import zipfile

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors.numpy import save
from weights.test_pth import dumps, some_tree, write_legacy, write_zip

from jaxseg.data import read_image, read_mask
from jaxseg.weights import read_nvlabs, read_weights

EXAMPLES = int(os.environ.get("JAXSEG_FUZZ", "100"))
MEMORY = 16e6  # bytes; the files are of a few kB
PICTURE = 4 * 2 * Image.MAX_IMAGE_PIXELS  # what Pillow itself admits as no decompression bomb

CHANGES = st.lists(
    st.tuples(
        st.sampled_from(["set", "insert", "delete", "truncate", "number"]),
        st.floats(0, 1, exclude_max=True),  # where, as a fraction of the file
        st.binary(min_size=1, max_size=8),
    ),
    min_size=1,
    max_size=4,
)


def changed(data, changes):
    data = bytearray(data)
    for kind, fraction, value in changes:
        at = int(fraction * len(data))
        match kind:
            case "set":
                data[at : at + len(value)] = value
            case "insert":
                data[at:at] = value
            case "delete":
                del data[at : at + len(value)]
            case "truncate":
                del data[at:]
            case "number":  # a huge length, where one may stand
                data[at : at + 8] = struct.pack("<q", int.from_bytes(value, "little") % 2**62)
    return bytes(data)


class Network:
    """By its name what NVlabs' pickles hold."""

    def __init__(self, **state):
        self.__dict__.update(state)


def written(suffix, tmp_path):
    path = tmp_path / "seed"
    array = np.arange(12, dtype=np.float32).reshape(3, 4)
    match suffix:
        case ".pth":
            tree, storages = some_tree()
            write_zip(path, dumps(tree), storages)
        case ".deflated.pth":
            tree, storages = some_tree()
            write_zip(path, dumps(tree), storages, zipfile.ZIP_DEFLATED)
        case ".legacy.pth":
            write_legacy(path, *some_tree())
        case ".safetensors":
            path.write_bytes(save({"a.weight": array, "b": array[0].astype(np.int64)}))
        case ".npz":
            with path.open("wb") as file:
                np.savez_compressed(file, a=array, b=array[0])
        case ".pkl":
            part = Network(components={}, variables=[("a", array), ("b", array[0].astype(np.float64))])
            path.write_bytes(pickle.dumps((Network(components={"synthesis": part}, variables=[("c", 1.5)]), part), 2))
        case _:
            stream = io.BytesIO()
            Image.fromarray((array * 20).astype(np.uint8)).resize((40, 30)).save(stream, suffix[1:].upper())
            path.write_bytes(stream.getvalue())
    return path.read_bytes()


READERS = {
    **dict.fromkeys((".pth", ".deflated.pth", ".legacy.pth", ".safetensors", ".npz"), read_weights),
    ".pkl": read_nvlabs,
    **dict.fromkeys((".png", ".jpeg", ".bmp", ".tiff", ".webp", ".gif"), read_image),
}


def test_the_unchanged_pickle_is_read(tmp_path):
    (tmp_path / "n.pkl").write_bytes(written(".pkl", tmp_path))
    first, second = read_nvlabs(tmp_path / "n.pkl")
    assert set(first) == {"a", "b", "c"}
    np.testing.assert_array_equal(second["a"], np.arange(12).reshape(3, 4))


@pytest.mark.parametrize("suffix", READERS)
def test_a_changed_file_is_read_or_refused(tmp_path, suffix):
    seed, path = written(suffix, tmp_path), tmp_path / f"changed{suffix}"

    @settings(
        max_examples=EXAMPLES, deadline=5000, derandomize=EXAMPLES == 100, suppress_health_check=list(HealthCheck)
    )
    @given(CHANGES)
    def attempt(changes):
        path.write_bytes(changed(seed, changes))
        tracemalloc.reset_peak()
        before = tracemalloc.get_traced_memory()[0]
        for reader in {READERS[suffix], read_mask if READERS[suffix] is read_image else read_weights}:
            message = str(path)
            try:
                reader(path)
            except ValueError as error:
                message = str(error)
            assert str(path) in message
        assert tracemalloc.get_traced_memory()[1] - before < (PICTURE if READERS[suffix] is read_image else MEMORY)

    tracemalloc.start()
    try:
        attempt()
    finally:
        tracemalloc.stop()
