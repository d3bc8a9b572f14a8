"""Published checkpoints: whose they are, exact round trips, other class counts, and what does not fit."""

import resource

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util
from models.test_zoo import DISTINCT, FIELDS, LIVE, SMP, narrow
from safetensors.numpy import load_file, save_file
from tiers import some_slow

import jaxseg
from jaxseg.backbones.googlenet import googlenet
from jaxseg.backbones.resnet import ResNet
from jaxseg.weights import (
    WeightsMismatch,
    from_published,
    load_published,
    load_weights,
    published,
    published_arguments,
    save_weights,
    to_published,
)


def publisher_of(name):
    if name not in LIVE:
        return "jaxseg"
    if name in SMP:
        return "segmentation-models-pytorch"
    return "semseg" if name.startswith("pspnet") else "torchvision"


def assert_equal(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    assert jax.tree.all(jax.tree.map(np.array_equal, a, b))


@pytest.mark.parametrize("name", some_slow(DISTINCT, {n for n in DISTINCT if "mobilenet" in n or "plus" in n}))
def test_the_round_trip_is_exact_and_the_publisher_found(tmp_path, name):
    model, variables, _ = narrow(name)
    save_weights(tmp_path / "a.safetensors", model, variables)
    loaded = load_published(tmp_path / "a.safetensors", model)
    assert_equal(loaded.variables, variables)
    assert loaded.publisher == publisher_of(name)
    assert loaded.left_out is None
    save_weights(tmp_path / "b.safetensors", model, loaded.variables)
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()


# Names that a user of each publisher would look for, and their shapes with few channels
NAMES = {
    "fcn_resnet50": {"backbone.layer3.0.downsample.0.weight": (48, 32, 1, 1), "aux_classifier.4.bias": (5,)},
    "deeplabv3_resnet50": {
        "classifier.0.convs.4.1.weight": (256, 64, 1, 1),
        "classifier.0.convs.2.0.weight": (256, 64, 3, 3),
        "classifier.0.project.1.running_var": (256,),
        "classifier.4.weight": (5, 256, 1, 1),
    },
    "deeplabv3_mobilenet_v3_large": {
        "backbone.0.0.weight": (8, 3, 3, 3),
        "backbone.4.block.1.0.weight": (24, 1, 5, 5),
        "backbone.4.block.2.fc1.bias": (8,),
        "backbone.4.block.3.1.running_mean": (16,),
    },
    "lraspp_mobilenet_v3_large": {
        "classifier.cbr.0.weight": (128, 240, 1, 1),
        "classifier.scale.1.weight": (128, 240, 1, 1),
    },
    "pspnet_resnet18": {
        "module.layer0.6.weight": (8, 4, 3, 3),
        "module.ppm.features.3.2.running_mean": (16,),
        "module.cls.4.bias": (5,),
        "module.aux.0.weight": (12, 48, 3, 3),
    },
    "deeplabv3plus_resnet34": {
        "encoder.layer4.1.conv2.weight": (16, 16, 3, 3),
        "decoder.aspp.0.convs.1.0.0.weight": (16, 1, 3, 3),
        "decoder.aspp.0.convs.1.1.weight": (16,),
        "decoder.aspp.1.1.weight": (16, 16, 1, 1),
        "decoder.block1.0.weight": (48, 4, 1, 1),
        "segmentation_head.0.bias": (5,),
    },
    "unet_resnet34": {"encoder.conv1.weight": (64, 3, 7, 7), "decoder.blocks.4.conv2.1.weight": (4,)},
    "unet_vgg16_bn": {
        "encoder.features.40.weight": (16, 16, 3, 3),
        "encoder.features.41.running_var": (16,),
        "decoder.center.1.0.weight": (16, 16, 3, 3),
    },
    "unet_mobilenet_v2": {
        "encoder.features.0.0.weight": (8, 3, 3, 3),
        "encoder.features.1.conv.0.0.weight": (8, 1, 3, 3),
        "encoder.features.1.conv.2.weight": (8,),
        "encoder.features.2.conv.1.0.weight": (48, 1, 3, 3),
        "encoder.features.2.conv.2.weight": (8, 48, 1, 1),
        "encoder.features.2.conv.3.running_mean": (8,),
    },
    "pspnet_smp_resnet34": {
        "encoder.layer4.1.conv2.weight": (16, 16, 3, 3),
        "decoder.psp.blocks.0.pool.1.0.bias": (2,),
        "decoder.psp.blocks.3.pool.1.1.weight": (2,),
        "decoder.conv.0.weight": (24, 16, 1, 1),
        "segmentation_head.0.weight": (5, 24, 3, 3),
    },
    "segnet_basic": {"params/conv1/kernel": (7, 7, 3, 8), "batch_stats/bn_decode1/var": (8,)},
}


@pytest.mark.parametrize("name", NAMES)
def test_names_and_layouts(name):
    model, variables, _ = narrow(name)
    state = to_published(model, variables)
    assert {n: state[n].shape for n in NAMES[name]} == NAMES[name]
    kernels = {n for n, a in state.items() if a.ndim == 4}
    assert len(state) == len(jax.tree.leaves(variables))
    assert kernels


def test_another_class_count_keeps_everything_but_the_head(tmp_path):
    model, variables, _ = narrow("fcn_resnet50")
    path = tmp_path / "w.safetensors"
    save_weights(path, model, variables)
    other = model.clone(num_classes=3)
    with pytest.warns(
        UserWarning, match=r"scores 5 classes and the model 3: everything is loaded but aux_classifier/logits"
    ):
        loaded = load_weights(path, other)
    assert_equal(loaded["params"]["backbone"], variables["params"]["backbone"])
    assert_equal(loaded["batch_stats"], variables["batch_stats"])
    assert_equal(loaded["params"]["classifier"]["block"], variables["params"]["classifier"]["block"])
    for head in ("classifier", "aux_classifier"):
        assert not loaded["params"][head]["logits"]["kernel"].any()
        assert loaded["params"][head]["logits"]["bias"].shape == (3,)
    start = jax.tree.map(lambda x: x + 1, from_published(load_file(path), other).variables)
    kept = load_published(path, other, start)
    assert "as they were" in kept.left_out
    assert_equal(kept.variables["params"]["classifier"]["logits"], start["params"]["classifier"]["logits"])
    assert_equal(kept.variables["params"]["backbone"], variables["params"]["backbone"])


@pytest.mark.parametrize("name", ["fcn8s_vgg16", "fcn_vgg16_1x1"])
def test_upsampling_from_class_to_class_is_of_the_head(name):
    model = jaxseg.create_model(name, 5)
    flat = {path: np.broadcast_to(np.float32(0.5), x.shape) for path, x in published._shapes(model).items()}
    state = to_published(model, traverse_util.unflatten_dict(flat))
    loaded = from_published(state, jaxseg.create_model(name, 3))
    assert loaded.left_out.startswith("the state_dict scores 5 classes and the model 3: everything is loaded but ")
    for path, array in traverse_util.flatten_dict(loaded.variables).items():
        assert (np.asarray(array) == (0 if path in published._head(model) else 0.5)).all()
        assert ("/".join(path[1:]) in loaded.left_out) == (path in published._head(model))


@pytest.mark.parametrize(
    "name", ["fcn8s_vgg16", "segnet_basic", "pspnet_resnet18", "unet_small", "maskrcnn_resnet50_c4"]
)
def test_the_head_is_what_another_number_of_classes_changes(name):
    few, more = (published._traced(jaxseg.create_model(name, n)) for n in (5, 6))
    model = jaxseg.create_model(name, 5)
    assert {path: x.shape for path, x in published._shapes(model).items()} == {p: x.shape for p, x in few.items()}
    assert published._head(model) == {path for path in few if few[path].shape != more[path].shape} != set()


def test_a_file_is_read_with_one_trace_of_its_model(tmp_path):
    model, variables, _ = narrow("segnet_basic")
    save_weights(tmp_path / "w.safetensors", model, variables)
    published._traced.cache_clear()
    arguments, state = published_arguments("segnet_basic", tmp_path / "w.safetensors", **FIELDS["segnet_basic"])
    assert arguments["num_classes"] == 5
    published.from_published(state, jaxseg.create_model(**arguments))
    assert published._traced.cache_info().misses == 1


def test_everything_that_does_not_fit_is_in_one_error(tmp_path):
    model, variables, _ = narrow("lraspp_mobilenet_v3_large")
    state = to_published(model, variables)
    del state["classifier.cbr.1.bias"]
    state["classifier.extra.weight"] = np.zeros(3, np.float32)
    state["backbone.0.0.weight"] = np.zeros((9, 3, 3, 3), np.float32)
    state["backbone.0.1.num_batches_tracked"] = np.array(3)
    save_file(state, tmp_path / "w.safetensors")
    with pytest.raises(WeightsMismatch) as error:
        load_weights(tmp_path / "w.safetensors", model)
    assert "w.safetensors does not fit this LRASPP of torchvision" in str(error.value)
    assert "missing: classifier.cbr.1.bias; unexpected: classifier.extra.weight; " in str(error.value)
    shapes = "backbone.0.0.weight (9, 3, 3, 3) for params/backbone/features_0/conv/kernel (3, 3, 3, 8)"
    assert f"misshapen: {shapes}" in str(error.value)
    with pytest.raises(WeightsMismatch, match="none of torchvision's LRASPP: it has a, b"):
        from_published({"a": np.zeros(3), "b": np.zeros(3)}, model)


def test_the_auxiliary_head_is_named_where_it_is_missing():
    model, variables, _ = narrow("fcn_resnet50")
    state = {k: v for k, v in to_published(model, variables).items() if not k.startswith("aux")}
    with pytest.raises(WeightsMismatch, match=r"missing: aux_classifier\.0.*field `aux` of the model"):
        from_published(state, model)
    assert "aux_classifier" not in from_published(state, model.clone(aux=False)).variables["params"]


def test_our_own_layout_serves_every_model(tmp_path):
    model, variables, _ = narrow("fcn_resnet50")
    save_weights(tmp_path / "w.safetensors", model, variables, "jaxseg")
    loaded = load_published(tmp_path / "w.safetensors", model)
    assert_equal(loaded.variables, variables)
    assert loaded.publisher == "jaxseg"
    other = load_published(tmp_path / "w.safetensors", model.clone(num_classes=3))
    assert "scores 5 classes and the model 3" in other.left_out


def test_what_nobody_published_and_other_suffixes(tmp_path):
    model, _, _ = narrow("segnet_basic")
    with pytest.raises(WeightsMismatch, match=r"nobody published weights of SegNetBasic .*load_encoder"):
        from_published({"conv1.weight": np.zeros(3)}, model)
    model, variables, _ = narrow("fcn_resnet50")
    with pytest.raises(ValueError, match=r"written as \.safetensors, not \.pth"):
        save_weights(tmp_path / "w.pth", model, variables)
    with pytest.raises(ValueError, match="semseg published no DilatedFCN; there is torchvision, jaxseg"):
        to_published(model, variables, "semseg")


def test_a_file_is_written_whole_or_not_at_all_and_others_may_read_it(tmp_path):
    model, variables, _ = narrow("lraspp_mobilenet_v3_large")
    path = tmp_path / "new" / "w.safetensors"
    save_weights(path, model, variables)
    (tmp_path / "any").touch()
    assert path.stat().st_mode == (tmp_path / "any").stat().st_mode
    whole = path.read_bytes()
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))  # stands for a full disk
    try:
        with pytest.raises(OSError, match=r"w\.safetensors cannot be written \(File too large\)"):
            save_weights(path, model, variables)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert path.read_bytes() == whole
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def test_variables_of_another_model_are_not_written(tmp_path):
    model, variables, _ = narrow("unet_resnet34")
    fcn, _, _ = narrow("fcn_resnet50")
    for wrong, path, given in (
        (fcn, "batch_stats/aux_classifier/block/bn/mean", variables),
        (model.clone(num_classes=3), "params/logits/bias", variables),
        (model, "batch_stats/blocks_0_conv1/bn/mean", {"params": variables["params"]}),
    ):
        with pytest.raises(WeightsMismatch, match=r"not the variables of this \w+: \d+ differ") as error:
            save_weights(tmp_path / "w.safetensors", wrong, given)
        assert path in str(error.value)
    assert not (tmp_path / "w.safetensors").exists()


def test_weights_of_smp_do_not_pass_for_torchvisions():
    """The names would fit, and resizing and dilation would differ."""
    model, _, _ = narrow("deeplabv3_resnet50")
    of_smp = model.clone(aux=None, align_corners=True, dilate_first=True)
    shapes = jax.eval_shape(lambda k: of_smp.init(k, jnp.zeros((1, 32, 32, 3)), train=False), jax.random.key(0))
    variables = jax.tree.map(lambda s: jnp.ones(s.shape, s.dtype), shapes)
    state = to_published(of_smp, variables)
    assert {"encoder.conv1.weight", "decoder.aspp.convs.4.1.weight", "decoder.conv.weight"} < state.keys()
    assert from_published(state, of_smp).publisher == "segmentation-models-pytorch"
    old = {k.replace("decoder.aspp.", "decoder.0.").replace("decoder.conv.", "decoder.1."): v for k, v in state.items()}
    assert_equal(from_published(old, of_smp).variables, variables)
    with pytest.raises(
        WeightsMismatch, match="create it with aux=None, align_corners=True, dilate_first=True, as `jaxseg convert`"
    ):
        from_published(state, model.clone(aux=None))


def test_a_backbone_takes_imagenets_file_without_its_classifier():
    model = ResNet((1, 1, 1, 1), (4, 4, 4, 4), stem_features=4)
    shapes = jax.eval_shape(lambda k: model.init(k, jnp.zeros((1, 32, 32, 3)), train=False), jax.random.key(0))
    variables = jax.tree.map(lambda s: jnp.ones(s.shape, s.dtype), shapes)
    state = to_published(model, variables) | {"fc.weight": np.zeros((1000, 16)), "fc.bias": np.zeros(1000)}
    assert {"conv1.weight", "layer1.0.downsample.1.running_var"} < state.keys()
    assert_equal(from_published(state, model).variables, variables)


def test_googlenet_takes_imagenets_file_without_its_auxiliary_classifiers():
    model = googlenet(width=0.125)
    shapes = jax.eval_shape(lambda k: model.init(k, jnp.zeros((1, 32, 32, 3)), train=False), jax.random.key(0))
    variables = jax.tree.map(lambda s: jnp.ones(s.shape, s.dtype), shapes)
    state = to_published(model, variables)
    assert {"conv1.conv.weight", "inception4e.branch3.1.bn.running_var", "inception5b.branch4.1.conv.weight"} < set(
        state
    )
    extra = {f"{name}.weight": np.zeros((3, 3)) for name in ("fc", "aux1.fc1", "aux2.conv.conv")}
    assert_equal(from_published(state | extra, model).variables, variables)


def test_it_is_public():
    assert jaxseg.load_weights is load_weights
