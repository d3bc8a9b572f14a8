"""The same weights as training code leaves them: wrapped, prefixed, averaged, beside what is none of the model."""

import jax
import numpy as np
import pytest
from models.test_zoo import narrow
from weights.test_pth import Storage, Tensor, dumps, write_zip

from jaxseg.backbones.resnet import ResNet
from jaxseg.weights import WeightsMismatch, from_published, load_weights, to_published


@pytest.fixture(scope="module")
def unet():
    model, variables, _ = narrow("unet_resnet34")
    return model, variables, to_published(model, variables)


def assert_equal(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    assert jax.tree.all(jax.tree.map(np.array_equal, a, b))


def under(prefix, state):
    return {prefix + name: array for name, array in state.items()}


def write(path, tree):
    """A file of torch.save, which holds the arrays as tensors."""
    storages = []

    def pickled(part):
        if not isinstance(part, np.ndarray):
            return {name: pickled(value) for name, value in part.items()} if isinstance(part, dict) else part
        kind = "FloatStorage" if part.dtype == np.float32 else "LongStorage"
        storages.append(Storage(str(len(storages)), np.ascontiguousarray(part), kind))
        strides = [step // part.itemsize for step in storages[-1].array.strides]
        return Tensor(storages[-1], 0, part.shape, tuple(strides))

    write_zip(path, dumps(pickled(tree)), storages)


def half(state):
    return {name: array / 2 for name, array in state.items()}


@pytest.mark.parametrize(
    "prefix", ["module.", "module.module.", "_orig_mod.", "module._orig_mod.", "model.", "net.module.", "a.b_c."]
)
def test_a_prefix_of_all_names_is_none_of_theirs(unet, prefix):
    model, variables, state = unet
    beside = {"n_averaged": np.array(3), "criterion.weight": np.zeros(5), "std": np.zeros(3)}
    assert_equal(from_published(under(prefix, state) | beside, model).variables, variables)
    with pytest.raises(WeightsMismatch, match=r"missing: encoder\.bn1\.bias"):
        from_published({k: v for k, v in under(prefix, state).items() if "encoder.bn1.bias" not in k}, model)
    with pytest.raises(WeightsMismatch, match=r"unexpected: criterion\.weight, std"):
        from_published(state | {k: v for k, v in beside.items() if k != "n_averaged"}, model)


def test_compiled_parts_have_their_own_names(unet):
    model, variables, state = unet
    compiled = {name.replace("encoder.", "encoder._orig_mod."): array for name, array in state.items()}
    assert_equal(from_published(compiled, model).variables, variables)


def test_of_two_copies_the_averaged_one_and_otherwise_none(unet):
    model, variables, state = unet
    both = under("model.", half(state)) | under("ema.module.", state)
    assert_equal(from_published(both, model).variables, variables)
    with pytest.raises(WeightsMismatch, match=r"it\.pth holds the model 2 times, under student\., teacher\.: save one"):
        from_published(under("student.", state) | under("teacher.", state), model, where="it.pth")


@pytest.mark.parametrize("key", ["state_dict", "model", "model_state_dict", "net", "params_ema", "weights"])
@pytest.mark.parametrize("suffix", [".pth", ".ckpt", ".pth.tar"])
def test_whatever_key_a_checkpoint_has_for_them(unet, tmp_path, key, suffix):
    model, variables, state = unet
    optimizer = {"state": {}, "param_groups": [{"lr": 0.1}]}
    write(tmp_path / f"w{suffix}", {"epoch": 3, key: state, "optimizer": optimizer})
    assert_equal(load_weights(tmp_path / f"w{suffix}", model), variables)


@pytest.mark.parametrize(
    ("key", "average"),
    [("model", "model_ema"), ("state_dict", "state_dict_ema"), ("params", "params_ema"), ("net", "ema_state_dict")],
)
def test_a_checkpoints_average_comes_before_the_weights_where_it_is_whole(unet, tmp_path, key, average):
    model, variables, state = unet
    averaged = under("module.", state) | {"n_averaged": np.array([3])}
    write(tmp_path / "w.pth", {key: half(state), average: averaged})
    assert_equal(load_weights(tmp_path / "w.pth", model), variables)
    parameters = {name: array for name, array in half(state).items() if "running" not in name}
    write(tmp_path / "w.pth", {"model": state, average: parameters})
    assert_equal(load_weights(tmp_path / "w.pth", model), variables)


def test_the_backbone_of_a_whole_model_is_no_wrapped_one():
    """Where a whole model does not fit, the error that says why is not to give way to its backbone."""
    model, variables, _ = narrow("fcn_resnet50")
    backbone = ResNet((1, 1, 2, 2), (4, 8, 12, 16), output_stride=8)
    with pytest.raises(WeightsMismatch, match="none of torchvision's ResNet"):
        from_published(under("module.", to_published(model, variables)), backbone)
