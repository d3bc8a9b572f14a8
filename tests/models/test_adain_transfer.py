"""AdaIN style transfer: counts, numbers, controls, weights."""

import functools
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden.named import fill, image

import jaxseg
from jaxseg.models.adain_transfer import STYLE_FEATURES, vgg16_relu4_1, vgg19_relu4_1
from jaxseg.ops.adain import ChannelStatistics, adaptive_instance_norm
from jaxseg.weights import WeightsMismatch, load_adain_transfer, normalize_encoder
from jaxseg.weights.adain import to_pytorch_adain
from jaxseg.weights.vgg import to_torchvision

GOLDEN = pathlib.Path(__file__).parents[1] / "golden" / "adain.npz"
NARROW = functools.partial(vgg16_relu4_1, features=(4, 6, 8, 10))


def CONTENT():
    return jax.nn.sigmoid(image(1, 61, 83))


def STYLE():
    return jax.nn.sigmoid(2 * image(1, 45, 40))


def shapes(model):
    blank = jax.ShapeDtypeStruct((1, 16, 16, 3), jnp.float32)
    return jax.eval_shape(functools.partial(model.init, train=False), jax.random.key(0), blank, blank)


def full():
    model = jaxseg.create_model("adain_transfer")
    return model, fill(shapes(model))


@functools.cache
def narrow():
    model = jaxseg.create_model("adain_transfer", vgg=NARROW)
    return model, fill(shapes(model))


@functools.cache
def transfer():
    model, variables = narrow()
    return functools.partial(jax.jit(functools.partial(model.apply, method="transfer")), variables, CONTENT())


@functools.cache
def features(method="encode"):
    model, variables = narrow()
    return functools.partial(jax.jit(functools.partial(model.apply, method=method)), variables)


def styles(seed=0):
    """Statistics as of two styles."""
    draw = lambda i: jnp.abs(image(1, 1, i + 2, 10))[:, :, -1:]  # noqa: E731
    return [ChannelStatistics(draw(seed + i), draw(seed + i + 10)) for i in range(2)]


def test_parameters_as_published():
    params = shapes(jaxseg.create_model("adain_transfer"))["params"]
    counts = {part: sum(leaf.size for leaf in jax.tree.leaves(params[part])) for part in params}
    assert counts == {"encoder": 3_505_740, "decoder": 3_505_219}
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype("float32")}


def test_the_numbers_are_the_ports():
    model, variables = full()

    @jax.jit
    def run(variables, content, style):
        features = model.apply(variables, content, method="encode")["relu4_1"]
        return features, model.apply(variables, content, style, alpha=0.8, train=False)

    features, out = run(variables, CONTENT(), STYLE())
    with np.load(GOLDEN) as golden:
        np.testing.assert_allclose(features[0, ::3, ::3, ::8], golden["relu4_1"], atol=1e-4)
        np.testing.assert_allclose(out[0, ::5, ::7], golden["image"], atol=1e-4)
    assert out.shape == (1, 64, 88, 3)


def test_shape_dtype_and_traces():
    model, variables = narrow()
    half = model.clone(dtype=jnp.bfloat16)
    traces = []

    @jax.jit
    def run(content, style, alpha):
        traces.append(None)
        return half.apply(variables, content, style, alpha=alpha, train=True)

    out = run(CONTENT(), STYLE(), 1.0)
    run(CONTENT(), STYLE(), 0.3)
    assert (out.shape, out.dtype, len(traces)) == ((1, 64, 88, 3), jnp.float32, 1)


@pytest.mark.parametrize("size", [(9, 9), (16, 40), (100, 37)])
def test_any_size_from_nine(size):
    model, variables = narrow()
    small = jax.ShapeDtypeStruct((1, *size, 3), jnp.float32)
    out = jax.eval_shape(functools.partial(model.apply, train=False), variables, CONTENT(), small)
    assert out.shape == (1, 64, 88, 3)
    out = jax.eval_shape(functools.partial(model.apply, train=False), variables, small, CONTENT())
    assert out.shape[1:3] == tuple(-(-side // 8) * 8 for side in size)


def test_a_style_of_one_pixel_is_an_error_that_says_what_to_do():
    model, variables = narrow()
    with pytest.raises(ValueError, match=r"h, w of at least 9, got \(1, 12\); use \(9, 12\)"):
        model.apply(variables, CONTENT(), jnp.zeros((1, 1, 12, 3)), train=False)
    constant = jax.jit(functools.partial(model.apply, train=False))
    assert np.isfinite(constant(variables, jnp.full((1, 16, 16, 3), 0.5), jnp.zeros((1, 9, 9, 3)))).all()


def test_every_parameter_of_the_decoder_has_a_gradient():
    model, variables = narrow()

    @jax.jit
    def gradient(decoder):
        def loss(decoder):
            params = {**variables["params"], "decoder": decoder}
            return (model.apply({"params": params}, CONTENT(), STYLE(), train=True) ** 2).mean()

        return jax.grad(loss)(decoder)

    for path, leaf in jax.tree_util.tree_leaves_with_path(gradient(variables["params"]["decoder"])):
        assert jnp.isfinite(leaf).all(), path
        assert (leaf != 0).any(), path


def test_alpha_and_weights():
    """One compiled program: alpha 0 decodes the content, weights are normalised, and one style alone is itself."""
    one = jnp.array([1.0, 0.0])
    expected = features("decode")(features()(CONTENT())["relu4_1"])
    np.testing.assert_allclose(transfer()(styles(), weights=one, alpha=0.0), expected, atol=1e-5)
    a, b = styles()
    alone = transfer()([a, b], weights=one * 3, alpha=1.0)
    np.testing.assert_allclose(transfer()([b, a], weights=one[::-1], alpha=1.0), alone, atol=1e-5)
    between = transfer()([a, b], weights=jnp.array([2.0, 2.0]), alpha=1.0)
    mixed = ChannelStatistics((a.mean + b.mean) / 2, (a.std + b.std) / 2)
    np.testing.assert_allclose(transfer()([mixed, a], weights=one, alpha=1.0), between, atol=1e-5)
    assert np.abs(np.asarray(between) - alone).max() > 1e-2


def test_bytes_are_not_taken_for_images_in_0_to_1():
    model, variables = narrow()
    with pytest.raises(ValueError, match=r"takes images in \[0, 1\], got uint8; divide bytes by 255"):
        model.apply(variables, jnp.zeros((1, 16, 16, 3), jnp.uint8), method="encode")


def test_masks_give_each_region_its_style():
    model, variables = narrow()
    everywhere = jnp.concatenate([jnp.ones((1, 61, 83, 1)), jnp.zeros((1, 61, 83, 1))], -1)
    alone = transfer()(styles(), weights=jnp.array([1.0, 0.0]), alpha=1.0)
    np.testing.assert_allclose(transfer()(styles(), masks=everywhere), alone, atol=1e-4)
    left = jnp.arange(83) < 41
    masks = jnp.broadcast_to(jnp.stack([left, ~left], -1).astype(jnp.float32), (1, 61, 83, 2))
    both, swapped = (transfer()(s, masks=masks) for s in (styles(), [styles(5)[0], styles()[1]]))
    far = slice(76, None)  # beyond the decoder's sight of the left half
    np.testing.assert_allclose(both[:, :, far], swapped[:, :, far], atol=1e-5)
    assert np.abs(np.asarray(both - swapped)[:, :, :24]).max() > 1e-2
    left = jnp.arange(83) < 72  # nine columns of features, which are of 8 pixels though 83 are no multiple
    masks = jnp.broadcast_to(jnp.stack([left, ~left], -1).astype(jnp.float32), (1, 61, 83, 2))
    columns = jnp.broadcast_to(jnp.arange(11) < 9, (1, 8, 11))
    content, target = features()(CONTENT())["relu4_1"], 0.0
    for style, region in zip(styles(), (columns, ~columns), strict=True):
        target += adaptive_instance_norm(content, style, mask=region.astype(jnp.float32)) * region[..., None]
    np.testing.assert_allclose(transfer()(styles(), masks=masks), features("decode")(target), atol=1e-4)
    with pytest.raises(ValueError, match="got 2 masks for 1 styles"):
        model.apply(variables, CONTENT(), styles()[:1], masks=masks, method="transfer")
    for wrong, said in ((2 * masks, "of 2 to 2; divide them"), (masks.at[:, :9].set(0), "of 0 to 1; divide them")):
        with pytest.raises(ValueError, match=f"masks sum to one at each pixel, got sums {said}"):
            model.apply(variables, CONTENT(), styles(), masks=wrong, method="transfer")


def test_published_files_there_and_back(tmp_path):
    model, variables = narrow()
    parts = {part: to_pytorch_adain(variables, part) for part in ("encoder", "decoder")}
    assert list(parts["decoder"])[::2] == [f"{i}.weight" for i in (1, 5, 8, 11, 15, 18, 22, 25)]
    deeper = {"29.weight": np.zeros((10, 10, 3, 3), np.float32), "29.bias": np.zeros(10, np.float32)}
    np.savez(tmp_path / "encoder.npz", **parts["encoder"], **deeper)
    np.savez(tmp_path / "decoder.npz", **parts["decoder"])
    loaded = load_adain_transfer(model, encoder=tmp_path / "encoder.npz", decoder=tmp_path / "decoder.npz")
    assert jax.tree.all(jax.tree.map(np.array_equal, loaded, variables))
    for part, state in parts.items():  # as DataParallel names them
        np.savez(tmp_path / f"{part}_parallel.npz", **{f"module.{name}": array for name, array in state.items()})
    files = {part: tmp_path / f"{part}_parallel.npz" for part in parts}
    assert jax.tree.all(jax.tree.map(np.array_equal, load_adain_transfer(model, **files), variables))
    del parts["decoder"]["8.bias"]
    parts["decoder"]["5.weight"] = np.zeros((8, 8, 1, 1), np.float32)
    np.savez(tmp_path / "decoder.npz", **parts["decoder"], other=np.zeros(1))
    with pytest.raises(WeightsMismatch, match=r"missing: 8\.bias; unexpected: other; misshapen: 5\.weight"):
        load_adain_transfer(model, decoder=tmp_path / "decoder.npz")
    with pytest.raises(WeightsMismatch, match="not a UNet"):
        load_adain_transfer(jaxseg.create_model("unet", 2))


def test_keys_of_the_full_vgg19():
    _, variables = full()
    names = [name for name in to_pytorch_adain(variables, "encoder") if name.endswith("weight")]
    assert names == [f"{i}.weight" for i in (0, 2, 5, 9, 12, 16, 19, 22, 25, 29)]
    names = [name for name in to_pytorch_adain(variables, "decoder") if name.endswith("weight")]
    assert names == [f"{i}.weight" for i in (1, 5, 8, 11, 14, 18, 21, 25, 28)]


def test_torchvisions_encoder_sees_standardised_images(tmp_path):
    """A file of the whole VGG fills the encoder, and conv0 standardises as torchvision does."""
    model, _ = narrow()
    whole = vgg16_relu4_1(depths=(2, 2, 3, 3, 3), features=(4, 6, 8, 10, 10), preprocess=False)
    blank = jax.ShapeDtypeStruct((1, 16, 16, 3), jnp.float32)
    variables = fill(jax.eval_shape(functools.partial(whole.init, train=False), jax.random.key(0), blank))
    np.savez(tmp_path / "vgg16.npz", **to_torchvision(variables))
    loaded = load_adain_transfer(model, encoder=tmp_path / "vgg16.npz")
    ours = jax.jit(functools.partial(model.apply, method="encode"))(loaded, CONTENT())
    standardized = (CONTENT() - jnp.array([0.485, 0.456, 0.406])) / jnp.array([0.229, 0.224, 0.225])
    theirs = jax.jit(functools.partial(whole.apply, train=False))(variables, standardized)
    for name in STYLE_FEATURES:
        np.testing.assert_allclose(ours[name], theirs[name], atol=1e-5)
    with pytest.raises(WeightsMismatch, match="missing"):
        load_adain_transfer(jaxseg.create_model("adain_transfer", vgg=vgg19_relu4_1), encoder=tmp_path / "vgg16.npz")


def test_a_normalised_encoder_has_mean_activations_of_one():
    model, variables = narrow()
    images = jnp.concatenate([CONTENT(), CONTENT()[:, ::-1] ** 2])
    encode = jax.jit(functools.partial(model.apply, method="encode"))
    before, after = encode(variables, images), encode(normalize_encoder(model, variables, images), images)
    for name in STYLE_FEATURES:
        np.testing.assert_allclose(after[name], before[name] / before[name].mean(), atol=1e-4, rtol=1e-4)
        np.testing.assert_allclose(after[name].mean(), 1, rtol=1e-4)


@pytest.mark.parity
def test_beside_torch():
    """Images, and the decoder's gradient, of the whole width."""
    torch = pytest.importorskip("torch")
    from golden import adain

    model, variables = full()
    networks = adain.reference(variables)
    assert [sum(p.numel() for p in n.parameters()) for n in networks] == [3_505_740, 3_505_219]
    tensors = [torch.tensor(np.asarray(x)).permute(0, 3, 1, 2) for x in (CONTENT(), STYLE())]
    expected = adain.transfer(networks, *tensors, 0.6)
    (expected**2).mean().backward()

    @jax.jit
    def run(decoder):
        def loss(decoder):
            params = {**variables["params"], "decoder": decoder}
            out = model.apply({"params": params}, CONTENT(), STYLE(), alpha=0.6, train=False)
            return (out**2).mean(), out

        return jax.value_and_grad(loss, has_aux=True)(decoder)

    (_, out), gradient = run(variables["params"]["decoder"])
    np.testing.assert_allclose(out, expected.detach().permute(0, 2, 3, 1).numpy(), atol=1e-4)
    ours = to_pytorch_adain({"params": {"decoder": gradient}}, "decoder")
    for name, parameter in networks[1].named_parameters():
        theirs = parameter.grad.numpy()
        # in norm: a ReLU whose input a rounding takes over zero moves a channel's few entries by a thousandth
        assert np.linalg.norm(ours[name] - theirs) <= 1e-3 * np.linalg.norm(theirs), name
