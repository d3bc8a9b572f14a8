"""VGG's weights by torchvision's names and from Caffe's convolutions, into every model that stands on VGG."""

import functools
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden.named import fill, image, value
from safetensors.numpy import save_file

import jaxseg
from jaxseg.backbones import vgg
from jaxseg.backbones.vgg import VGGClassifier
from jaxseg.weights import WeightsMismatch, from_torchvision, load_encoder, save_weights, to_torchvision

FILE = "shared/data/weights/vgg16_imagenet_conv.npz"  # beside the checkout, or beside a folder of checkouts
SHARED = next((p / FILE for p in pathlib.Path(__file__).parents[3:] if (p / FILE).exists()), None)
NARROW = (4, 8, 8, 12, 16)
STAGES = {1: 2, 2: 2, 3: 3, 4: 3, 5: 3}


def classifier(name):
    model = VGGClassifier(7, functools.partial(getattr(vgg, name), features=NARROW), fc_features=20)
    return model, variables_of(model)


def variables_of(model):
    images = jax.ShapeDtypeStruct((1, 64, 64, 3), jnp.float32)
    return fill(jax.eval_shape(functools.partial(model.init, train=False), jax.random.key(0), images))


def narrow_model(name):
    encoder = functools.partial(vgg.vgg16_bn if "segnet" in name else vgg.vgg16, features=NARROW)
    fields = {} if "segnet" in name else {"fc_features": 20}
    return jaxseg.create_model(name, 3, encoder=encoder, **fields)


def assert_equal(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    assert jax.tree.all(jax.tree.map(np.array_equal, a, b))


# torchvision: positions of the convolutions in `features`
POSITIONS = {
    "vgg11": [0, 3, 6, 8, 11, 13, 16, 18],
    "vgg11_bn": [0, 4, 8, 11, 15, 18, 22, 25],
    "vgg16": [0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28],
    "vgg16_bn": [0, 3, 7, 10, 14, 17, 20, 24, 27, 30, 34, 37, 40],
    "vgg19": [0, 2, 5, 7, 10, 12, 14, 16, 19, 21, 23, 25, 28, 30, 32, 34],
}


@pytest.mark.parametrize("name", POSITIONS)
def test_names_and_an_exact_round_trip(name):
    _, variables = classifier(name)
    state = to_torchvision(variables)
    convolutions = [int(n.split(".")[1]) for n, a in state.items() if a.ndim == 4]
    assert convolutions == POSITIONS[name]
    norms = [int(n.split(".")[1]) for n in state if n.endswith("running_var")]
    assert norms == ([p + 1 for p in convolutions] if name.endswith("bn") else [])
    assert state["features.0.weight"].shape == (4, 3, 3, 3)
    assert state["classifier.0.weight"].shape == (20, 16 * 49)
    blank = jax.tree.map(jnp.zeros_like, variables)
    state["features.1.num_batches_tracked"] = np.array(3)  # torchvision's files have it
    assert_equal(from_torchvision(state, blank), variables)


def test_a_backbone_takes_imagenets_file_without_its_classifier_or_prefix(tmp_path):
    _, weights = classifier("vgg11")
    state = {f"module.{k}": np.ascontiguousarray(v) for k, v in to_torchvision(weights).items()}
    save_file(state, tmp_path / "vgg11.safetensors")
    backbone = vgg.vgg11(features=NARROW)
    loaded = jaxseg.load_weights(tmp_path / "vgg11.safetensors", backbone)
    assert_equal(loaded["params"], weights["params"]["encoder"])
    save_weights(tmp_path / "made" / "here" / "w.safetensors", backbone, loaded)  # with the folders that it lacks
    assert_equal(jaxseg.load_weights(tmp_path / "made" / "here" / "w.safetensors", backbone), loaded)


def test_fc6_flattens_channels_first():
    _, variables = classifier("vgg11")
    kernel = variables["params"]["fc6"]["kernel"].reshape(7, 7, 16, 20)
    theirs = to_torchvision(variables)["classifier.0.weight"].reshape(20, 16, 7, 7)
    np.testing.assert_array_equal(theirs[3, 5, 2, 6], kernel[2, 6, 5, 3])


def test_everything_that_does_not_fit_is_listed():
    _, variables = classifier("vgg11")
    state = to_torchvision(variables)
    del state["features.3.bias"], state["classifier.6.weight"]
    state["features.4.weight"] = np.zeros(8)
    state["features.6.weight"] = np.zeros((8, 9, 3, 3))
    with pytest.raises(WeightsMismatch) as error:
        from_torchvision(state, variables)
    assert "missing: classifier.6.weight, features.3.bias" in str(error.value)
    assert "unexpected: features.4.weight" in str(error.value)
    shapes = "features.6.weight (8, 9, 3, 3) for params/encoder/conv3_1/kernel (3, 3, 8, 8)"
    assert f"misshapen: {shapes}" in str(error.value)
    with pytest.raises(WeightsMismatch, match="hold no VGG"):
        from_torchvision(state, {"params": {"conv": {"kernel": np.zeros(3)}}})


def save_state(path, variables):
    save_file({k: np.ascontiguousarray(v) for k, v in to_torchvision(variables).items()}, path)
    return path


def test_fcn_takes_fc6_and_fc7(tmp_path):
    """At 7x7 features the FCN's fully connected layers have one position, where they are the classifier's."""
    _, weights = classifier("vgg16")
    path = save_state(tmp_path / "w.safetensors", weights)
    model = narrow_model("fcn32s_vgg16")
    variables = load_encoder(path, variables_of(model))
    dense = image(1, 7, 7, 16).reshape(1, -1)
    conv = image(1, 7, 7, 16)
    for name in ("fc6", "fc7"):
        theirs, ours = weights["params"][name], variables["params"][name]
        dense = dense @ theirs["kernel"] + theirs["bias"]
        conv = jnp.einsum("nhwi,hwio->no", conv, ours["kernel"])[:, None, None] + ours["bias"]
        np.testing.assert_allclose(conv[:, 0, 0], dense, atol=1e-4)
    assert_equal(variables["params"]["encoder"], weights["params"]["encoder"])
    before = variables_of(model)
    assert_equal(variables["params"]["score_fr"], before["params"]["score_fr"])
    slide = narrow_model("fcn_vgg16_1x1")
    loaded = load_encoder(path, variables_of(slide))["params"]
    assert_equal(loaded["encoder"], weights["params"]["encoder"])
    assert_equal(loaded["fc6"], variables_of(slide)["params"]["fc6"])  # one position instead of 7x7: stays


def test_segnet_takes_norms_where_the_file_has_them(tmp_path):
    model = narrow_model("segnet_vgg16_bn")
    before = jax.tree.map(lambda x: x + 1, variables_of(model))
    for name in ("vgg16_bn", "vgg16"):
        _, weights = classifier(name)
        after = load_encoder(save_state(tmp_path / f"{name}.safetensors", weights), before)
        encoder = after["params"]["encoder"]
        assert_equal(encoder["conv3_2"], weights["params"]["encoder"]["conv3_2"])
        norms = weights if name == "vgg16_bn" else before
        assert_equal(encoder["bn3_2"], norms["params"]["encoder"]["bn3_2"])
        assert_equal(after["batch_stats"]["encoder"], norms["batch_stats"]["encoder"])
        assert_equal(after["params"]["conv3_2_D"], before["params"]["conv3_2_D"])
    without = variables_of(narrow_model("fcn8s_vgg16"))
    with pytest.raises(WeightsMismatch, match="has batch norm and this VGG has none"):
        load_encoder(tmp_path / "vgg16_bn.safetensors", without)


def caffe_arrays():
    arrays, channels = {}, 3
    for (stage, depth), width in zip(STAGES.items(), NARROW, strict=True):
        for i in range(1, depth + 1):
            name = f"block{stage}_conv{i}"
            arrays[f"{name}/kernel_OIHW"] = value(f"{name}/kernel", (width, channels, 3, 3)).astype(np.float16)
            arrays[f"{name}/bias"] = value(f"{name}/bias", (width,)).astype(np.float16)
            channels = width
    return arrays


def assert_folded(arrays, encoder):
    """conv1_1 of `encoder` on standardised RGB is the file's on BGR less the mean, within the border."""
    rgb = np.random.default_rng(0).uniform(0, 255, (6, 7, 3))
    bgr = rgb[..., ::-1] - (103.939, 116.779, 123.68)
    ours = (rgb / 255 - (0.485, 0.456, 0.406)) / (0.229, 0.224, 0.225)

    def convolve(x, kernel_hwio):
        windows = np.lib.stride_tricks.sliding_window_view(x, (3, 3), (0, 1))
        return np.einsum("hwiyx,yxio->hwo", windows, kernel_hwio)

    kernel = arrays["block1_conv1/kernel_OIHW"].astype(np.float64).transpose(2, 3, 1, 0)
    theirs = convolve(bgr, kernel) + arrays["block1_conv1/bias"]
    got = convolve(ours, np.asarray(encoder["conv1_1"]["kernel"])) + np.asarray(encoder["conv1_1"]["bias"])
    np.testing.assert_allclose(got, theirs, rtol=1e-5, atol=1e-4 * np.abs(theirs).max())


def test_caffe_convolutions_fold_their_input_in(tmp_path):
    arrays = caffe_arrays()
    np.savez(tmp_path / "conv.npz", **arrays)
    before = variables_of(narrow_model("segnet_vgg16_bn"))
    after = load_encoder(tmp_path / "conv.npz", before)
    encoder = after["params"]["encoder"]
    assert_folded(arrays, encoder)
    theirs = arrays["block4_conv2/kernel_OIHW"].transpose(2, 3, 1, 0)
    np.testing.assert_array_equal(encoder["conv4_2"]["kernel"], theirs)
    assert encoder["conv4_2"]["kernel"].dtype == jnp.float32
    assert_equal(encoder["bn4_2"], before["params"]["encoder"]["bn4_2"])
    del arrays["block4_conv2/bias"]
    np.savez(tmp_path / "conv.npz", **arrays)
    with pytest.raises(WeightsMismatch, match=r"missing: features\.19\.bias"):
        load_encoder(tmp_path / "conv.npz", before)


@pytest.mark.skipif(SHARED is None, reason="shared/data/weights is not on this machine")
def test_the_real_convolutions_load():
    shapes = jax.eval_shape(
        functools.partial(vgg.vgg16().init, train=False), jax.random.key(0), jnp.zeros((1, 32, 32, 3))
    )
    variables = load_encoder(SHARED, shapes)
    assert sum(leaf.size for leaf in jax.tree.leaves(variables)) == 14_714_688
    with np.load(SHARED) as arrays:
        assert_folded(arrays, variables["params"])


@pytest.mark.parity
@pytest.mark.parametrize("name", ["vgg11", "vgg16", "vgg16_bn"])
def test_a_torch_file_gives_torchs_scores(tmp_path, name):
    """A state_dict in torchvision's form, a Sequential by its positions, against ours."""
    torch = pytest.importorskip("torch")
    nn = torch.nn
    model, variables = classifier(name)
    layers, channels, at = [], 3, iter(POSITIONS[name])
    depths = {"vgg11": (1, 1, 2, 2, 2)}.get(name, (2, 2, 3, 3, 3))
    for depth, width in zip(depths, NARROW, strict=True):
        for _ in range(depth):
            assert len(layers) == next(at)
            layers += [nn.Conv2d(channels, width, 3, padding=1)]
            layers += [nn.BatchNorm2d(width)] if name.endswith("bn") else []
            layers += [nn.ReLU()]
            channels = width
        layers += [nn.MaxPool2d(2, 2)]
    head = [nn.Linear(16 * 49, 20), nn.ReLU(), nn.Dropout(), nn.Linear(20, 20), nn.ReLU(), nn.Dropout()]
    theirs = nn.ModuleDict(
        {"features": nn.Sequential(*layers), "classifier": nn.Sequential(*head, nn.Linear(20, 7))}
    ).eval()
    for module in theirs.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 2)
    torch.save(theirs.state_dict(), tmp_path / "vgg.pth")
    variables = from_torchvision(jaxseg.weights.read_weights(tmp_path / "vgg.pth"), variables)
    images = image(2, 75, 261)
    with torch.no_grad():
        x = theirs["features"](torch.tensor(np.asarray(images)).permute(0, 3, 1, 2))
        x = theirs["classifier"](nn.functional.adaptive_avg_pool2d(x, 7).flatten(1))
    ours = jax.jit(functools.partial(model.apply, train=False))(variables, images)
    np.testing.assert_allclose(ours, x, atol=1e-4)
    assert_equal(load_encoder(tmp_path / "vgg.pth", variables)["params"], variables["params"])
