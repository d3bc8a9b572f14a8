"""The zoo beside its publishers' own code, with the same weights: outputs, statistics, features and gradients."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden.named import close_as_theirs, fill, image
from models.test_zoo import LIVE, narrow

import jaxseg
from jaxseg.weights import load_weights, read_weights, save_weights

pytestmark = pytest.mark.parity


def within(theirs):
    """Of numbers scaled to order 1, 1e-4."""
    return {"rtol": 3e-5, "atol": 1e-4 * max(1e-2, np.std(theirs))}


def close(ours, theirs, what=""):
    theirs = theirs.numpy()
    np.testing.assert_allclose(ours, theirs, **within(theirs), err_msg=what)


SIZES = {  # semseg takes 8 k + 1, SMP multiples of the output stride but for U-Net
    "pspnet_smp": ((48, 64), (72, 40)),
    "pspnet": ((49, 65), (41, 57)),
    "deeplabv3plus": ((48, 64), (64, 32)),
    "deeplabv3_smp": ((48, 64), (64, 32)),
    "deeplabv3_mobilenet_v2": ((48, 64), (64, 32)),
    "unet_vgg": ((64, 96), (45, 61)),
}
OF_SMP = {"aux": None, "align_corners": True, "dilate_first": True}
FAMILIES = (
    "fcn_resnet50",
    "deeplabv3_resnet50",
    "deeplabv3_mobilenet_v3_large",
    "lraspp_mobilenet_v3_large",
    "pspnet_resnet50",
    "deeplabv3plus_resnet34",
    "unet_resnet34",
)
# semseg has PSPNet of 50 layers and more; the others that are left out differ from these by a backbone, and are held
# against their publishers' with few channels (test_zoo.py) and as saved (test_convert.py)
LEFT_OUT = (
    *("pspnet_resnet18", "pspnet_resnet34", "pspnet_resnet152", "pspnet_smp_resnet50"),
    *("deeplabv3plus_resnet50", "deeplabv3plus_resnet101", "deeplabv3plus_mobilenet_v2"),
    *("unet_resnet18", "unet_resnet50", "unet_resnet101", "unet_resnet152", "unet_mobilenet_v2"),
)
PUBLISHED = [n for n in LIVE if n not in LEFT_OUT]


def test_every_semantic_model_of_torchvision_is_here_under_its_name():
    published = pytest.importorskip("golden.published")
    segmentation = published.torchvision.models.segmentation
    assert set(published.torchvision.models.list_models(segmentation)) <= set(PUBLISHED)


@pytest.mark.parametrize("name", [*PUBLISHED, "deeplabv3_smp_resnet50"])
def test_as_published_at_two_sizes_in_both_modes(tmp_path, name):
    """The model at full size. Our file loads there, theirs here, and both say the same, layer by layer.

    In train mode the backbone's features and what the model gives. Of 101 layers at one size, to be done in time.
    """
    torch = pytest.importorskip("torch")
    from golden import published

    sizes = next((sizes for start, sizes in SIZES.items() if name.startswith(start)), ((48, 64), (41, 59)))
    fields = OF_SMP if name == "deeplabv3_smp_resnet50" else {}
    model = without_dropout(jaxseg.create_model(name.replace("deeplabv3_smp", "deeplabv3"), 21, **fields))
    init = functools.partial(model.init, train=False)
    variables = fill(jax.eval_shape(init, jax.random.key(0), image(1, 64, 64)))
    theirs = published.load(published.full(name), model, variables)
    torch.save(theirs.state_dict(), tmp_path / "theirs.pth")
    loaded = load_weights(tmp_path / "theirs.pth", model)
    assert jax.tree.all(jax.tree.map(np.array_equal, loaded, variables))
    save_weights(tmp_path / "ours.safetensors", model, loaded)
    again = read_weights(tmp_path / "ours.safetensors")
    state = {k: v.numpy() for k, v in theirs.state_dict().items() if not k.endswith("num_batches_tracked")}
    assert {k.removeprefix("module.") for k in again} == set(state)
    assert all(np.array_equal(v, state[k.removeprefix("module.")]) for k, v in again.items())

    layers, features = layers_of(model, variables), published.features_of(theirs)
    found = published.hooked(theirs, [*layers, *features.values()])
    mutable = ["batch_stats", "intermediates"]
    apply = functools.partial(model.apply, mutable=mutable, capture_intermediates=True)
    run = jax.jit(lambda v, x: (apply(v, x, train=False), apply(v, x, train=True)))
    for size in sizes[1:] if "resnet101" in name else sizes:
        images = unlike(image(2, *size))
        with torch.no_grad():
            theirs = published.load(theirs.float(), model, variables)
            evaluated, evaluated_layers = published.run(theirs.eval(), images), dict(found)
            trained, trained_layers = published.run(theirs.train(), images), dict(found)
            statistics = published.statistics(theirs, model)
            exact = published.run(published.load(theirs.double(), model, variables).train(), images, torch.float64)
            exact_layers, exact_statistics = dict(found), published.statistics(theirs, model)
        (ours, seen), (ours_trained, state) = run(variables, images)
        ours_evaluated_layers, ours_trained_layers = (by_their_names(x, layers, features) for x in (seen, state))
        assert ours_evaluated_layers.keys() == ours_trained_layers.keys() == found.keys()
        far = [k for k, x in evaluated_layers.items() if not np.allclose(ours_evaluated_layers[k], x, **within(x))]
        if far:  # two roundings of a number, each within 1e-4 of it, may be further than that from each other
            with torch.no_grad():
                published.run(published.load(theirs, model, variables).eval(), images, torch.float64)
        for layer in far:
            close(ours_evaluated_layers[layer], torch.tensor(found[layer]), f"{size} {layer}, in float64")
        for layer in found.keys() & features.values():  # SMP's PSPNet stops early; test_in_float64 has every layer
            close_as_theirs(ours_trained_layers[layer], trained_layers[layer], exact_layers[layer])
        close(ours.logits, evaluated[0], f"{size} logits")
        close_as_theirs(ours_trained.logits, trained[0], exact[0])
        if evaluated[1] is not None:
            close(ours.aux_logits, evaluated[1], f"{size} auxiliary logits")
            close_as_theirs(ours_trained.aux_logits, trained[1], exact[1])
        for a, b, c in zip(jax.tree.leaves(state["batch_stats"]), statistics, exact_statistics, strict=True):
            close_as_theirs(a, b, c, atol=1e-4)


def unlike(images):
    """Two pictures of different light and contrast.

    Norms over a pooled pixel of each divide by their difference: of two alike they leave more rounding than signal.
    """
    return jnp.stack([images[0], 0.3 * images[1] + jnp.array([1.5, -0.5, 0.8])])


def without_dropout(model):
    return model.clone(**{field: 0.0 for field in ("dropout", "aux_dropout") if hasattr(model, field)})


def narrow_pair(name):
    """Our narrow model without dropout, its variables, images, and the published one's constructor."""
    from golden import published

    model, variables, images = narrow(name.removesuffix(" with maxima"))
    if name.endswith("with maxima"):
        model = model.clone(pool="max")
    return without_dropout(model), variables, images, lambda: published.narrow(name)


def mean_squares(model, variables, images, params):
    """A loss, and what came by the way: output, running statistics and every layer's output."""
    output, state = model.apply(
        {**variables, "params": params}, images, train=True, mutable=["batch_stats"], capture_intermediates=True
    )
    return sum((x**2).mean() for x in jax.tree.leaves(output)), (output, state)


def layers_of(model, variables):
    """Published names of every convolution and norm, and our paths."""
    from jaxseg.weights.published import names_of

    return {
        name.removesuffix(".weight"): path[1:-1]
        for name, path in names_of(model, variables).items()
        if name.endswith(".weight")
    }


def intermediate(tree, path):
    for key in path:
        tree = tree.get(key, {})
    return tree.get("__call__", (None,))[0]


def by_their_names(state, layers, features):
    """Every convolution, norm and named feature of the backbone that was computed, by its publisher's name."""
    tree = state["intermediates"]
    found = {layer: intermediate(tree, path) for layer, path in layers.items()}
    named = intermediate(tree, ["encoder" if "encoder" in tree else "backbone"])
    found |= {theirs: named.get(ours) for ours, theirs in features.items()}
    return {name: x for name, x in found.items() if x is not None}


@pytest.mark.parametrize("name", [*FAMILIES, "pspnet_resnet50 with maxima"])
def test_in_float64_it_is_the_same_function(name):
    """Train mode: every layer, both logits, statistics and gradients to 1e-6. What float32 adds is rounding."""
    torch = pytest.importorskip("torch")
    from golden import published

    model, variables, images, theirs = narrow_pair(name)
    theirs = published.load(theirs(), model, variables).double().train()
    names = layers_of(model, variables)
    found = published.hooked(theirs, names)
    logits = [x for x in published.run(theirs, images, torch.float64) if x is not None]
    sum((x**2).mean() for x in logits).backward()

    with jax.enable_x64(True):
        wide = jax.tree.map(lambda x: jnp.asarray(x, jnp.float64), variables)
        function = functools.partial(
            mean_squares, model.clone(dtype=jnp.float64), wide, jnp.asarray(images, jnp.float64)
        )
        (_, (output, state)), gradients = jax.jit(jax.value_and_grad(function, has_aux=True))(wide["params"])
        for ours, expected in zip(jax.tree.leaves(output), logits, strict=True):
            assert ours.dtype == jnp.float64
            np.testing.assert_allclose(
                ours, expected.detach().numpy(), rtol=0, atol=1e-9 * float(expected.detach().std())
            )
        assert len(found) > 0.5 * len(names)
        for layer, path in names.items():
            ours = intermediate(state["intermediates"], path)
            assert (ours is None) == (layer not in found), layer
            if ours is not None:
                np.testing.assert_allclose(ours, found[layer], rtol=0, atol=1e-9 * np.std(found[layer]) + 1e-12)
    expected = published.statistics(theirs, model), jax.tree.leaves(published.gradients(theirs, model))
    for ours, theirs in zip((state["batch_stats"], gradients), expected, strict=True):
        for (path, a), b in zip(jax.tree_util.tree_leaves_with_path(ours), theirs, strict=True):
            assert np.linalg.norm(a - b) <= 1e-6 * max(np.linalg.norm(b), 1e-3), path


@pytest.mark.parametrize("name", ["fcn_resnet50", "unet_resnet34"])
def test_every_layer_in_eval_mode_and_gradients_in_float32(name):
    """Layers to 1e-4, gradients to 1e-3, or to three times PyTorch's own distance from float64.

    A ReLU whose input is nearly zero passes a gradient on one side and none on the other, so that a rounding may
    move a gradient by some hundredths, in both; that is neither's mistake, and float64 above has none of it.
    """
    torch = pytest.importorskip("torch")
    from golden import published

    model, variables, images, theirs = narrow_pair(name)
    theirs, names = published.load(theirs(), model, variables), layers_of(model, variables)
    found = published.hooked(theirs, names)

    @jax.jit
    def run(variables, images):
        _, state = model.apply(variables, images, train=False, mutable=["intermediates"], capture_intermediates=True)
        gradient = jax.grad(lambda params: mean_squares(model, variables, images, params)[0])
        return state["intermediates"], gradient(variables["params"])

    layers, gradients = run(variables, images)
    with torch.no_grad():
        published.run(theirs.eval(), images)
    for layer, path in names.items():
        close(intermediate(layers, path), torch.tensor(found[layer]), layer)

    def gradients_of(dtype):
        fresh = published.load(narrow_pair(name)[3](), model, variables).to(dtype).train()
        sum((x**2).mean() for x in published.run(fresh, images, dtype) if x is not None).backward()
        return jax.tree.leaves(published.gradients(fresh, model))

    paths = jax.tree_util.tree_leaves_with_path(gradients)
    for (path, a), b, exact in zip(paths, gradients_of(torch.float32), gradients_of(torch.float64), strict=True):
        scale = max(np.linalg.norm(exact), 1e-3)
        error, rounding = (np.linalg.norm(x - exact) / scale for x in (a, b))
        assert error <= max(1e-3, 3 * rounding), (path, error, rounding)
