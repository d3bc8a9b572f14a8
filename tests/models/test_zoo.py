"""Every semantic model of MODELS: its size, shapes, gradients and, against PyTorch transcriptions, its numbers."""

import functools
import pathlib
from inspect import signature

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden.named import fill, image
from tiers import some_slow

import jaxseg
from jaxseg.backbones.googlenet import googlenet
from jaxseg.backbones.mobilenet_v2 import STAGES, mobilenet_v2
from jaxseg.backbones.mobilenet_v3 import mobilenet_v3_large
from jaxseg.backbones.resnet import resnet34, resnet50
from jaxseg.backbones.vgg import vgg16, vgg16_bn
from jaxseg.models import SegmentationOutput, model_source
from jaxseg.models.fcn import Upsample
from jaxseg.models.unet import valid_input_size, valid_output_size
from jaxseg.ops.resize import bilinear_kernel

# the models that give a SegmentationOutput; detectors and generators have tests of their own
MODELS = {
    name: constructor
    for name, constructor in jaxseg.MODELS.items()
    if signature(getattr(constructor, "func", constructor).__call__).return_annotation is SegmentationOutput
}
GOLDEN = pathlib.Path(__file__).parents[1] / "golden"

# Parameters with 21 classes. VGG-16's convolutions 14,714,688; fc6, fc7 119,545,856 as 7x7 and 1x1 or, both
# 1x1, 18,882,560; score_fr 4096 * 21 + 21 = 86,037; score_pool4, pool3 512 * 21 + 21, 256 * 21 + 21; a
# transposed convolution (2 s)^2 21^2. The test with the parity mark counts the PyTorch transcriptions.
COUNTS = {
    "fcn32s_vgg16": 14_714_688 + 119_545_856 + 86_037 + 64**2 * 21**2,
    "fcn16s_vgg16": 14_714_688 + 119_545_856 + 86_037 + 10_773 + (4**2 + 32**2) * 21**2,
    "fcn8s_vgg16": 14_714_688 + 119_545_856 + 86_037 + 10_773 + 5_397 + (2 * 4**2 + 16**2) * 21**2,
    "fcn8s_vgg16_at_once": 134_489_759,
    "fcn_vgg16_1x1": 14_714_688 + 18_882_560 + 86_037 + 64**2 * 21**2,
    "fcn_googlenet": 6_624_904 - 1_025_000 + 1024 * 21 + 21,  # torchvision's less its classifier, and the scores
    # 20.5 million in the paper: fc6 and fc7, 4,719,616 and 1,049,600, and the scores
    "deeplab_largefov_vgg16": 14_714_688 + 4_719_616 + 1_049_600 + 1024 * 21 + 21,
    # torchvision's own, with their auxiliary heads (`num_params` of its weights)
    "fcn_resnet50": 35_322_218,
    "fcn_resnet101": 54_314_346,
    "deeplabv3_resnet50": 42_004_074,
    "deeplabv3_resnet101": 60_996_202,
    "deeplabv3_mobilenet_v3_large": 11_029_328,
    "lraspp_mobilenet_v3_large": 3_221_538,
    # hszhao/semseg's; 18 and 34 by their parts: torchvision's ResNet less its classifier, 148,480 more for the deep
    # stem and what sees its 128 channels; the pyramid 4 (512 128 + 256); the heads 4,730,389 and 595,733
    "pspnet_resnet18": 11_176_512 + 148_480 + 263_168 + 4_730_389 + 595_733,
    "pspnet_resnet34": 21_284_672 + 148_480 + 263_168 + 4_730_389 + 595_733,
    "pspnet_resnet50": 49_081_578,
    "pspnet_resnet101": 68_073_706,
    "pspnet_resnet152": 83_717_354,
    # segmentation-models-pytorch's
    "pspnet_smp_resnet34": 21_530_165,
    "pspnet_smp_resnet50": 24_393_173,
    "deeplabv3_mobilenet_v2": 12_653_077,
    "deeplabv3plus_mobilenet_v2": 4_383_653,
    "unet_resnet18": 14_331_109,
    "unet_resnet101": 51_516_133,
    "unet_resnet152": 67_159_781,
    "unet_vgg16_bn": 23_759_589,
    "unet_mobilenet_v2": 6_631_845,
    "deeplabv3plus_resnet34": 22_442_597,
    "deeplabv3plus_resnet50": 26_682_725,
    "deeplabv3plus_resnet101": 45_674_853,
    "unet_resnet34": 24_439_269,
    "unet_resnet50": 32_524_005,
    "segnet_vgg16_bn": 29_455_125,
    "segnet_basic": 9_408 + 7 * 200_704 + 8 * 128 + 65 * 21,
    "unet": 31_037_698 + 19 * 65,
    "unet_small": 1_942_594 + 19 * 17,
    "unet_valid": 31_031_810 + 19 * 65,
}

NARROW = (4, 8, 8, 12, 16)
FCN_FIELDS = {"encoder": functools.partial(vgg16, features=NARROW), "fc_features": 24}
RESNET_FIELDS = {"backbone": functools.partial(resnet50, depths=(1, 1, 2, 2), features=(4, 8, 12, 16))}
PSPNET_FIELDS = {
    "backbone": functools.partial(resnet50, depths=(1, 1, 2, 2), features=(4, 8, 12, 16), stem_features=4),
    "features": (24, 12),
}
BASIC = functools.partial(resnet34, depths=(1, 1, 2, 2), features=(4, 8, 12, 16))
PLUS_FIELDS = {"backbone": BASIC, "features": 16}
DECODER = {"decoder_features": (12, 8, 8, 4, 4)}
MOBILE_V2 = functools.partial(
    mobilenet_v2, width=0.25, stages=tuple(s._replace(repeats=2 if s.features == 160 else 1) for s in STAGES)
)
MOBILE_FIELDS = {"backbone": functools.partial(mobilenet_v3_large, width=0.25)}
UNET_FIELDS = {"features": (4, 6, 8, 10, 12)}
FIELDS = {
    "fcn32s_vgg16": FCN_FIELDS,
    "fcn16s_vgg16": FCN_FIELDS,
    "fcn8s_vgg16": FCN_FIELDS,
    "fcn8s_vgg16_at_once": FCN_FIELDS,
    "fcn_vgg16_1x1": FCN_FIELDS,
    "fcn_googlenet": {"backbone": functools.partial(googlenet, width=0.125)},
    "deeplab_largefov_vgg16": {"encoder": functools.partial(vgg16, features=NARROW), "fc_features": 12},
    "fcn_resnet50": RESNET_FIELDS,
    "fcn_resnet101": RESNET_FIELDS,
    "deeplabv3_resnet50": RESNET_FIELDS,
    "deeplabv3_resnet101": RESNET_FIELDS,
    "deeplabv3_mobilenet_v3_large": MOBILE_FIELDS,
    "lraspp_mobilenet_v3_large": MOBILE_FIELDS,
    **{f"pspnet_resnet{depth}": PSPNET_FIELDS for depth in (18, 34, 50, 101, 152)},
    **{f"deeplabv3plus_resnet{depth}": PLUS_FIELDS for depth in (34, 50, 101)},
    "deeplabv3_mobilenet_v2": {"backbone": MOBILE_V2, "features": 16},
    "deeplabv3plus_mobilenet_v2": {"backbone": MOBILE_V2, "features": 16},
    **{f"pspnet_smp_resnet{depth}": {"encoder": BASIC, "features": 24} for depth in (34, 50)},
    **{f"unet_resnet{depth}": {"encoder": BASIC, **DECODER} for depth in (18, 34, 50, 101, 152)},
    "unet_vgg16_bn": {"encoder": functools.partial(vgg16_bn, features=NARROW), **DECODER},
    "unet_mobilenet_v2": {"encoder": MOBILE_V2, **DECODER},
    "segnet_vgg16_bn": {"encoder": functools.partial(vgg16_bn, features=NARROW)},
    "segnet_basic": {"features": 8},
    "unet": UNET_FIELDS,
    "unet_small": UNET_FIELDS,
    "unet_valid": UNET_FIELDS,
}
SIZES = {
    "fcn_googlenet": (97, 131),
    "unet": (48, 32),
    "unet_small": (48, 32),
    "unet_valid": (188, 204),
    # SMP takes multiples of 8 or of the output stride
    **{f"pspnet_smp_resnet{depth}": (40, 56) for depth in (34, 50)},
    **{f"deeplabv3plus_resnet{depth}": (48, 64) for depth in (34, 50, 101)},
    "deeplabv3_mobilenet_v2": (40, 56),
    "deeplabv3plus_mobilenet_v2": (48, 64),
}
NORMED = ("fcn_googlenet", "segnet_vgg16_bn", "segnet_basic", "unet")
TRANSCRIBED = (
    *(n for n in MODELS if n.startswith("fcn") and "vgg" in n),
    *("deeplab_largefov_vgg16", *NORMED, "unet_small", "unet_valid"),
)
LIVE = tuple(n for n in MODELS if n not in TRANSCRIBED)  # beside their publishers: test_published_zoo.py
SMP = tuple(n for n in LIVE if n.startswith(("unet", "deeplabv3plus", "pspnet_smp")) or n == "deeplabv3_mobilenet_v2")
AUX = tuple(n for n in LIVE if n.startswith(("fcn", "deeplabv3_", "pspnet")) and n not in SMP)


def shapes(model, images):
    return jax.eval_shape(functools.partial(model.init, train=False), jax.random.key(0), images)


@functools.cache
def narrow(name):
    """The model with few channels and 5 classes, in named weights, and two images."""
    model = jaxseg.create_model(name, 5, **FIELDS[name])
    images = image(2, *SIZES.get(name, (37, 53)))
    return model, fill(shapes(model, images)), images


def _distinct():
    """Names whose narrow models differ: ResNets of several depths all narrow to one."""
    seen = {}
    for name in MODELS:
        model = jaxseg.create_model(name, 5, **FIELDS[name])
        if not any(model == other for other in seen.values()):
            seen[name] = model
    return tuple(seen)


DISTINCT = _distinct()
# The rest differ from others by a backbone that is tried with another head; compiling takes most of the time
TRIED = tuple(n for n in DISTINCT if n not in ("deeplabv3_mobilenet_v2", "deeplabv3plus_mobilenet_v2"))
# Dozens of layers, which take seconds to compile in train mode
COSTLY = {"fcn_googlenet", "deeplabv3_resnet50", "deeplabv3_mobilenet_v3_large", "deeplabv3plus_resnet34"}


@functools.cache
def golden():
    """Slices of the reference models' outputs, by name."""
    found = {}
    for file in ("segmentation.npz", "published.npz"):
        with np.load(GOLDEN / file) as arrays:
            found |= dict(arrays)
    return found


def close(ours, golden):
    """Within 1e-4 for numbers of order 1."""
    np.testing.assert_allclose(ours, golden, rtol=3e-5, atol=1e-4 * min(1, np.std(golden)))


def test_every_model_has_its_rows():
    assert set(COUNTS) == set(FIELDS) == set(MODELS)


@pytest.mark.parametrize("name", MODELS)
def test_parameters_as_published(name):
    assert " et al. 20" in model_source(name)
    size = (188, 220) if name == "unet_valid" else (32, 32)
    variables = shapes(jaxseg.create_model(name, 21), jax.ShapeDtypeStruct((1, *size, 3), jnp.float32))
    assert sum(leaf.size for leaf in jax.tree.leaves(variables["params"])) == COUNTS[name]
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype("float32")}


@pytest.mark.parametrize("name", DISTINCT)
def test_shape_dtype_and_source(name):
    model = jaxseg.create_model(name, 21, **FIELDS[name])
    size = (188, 220) if name == "unet_valid" else (64, 96)
    images = jax.ShapeDtypeStruct((2, *size, 3), jnp.float32)
    variables = shapes(model, images)
    model = model.clone(dtype=jnp.bfloat16, remat=True)
    assert jax.tree.all(jax.tree.map(lambda a, b: a == b, shapes(model, images), variables))
    apply = functools.partial(model.apply, train=True, mutable=["batch_stats"])
    output, _ = jax.eval_shape(apply, variables, images, rngs={"dropout": jax.random.key(0)})
    expected = tuple(map(valid_output_size, size)) if name == "unet_valid" else size
    assert output.logits.shape == (2, *expected, 21)
    assert output.logits.dtype == jnp.float32
    assert (output.aux_logits is not None) == (name in AUX)
    if name in AUX:
        assert (output.aux_logits.shape, output.aux_logits.dtype) == (output.logits.shape, jnp.float32)


@pytest.mark.parametrize("name", DISTINCT)
def test_logits_are_the_references(name):
    model, variables, images = narrow(name)
    traces = []

    @jax.jit
    def forward(variables, images):
        traces.append(None)
        features = {"capture_intermediates": lambda module, _: module.path in (("backbone",), ("encoder",))}
        return model.apply(variables, images, train=False, mutable=["batch_stats", "intermediates"], **features)

    output, state = forward(variables, images)
    forward(variables, images + 1)
    assert len(traces) == 1
    old = variables.get("batch_stats", {})
    assert jax.tree.all(jax.tree.map(np.array_equal, state.get("batch_stats", {}), old))
    close(output.logits[:, ::5, ::7], golden()[name])
    if name in AUX:
        close(output.aux_logits[:, ::5, ::7], golden()[f"{name} aux"])
    for body in state.get("intermediates", {}).values():
        (features,) = body["__call__"]
        held = [feature for feature in features if f"{name} {feature}" in golden()]
        assert len(held) >= 3 or name in TRANSCRIBED or "vgg" in name
        for feature in held:
            close(features[feature][:, ::3, ::5, :3], golden()[f"{name} {feature}"])


@pytest.mark.parametrize("name", some_slow([*NORMED, *(n for n in LIVE if n in TRIED)], COSTLY))
def test_train_mode_is_the_references(name):
    model, variables, images = narrow(name)
    model = model.clone(**{field: 0.0 for field in ("dropout", "aux_dropout") if hasattr(model, field)})
    train = jax.jit(functools.partial(model.apply, train=True, mutable=["batch_stats"]))
    output, state = train(variables, images)
    close(output.logits[:, ::5, ::7], golden()[f"{name} train"])
    for path, leaf in jax.tree_util.tree_leaves_with_path(dict(state)):
        if name in NORMED:
            theirs = golden()[f"{name} {'/'.join(key.key for key in path)}"]
            np.testing.assert_allclose(leaf[:3], theirs, atol=1e-5, rtol=1e-4)
    if name in LIVE:
        ours = np.concatenate([leaf[:2] for leaf in jax.tree.leaves(dict(state))])
        np.testing.assert_allclose(ours, golden()[f"{name} statistics"], atol=1e-5, rtol=1e-4)


# of a basic and of a VGG encoder: of the others some are held against their publisher's
@pytest.mark.slow
@pytest.mark.parametrize("name", ["pspnet_resnet18", "unet_vgg16_bn"])
def test_every_parameter_has_a_gradient(name):
    model, variables, images = narrow(name)

    @jax.jit
    def gradient(params):
        def loss(params):  # in eval mode: batch statistics cancel the biases before them
            output = model.apply({**variables, "params": params}, images, train=False)
            return sum((logits**2).mean() for logits in jax.tree.leaves(output))

        return jax.grad(loss)(params)

    for path, leaf in jax.tree_util.tree_leaves_with_path(gradient(variables["params"])):
        assert jnp.isfinite(leaf).all(), path
        unused = "pspnet_smp" in name and path[1].key.startswith(("layer3", "layer4"))
        assert (leaf != 0).any() != unused, path


@pytest.mark.parametrize("name", ["segnet_vgg16_bn", "segnet_basic", "unet_valid"])
def test_remat_changes_nothing(name):
    model, variables, images = narrow(name)

    def gradient(model, params):
        def loss(params):
            apply = functools.partial(model.apply, train=True, mutable=["batch_stats"])
            output, _ = apply({**variables, "params": params}, images, rngs={"dropout": jax.random.key(0)})
            return (output.logits**2).mean()

        return jax.grad(loss)(params)

    plain = jax.make_jaxpr(functools.partial(gradient, model))(variables["params"])
    remat = jax.make_jaxpr(functools.partial(gradient, model.clone(remat=True)))(variables["params"])
    assert "remat" in str(remat)
    assert "remat" not in str(plain)
    if name == "segnet_basic":
        ours, theirs = (jax.jit(functools.partial(gradient, m)) for m in (model, model.clone(remat=True)))
        for a, b in zip(*(jax.tree.leaves(f(variables["params"])) for f in (ours, theirs)), strict=True):
            np.testing.assert_allclose(a, b, atol=1e-6)


@pytest.mark.parametrize("size", some_slow([(1, 1), (31, 33), (224, 97), (250, 333)], {(31, 33), (224, 97)}))
@pytest.mark.parametrize("name", [n for n in DISTINCT if n not in ("unet", "unet_valid", "unet_vgg16_bn")])
def test_any_size_is_accepted(name, size):
    model, variables, _ = narrow(name)
    if name == "fcn_googlenet":
        size = max(size, (15, 15))  # as torchvision
    images = jax.ShapeDtypeStruct((1, *size, 3), jnp.float32)
    output = jax.eval_shape(functools.partial(model.apply, train=False), variables, images)
    assert output.logits.shape == (1, *size, 5)


def test_fixed_upsampling_is_the_bilinear_start_of_the_learned_one():
    learned, variables, images = narrow("fcn8s_vgg16")
    fixed = learned.clone(fixed_upsampling=True)
    params = variables["params"]
    bilinear = {
        k: jax.tree.map(lambda w: jnp.asarray(bilinear_kernel(len(w), 5)), v) if k.startswith("upscore") else v
        for k, v in params.items()
    }
    without = {k: v for k, v in params.items() if not k.startswith("upscore")}
    assert set(shapes(fixed, images)["params"]) == set(without)
    images = images[:1, :8, :8]
    a = jax.jit(functools.partial(learned.apply, train=False))({"params": bilinear}, images).logits
    b = jax.jit(functools.partial(fixed.apply, train=False))({"params": without}, images).logits
    np.testing.assert_allclose(a, b, atol=1e-5)
    upsample = Upsample(4, False, jnp.float32)
    start = upsample.init(jax.random.key(0), images)["params"]["deconv"]["kernel"]
    np.testing.assert_array_equal(start, bilinear_kernel(8, 3))


def test_sizes_of_unet():
    with pytest.raises(ValueError, match=r"divisible by 16, got \(250, 333\); pad to \(256, 336\)"):
        jaxseg.create_model("unet_small", 2).init(jax.random.key(0), jnp.zeros((1, 250, 333, 3)), train=False)
    assert valid_output_size(572) == 388
    assert valid_input_size(388) == 572
    with pytest.raises(ValueError, match=r"\(570, 188\).*mirror the border up to \(572, 188\)"):
        jaxseg.create_model("unet_valid", 2).init(jax.random.key(0), jnp.zeros((1, 570, 188, 3)), train=False)
    with pytest.raises(ValueError, match="got 100; mirror the border up to 188"):
        valid_output_size(100)


@pytest.mark.parametrize("depth", [0, 1, 2, 4])
def test_valid_sizes_by_walking_through_the_figure(depth):
    def output(size):
        for _ in range(depth):
            size -= 4
            if size <= 0 or size % 2:
                return None
            size //= 2
        size -= 4
        for _ in range(depth):
            size = 2 * size - 4 if size > 0 else 0
        return size if size > 0 else None

    good = [size for size in range(1, 420) if output(size)]
    for size in range(1, 400):
        if size in good:
            assert valid_output_size(size, depth) == output(size)
        else:
            with pytest.raises(ValueError, match="up to"):
                valid_output_size(size, depth)
    for wanted in range(1, 200):
        smallest = valid_input_size(wanted, depth)
        assert valid_output_size(smallest, depth) >= wanted
        assert all(output(size) < wanted for size in good if size < smallest)


def test_unknown_names_are_answered_with_the_nearest():
    with pytest.raises(ValueError, match=r'no model "unett"; did you mean "unet"\? jaxseg\.MODELS lists all'):
        jaxseg.create_model("unett", 2)
    with pytest.raises(ValueError, match=r'"unet" has no field "feature"; did you mean "features"\?'):
        jaxseg.create_model("unet", 2, feature=(4, 8))
    model = jaxseg.create_model("fcn8s_vgg16", 2, stride=4)
    with pytest.raises(ValueError, match="stride is 8, 16 or 32, got 4"):
        model.init(jax.random.key(0), jnp.zeros((1, 8, 8, 3)), train=False)


@pytest.mark.parametrize(
    ("name", "num_classes", "fields", "message"),
    [
        ("unet", True, {}, "is a whole number, got True"),
        ("unet", 2, {"features": "wide"}, 'field "features" of model "unet" is a list of whole numbers, got \'wide\''),
        ("unet", 2, {"features": [4, 8.5]}, r"got \[4, 8.5\]"),
        ("unet", 2, {"dropout": None}, 'field "dropout" of model "unet" is a number, got None'),
        ("unet", 2, {"remat": 1}, 'field "remat" of model "unet" is true or false, got 1'),
        ("maskrcnn_small", 2, {"box_score_thresh": "high"}, "is a number, got 'high'"),
        ("stylegan_discriminator", 3, {"condition": "word"}, "is one of score, auxiliary, planes, got 'word'"),
    ],
)
def test_fields_of_another_kind_are_refused_by_name(name, num_classes, fields, message):
    with pytest.raises(ValueError, match=message):
        jaxseg.create_model(name, num_classes, **fields)


@pytest.mark.parity
@pytest.mark.parametrize("name", TRANSCRIBED)
def test_counts_of_the_transcriptions(name):
    pytest.importorskip("torch")
    from golden import reference

    assert reference.count(reference.full(name)) == COUNTS[name]


@pytest.mark.parity
@pytest.mark.parametrize(("name", "train"), [*((n, False) for n in TRANSCRIBED), *((n, True) for n in NORMED)])
def test_beside_torch(name, train):
    """Logits, gradients and running statistics, in both modes where they differ but for dropout.

    PyTorch computes in float64: its own rounding in float32 is twice ours where batch norms sum few pixels. So do we
    for the gradients of train mode, of which such norms make 1e-2 of rounding (GoogLeNet on a processor of AVX2).
    """
    torch = pytest.importorskip("torch")
    from golden import reference

    model, variables, images = narrow(name)
    if hasattr(model, "dropout"):
        model = model.clone(dropout=0.0)
    theirs = reference.narrow(name).double().train()
    if not train:
        for module in theirs.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.eval()
    logits = reference.run(theirs, images)
    (logits**2).mean().backward()

    def forward(model, variables, images):
        output, state = model.apply(variables, images, train=train, mutable=["batch_stats"])
        return output.logits, state

    @functools.partial(jax.jit, static_argnums=0)
    def gradient(model, variables, images):
        return jax.grad(lambda p: (forward(model, {**variables, "params": p}, images)[0] ** 2).mean())(
            variables["params"]
        )

    ours, state = jax.jit(forward, static_argnums=0)(model, variables, images)
    close(ours, logits.detach().numpy())
    with jax.enable_x64(train):
        wide = jnp.float64 if train else jnp.float32
        exact = model.clone(dtype=wide), *jax.tree.map(lambda x: jnp.asarray(x, wide), (variables, images))
        gradients = jax.device_get(gradient(*exact))
    expected = reference.gradients(theirs)
    for path, leaf in jax.tree_util.tree_leaves_with_path({"params": gradients}):
        *layer, _ = (key.key for key in path)
        # of the layer, for the exact gradient of a bias before a batch norm is zero, and both have only rounding
        scale = max(np.abs(x).max() for name, x in expected.items() if name.split("/")[:-1] == layer)
        other = expected["/".join(key.key for key in path)]
        np.testing.assert_allclose(leaf, other, atol=1e-4 * max(1e-1, scale), err_msg=str(path))
    statistics = reference.statistics(theirs)
    for path, leaf in jax.tree_util.tree_leaves_with_path(dict(state)):
        np.testing.assert_allclose(leaf, statistics["/".join(key.key for key in path)], atol=1e-5, rtol=1e-4)
