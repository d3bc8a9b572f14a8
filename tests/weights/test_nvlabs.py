"""NVlabs' pickles: the arrays come out, and nothing in them is run."""

import collections
import pickle
import sys
import types

import jax
import numpy as np
import pytest
from models.test_generation import case
from weights.test_pth import laughing_tuple

from jaxseg.weights import UnsafePickle, WeightsMismatch, from_nvlabs, read_nvlabs, read_weights, to_nvlabs


@pytest.fixture
def dnnlib(monkeypatch):
    """Modules of the names that the published pickles ask for, with classes that run code when they are loaded."""
    opened = []

    class Network:
        def __setstate__(self, state):
            opened.append(state)

    class EasyDict(dict):
        pass

    for name, content in (
        ("dnnlib", {}),
        ("dnnlib.util", {"EasyDict": EasyDict}),
        ("dnnlib.tflib", {}),
        ("dnnlib.tflib.network", {"Network": Network}),
    ):
        module = types.ModuleType(name)
        vars(module).update(content)
        for made in content.values():
            made.__module__, made.__qualname__ = name, made.__name__
        monkeypatch.setitem(sys.modules, name, module)
    return types.SimpleNamespace(Network=Network, EasyDict=EasyDict, opened=opened)


def network(dnnlib, variables, components=None):
    made = dnnlib.Network()
    made.__dict__.update(
        version=3,
        name="G",
        static_kwargs=dnnlib.EasyDict(resolution=16),
        build_module_src="raise SystemExit",
        components=dnnlib.EasyDict(components or {}),
        variables=list(variables.items()),
    )
    return made


@pytest.mark.parametrize("protocol", [2, 4])
def test_a_published_pickle(dnnlib, tmp_path, protocol):
    generator, variables = case("stylegan_generator", 16, 3)
    critic, critic_variables = case("stylegan_discriminator", 16, 3)
    arrays = to_nvlabs(generator, variables)
    assert {"4x4/Const/const", "16x16/Conv0_up/StyleMod/weight", "ToRGB_lod0/weight", "dlatent_avg"} <= set(arrays)
    assert arrays["8x8/Conv1/weight"].shape == (3, 3, 16, 16)
    mapping = {k: v for k, v in arrays.items() if k.startswith(("Dense", "Label"))}
    synthesis = {k: v for k, v in arrays.items() if k not in mapping and k != "dlatent_avg"} | {"lod": np.float32(0)}
    parts = {"mapping": network(dnnlib, mapping), "synthesis": network(dnnlib, synthesis)}
    tree = (
        network(dnnlib, {"dlatent_avg": arrays["dlatent_avg"], "lod": np.float32(0)}, parts),
        network(dnnlib, to_nvlabs(critic, critic_variables)),
    )
    path = tmp_path / "karras2019.pkl"
    path.write_bytes(pickle.dumps(tree, protocol))
    found = read_nvlabs(path)
    assert not dnnlib.opened
    for model, given, ours in ((generator, found[0], variables), (critic, found[1], critic_variables)):
        assert jax.tree.all(jax.tree.map(np.array_equal, from_nvlabs(given, model), ours))


class Evil:
    def __reduce__(self):
        return print, ("it ran",)


@pytest.mark.parametrize(
    "tree", [Evil(), [Evil()], collections.Counter("ab"), np.array([Evil()], object), np.array(["a"])]
)
def test_anything_else_is_refused(tmp_path, capsys, tree):
    path = tmp_path / "evil.pkl"
    path.write_bytes(pickle.dumps(tree))
    with pytest.raises(UnsafePickle, match="is not loaded"):
        read_nvlabs(path)
    assert "it ran" not in capsys.readouterr().out


def test_load_weights_says_what_reads_it(tmp_path):
    (tmp_path / "stylegan.pkl").touch()
    with pytest.raises(ValueError, match=r"not .pkl; NVlabs' networks are jaxseg.weights.read_nvlabs' to read"):
        read_weights(tmp_path / "stylegan.pkl")


def test_what_a_diverged_run_left_is_said(dnnlib, tmp_path):
    whole, broken = (network(dnnlib, {"a:0": np.float32([0, x])}) for x in (1, np.nan))
    (tmp_path / "w.pkl").write_bytes(pickle.dumps((whole, broken)))
    with pytest.warns(UserWarning, match=r"w\.pkl: network 1's a holds NaN or infinite values, 1 of 2; "):
        read_nvlabs(tmp_path / "w.pkl")


def test_files_that_are_not_whole(dnnlib, tmp_path):
    path = tmp_path / "short.pkl"
    whole = pickle.dumps(network(dnnlib, {"a": np.ones(100, np.float32)}))
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match="no whole file"):
        read_nvlabs(path)
    path.write_bytes(pickle.dumps([1, 2]))
    with pytest.raises(ValueError, match="holds no network"):
        read_nvlabs(path)


def test_bombs_are_refused(tmp_path):
    path = tmp_path / "bomb.pkl"
    network = b"\x80\x02cdnnlib.tflib.network\nNetwork\n)\x81}X\x09\0\0\0variables]"
    for pickled in (
        b"\x80\x02" + laughing_tuple() + b".",
        network + laughing_tuple() + b"K\1\x86asb.",  # a name
        network + b"X\1\0\0\0a" + laughing_tuple() + b"\x86asb.",  # a value
        b"\x80\x02Nr\xff\xff\xff\x7f.",  # the place 2**31 - 1
        b"\x80\x04\x8e" + (2**40).to_bytes(8, "little") + b".",
        b"\x80\x02(U\xc8" + 200 * b"x" + b"q\0" + 200 * b"c_codecs\nencode\nh\0\x85R" + b"t.",
    ):
        path.write_bytes(pickled)
        with pytest.raises(ValueError, match=r"bomb\.pkl"):
            read_nvlabs(path)
    array = b"\x80\x02cnumpy.core.multiarray\n_reconstruct\nNNN\x87R(K\1"
    dtype = b"cnumpy\ndtype\nX\2\0\0\0f4\x85R"
    path.write_bytes(array + b"(" + 20_000 * (b"\x8a\xff" + 255 * b"\x7f") + b"t" + dtype + b"\x89C\0tb.")
    with pytest.raises(ValueError, match="impossible size"):  # of which the product has 100 million digits
        read_nvlabs(path)


def test_networks_that_share_what_they_hold_are_refused(dnnlib, tmp_path):
    shared = network(dnnlib, {"a": np.ones(1, np.float32)})
    shared.variables *= 3000
    (tmp_path / "shared.pkl").write_bytes(pickle.dumps([shared] * 3000))
    with pytest.raises(ValueError, match="it repeats what it holds"):
        read_nvlabs(tmp_path / "shared.pkl")


@pytest.mark.parametrize(
    ("name", "fields", "said"),
    [
        ("stylegan_generator", {"constant_input": False}, "has constant_input=True, this one False; create it so"),
        ("stylegan_generator", {"noise": False}, "has noise=True, this one False"),
        ("progan_discriminator", {}, "has blur=True, this one False"),
        ("progan_generator", {}, "not ProGANGenerator"),
    ],
)
def test_networks_that_were_not_published_are_refused(name, fields, said):
    model, variables = case(name, **fields)
    for convert in (lambda: to_nvlabs(model, variables), lambda: from_nvlabs({}, model)):
        with pytest.raises(WeightsMismatch, match=said):
            convert()


def test_what_is_missing_is_named():
    model, variables = case("stylegan_generator", 16)
    arrays = to_nvlabs(model, variables)
    del arrays["Dense3/bias"]
    with pytest.raises(WeightsMismatch, match=r"missing: mapping\.dense3\.bias"):
        from_nvlabs(arrays, model)
    with pytest.raises(WeightsMismatch, match="not ProGANGenerator"):
        to_nvlabs(*case("progan_generator"))


def test_layers_that_the_model_has_not_are_named():
    """A mapping network of eight layers does not load as one of seven."""
    model, variables = case("stylegan_generator", 16)
    arrays = to_nvlabs(model, variables) | {"lod": np.float32(0)}
    with pytest.raises(WeightsMismatch, match="layers that this StyleGANGenerator has not: Dense7/bias, Dense7/weight"):
        from_nvlabs(arrays, model.clone(mapping_layers=7))
    assert jax.tree.all(jax.tree.map(np.array_equal, from_nvlabs(arrays, model), variables))
