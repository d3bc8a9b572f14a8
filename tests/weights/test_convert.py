"""Folders that say what model they are of: `jaxseg convert`'s, and segmentation-models-pytorch's of the hub."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden.named import fill, image
from safetensors.numpy import load_file, save_file

import jaxseg
from jaxseg.backbones import described_backbone
from jaxseg.backbones.resnet import wide_resnet50_2
from jaxseg.cli import main
from jaxseg.layers import GroupNorm
from jaxseg.models.pspnet import pool_of
from jaxseg.ops.adain import OFFICIAL
from jaxseg.ops.pooling import adaptive_average_pool, adaptive_max_pool
from jaxseg.weights import (
    WeightsMismatch,
    convert,
    load_published,
    load_weights,
    read_weights,
    save_model,
    save_weights,
    to_published,
)
from jaxseg.weights.folder import smp_model

CONFIG = {"_model_class": "Unet", "encoder_name": "resnet18", "classes": 3, "decoder_channels": [8, 8, 4, 4, 4]}


def variables_of(model):
    return fill(jax.eval_shape(lambda k: model.init(k, jnp.zeros((1, 32, 32, 3)), train=False), jax.random.key(0)))


def assert_equal(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    assert jax.tree.all(jax.tree.map(np.array_equal, a, b))


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    """A folder as SMP's `save_pretrained` leaves it, and the variables in it."""
    folder = tmp_path_factory.mktemp("hub")
    model = jaxseg.create_model(**smp_model(CONFIG))
    variables = variables_of(model)
    save_weights(folder / "model.safetensors", model, variables)
    (folder / "config.json").write_text(json.dumps(CONFIG))
    return folder, variables


def test_a_hub_folder_gives_its_model(hub):
    folder, variables = hub
    model, loaded = jaxseg.load_model(folder)
    assert (model.num_classes, model.decoder_features) == (3, (8, 8, 4, 4, 4))
    assert_equal(loaded, variables)
    assert_equal(load_weights(folder, model.clone(remat=True)), variables)
    assert "scores 3 classes" in load_published(folder, model.clone(num_classes=2)).left_out
    with pytest.raises(WeightsMismatch, match=r"is of a model with encoder=resnet18; jaxseg\.load_model gives it, or "):
        load_weights(folder, jaxseg.create_model("unet_resnet34", 3, decoder_features=(8, 8, 4, 4, 4)))
    with pytest.raises(WeightsMismatch, match="is of EncoderUNet, not UNet;"):
        load_weights(folder, jaxseg.create_model("unet", 3))


def test_convert_writes_what_create_model_rebuilds_from(hub, tmp_path, capsys):
    folder, variables = hub
    with pytest.raises(SystemExit) as code:
        main(["convert", "unet_resnet34", str(folder), "--out", str(tmp_path / "a")])
    assert code.value.code == 0
    assert "segmentation-models-pytorch's unet_resnet34" in capsys.readouterr().out
    described = json.loads((tmp_path / "a" / "model.json").read_text())
    assert described["publisher"] == "segmentation-models-pytorch"
    assert described["preprocessing"]["mean"] == [0.485, 0.456, 0.406]
    assert described["model"]["encoder"] == "resnet18"
    model = jaxseg.create_model(**described["model"])
    assert_equal(load_weights(tmp_path / "a", model), variables)
    again, loaded = jaxseg.load_model(tmp_path / "a")
    assert again == model
    assert_equal(loaded, variables)
    a, b = load_file(folder / "model.safetensors"), load_file(tmp_path / "a" / "model.safetensors")
    assert a.keys() == b.keys()
    assert all(np.array_equal(a[name], b[name]) for name in a)
    with pytest.raises(SystemExit):
        main(["convert", "unet_resnet34", str(folder), "--out", str(tmp_path / "b"), "--classes", "7"])
    assert "scores 3 classes and the model 7: everything is loaded but logits/" in capsys.readouterr().err
    model, loaded = jaxseg.load_model(tmp_path / "b")
    assert model.num_classes == 7
    assert_equal(loaded["params"]["encoder"], variables["params"]["encoder"])
    assert not loaded["params"]["logits"]["kernel"].any()


def test_convert_finds_classes_auxiliary_head_and_publishers_fields(tmp_path, capsys):
    model = jaxseg.create_model(
        "deeplabv3_resnet50", 4, backbone="resnet18", features=8, aux=None, align_corners=True, dilate_first=True
    )
    state = to_published(model, variables_of(model))
    save_file({f"module.{name}": array for name, array in state.items()}, tmp_path / "w.safetensors")
    fields = {"backbone": "resnet18", "features": 8}
    loaded = jaxseg.weights.convert("deeplabv3_resnet50", tmp_path / "w.safetensors", tmp_path / "out", **fields)
    assert loaded.left_out is None
    assert json.loads((tmp_path / "out" / "model.json").read_text())["model"] == {
        "name": "deeplabv3_resnet50",
        "num_classes": 4,
        "align_corners": True,
        "dilate_first": True,
        "aux": None,
        **fields,
    }
    assert jaxseg.load_model(tmp_path / "out").model == model
    for arguments, message in {
        ("deeplabv3_resnet5", "w.safetensors"): 'no model "deeplabv3_resnet5"; did you mean "deeplabv3_resnet50"?',
        ("lraspp_mobilenet_v3_large", "w.safetensors"): "none of torchvision's LRASPP",
        ("unet", "no.safetensors"): "no.safetensors",
    }.items():
        with pytest.raises(SystemExit) as code:
            main(["convert", arguments[0], str(tmp_path / arguments[1]), "--out", str(tmp_path / "none")])
        assert code.value.code == 2
        assert message in capsys.readouterr().err
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"_model_class": "Linknet"}, "SMP's Linknet is not in the zoo; there are Unet, PSPNet"),
        ({"encoder_name": "tu-convnext_tiny"}, "has the encoder tu-convnext_tiny; there are googlenet"),
        ({"decoder_attention_type": "scse"}, "has decoder_attention_type='scse', and here it is None"),
        ({"in_channels": 1}, "has in_channels=1, and here it is 3"),
        ({"encoder_depth": 4}, "has encoder_depth=4, and here it is 5"),
        ({"_model_class": "DeepLabV3", "upsampling": 4}, "has upsampling=4, and here it is 8"),
        ({"_model_class": "DeepLabV3Plus", "decoder_aspp_separable": False}, "decoder_aspp_separable=False, and here"),
    ],
)
def test_what_no_model_here_has_is_named(change, message):
    with pytest.raises(WeightsMismatch, match=message):
        smp_model(CONFIG | change)


def test_a_folder_without_a_description_or_weights(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"describes no model: it holds neither model\.json nor config\.json"):
        jaxseg.load_model(tmp_path)
    with pytest.raises(FileNotFoundError, match="holds no weights: neither model"):
        load_weights(tmp_path, jaxseg.create_model("segnet_basic", 2))
    with pytest.raises(ValueError, match='no backbone "resnet19"; did you mean "resnet18"'):
        jaxseg.create_model("unet_resnet34", 2, encoder="resnet19")


@pytest.mark.parity
@pytest.mark.parametrize("kind", ["Unet", "PSPNet", "DeepLabV3", "DeepLabV3Plus"])
def test_what_smp_saves_gives_its_outputs(tmp_path, kind):
    """`save_pretrained`'s folder, and torch.save's files of both formats, alone and wrapped."""
    torch = pytest.importorskip("torch")
    from golden import published

    torch.manual_seed(0)
    encoder = "mobilenet_v2" if kind == "PSPNet" else "resnet18"
    theirs = getattr(published.smp, kind)(encoder, encoder_weights=None, classes=3).eval()
    theirs.save_pretrained(tmp_path / "hub")
    model, variables = jaxseg.load_model(tmp_path / "hub")
    images = image(2, 64, 96)
    with torch.no_grad():
        expected, _ = published.run(theirs, images)
    logits = jax.jit(lambda v, x: model.apply(v, x, train=False).logits)(variables, images)
    np.testing.assert_allclose(logits, expected, rtol=1e-5, atol=1e-4 * max(1e-2, float(expected.std())))
    state = theirs.state_dict()
    wrapped = {"epoch": 3, "state_dict": {f"module.{name}": tensor for name, tensor in state.items()}}
    torch.save(state, tmp_path / "legacy.pth", _use_new_zipfile_serialization=False)
    torch.save(wrapped, tmp_path / "wrapped.pth")
    (tmp_path / "hub" / "model.safetensors").unlink()
    torch.save(state, tmp_path / "hub" / "pytorch_model.bin")
    for path in ("legacy.pth", "wrapped.pth", "hub"):
        assert_equal(load_weights(tmp_path / path, model), variables)
    save_weights(tmp_path / "back.safetensors", model, variables)
    back = read_weights(tmp_path / "back.safetensors")
    assert set(back) == {name for name in state if not name.endswith("num_batches_tracked")}
    assert all(np.array_equal(array, state[name].numpy()) for name, array in back.items())


SMALL = {"resolution": 16, "base_features": 64, "max_features": 8}
LATENT = {"latent_features": 5}
NETWORKS = [
    ("stylegan_generator", 0, LATENT | {"w_features": 6, "mapping_layers": 2}),
    ("stylegan_generator", 3, LATENT | {"w_features": 6, "mapping_layers": 2}),
    ("progan_generator", 0, LATENT),
    ("stylegan_discriminator", 3, {}),
    ("progan_discriminator", 0, {}),
    ("progan_discriminator", 3, {}),
]
OWN = [
    ("progan_generator", 0, LATENT | {"blur": True}),
    ("stylegan_discriminator", 3, {"condition": "planes"}),
    ("progan_discriminator", 0, {"blur": True}),
]


def drawn(model):
    inputs = [jnp.zeros(x.shape, x.dtype) for x in model.inputs(jax.ShapeDtypeStruct((1, 16, 16, 3), jnp.float32))]
    return fill(jax.eval_shape(lambda k: model.init(k, *inputs, train=False), jax.random.key(0)))


@pytest.mark.parametrize(("name", "classes", "fields"), NETWORKS)
def test_generation_converts_and_says_its_resolution_and_classes(name, classes, fields, tmp_path):
    model = jaxseg.create_model(name, classes, **SMALL, **fields)
    variables = drawn(model)
    save_weights(tmp_path / "published.safetensors", model, variables)
    widths = {k: v for k, v in (SMALL | fields).items() if k != "resolution"}
    convert(name, tmp_path / "published.safetensors", tmp_path / "out", **widths)
    found, loaded = jaxseg.load_model(tmp_path / "out")
    assert (found.resolution, found.num_classes) == (16, classes)
    assert_equal(loaded, variables)
    save_weights(tmp_path / "own.safetensors", model, variables, publisher="jaxseg")
    assert_equal(load_weights(tmp_path / "own.safetensors", model), variables)


@pytest.mark.parametrize(
    ("name", "changed", "said"),
    [
        ("progan_discriminator", {"layer6.weight": None}, "missing: layer6.weight"),
        ("progan_generator", {"layer0.weight": np.zeros(4, np.float32)}, r"misshapen: layer0.weight \(4,\)"),
    ],
)
def test_an_entry_that_would_tell_the_classes_is_named_where_it_is_missing_or_misshapen(name, changed, said, tmp_path):
    fields = LATENT if name == "progan_generator" else {}
    model = jaxseg.create_model(name, 0, **SMALL, **fields)
    state = to_published(model, drawn(model)) | changed
    save_file({k: v for k, v in state.items() if v is not None}, tmp_path / "published.safetensors")
    widths = {k: v for k, v in (SMALL | fields).items() if k != "resolution"}
    with pytest.raises(WeightsMismatch, match=said):
        convert(name, tmp_path / "published.safetensors", tmp_path / "out", **widths)


@pytest.mark.parametrize("name", ["stylegan_generator", "progan_discriminator"])
def test_variables_of_another_network_are_not_written(name, tmp_path):
    """Of a higher resolution the upper layers would be left out, of other widths all would be written."""
    fields = LATENT if name.endswith("generator") else {}
    model = jaxseg.create_model(name, **SMALL, **fields)
    variables = drawn(model)
    for other in (
        drawn(model.clone(resolution=32)),
        drawn(model.clone(max_features=4)),
        {"params": {k: v for k, v in variables["params"].items() if k not in ("mapping", "conv_4")}},
    ):
        with pytest.raises(WeightsMismatch, match=rf"not the variables of this {type(model).__name__}: \d+ differ"):
            save_weights(tmp_path / "published.safetensors", model, other)
    assert not (tmp_path / "published.safetensors").exists()


@pytest.mark.parametrize(("name", "classes", "fields"), OWN)
def test_networks_that_nobody_published_keep_their_own_names(name, classes, fields, tmp_path):
    model = jaxseg.create_model(name, classes, **SMALL, **fields)
    variables = drawn(model)
    jaxseg.save_model(tmp_path / "out", variables, name, classes, **SMALL, **fields)
    assert_equal(jaxseg.load_model(tmp_path / "out").variables, variables)


def test_a_style_transfer_is_saved_with_its_encoder(tmp_path):
    model = jaxseg.create_model("adain_transfer", vgg="vgg16")
    variables = jax.tree.map(
        lambda x: np.zeros(x.shape, x.dtype),
        jax.eval_shape(
            lambda k: model.init(k, jnp.zeros((1, 16, 16, 3)), jnp.zeros((1, 16, 16, 3)), train=False),
            jax.random.key(0),
        ),
    )
    for fields in ({"vgg": "vgg16"}, {"vgg": "vgg16", "convention": OFFICIAL}):
        jaxseg.save_model(tmp_path / "out", variables, "adain_transfer", None, **fields)
        found, loaded = jaxseg.load_model(tmp_path / "out")
        assert found == jaxseg.create_model("adain_transfer", **fields)
        assert_equal(loaded, variables)
    save_file({"0.weight": np.zeros((3, 3, 1, 1), np.float32)}, tmp_path / "decoder.safetensors")
    with pytest.raises(WeightsMismatch, match=r"two files: .*load_adain_transfer"):
        load_weights(tmp_path / "decoder.safetensors", model)


def test_the_max_pooling_pspnet_is_saved_by_the_name_of_its_pooling(tmp_path):
    for pool in ("max", adaptive_max_pool):
        fields = {"backbone": "resnet18", "features": [8, 8], "pool": pool}
        variables = variables_of(jaxseg.create_model("pspnet_resnet50", 2, **fields))
        save_model(tmp_path / "psp", variables, "pspnet_resnet50", 2, **fields)
        model, loaded = jaxseg.load_model(tmp_path / "psp")
        assert model.pool == "max"
        assert_equal(loaded, variables)
    assert (pool_of("max"), pool_of("average")) == (adaptive_max_pool, adaptive_average_pool)
    with pytest.raises(ValueError, match='no pooling "min"; there is average, max'):
        pool_of("min")


def test_a_backbone_with_fields_of_its_own_is_saved_by_its_name_and_them(tmp_path):
    wide = functools.partial(wide_resnet50_2, depths=(1, 1, 1, 1), base_width=8, multi_grid=(1, 2, 4))
    model = jaxseg.create_model("deeplabv3_resnet50", 5, backbone=wide, features=8)
    variables = fill(jax.eval_shape(functools.partial(model.init, train=False), jax.random.key(0), image(1, 64, 64)))
    jaxseg.save_model(tmp_path, variables, "deeplabv3_resnet50", 5, backbone=wide, features=8)
    described = json.loads((tmp_path / "model.json").read_text())["model"]["backbone"]
    assert described["name"] == "resnet50"  # of the width given it is no longer wide_resnet50_2
    assert described["multi_grid"] == [1, 2, 4]
    found, loaded = jaxseg.load_model(tmp_path)
    assert found.backbone().multi_grid == (1, 2, 4)
    assert found.backbone() == wide()
    assert_equal(loaded, variables)
    named = {"name": "resnext50_32x4d", "multi_grid": [1, 2]}
    built = jaxseg.create_model("fcn_resnet50", 5, backbone=named).backbone
    assert described_backbone(built) == {"name": "resnext50_32x4d", "multi_grid": (1, 2)}
    assert described_backbone(wide_resnet50_2) == "wide_resnet50_2"


@pytest.mark.parametrize(
    ("backbone", "message"),
    [
        ({"name": "resnet51"}, 'no backbone "resnet51"; did you mean "resnet5'),
        ({"multi_grid": [1]}, 'no backbone "None"'),
        ({"name": "resnet50", "multigrid": [1]}, 'has no field "multigrid"; did you mean "multi_grid"'),
        ({"name": "resnet50", "multi_grid": "wide"}, "is a list of whole numbers, got 'wide'"),
    ],
)
def test_a_backbone_described_wrongly_is_named(backbone, message):
    with pytest.raises(ValueError, match=message):
        jaxseg.create_model("deeplabv3_resnet50", 5, backbone=backbone)


def test_a_detector_is_saved_with_its_norm_and_anchors(tmp_path):
    fields = {"norm": GroupNorm, "anchor_sizes": ((8,), (16,), (24,), (32,), (48,))}
    model = jaxseg.create_model("maskrcnn_small", 3, **fields)
    variables = variables_of(model)
    save_model(tmp_path, variables, "maskrcnn_small", 3, **fields)
    described = json.loads((tmp_path / "model.json").read_text())["model"]
    assert described["norm"] == "group"
    loaded = jaxseg.load_model(tmp_path)
    assert loaded.model == model
    assert_equal(loaded.variables, variables)
    with pytest.raises(ValueError, match='no norm "layer"; there is batch, frozen, group'):
        jaxseg.create_model("maskrcnn_small", 3, norm="layer")
