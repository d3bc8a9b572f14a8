"""ResNets, GoogLeNet and MobileNets: published sizes, strides by dilation, and every feature beside torchvision's."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden.named import close_as_theirs, fill, image

import jaxseg
from jaxseg.backbones import BACKBONES, backbone_fields, first_at_stride8
from jaxseg.backbones.googlenet import googlenet
from jaxseg.backbones.mobilenet_v2 import mobilenet_v2
from jaxseg.backbones.mobilenet_v3 import mobilenet_v3_large, mobilenet_v3_small
from jaxseg.backbones.resnet import BasicBlock, resnet50
from jaxseg.backbones.vgg import vgg16
from jaxseg.layers import BatchNorm
from jaxseg.models.deeplabv3 import DeepLabV3
from jaxseg.models.deeplabv3plus import DeepLabV3Plus
from jaxseg.models.fcn_dilated import DilatedFCN
from jaxseg.models.pspnet import PSPNet
from jaxseg.models.pspnet_smp import EncoderPSPNet
from jaxseg.models.unet_encoder import EncoderUNet
from jaxseg.weights import to_published

# torchvision's counts less the classifiers: 512, 1024, 1280 or 2048 times 1000, MobileNetV3's two layers, and biases
COUNTS = {
    "resnet18": 11_689_512 - 513_000,
    "resnet34": 21_797_672 - 513_000,
    "resnet50": 25_557_032 - 2_049_000,
    "resnet101": 44_549_160 - 2_049_000,
    "resnet152": 60_192_808 - 2_049_000,
    "resnext50_32x4d": 25_028_904 - 2_049_000,
    "wide_resnet50_2": 68_883_240 - 2_049_000,
    "googlenet": 6_624_904 - 1_025_000,
    "mobilenet_v2": 3_504_872 - 1_281_000,
    "mobilenet_v3_large": 5_483_032 - (961 * 1280 + 1281 * 1000),
    "mobilenet_v3_small": 2_542_856 - (577 * 1024 + 1025 * 1000),
}


def shapes(model, h=32, w=32):
    images = jax.ShapeDtypeStruct((1, h, w, 3), jnp.float32)
    return jax.eval_shape(functools.partial(model.init, train=False), jax.random.key(0), images)


@pytest.mark.parametrize("name", COUNTS)
def test_counts_are_torchvisions(name):
    variables = shapes(BACKBONES[name]())
    assert sum(leaf.size for leaf in jax.tree.leaves(variables["params"])) == COUNTS[name]


@pytest.mark.parametrize("output_stride", [32, 16, 8])
@pytest.mark.parametrize(
    "narrow", [functools.partial(resnet50, depths=(1, 1, 2, 2)), mobilenet_v3_small, mobilenet_v2, googlenet, vgg16]
)
def test_features_keep_their_names_at_every_output_stride(narrow, output_stride):
    model = narrow(output_stride=output_stride)
    images = jax.ShapeDtypeStruct((1, 70, 97, 3), jnp.float32)
    features = jax.eval_shape(functools.partial(model.apply, train=False), shapes(model), images)
    for stride in (2, 4, 8, 16, 32):
        real = min(stride, output_stride)
        found = features[f"stride{stride}"].shape[1:3]
        if narrow in (googlenet, vgg16):  # whose poolings have no border
            assert all(n // real <= size <= -(-n // real) for size, n in zip(found, (70, 97), strict=True))
        else:
            assert found == (-(-70 // real), -(-97 // real))
    with pytest.raises(ValueError, match="output_stride is 8, 16 or 32, got 4"):
        shapes(narrow(output_stride=4))


def convolutions(jaxpr):
    """Those of a TPU: the branches of a CPU and of a GPU have other forms of what has holes."""
    for equation in jaxpr.eqns:
        if equation.primitive.name == "conv_general_dilated":
            yield equation
        if "jaxpr" in equation.params:  # jax 0.11 inlines what says so when it lowers
            yield from convolutions(equation.params["jaxpr"].jaxpr)
        branches = equation.params.get("branches", ())
        platforms = equation.params.get("branches_platforms") or [None] * len(branches)
        for branch, platform in zip(branches, platforms, strict=True):
            if platform is None:
                yield from convolutions(branch.jaxpr)


def dilations(model):
    """Of every dilated convolution with a window, in order."""
    images = jnp.zeros((1, 32, 32, 3))
    jaxpr = jax.make_jaxpr(functools.partial(model.apply, train=False))(fill(shapes(model)), images)
    return [e.params["rhs_dilation"][0] for e in convolutions(jaxpr.jaxpr) if e.invars[1].aval.shape[0] > 1]


@pytest.mark.parametrize("rates", [(), (0, 1, 2), (1, -2)])
def test_a_multi_grid_that_multiplies_nothing_is_refused(rates):
    model = resnet50(multi_grid=rates)
    with pytest.raises(ValueError, match=r"multi_grid is of numbers of at least 1, such as \(1, 2, 4\), got "):
        jax.eval_shape(lambda: model.init(jax.random.key(0), jnp.zeros((1, 8, 8, 3)), train=False))


def test_dilation_and_multi_grid():
    narrow = functools.partial(resnet50, depths=(1, 1, 2, 3), features=(4, 4, 4, 4), stem_features=4)
    assert dilations(narrow(output_stride=8)) == [1, 1, 1, 1, 2, 2, 4, 4]  # the first block keeps the one before
    assert dilations(narrow(output_stride=8, dilate_first=True)) == [1, 1, 1, 2, 2, 4, 4, 4]
    assert dilations(narrow(output_stride=16, dilate_first=True, multi_grid=(1, 2, 4)))[-3:] == [2, 4, 8]
    assert dilations(narrow(multi_grid=(1, 2, 4)))[-3:] == [1, 2, 4]
    assert len(dilations(narrow(deep_stem=True))) == 10
    with pytest.raises(ValueError, match="BasicBlock has 1 group of base width 64, got 32 of 4"):
        shapes(narrow(block=BasicBlock, groups=32, base_width=4))


@pytest.mark.parametrize(
    ("narrow", "size"),
    [
        # at sizes where a strided pooling has as many windows as every second pixel: else the border differs
        (functools.partial(googlenet, width=0.0625), (64, 96)),
        (functools.partial(resnet50, depths=(1, 1, 1, 1), features=(4, 6, 8, 10), stem_features=4), (75, 101)),
        (functools.partial(vgg16, depths=(1,) * 5, features=(4,) * 5, ceil_mode=True), (75, 101)),
        (functools.partial(vgg16, depths=(1,) * 5, features=(4,) * 5, ceil_mode=True, pool_window=3), (65, 97)),
    ],
)
def test_holes_keep_what_strides_would_give(narrow, size):
    """Each fourth pixel at output stride 8 is the one at 32 (Chen et al. 2015, section 3.1)."""
    variables, images = fill(shapes(narrow())), image(1, *size)
    run = jax.jit(lambda v, x: [narrow(output_stride=s).apply(v, x, train=False)["stride32"] for s in (32, 8)])
    strided, dense = run(variables, images)
    assert dense.shape[1] > 2 * strided.shape[1]
    h, w = strided.shape[1:3]
    np.testing.assert_allclose(dense[:, ::4, ::4][:, :h, :w], strided, rtol=1e-5, atol=1e-5 * float(strided.std()))


@pytest.mark.parametrize("name", ["resnet18", "vgg11", "googlenet", "mobilenet_v2", "mobilenet_v3_small"])
def test_any_backbone_serves_any_head(name):
    """FCN, DeepLab, PSPNet and U-Net at an odd size."""
    images = jax.ShapeDtypeStruct((2, 65, 97, 3), jnp.float32)
    for head, field in (
        (DilatedFCN, "backbone"),
        (DeepLabV3, "backbone"),
        (DeepLabV3Plus, "backbone"),
        (PSPNet, "backbone"),
        (EncoderPSPNet, "encoder"),
        (EncoderUNet, "encoder"),
    ):
        model = head(num_classes=3, **{field: BACKBONES[name]})
        output, variables = jax.eval_shape(
            functools.partial(model.init_with_output, train=False), jax.random.key(0), images
        )
        assert output.logits.shape == (2, 65, 97, 3)
        assert (output.aux_logits is not None) == (head in (DilatedFCN, DeepLabV3, PSPNet))
        assert field in variables["params"]


LOW = {"resnet18": "stride8", "mobilenet_v3_small": "features_2", "mobilenet_v3_large": "features_4"}


@pytest.mark.parametrize("name", LOW)
def test_the_low_features_are_torchvisions_c2_or_those_at_stride_8(name):
    """torchvision's C2 is the first block at stride 8, the third from last of those that stride."""
    assert first_at_stride8(BACKBONES[name]()) == LOW[name]
    images = jax.ShapeDtypeStruct((1, 65, 97, 3), jnp.float32)
    for head in ("lraspp_mobilenet_v3_large", "deeplabv3_mobilenet_v3_large"):
        model = jaxseg.create_model(head, 3, backbone=name)
        init = functools.partial(model.init_with_output, train=False)
        output, _ = jax.eval_shape(init, jax.random.key(0), images)
        assert output.logits.shape == (1, 65, 97, 3)


def test_heads_that_are_drawn_for_one_kind_of_backbone_name_those_that_fit():
    images = jax.ShapeDtypeStruct((1, 65, 97, 3), jnp.float32)
    model = jaxseg.create_model("deeplab_largefov_vgg16", 3, encoder="vgg11", fc_features=8)
    output, _ = jax.eval_shape(functools.partial(model.init_with_output, train=False), jax.random.key(0), images)
    assert output.logits.shape == (1, 65, 97, 3)
    for name in ("fcn8s_vgg16", "fcn_vgg16_1x1", "segnet_vgg16_bn", "deeplab_largefov_vgg16"):
        with pytest.raises(ValueError, match=rf'"{name}" is drawn for VGG and takes vgg11, .*vgg19_bn, not ResNet'):
            jaxseg.create_model(name, 3, encoder="resnet18")
    with pytest.raises(ValueError, match=r'"fcn_googlenet" is drawn for GoogLeNet and takes googlenet, not VGG'):
        jaxseg.create_model("fcn_googlenet", 3, backbone="vgg11")


def test_pspnet_leaves_a_backbone_its_norm():
    def names(backbone, **fields):
        model = PSPNet(num_classes=3, backbone=backbone, aux=False, **fields)
        images = jax.ShapeDtypeStruct((1, 64, 64, 3), jnp.float32)
        tree = jax.eval_shape(functools.partial(model.init, train=False), jax.random.key(0), images)
        return tree["params"]["backbone"]

    assert not any(name.startswith("bn") for name in names(BACKBONES["vgg11"]))
    assert any(name.startswith("bn") for name in names(BACKBONES["vgg11_bn"]))
    seen = []

    def norm(**fields):
        seen.append(fields["name"])
        return BatchNorm(**fields)

    names(BACKBONES["resnet18"], norm=norm)
    assert "downsample_1" in seen  # another norm is the backbone's too
    epsilons = set()

    def note(call, args, kwargs, context):
        if isinstance(context.module, BatchNorm) and "backbone" in context.module.path:
            epsilons.add(context.module.epsilon)
        return call(*args, **kwargs)

    with nn.intercept_methods(note):
        names(BACKBONES["googlenet"])
    assert epsilons == {1e-3}


@pytest.mark.parametrize(
    ("name", "fields", "says"),
    [
        ("deeplabv3_resnet50", {"aux": "stride3"}, r"None for no auxiliary head, .*stride16, stride32, not 'stride3'"),
        ("lraspp_mobilenet_v3_large", {"low": "c1"}, "LRASPP's low names features of the backbone, .* not 'c1'"),
        ("pspnet_smp_resnet34", {"stride": 7}, "EncoderPSPNet's stride names .*not 'stride7'"),
    ],
)
def test_features_that_a_backbone_has_not_are_named_with_those_it_has(name, fields, says):
    model = jaxseg.create_model(name, 2, **fields)
    images = jax.ShapeDtypeStruct((1, 64, 64, 3), jnp.float32)
    with pytest.raises(ValueError, match=says):
        jax.eval_shape(functools.partial(model.init, train=False), jax.random.key(0), images)


def test_fields_that_a_backbone_has_not_are_left_out():
    assert backbone_fields(BACKBONES["resnet18"], dilate_first=True, width=2) == {"dilate_first": True}
    assert backbone_fields(functools.partial(mobilenet_v2, width=0.5), dilate_first=True) == {}


def close(ours, theirs, what):
    np.testing.assert_allclose(ours, theirs, rtol=3e-5, atol=1e-4 * max(1e-2, np.std(theirs)), err_msg=what)


CASES = [
    ("resnet18", 32),
    ("resnet50", 8),
    ("resnext50_32x4d", 16),
    ("wide_resnet50_2", 32),
    ("mobilenet_v3_small", 16),
    ("mobilenet_v3_large", 32),
    ("mobilenet_v2", 32),
    ("googlenet", 32),
]


@pytest.mark.parity
@pytest.mark.parametrize(("name", "output_stride"), CASES)
def test_every_feature_is_torchvisions(name, output_stride):
    """At an odd size, in eval and train mode, whole published backbones but ResNets' depth."""
    torch = pytest.importorskip("torch")
    from torchvision_shim import torchvision

    model = BACKBONES[name](output_stride=output_stride)
    if name == "googlenet":
        theirs = torchvision.models.googlenet(init_weights=False, aux_logits=False, transform_input=True)
        theirs.fc = torch.nn.Identity()
        numbered = {k: getattr(theirs, k) for k in ("conv1", "conv2", "conv3")}
        numbered |= {k: layer for k, layer in theirs.named_children() if k.startswith("inception")}
    elif "mobilenet" in name:
        dilated = {"dilated": True} if output_stride == 16 else {}
        theirs = getattr(torchvision.models, name)(**dilated).features
        numbered = {f"features_{i}": layer for i, layer in enumerate(theirs)}
    else:
        blocks = torchvision.models.resnet
        theirs = blocks.ResNet(
            blocks.BasicBlock if name == "resnet18" else blocks.Bottleneck,
            [1, 1, 2, 2],
            replace_stride_with_dilation=[False, output_stride == 8, output_stride < 32],
            groups=32 if "resnext" in name else 1,
            width_per_group={"resnext50_32x4d": 4, "wide_resnet50_2": 128}.get(name, 64),
        )
        theirs.fc = torch.nn.Identity()
        model = BACKBONES[name](depths=(1, 1, 2, 2), output_stride=output_stride)
        numbered = {"stride2": theirs.relu} | {
            f"stride{2 ** (i + 1)}": getattr(theirs, f"layer{i}") for i in (1, 2, 3, 4)
        }
    images = image(2, 41, 59)
    variables = fill(shapes(model))
    state = {k.removeprefix("features."): torch.tensor(v) for k, v in to_published(model, variables).items()}
    found = {}

    def keep(key, output):
        found[key] = output.movedim(1, -1).clone().numpy()  # and None, or it would stand for the output

    for key, module in numbered.items():
        module.register_forward_hook(lambda _, __, output, key=key: keep(key, output))
    apply = functools.partial(model.apply, mutable=["batch_stats"])
    ours = jax.jit(lambda v, x: [apply(v, x, train=train)[0] for train in (False, True)])(variables, images)

    def theirs_in(dtype, train):
        theirs.to(dtype).load_state_dict(state)
        found.clear()
        with torch.no_grad():
            theirs.train(train)(torch.tensor(np.asarray(images), dtype=dtype).permute(0, 3, 1, 2))
        assert found.keys() == numbered.keys()
        return dict(found)

    evaluated, trained = theirs_in(torch.float32, False), theirs_in(torch.float32, True)
    exact = theirs_in(torch.float64, True)
    for key in numbered:
        close(ours[0][key], evaluated[key], f"{key} in eval mode")
        close_as_theirs(ours[1][key], trained[key], exact[key])


def test_large_has_the_papers_strides():
    """C2 of torchvision's LR-ASPP is features_4, the first of stride 8."""
    model = mobilenet_v3_large(output_stride=16)
    images = jax.ShapeDtypeStruct((1, 64, 64, 3), jnp.float32)
    features = jax.eval_shape(functools.partial(model.apply, train=False), shapes(model), images)
    assert features["features_3"].shape == (1, 16, 16, 24)
    assert features["features_4"].shape == features["stride8"].shape == (1, 8, 8, 40)
    assert features["stride32"].shape == (1, 4, 4, 960)
