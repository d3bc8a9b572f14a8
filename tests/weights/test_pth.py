"""Files of torch.save without PyTorch: written here by hand, so that these tests need none of it either."""

import collections
import io
import json
import os
import pickle
import struct
import sys
import time
import warnings
import zipfile
import zlib

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

from jaxseg.weights import UnsafePickle, read_pth, read_weights
from jaxseg.weights.pth import GLOBALS
from jaxseg.weights.wrapped import unwrapped


class Storage:
    def __init__(self, key, array, kind="FloatStorage"):
        self.key, self.array, self.kind = key, array, kind


class Named:
    """Pickles as the bare global `module.name`."""

    def __init__(self, module, name):
        self.module, self.name = module, name


class Tensor:
    def __init__(self, storage, offset, size, stride, rebuild="_rebuild_tensor_v2", last=()):
        self.storage, self.rebuild = storage, rebuild
        self.arguments = (storage, offset, size, stride, False, collections.OrderedDict(), *last)


class Pickler(pickle._Pickler):
    """Writes what torch's pickler writes. The Python one, because it lets a global be named freely."""

    def persistent_id(self, obj):
        if isinstance(obj, Storage):
            module = "torch.storage" if obj.kind == "UntypedStorage" else "torch"
            return ("storage", Named(module, obj.kind), obj.key, "cpu", obj.array.size)
        return None

    def save(self, obj, save_persistent_id=True):
        if isinstance(obj, Named):
            self.write(pickle.GLOBAL + f"{obj.module}\n{obj.name}\n".encode())
        elif isinstance(obj, Tensor):
            self.save(Named("torch._utils", obj.rebuild))
            self.save(obj.arguments)
            self.write(pickle.REDUCE)
        else:
            super().save(obj, save_persistent_id)


def dumps(tree, protocol=2):
    stream = io.BytesIO()
    Pickler(stream, protocol).dump(tree)
    return stream.getvalue()


def write_zip(path, pickled, storages=(), compression=zipfile.ZIP_STORED, order="little"):
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr("archive/data.pkl", pickled)
        archive.writestr("archive/byteorder", order)
        for storage in storages:
            archive.writestr(f"archive/data/{storage.key}", storage.array.tobytes())
    return path


def write_legacy(path, tree, storages):
    system = {"protocol_version": 1001, "little_endian": sys.byteorder == "little", "type_sizes": {}}
    with path.open("wb") as file:
        for part in (0x1950A86A20F9469CFC6C, 1001, system, tree, [s.key for s in storages]):
            file.write(dumps(part))
        for storage in storages:
            file.write(struct.pack("=q", storage.array.size) + storage.array.tobytes())
    return path


def some_tree():
    x = Storage("0", np.arange(12, dtype=np.float32))
    y = Storage("1", np.array([1, 2, 3], ml_dtypes.bfloat16), "BFloat16Storage")
    z = Storage("2", np.array([-7], np.int64), "LongStorage")
    tree = collections.OrderedDict(
        plain=Tensor(x, 0, (3, 4), (4, 1)),
        transposed=Tensor(x, 0, (4, 3), (1, 4)),
        part=Tensor(x, 5, (2, 2), (4, 1)),
        expanded=Tensor(x, 1, (2, 3), (0, 1)),
        empty=Tensor(x, 0, (0, 4), (4, 1)),
        half=Tensor(y, 0, (3,), (1,)),
        scalar=Tensor(z, 0, (), ()),
        more={"epoch": 3, "names": ["a", "b"], "lr": (0.1, None, True)},
    )
    return tree, [x, y, z]


@pytest.mark.parametrize("form", ["zip", "zip, protocol 4", "legacy"])
def test_tensors_and_plain_containers_are_read(tmp_path, form):
    tree, storages = some_tree()
    path = tmp_path / "w.pth"
    if form == "legacy":
        write_legacy(path, tree, storages)
    else:
        write_zip(path, dumps(tree, 4 if "4" in form else 2), storages)
    read = read_pth(path)
    whole = np.arange(12, dtype=np.float32).reshape(3, 4)
    np.testing.assert_array_equal(read["plain"], whole)
    np.testing.assert_array_equal(read["transposed"], whole.T)
    np.testing.assert_array_equal(read["part"], whole.reshape(-1)[[[5, 6], [9, 10]]])
    np.testing.assert_array_equal(read["expanded"], [[1, 2, 3]] * 2)
    assert read["empty"].shape == (0, 4)
    assert read["half"].dtype == ml_dtypes.bfloat16
    np.testing.assert_array_equal(read["half"].astype(int), [1, 2, 3])
    assert read["scalar"].shape == ()
    assert read["scalar"] == -7
    assert read["more"] == {"epoch": 3, "names": ["a", "b"], "lr": (0.1, None, True)}


def test_big_endian_and_untyped_storages(tmp_path):
    x = Storage("0", np.array([1.5, -2], ">f4"))
    path = write_zip(tmp_path / "big.pth", dumps({"x": Tensor(x, 0, (2,), (1,))}), [x], order="big")
    np.testing.assert_array_equal(read_pth(path)["x"], [1.5, -2])
    y = Storage("0", np.frombuffer(np.array([3, 4], "<u2").tobytes(), np.uint8), "UntypedStorage")
    tensor = Tensor(y, 0, (2,), (1,), "_rebuild_tensor_v3", (Named("torch", "uint16"),))
    path = write_zip(tmp_path / "untyped.pth", dumps({"y": tensor}), [y])
    np.testing.assert_array_equal(read_pth(path)["y"], np.array([3, 4], np.uint16))


class Malice:
    def __init__(self, *reduced):
        self.reduced = reduced

    def __reduce__(self):
        return self.reduced


def touch(path):
    return f"open({str(path)!r}, 'w').close()"


def malicious_pickles(mark):
    """By name: pickles that would create the file `mark`, or at least call or change what they should not."""
    command = f"touch {mark}"
    raw = lambda *parts: b"".join(parts)  # noqa: E731
    text = lambda s: pickle.BINUNICODE + struct.pack("<I", len(s)) + s.encode()  # noqa: E731
    yield "os.system", pickle.dumps(Malice(os.system, (command,)), 2)
    yield "eval", pickle.dumps(Malice(eval, (touch(mark),)), 2)
    yield "exec, protocol 4", pickle.dumps(Malice(exec, (touch(mark),)), 4)
    yield "in a state_dict", pickle.dumps({"w": [Malice(exec, (touch(mark),))]}, 2)
    yield "getattr", pickle.dumps(Malice(getattr, (dict, "get")), 2)
    nested = pickle.PROTO + b"\x04" + text("builtins") + text("getattr.__call__") + pickle.STACK_GLOBAL
    yield "dotted name", nested + pickle.STOP
    dotted = pickle.PROTO + b"\x04" + text("torch._utils") + text("_rebuild_tensor_v2.__globals__")
    yield "globals of an admitted name", dotted + pickle.STACK_GLOBAL + pickle.STOP
    yield "INST", raw(b"(", text(command), b"ios\nsystem\n", b".")
    yield "OBJ", raw(b"(cos\nsystem\n", text(command), b"o.")
    yield "NEWOBJ", raw(b"\x80\x02cbuiltins\nobject\n)\x81.")
    yield "EXT1", raw(b"\x80\x02\x82\x01.")
    change = raw(b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n", b"N}", text("value"), b"Ns\x86b.")
    yield "BUILD on a function", change
    yield "BUILD on a dtype", raw(b"\x80\x02ctorch\nfloat32\n", b"(K\x01Nt", b"b.")
    yield "numpy", pickle.dumps({"a": np.float64(1)}, 2)
    yield "a tensor of an unknown kind", raw(b"\x80\x02ctorch._utils\n_rebuild_sparse_tensor\n.")
    yield "a function as a value", raw(b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n.")
    yield "a foreign persistent id", raw(b"\x80\x02X\x01\x00\x00\x00aQ.")


@pytest.mark.parametrize("name", [name for name, _ in malicious_pickles("x")])
@pytest.mark.parametrize("form", ["zip", "legacy", "legacy tree"])
def test_a_malicious_pickle_is_refused_and_not_run(tmp_path, name, form):
    mark, path = tmp_path / "mark", tmp_path / "evil.pth"
    pickled = dict(malicious_pickles(mark))[name]
    if form == "zip":
        write_zip(path, pickled)
    elif form == "legacy":
        path.write_bytes(pickled)
    else:
        head = b"".join(dumps(p) for p in (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True}))
        path.write_bytes(head + pickled + dumps([]))
    with pytest.raises(UnsafePickle if form != "legacy" else ValueError, match=r"evil\.pth"):
        read_pth(path)
    assert not mark.exists()


def test_a_pickle_cannot_change_the_reader(tmp_path):
    before = {name: getattr(admitted, "value", None) for name, admitted in GLOBALS.items()}
    for name, pickled in malicious_pickles(tmp_path / "mark"):
        if name.startswith("BUILD"):
            with pytest.raises(UnsafePickle, match="sets the state"):
                read_pth(write_zip(tmp_path / "evil.pth", pickled))
    assert {name: getattr(admitted, "value", None) for name, admitted in GLOBALS.items()} == before


def test_the_crafted_pickles_do_harm_where_they_are_run(tmp_path):
    for name in ("os.system", "eval", "exec, protocol 4", "in a state_dict", "INST", "OBJ"):
        mark = tmp_path / name.replace(" ", "")
        pickle.loads(dict(malicious_pickles(mark))[name])
        assert mark.exists(), name


def test_a_class_of_the_users_is_refused_by_name(tmp_path):
    path = write_zip(tmp_path / "model.pth", pickle.dumps(Malice(print, ("hello",)), 2))
    with pytest.raises(UnsafePickle, match=r"asks for (builtins|__builtin__)\.print.*state_dict"):
        read_pth(path)


@pytest.mark.parametrize(
    ("tensor", "message"),
    [
        (lambda s: Tensor(s, 0, (2**40,), (1,)), "reaches element"),
        (lambda s: Tensor(s, 10, (3,), (1,)), "reaches element"),
        (lambda s: Tensor(s, -1, (3,), (1,)), "impossible size"),
        (lambda s: Tensor(s, 0, (3,), (-1,)), "impossible size"),
        (lambda s: Tensor(s, 0, (3, 1), (1,)), "impossible size"),
        (lambda s: Tensor(Storage("0", np.zeros(99)), 0, (99,), (1,)), "storage 0 has 48 bytes of 396"),
        (lambda s: Tensor(Storage("7", np.zeros(2)), 0, (2,), (1,)), "storage 7 is missing"),
    ],
)
def test_sizes_are_checked_before_anything_is_allocated(tmp_path, tensor, message):
    storage = Storage("0", np.zeros(12, np.float32))
    path = write_zip(tmp_path / "w.pth", dumps({"x": tensor(storage)}), [storage])
    with pytest.raises(ValueError, match=message):
        read_pth(path)


def test_bombs_are_refused(tmp_path):
    memo = b"\x80\x02}r\xff\xff\xff\x7f."  # LONG_BINPUT of place 2**31 - 1
    assert read_pth(write_zip(tmp_path / "memo.pth", memo)) == {}  # without 2**31 places
    tree, storages = some_tree()
    with pytest.raises(ValueError, match="compressed"):
        read_pth(write_zip(tmp_path / "z.pth", dumps(tree), storages, zipfile.ZIP_DEFLATED))
    loop = []
    loop.append(loop)
    with pytest.raises(ValueError, match="holds itself"):
        read_pth(write_zip(tmp_path / "loop.pth", dumps(loop)))
    laughs = ["ha"]
    for _ in range(60):
        laughs = [laughs, laughs]
    read_pth(write_zip(tmp_path / "laughs.pth", dumps(laughs)))  # shared, so small: must end
    for name, pickled in shared_pickles():
        with pytest.raises(ValueError, match=r"bomb\.pth"):
            read_pth(write_zip(tmp_path / "bomb.pth", pickled))
        assert name


def laughing_tuple():
    """A pickle's instructions for a tuple of 2**60 parts, all of them one."""
    return b")q\0" + b"".join(b"0h%ch%c\x86q%c" % (i, i, i + 1) for i in range(60))


def shared_pickles():
    """By name: a few kB that come to gigabytes or centuries where a part that is used often is copied or hashed."""
    yield "the key of a dict", b"\x80\x02}" + laughing_tuple() + b"Ns."
    ordered = b"\x80\x02ccollections\nOrderedDict\n"
    yield "the key of an ordered dict", ordered + b"]" + laughing_tuple() + b"N\x86a\x85R."
    yield "a persistent id", b"\x80\x02" + laughing_tuple() + b"Q."
    rebuild = b"ctorch._utils\n_rebuild_tensor_v2\n"
    storage = b"((X\x07\0\0\0storagectorch\nFloatStorage\nX\x01\0\0\x000X\x03\0\0\0cpuK\x01tQ"
    yield "a size", b"\x80\x02" + rebuild + storage + b"K\0" + laughing_tuple() + b")tR."
    many = b"\x80\x02(" + b"K\x01" * 2000 + b"lq\x010"
    yield "sizes", many + b"(" + b"ctorch\nSize\nh\x01\x85R" * 2000 + b"t."
    pairs = b"\x80\x02(" + b"".join(b"X\x04\0\0\0%04dN\x86" % i for i in range(1000)) + b"lq\x010"
    yield "dicts", pairs + b"(" + b"ccollections\nOrderedDict\nh\x01\x85R" * 1000 + b"t."
    yield "a number of many digits", b"\x80\x02\x8b" + struct.pack("<i", 10**6) + b"\x7f" * 10**6 + b"."


def test_networks_that_are_all_one_are_refused(tmp_path):
    tree, storages = some_tree()
    tensor = next(x for x in tree.values() if isinstance(x, Tensor))
    part = {str(i): tensor for i in range(3000)}
    path = write_zip(tmp_path / "copies.pth", dumps({f"net{i}": part for i in range(3000)}), storages)
    with pytest.raises(ValueError, match=r"copies\.pth holds one network under 3000 names: it repeats itself"):
        read_weights(path)


def test_a_name_of_many_dots_is_not_taken_apart_at_each(tmp_path):
    began = time.process_time()
    name, array = 1_000_000 * ".", np.zeros(1)
    assert unwrapped({name: array, "module.a": array}, ["a"]) == {"a": array}
    assert time.process_time() - began < 5  # at each it is 500 GB of names


def test_what_is_larger_than_the_file_is_not_made(tmp_path):
    storage = Storage("0", np.ones(1, np.float32))
    path = write_zip(tmp_path / "w.pth", dumps({"x": Tensor(storage, 0, (2**25,), (0,))}), [storage])
    with pytest.raises(ValueError, match="repeats a storage of 1"):
        read_pth(path)
    body, entries = b"N." + bytes(1000), []
    for i in reversed(range(10)):  # each entry's data is all that follows it, the other entries among it
        info = zipfile.ZipInfo(f"archive/data/{i}" if i else "archive/data.pkl")
        info.file_size = info.compress_size = len(body)
        info.CRC = zlib.crc32(body)
        body = info.FileHeader() + body
        entries.append((info, len(body)))
    with zipfile.ZipFile(tmp_path / "overlap.pth", "w") as archive:
        archive.fp.write(body)
        for info, length in entries:
            info.header_offset = len(body) - length
            archive.filelist.append(info)
        archive.start_dir, archive._didModify = len(body), True
    with zipfile.ZipFile(tmp_path / "overlap.pth") as archive:
        assert sum(info.file_size for info in archive.infolist()) > 4 * len(body)  # Python 3.13 does not read it
    with pytest.raises(ValueError, match="its entries overlap"):
        read_pth(tmp_path / "overlap.pth")


def test_archives_that_expand_beyond_reason_are_refused(tmp_path):
    path = tmp_path / "bomb.npz"
    np.savez_compressed(path, a=np.zeros(2**25, np.float32))
    assert path.stat().st_size < 2**18
    with pytest.raises(ValueError, match=r"bomb\.npz is no whole \.npz file: its \d+ bytes expand to 1342"):
        read_weights(path)
    np.savez_compressed(path, a=np.zeros(2**23, np.float32))
    assert read_weights(path)["a"].shape == (2**23,)


def test_types_that_numpy_lacks_and_folders_are_said(tmp_path):
    header = json.dumps({"a": {"dtype": "F8_E4M3", "shape": [4], "data_offsets": [0, 4]}}).encode()
    (tmp_path / "w.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + bytes(4))
    with pytest.raises(
        ValueError, match=r"w\.safetensors has arrays of a type that NumPy does not have .*float8_e4m3fn"
    ):
        read_weights(tmp_path / "w.safetensors")
    for suffix in (".pth", ".safetensors", ".npz"):
        (tmp_path / f"folder{suffix}").mkdir()
        with pytest.raises(IsADirectoryError, match="is a folder, not a file of weights"):
            read_weights(tmp_path / f"folder{suffix}")


def test_strings_of_python_2(tmp_path):
    """What torch.save wrote there, as in torchvision's oldest files: byte strings, and items as an argument."""
    items = b"\x80\x02ccollections\nOrderedDict\n](](U\x06w\xc3\xa9ighK\x01e](T\x01\0\0\0bK\x02ee\x85R."
    assert read_pth(write_zip(tmp_path / "py2.pth", items)) == {"w\u00e9igh": 1, "b": 2}


@pytest.mark.parametrize("form", ["zip", "legacy"])
def test_a_truncated_file_is_a_clear_error(tmp_path, form):
    tree, storages = some_tree()
    path = tmp_path / "w.pth"
    if form == "legacy":
        write_legacy(path, tree, storages)
    else:
        write_zip(path, dumps(tree), storages)
    whole = path.read_bytes()
    for length in (0, 1, 5, 40, len(whole) // 2, len(whole) - 9, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(ValueError, match=r"w\.pth is no whole file of torch\.save"):
            read_pth(path)


def test_read_weights_by_suffix(tmp_path):
    x = Storage("0", np.arange(3, dtype=np.float32))
    state = {"a.weight": Tensor(x, 0, (3,), (1,))}
    path = write_zip(tmp_path / "w.pt", dumps({"epoch": 1, "state_dict": state}), [x])
    assert list(read_weights(path)) == ["a.weight"]
    several = {"iteration": 3, "generator": state, "discriminator": state, "optimizers": {"generator": {"state": {}}}}
    for tree in (several, {"models": several}):
        path = write_zip(tmp_path / "w.pt", dumps(tree), [x])
        assert list(read_weights(path)) == ["generator.a.weight", "discriminator.a.weight"]
    averaged = {"params": {"raw": state["a.weight"]}, "params_ema": state}
    path = write_zip(tmp_path / "w_iter_9.pth.tar", dumps(averaged), [x])
    assert list(read_weights(path)) == ["a.weight"]
    save_file({"a": np.ones(2, np.float32)}, tmp_path / "w.safetensors")
    np.testing.assert_array_equal(read_weights(tmp_path / "w.safetensors")["a"], 1)
    np.savez(tmp_path / "w.npz", a=np.ones(2))
    np.testing.assert_array_equal(read_weights(tmp_path / "w.npz")["a"], 1)
    for name in ("w.safetensors", "w.npz"):
        (tmp_path / name).write_bytes((tmp_path / name).read_bytes()[:-5])
        with pytest.raises(ValueError, match=f"{name} is no whole"):
            read_weights(tmp_path / name)
    for name in ("run", "w.h5", "w.pth", "w.safetensors", "w.npz"):
        with pytest.raises(FileNotFoundError, match=f"gone/{name}: no such file or folder"):
            read_weights(tmp_path / "gone" / name)
    (tmp_path / "w.h5").touch()
    with pytest.raises(ValueError, match="weights come as"):
        read_weights(tmp_path / "w.h5")
    with pytest.raises(ValueError, match="holds no state_dict"):
        read_weights(write_zip(tmp_path / "w.pth", dumps({"epoch": 1})))


@pytest.mark.parity
@pytest.mark.parametrize("new", [True, False])
def test_what_torch_writes(tmp_path, new):
    torch = pytest.importorskip("torch")
    base = torch.randn(4, 6)
    names = ["float16", "bfloat16", "float32", "float64", "int8", "uint8", "int16", "int32", "int64", "bool"]
    names += ["complex64", "complex128"]
    tree = {name: torch.tensor([[0, 1, 2], [3, 4, 5]]).to(getattr(torch, name)) for name in names}
    if new:
        names8 = ["float8_e4m3fn", "float8_e5m2", "uint16", "uint32", "uint64"]
        tree |= {name: torch.tensor([0, 1, 2]).to(getattr(torch, name)) for name in names8}
    dtypes = list(tree)
    tree |= {
        "t": base.T,
        "slice": base[1:, ::2],
        "expand": torch.ones(1).expand(5),
        "scalar": torch.tensor(2.5),
        "parameter": torch.nn.Parameter(base),
        "state": torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4)).state_dict(),
        "size": base.shape,
    }
    path = tmp_path / "w.pth"
    torch.save(tree, path, _use_new_zipfile_serialization=new)
    read = read_pth(path)
    for name in dtypes:
        assert str(read[name].dtype) == name
        np.testing.assert_array_equal(read[name].astype(np.complex128), tree[name].to(torch.complex128))
    for name in ("t", "slice", "expand", "scalar", "parameter"):
        np.testing.assert_array_equal(read[name], tree[name].detach().numpy())
    assert read["size"] == (4, 6)
    for name, value in tree["state"].items():
        np.testing.assert_array_equal(read["state"][name], value.numpy())


@pytest.mark.parametrize("suffix", [".pth", ".safetensors", ".npz"])
def test_what_a_diverged_run_left_is_said_and_read(tmp_path, suffix):
    """With the first tensor's name, and once however many there are."""
    path, half = tmp_path / f"w{suffix}", ml_dtypes.bfloat16 if suffix == ".safetensors" else np.float16
    arrays = {"a": np.ones(3), "b": np.array([0, np.nan, -np.inf]), "c": np.array([np.inf])}
    arrays = {"a_step": np.arange(2)} | {name: array.astype(half) for name, array in arrays.items()}
    for count in (4, 2):
        arrays = dict(list(arrays.items())[:count])
        if suffix == ".pth":
            kinds = {"i": "LongStorage", "f": "HalfStorage"}
            storages = {name: Storage(name, array, kinds[array.dtype.kind]) for name, array in arrays.items()}
            tree = {name: Tensor(storage, 0, storage.array.shape, (1,)) for name, storage in storages.items()}
            write_zip(path, dumps(tree), storages.values())
        elif suffix == ".npz":
            np.savez(path, **arrays)
        else:
            save_file(arrays, path)
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            assert read_weights(path).keys() == arrays.keys()
        assert len(said) == (count == 4)
        if said:
            message = str(said[0].message)
            assert f"w{suffix}: b holds NaN or infinite values, 2 of 3, and so does 1 more; " in message


def test_views_that_repeat_a_file_are_not_looked_through_for_ever(tmp_path, monkeypatch):
    seen, isfinite = [], np.isfinite
    monkeypatch.setattr(np, "isfinite", lambda array: seen.append(array.nbytes) or isfinite(array))
    x = Storage("0", np.zeros(1, np.float32))
    state = {str(i): Tensor(x, 0, (2**24,), (0,)) for i in range(1000)}
    assert len(read_weights(write_zip(tmp_path / "w.pth", dumps(state), [x]))) == 1000
    assert sum(seen) <= 2**26
