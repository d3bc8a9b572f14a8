"""Losses against NumPy written from the definitions, and their means over a pmapped batch."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxseg.losses import cross_entropy, dice_loss, focal_loss
from jaxseg.ops.batch import BATCH_AXIS


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


def test_dice_is_one_minus_the_mean_overlap_of_present_classes():
    logits, labels = example(k=4)
    labels[labels == 2] = 1  # class 2 is absent
    p, valid = probabilities(logits), labels != 255
    scores = []
    for c in (0, 1, 3):
        g = (labels == c) & valid
        pc = p[..., c] * valid
        scores.append((2 * (pc * g).sum() + 1) / (pc.sum() + g.sum() + 1))
    np.testing.assert_allclose(dice_loss(jnp.array(logits), jnp.array(labels)), 1 - np.mean(scores), 1e-5)


@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0])
def test_focal_is_its_equation(gamma):
    logits, labels = example()
    alpha = np.array([0.25, 0.5, 1.0], np.float32)
    p, valid = probabilities(logits), labels != 255
    pt = np.take_along_axis(p, np.where(valid, labels, 0)[..., None], -1)[..., 0]
    want = (-alpha[np.where(valid, labels, 0)] * (1 - pt) ** gamma * np.log(pt))[valid].mean()
    got = focal_loss(jnp.array(logits), jnp.array(labels), gamma=gamma, class_weights=jnp.array(alpha))
    np.testing.assert_allclose(got, want, 2e-5)


LOSSES = [cross_entropy, dice_loss, focal_loss]


@pytest.mark.parametrize("loss", LOSSES)
def test_no_valid_pixel_gives_zero_and_a_zero_gradient(loss):
    logits = jnp.ones((2, 3, 3, 4))
    labels = jnp.full((2, 3, 3), 255, jnp.int32)
    value, grad = jax.value_and_grad(loss)(logits, labels)
    assert value == 0
    assert not np.any(grad)


@pytest.mark.parametrize("loss", LOSSES)
def test_confident_logits_keep_gradients_finite(loss):
    logits = jnp.array([[[[80.0, -80.0]], [[-80.0, 80.0]]]])
    value, grad = jax.value_and_grad(loss)(logits, jnp.zeros((1, 2, 1), jnp.int32))
    assert np.isfinite(value)
    assert np.isfinite(grad).all()


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
