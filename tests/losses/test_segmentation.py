"""Losses against NumPy written from the definitions, and their means over a pmapped batch."""

import functools
import re

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest

from jaxseg import parallel
from jaxseg.losses import (
    boundary_loss,
    cross_entropy,
    dice_loss,
    focal_loss,
    jaccard_loss,
    lovasz_softmax,
    ohem_cross_entropy,
    signed_distance,
    tversky_loss,
)
from jaxseg.ops.batch import BATCH_AXIS

WEIGHTS = np.array([0.2, 1.0, 3.0, 0.5], np.float32)


def example(seed=0, n=8, h=5, w=4, k=3, ignored=0.3):
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(n, h, w, k)).astype(np.float32) * 3
    labels = rng.integers(0, k, (n, h, w)).astype(np.int32)
    labels[rng.random(labels.shape) < ignored] = 255
    labels[0] = 255  # an image with nothing to score: shards do not weigh the same
    return logits, labels


def probabilities(logits):
    e = np.exp(logits.astype(np.float64) - logits.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def naive_cross_entropy(logits, labels, class_weights=None, pixel_weights=None, smoothing=0.0):
    p, total, weight = probabilities(logits), 0.0, 0.0
    k = logits.shape[-1]
    for index in np.ndindex(labels.shape):
        y = labels[index]
        if y == 255:
            continue
        cw = np.ones(k) if class_weights is None else class_weights
        pixel = 1.0 if pixel_weights is None else pixel_weights[index]
        target = (1 - smoothing) * np.eye(k)[y] + smoothing / k
        total += pixel * -np.sum(target * cw * np.log(p[index]))
        weight += cw[y]
    return total / weight if weight else 0.0


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("weighted", [False, True])
def test_cross_entropy_is_the_weighted_mean(weighted, smoothing):
    logits, labels = example()
    class_weights = np.array([0.2, 1.0, 3.0], np.float32) if weighted else None
    pixel_weights = np.random.default_rng(1).random(labels.shape).astype(np.float32) if weighted else None
    got = cross_entropy(
        jnp.array(logits),
        jnp.array(labels),
        class_weights=None if class_weights is None else jnp.array(class_weights),
        pixel_weights=None if pixel_weights is None else jnp.array(pixel_weights),
        label_smoothing=smoothing,
    )
    np.testing.assert_allclose(got, naive_cross_entropy(logits, labels, class_weights, pixel_weights, smoothing), 1e-5)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize(
    ("loss", "index"),
    [
        (dice_loss, lambda p, g: (2 * (p * g).sum() + 1) / (p.sum() + g.sum() + 1)),
        (jaccard_loss, lambda p, g: ((p * g).sum() + 1) / (p.sum() + g.sum() - (p * g).sum() + 1)),
        (
            tversky_loss,
            lambda p, g: 1 / (1 + (0.3 * (p * (1 - g)).sum() + 0.7 * ((1 - p) * g).sum()) / ((p * g).sum() + 1)),
        ),
    ],
)
def test_overlap_losses_are_one_minus_the_mean_index_of_present_classes(loss, index, weighted):
    logits, labels = example(k=4)
    labels[labels == 2] = 1  # class 2 is absent
    p, valid = probabilities(logits), labels != 255
    present = [0, 1, 3]
    scores = [index(p[..., c][valid], (labels == c)[valid].astype(float)) for c in present]
    want = 1 - np.average(scores, weights=WEIGHTS[present] if weighted else None)
    got = jax.jit(loss)(logits, labels, class_weights=WEIGHTS if weighted else None)
    np.testing.assert_allclose(got, want, 1e-5)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize(("threshold", "min_kept"), [(0.3, 20), (0.9, 20), (0.0, 7), (0.5, 0), (0.1, 10_000)])
def test_ohem_is_the_cross_entropy_of_the_hardest_pixels(threshold, min_kept, weighted):
    logits, labels = example()
    p, valid = probabilities(logits), labels != 255
    cw = WEIGHTS[:3] if weighted else np.ones(3)
    pixels = sorted((p[index][labels[index]], cw[labels[index]]) for index in zip(*np.nonzero(valid), strict=True))
    kept = [(q, w) for rank, (q, w) in enumerate(pixels) if q < threshold or rank < min_kept]
    want = sum(-w * np.log(q) for q, w in kept) / sum(w for _, w in kept)
    loss = functools.partial(ohem_cross_entropy, threshold=threshold, min_kept=min_kept)
    got = jax.jit(loss)(logits, labels, class_weights=cw.astype(np.float32))
    np.testing.assert_allclose(got, want, 1e-5)
    assert len(kept) < valid.sum() or min_kept == 10_000


def naive_lovasz(p, labels, class_weights):
    """The extension by its set function: the Jaccard loss of the set of the worst pixels, one more at a time."""
    p, labels = p[labels != 255], labels[labels != 255]
    values, weights = [], []
    for c in np.unique(labels):
        truth = labels == c
        errors = np.where(truth, 1 - p[:, c], p[:, c])
        wrong, before, value = np.zeros_like(truth), 0.0, 0.0
        for i in np.argsort(-errors):
            wrong[i] = True
            now = 1 - (truth & ~wrong).sum() / (truth | wrong).sum()
            value, before = value + errors[i] * (now - before), now
        values.append(value)
        weights.append(class_weights[c])
    return np.average(values, weights=weights) if values else None


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("per_image", [False, True])
def test_lovasz_is_the_extension_of_the_jaccard_loss(per_image, weighted):
    logits, labels = example(k=4)
    labels[labels == 2] = 1
    labels[1:3][labels[1:3] == 3] = 0  # images differ in what is present
    p, cw = probabilities(logits), WEIGHTS if weighted else np.ones(4, np.float32)
    if per_image:
        want = np.mean([naive_lovasz(*image, cw) for image in zip(p[1:], labels[1:], strict=True)])  # 0 is all ignored
    else:
        want = naive_lovasz(p, labels, cw)
    got = jax.jit(functools.partial(lovasz_softmax, per_image=per_image))(logits, labels, class_weights=cw)
    np.testing.assert_allclose(got, want, 1e-5)


def naive_distance(labels, k):
    out = np.zeros((*labels.shape, k))
    for c in range(k):
        inside, outside = np.argwhere(labels == c), np.argwhere((labels != c) & (labels != 255))
        if len(inside) and len(outside):
            for q in np.ndindex(labels.shape):
                far = lambda others, q=q: np.sqrt(((others - q) ** 2).sum(1)).min()  # noqa: E731
                out[(*q, c)] = 1 - far(outside) if labels[q] == c else far(inside)
    return out


@pytest.mark.parametrize("weighted", [False, True])
def test_boundary_is_probability_by_signed_distance(weighted):
    logits, labels = example(n=4, h=9, w=12, k=4)
    labels[labels == 2] = 1
    labels[1] = 3  # one class fills an image
    labels[2, :, :4], labels[3, 0, 0] = 0, 2
    distances = np.stack([naive_distance(image, 4) for image in labels])
    np.testing.assert_allclose(jax.jit(signed_distance, static_argnums=1)(labels, 4), distances, atol=1e-5)
    assert distances.min() < -2
    p, valid, cw = probabilities(logits), labels != 255, WEIGHTS if weighted else np.ones(4)
    want = ((p * distances * cw).sum(-1) * valid).sum() / valid.sum() / cw.sum()
    got = jax.jit(boundary_loss)(logits, labels, class_weights=WEIGHTS if weighted else None)
    np.testing.assert_allclose(got, want, 1e-5)


@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0])
def test_focal_is_its_equation(gamma):
    logits, labels = example()
    alpha = np.array([0.25, 0.5, 1.0], np.float32)
    p, valid = probabilities(logits), labels != 255
    pt = np.take_along_axis(p, np.where(valid, labels, 0)[..., None], -1)[..., 0]
    want = (-alpha[np.where(valid, labels, 0)] * (1 - pt) ** gamma * np.log(pt))[valid].mean()
    got = focal_loss(jnp.array(logits), jnp.array(labels), gamma=gamma, class_weights=jnp.array(alpha))
    np.testing.assert_allclose(got, want, 2e-5)


def lovasz_per_image(logits, labels, **options):
    return lovasz_softmax(logits, labels, per_image=True, **options)


def ohem(logits, labels, **options):
    return ohem_cross_entropy(logits, labels, threshold=0.2, min_kept=30, **options)


LOSSES = [
    cross_entropy,
    dice_loss,
    focal_loss,
    jaccard_loss,
    tversky_loss,
    ohem,
    lovasz_softmax,
    lovasz_per_image,
    boundary_loss,
]


@functools.cache
def value_and_grad(loss):
    return jax.jit(jax.value_and_grad(loss))


@pytest.mark.parametrize("loss", LOSSES)
def test_no_valid_pixel_gives_zero_and_a_zero_gradient(loss):
    value, grad = value_and_grad(loss)(jnp.ones((2, 1, 3, 3)), jnp.full((2, 1, 3), 255, jnp.int32))
    assert value == 0
    assert not np.any(grad)


@pytest.mark.parametrize("loss", LOSSES)
def test_a_batch_of_no_image_gives_zero(loss):
    assert loss(jnp.ones((0, 2, 3, 3)), jnp.zeros((0, 2, 3), jnp.int32)) == 0


@pytest.fixture
def as_users_have_it():
    """Without the checks of shapes that the tests have on."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.mark.usefixtures("as_users_have_it")
@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("shape", [(2, 6, 6, 1), (1, 6, 6), (2, 6, 1)])
def test_labels_that_would_spread_over_the_logits_are_refused(loss, shape):
    with pytest.raises(ValueError, match=rf"labels are \(2, 6, 6\), one of each pixel, got {re.escape(str(shape))}"):
        loss(jnp.zeros((2, 6, 6, 3)), jnp.zeros(shape, jnp.int32))


@pytest.mark.usefixtures("as_users_have_it")
@pytest.mark.parametrize("loss", LOSSES)
def test_class_weights_are_one_of_each_class(loss):
    logits, labels = (jnp.array(x) for x in example())
    for count in (1, 2, 4):
        with pytest.raises(ValueError, match=rf"class_weights are 3, one of each class, got shape \({count},\)"):
            loss(logits, labels, class_weights=jnp.ones(count))
    assert loss(logits, labels, class_weights=[1, 2, 3]) == loss(logits, labels, class_weights=jnp.arange(1.0, 4.0))


@pytest.mark.parametrize("loss", LOSSES)
def test_255_is_ignored_where_there_are_more_classes(loss):
    logits = np.random.default_rng(0).standard_normal((1, 4, 4, 257)).astype(np.float32)
    labels = jnp.array([[[0, 1, 256, 2], [3, 0, 1, 256], [255] * 4, [255] * 4]])
    scored, grad = value_and_grad(loss)(jnp.array(logits), labels)
    want, of_rest = value_and_grad(loss)(jnp.array(logits[:, :2]), labels[:, :2])
    np.testing.assert_allclose(scored, want, rtol=1e-6)
    np.testing.assert_allclose(grad[:, :2], of_rest, rtol=1e-5, atol=1e-8)
    assert not grad[:, 2:].any()


@pytest.mark.parametrize("loss", LOSSES)
def test_perfect_and_hopeless_logits_keep_values_and_gradients_finite(loss):
    labels = jnp.array([[[0, 1, 255]], [[0, 0, 1]]])
    perfect = 160.0 * jax.nn.one_hot(labels, 3) - 80
    for logits in (perfect, -perfect, jnp.zeros((2, 1, 3, 3))):
        value, grad = value_and_grad(loss)(logits, labels)
        assert np.isfinite(value)
        assert np.isfinite(grad).all()
    assert value_and_grad(loss)(perfect, labels)[0] < value_and_grad(loss)(-perfect, labels)[0]


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("loss", LOSSES)
def test_one_logit_is_that_of_the_second_of_two_classes(loss, weighted):
    logits, labels = example(k=2)
    one = jnp.array(logits[..., 1:] - logits[..., :1])
    options = {"class_weights": jnp.array(WEIGHTS[:2])} if weighted else {}
    both = jax.jit(jax.value_and_grad(functools.partial(loss, **options)))
    value, grad = both(one, jnp.array(labels))
    two, of_two = both(jnp.array(logits), jnp.array(labels))
    np.testing.assert_allclose(value, two, rtol=1e-5)
    np.testing.assert_allclose(grad, of_two[..., 1:], rtol=1e-4, atol=1e-6)
    assert np.any(grad)


def test_of_one_logit_cross_entropy_is_the_binary_one():
    logits, labels = example(k=1)
    valid = labels != 255
    labels[valid] = np.random.default_rng(1).integers(0, 2, int(valid.sum()))
    z, y = logits[valid][:, 0].astype(np.float64), labels[valid]
    expected = np.mean(np.log1p(np.exp(-np.where(y == 1, z, -z))))
    np.testing.assert_allclose(cross_entropy(jnp.array(logits), jnp.array(labels)), expected, rtol=1e-6)


@pytest.mark.parametrize("loss", [cross_entropy, focal_loss, ohem_cross_entropy, ohem])
def test_a_class_that_there_is_not_is_nan_and_a_pixel_looks_nothing_up(loss):
    labels = jnp.array([[[0, 3, 255]], [[0, 0, 1]]])
    for wrong in (labels, labels.at[0, 0, 1].set(-1)):
        assert np.isnan(value_and_grad(loss)(jnp.zeros((2, 1, 3, 3)), wrong)[0])
    weighted = functools.partial(loss, class_weights=jnp.ones(3))
    text = str(jax.make_jaxpr(jax.grad(weighted))(jnp.zeros((2, 1, 3, 3)), labels))
    assert "gather" not in text  # a TPU gathers, and scatters in the gradient, one by one
    assert "scatter" not in text


@pytest.mark.parametrize("loss", LOSSES)
def test_bfloat16_logits_give_a_float32_loss(loss):
    logits, labels = example()
    low = jnp.array(logits, jnp.bfloat16)
    compiled = jax.jit(functools.partial(loss, class_weights=jnp.array(WEIGHTS[:3])))
    got = compiled(low, labels)
    assert got.dtype == jnp.float32
    np.testing.assert_allclose(got, compiled(low.astype(jnp.float32), labels), rtol=1e-6)


@pytest.mark.parametrize("loss", LOSSES)
def test_pmapped_loss_and_gradient_are_those_of_the_global_batch(loss):
    logits, labels = example(n=8)
    scale = jnp.float32(0.7)
    value, grad = jax.value_and_grad(lambda s: loss(s * logits, jnp.array(labels)))(scale)

    def local(s, x, y):
        value, grad = jax.value_and_grad(lambda s: loss(s * x, y))(s)
        return value, jax.lax.pmean(grad, BATCH_AXIS)

    mapped = jax.pmap(local, axis_name=BATCH_AXIS, in_axes=(None, 0, 0), out_axes=None)
    got = mapped(scale, logits.reshape(4, 2, *logits.shape[1:]), labels.reshape(4, 2, *labels.shape[1:]))
    np.testing.assert_allclose(got[0], value, rtol=1e-6)
    np.testing.assert_allclose(got[1], grad, rtol=1e-5)


@pytest.mark.parametrize("loss", LOSSES)
def test_a_loss_over_a_mesh_is_that_of_the_global_batch(loss):
    logits, labels = example(n=8, h=4)
    batch = {"logits": logits, "labels": labels}

    @jax.jit
    def valued(batch):
        return jax.value_and_grad(lambda x: loss(x, batch["labels"]))(batch["logits"])

    placement = parallel.over_mesh(parallel.make_mesh(data=4, spatial=2))
    placed = placement.put_batch(batch)
    assert len(placed["logits"].sharding.device_set) == 8
    for got, want in zip(valued(placed), valued(batch), strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-7)


@pytest.mark.parity
@pytest.mark.parametrize("per_image", [False, True])
def test_lovasz_and_its_gradient_are_those_of_smp(per_image):
    torch = pytest.importorskip("torch")
    pytest.importorskip("torchvision_shim")  # which SMP imports
    from segmentation_models_pytorch.losses import LovaszLoss

    logits, labels = example(k=4)
    logits, labels = logits[1:], labels[1:]
    theirs = torch.tensor(logits.transpose(0, 3, 1, 2), requires_grad=True)
    value = LovaszLoss("multiclass", per_image=per_image, ignore_index=255)(theirs, torch.tensor(labels).long())
    value.backward()
    got, grad = jax.value_and_grad(lambda x: lovasz_softmax(x, jnp.array(labels), per_image=per_image))(logits)
    np.testing.assert_allclose(got, value.item(), rtol=1e-5)
    np.testing.assert_allclose(np.asarray(grad).transpose(0, 3, 1, 2), theirs.grad.numpy(), atol=1e-6)
