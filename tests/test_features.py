"""Features of published networks: Inception-v3 beside torchvision, LPIPS by its definition."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden.named import image

from jaxseg import features
from jaxseg.backbones.inception_v3 import InceptionV3
from jaxseg.backbones.vgg import vgg16
from jaxseg.metrics.generation import frechet_distance, inception_score, precision_recall
from jaxseg.weights import WeightsMismatch, from_inception, load_inception

NARROW = functools.partial(vgg16, features=(3, 4, 4, 5, 6))


@functools.cache
def shapes(classes=1000):
    blank = jax.ShapeDtypeStruct((1, 299, 299, 3), jnp.float32)
    model = InceptionV3(num_classes=classes)
    return jax.eval_shape(functools.partial(model.init, train=False), jax.random.key(0), blank)


def test_parameters_as_published():
    """torchvision prints 27,161,264 with the auxiliary classifier's 3,326,696."""
    assert sum(x.size for x in jax.tree.leaves(shapes()["params"])) == 27_161_264 - 3_326_696


def blank_state(classes):
    state = {"AuxLogits.fc.bias": np.zeros(1), "Conv2d_1a_3x3.bn.num_batches_tracked": np.zeros(())}
    fields = {"kernel": "weight", "scale": "weight", "bias": "bias", "mean": "running_mean", "var": "running_var"}
    for path, leaf in jax.tree_util.tree_leaves_with_path(shapes(classes)):
        *module, field = (key.key for key in path[1:])
        shape = [leaf.shape[i] for i in (3, 2, 0, 1)] if leaf.ndim == 4 else leaf.shape[::-1]
        state[".".join([*module, fields[field]])] = np.broadcast_to(np.float32(0), shape)
    return state


def test_a_file_says_which_network_it_is_of():
    assert not from_inception(blank_state(1000)).model.fid
    state = blank_state(1008)
    assert from_inception({f"module.{name}": array for name, array in state.items()}).model.fid
    state["Mixed_9.weight"] = state.pop("Mixed_5b.branch_pool.conv.weight")
    state["Mixed_7c.branch1x1.bn.bias"] = np.zeros(3)
    with pytest.raises(
        WeightsMismatch, match=r"missing: Mixed_5b\.branch_pool.*; unexpected: Mixed_9\.weight; misshapen: Mixed_7c"
    ):
        from_inception(state)
    with pytest.raises(WeightsMismatch, match=r"it has no fc\.weight"):
        from_inception({})


def test_an_absent_file_is_an_error_that_says_where_to_find_it(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"pt_inception-2015-12-05-6726825d\.pth .*mseitzer/pytorch-fid"):
        load_inception(tmp_path / "nothing.pth")


def test_images_below_75_pixels_are_named():
    with pytest.raises(ValueError, match=r"h, w of at least 75, got \(64, 80\); resize to 299"):
        jax.eval_shape(functools.partial(InceptionV3().init, train=False), jax.random.key(0), jnp.zeros((1, 64, 80, 3)))


@pytest.mark.parametrize("images", [np.zeros((2, 8, 8, 3), np.float32), np.zeros((0, 8, 8, 3), np.uint8)])
def test_what_inception_does_not_see_is_named(images, monkeypatch):
    monkeypatch.setattr(features, "load_inception", lambda path: (None, {}))
    with pytest.raises(
        ValueError, match=rf"one image or more in bytes, 0 to 255, got {images.dtype} \({len(images)}, 8"
    ):
        features.inception_features("any.pth")(images)


def make_vgg(path, seed=0):
    rng, arrays, before = np.random.default_rng(seed), {}, 3
    for stage, (depth, width) in enumerate(zip((2, 2, 3, 3, 3), (3, 4, 4, 5, 6), strict=True), 1):
        for i in range(1, depth + 1):
            arrays[f"block{stage}_conv{i}/kernel_OIHW"] = rng.standard_normal((width, before, 3, 3), np.float32) * 0.3
            arrays[f"block{stage}_conv{i}/bias"] = rng.standard_normal(width, np.float32) * 0.1
            before = width
    np.savez(path, **arrays)


def test_what_vgg_does_not_see_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(features, "vgg16", NARROW)
    make_vgg(tmp_path / "vgg.npz")
    perceptual = features.perceptual_features(tmp_path / "vgg.npz")
    for images in (jnp.zeros((1, 32, 32, 3), jnp.uint8), jnp.zeros((32, 32, 3))):
        with pytest.raises(ValueError, match=rf"in \[-1, 1\], got {images.dtype} .* by / 127\.5 - 1"):
            perceptual(images)


@pytest.mark.slow
def test_perceptual_distance_is_lpips(tmp_path, monkeypatch):
    """Against the definition: unit features, weighted squared differences summed over channels, means over pixels."""
    monkeypatch.setattr(features, "vgg16", NARROW)
    make_vgg(tmp_path / "vgg.npz")
    rng = np.random.default_rng(1)
    weights = [rng.random((1, c, 1, 1), np.float32) for c in (3, 4, 4, 5, 6)]
    np.savez(tmp_path / "lpips.npz", **{f"lin{i}.model.1.weight": w for i, w in enumerate(weights)})
    a, b = jnp.tanh(image(2, 32, 40)), jnp.tanh(image(2, 32, 40) * 0.5 + 0.3)
    perceptual = features.perceptual_features(tmp_path / "vgg.npz", tmp_path / "lpips.npz")
    distance = jax.jit(features.perceptual_distance(perceptual))
    model = NARROW()
    variables = features.load_encoder(
        tmp_path / "vgg.npz", model.init(jax.random.key(0), jnp.zeros((1, 32, 32, 3)), train=False)
    )
    mean, std = np.array([-0.030, -0.088, -0.188]), np.array([0.458, 0.448, 0.450])  # the published scaling layer's
    raw = [
        jax.jit(functools.partial(model.apply, train=False))(variables, jnp.float32((np.asarray(x) - mean) / std))
        for x in (a, b)
    ]
    expected = 0.0
    for name, weight in zip(("relu1_2", "relu2_2", "relu3_3", "relu4_3", "relu5_3"), weights, strict=True):
        x, y = (np.asarray(r[name], np.float64) for r in raw)
        x, y = (z / (np.sqrt((z**2).sum(-1, keepdims=True)) + 1e-10) for z in (x, y))
        expected = expected + ((x - y) ** 2 * weight.reshape(-1)).sum(-1).mean((1, 2))
    assert expected.min() > 1e-2
    np.testing.assert_allclose(distance(a, b), expected, rtol=1e-4)
    np.testing.assert_allclose(distance(a, a), 0, atol=1e-12)
    # a grey image, whose features may all be zero somewhere, has a gradient
    assert np.isfinite(jax.jit(jax.grad(lambda x: distance(x, b).sum()))(jnp.zeros_like(a))).all()
    plain = features.perceptual_features(tmp_path / "vgg.npz")(a)
    np.testing.assert_allclose(np.square(plain[0]).sum(-1).max(), 1, rtol=1e-5)
    with pytest.raises(ValueError, match=r"at least 16, got \(8, 8\)"):
        perceptual(a[:, :8, :8])
    with pytest.raises(WeightsMismatch, match=r"not LPIPS' for VGG-16: lin0\.model\.1\.weight should have 3"):
        features.perceptual_features(tmp_path / "vgg.npz", tmp_path / "vgg.npz")


@functools.cache
def torch_inception(fid):
    torch = pytest.importorskip("torch")
    from torchvision_shim import torchvision

    torch.manual_seed(0)
    model = torchvision.models.inception_v3(
        weights=None, init_weights=False, num_classes=1008 if fid else 1000, transform_input=False
    ).eval()
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.3, 0.6)
    return torch, torchvision, model


@pytest.mark.parity
@pytest.mark.parametrize("fid", [False, True])
def test_inception_beside_torch(fid, monkeypatch, tmp_path):
    """Pooled features and scores of torchvision's, and of pytorch-fid's: means without the border, a last maximum."""
    torch, torchvision, model = torch_inception(fid)
    functional = torch.nn.functional
    original = functional.avg_pool2d

    def pooled(x, kernel_size, stride=None, padding=0):
        if x.shape[1] == 2048:
            return functional.max_pool2d(x, kernel_size, stride, padding)
        return original(x, kernel_size, stride, padding, count_include_pad=False)

    if fid:
        monkeypatch.setattr(torchvision.models.inception.F, "avg_pool2d", pooled)
    pixels = np.random.default_rng(0).integers(0, 256, (3, 40, 52, 3), np.uint8)
    x = torch.tensor(pixels).permute(0, 3, 1, 2).float() / 255
    x = functional.interpolate(x, (299, 299), mode="bilinear", align_corners=False)
    seen = []
    model.avgpool.register_forward_hook(lambda _, __, out: seen.append(out))
    with torch.no_grad():
        logits = model(2 * x - 1)
    expected = seen[-1][:, :, 0, 0].numpy()
    path = tmp_path / "inception.pth"
    torch.save(model.state_dict(), path)
    ours = features.inception_features(path, batch=2)(pixels)
    scale = expected.std()
    assert 0.05 < scale < 5
    np.testing.assert_allclose(ours.pool, expected, atol=1e-4 * max(scale, 1))
    probabilities = torch.softmax(logits - model.fc.bias, 1).detach().numpy()
    np.testing.assert_allclose(ours.probabilities, probabilities, rtol=1e-3)
    # what the metrics take
    assert frechet_distance(ours.pool, ours.pool) == pytest.approx(0, abs=1e-3)
    assert 1 <= inception_score(ours.probabilities, splits=1)[0] < 1008
    assert precision_recall(ours.pool, ours.pool, neighbours=1) == (1, 1)
