"""The zoo beside its publishers' own code, with the same weights: outputs, statistics, features and gradients."""

import functools

import jax
import numpy as np
import pytest
from golden.named import fill, image
from models.test_zoo import LIVE, narrow

import jaxseg
from jaxseg.weights import load_weights, read_weights, save_weights

pytestmark = pytest.mark.parity


def close(ours, theirs, what=""):
    """Within 1e-4 of numbers scaled to order 1."""
    theirs = theirs.numpy()
    np.testing.assert_allclose(ours, theirs, rtol=3e-5, atol=1e-4 * max(1e-2, np.std(theirs)), err_msg=what)


def close_as_theirs(ours, theirs, exact):
    """As near to float64 as 1e-4, or, where theirs is not that near itself, as three times its distance.

    Fifty norms by the statistics of a hundred pixels, or of two, make more of a rounding than 1e-4.
    """
    theirs, exact = np.asarray(theirs), np.asarray(exact)
    rounding = np.abs(theirs - exact).max()
    error = np.abs(np.asarray(ours) - exact).max()
    assert error <= max(1e-4 * max(1e-2, np.std(exact)), 3 * rounding), (error, rounding)


SIZES = {  # semseg takes 8 k + 1, SMP multiples of the output stride
    "pspnet": ((49, 65), (41, 57)),
    "unet": ((64, 96), (32, 64)),
    "deeplabv3plus": ((48, 64), (64, 32)),
    "deeplabv3_smp": ((48, 64), (64, 32)),
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
PUBLISHED = [n for n in LIVE if n not in ("pspnet_resnet18", "pspnet_resnet34")]  # the paper has 50 and more


@pytest.mark.parametrize("name", [*PUBLISHED, "deeplabv3 of SMP_resnet50"])
def test_as_published_at_two_sizes_in_both_modes(tmp_path, name):
    """The model at full size. Our file loads there, theirs here, and both say the same."""
    torch = pytest.importorskip("torch")
    from golden import published

    family = name.split("_")[0]
    fields = OF_SMP if "SMP" in name else {}
    model = jaxseg.create_model(name.replace(" of SMP", ""), 21, **fields)
    model = model.clone(**{field: 0.0 for field in ("dropout", "aux_dropout") if hasattr(model, field)})
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

    apply = functools.partial(model.apply, mutable=["batch_stats"])
    run = jax.jit(lambda v, x: (apply(v, x, train=False)[0], apply(v, x, train=True)))
    for size in SIZES.get(family, ((48, 64), (41, 59))):
        images = image(2, *size)
        with torch.no_grad():
            theirs = published.load(theirs.float(), model, variables)
            evaluated = published.run(theirs.eval(), images)
            trained = published.run(theirs.train(), images)
            statistics = published.statistics(theirs, model)
            exact = published.run(published.load(theirs.double(), model, variables).train(), images, torch.float64)
            exact_statistics = published.statistics(theirs, model)
        ours, (ours_trained, state) = run(variables, images)
        close(ours.logits, evaluated[0], f"{size} logits")
        close_as_theirs(ours_trained.logits, trained[0], exact[0])
        if evaluated[1] is not None:
            close(ours.aux_logits, evaluated[1], f"{size} auxiliary logits")
            close_as_theirs(ours_trained.aux_logits, trained[1], exact[1])
        for a, b, c in zip(jax.tree.leaves(dict(state)), statistics, exact_statistics, strict=True):
            assert np.abs(a - c).max() <= max(1e-4, 3 * np.abs(b - c).max())


SHORT = pytest.mark.xfail(reason="2e-3 of a tensor's largest gradient instead of 1e-3, in float32", strict=False)


@pytest.mark.parametrize("name", [pytest.param(n, marks=SHORT) if n.startswith("deeplabv3_") else n for n in FAMILIES])
def test_gradients(name):
    """Of the mean square of logits and auxiliary logits, in train mode, with few channels."""
    pytest.importorskip("torch")
    from golden import published

    model, variables, images = narrow(name)
    model = model.clone(**{field: 0.0 for field in ("dropout", "aux_dropout") if hasattr(model, field)})
    theirs = published.load(published.narrow(name), model, variables).train()
    sum((x**2).mean() for x in published.run(theirs, images) if x is not None).backward()

    @jax.jit
    def gradient(params):
        def loss(params):
            output, _ = model.apply({**variables, "params": params}, images, train=True, mutable=["batch_stats"])
            return sum((x**2).mean() for x in jax.tree.leaves(output))

        return jax.grad(loss)(params)

    expected = published.gradients(theirs, model)
    for (path, a), b in zip(
        jax.tree_util.tree_leaves_with_path(gradient(variables["params"])), jax.tree.leaves(expected), strict=True
    ):
        error = np.linalg.norm(a - b) / max(np.linalg.norm(b), 1e-3)
        assert error < 1e-3, (path, error)
