"""Adversarial losses against their formulas, and the penalties' scaling to full resolution."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden.named import image

from jaxseg.losses.adversarial import (
    class_loss,
    drift,
    gradient_penalty,
    logistic,
    non_saturating,
    r1_penalty,
    wasserstein,
)
from jaxseg.ops.generation import average_pool

REAL, FAKE = np.array([0.3, -2.0, 40.0], np.float32), np.array([1.0, 0.0, -90.0], np.float32)


def test_scores():
    sigmoid = lambda x: 1 / (1 + np.exp(-np.float64(x)))  # noqa: E731
    real, fake = jnp.asarray(REAL), jnp.asarray(FAKE)
    np.testing.assert_allclose(
        logistic(real[:2], fake[:2]), -np.mean(np.log(sigmoid(REAL[:2])) + np.log(1 - sigmoid(FAKE[:2]))), rtol=1e-5
    )
    np.testing.assert_allclose(non_saturating(fake[:2]), -np.mean(np.log(sigmoid(FAKE[:2]))), rtol=1e-5)
    assert np.isfinite(logistic(real, -fake * 1e3))
    np.testing.assert_allclose(wasserstein(real, fake), np.mean(FAKE - REAL), rtol=1e-6)
    np.testing.assert_allclose(drift(real), np.mean(REAL**2), rtol=1e-6)


def test_class_loss():
    logits = image(1, 1, 4, 5)[0, 0]
    p = np.exp(np.asarray(logits)) / np.exp(np.asarray(logits)).sum(1, keepdims=True)
    np.testing.assert_allclose(
        class_loss(logits, jnp.array([0, 4, 2, 2])), -np.log(p[range(4), [0, 4, 2, 2]]).mean(), rtol=1e-5
    )
    for label in (-1, 5):
        assert np.isnan(class_loss(logits, jnp.array([0, 4, 2, label])))


KERNEL = np.asarray(image(1, 4, 4)[0])


def score(images):
    return jnp.sum(jnp.sin(images * KERNEL), (1, 2, 3))


def test_r1_is_the_mean_squared_gradient():
    x = image(3, 4, 4)
    expected = np.square(np.cos(np.asarray(x) * KERNEL) * KERNEL).sum((1, 2, 3)).mean()
    np.testing.assert_allclose(r1_penalty(score, x), expected, rtol=1e-5)


def test_gradient_penalty_is_between_the_two():
    """Of a linear score the norm is that of its kernel, wherever it is taken; at equal images it is there."""
    x = image(3, 4, 4)
    norm = np.sqrt(np.square(KERNEL).sum())
    linear = lambda x: jnp.sum(x * KERNEL, (1, 2, 3))  # noqa: E731
    np.testing.assert_allclose(gradient_penalty(linear, x, -x, jax.random.key(0)), (norm - 1) ** 2, rtol=1e-4)
    at_x = np.sqrt(np.square(np.cos(np.asarray(x) * KERNEL) * KERNEL).sum((1, 2, 3)))
    same = gradient_penalty(score, x, x, jax.random.key(0))
    np.testing.assert_allclose(same, np.mean((at_x - 1) ** 2), rtol=1e-4)
    constant = jax.grad(lambda x: gradient_penalty(lambda y: 0 * score(y), x, x, jax.random.key(0)))(x)
    assert np.isfinite(constant).all()


@pytest.mark.parametrize("doublings", [1, 2])
def test_penalties_are_those_at_full_resolution(doublings):
    """A score that sees enlarged reals through means, as the published discriminators at a low stage."""

    def full(images):
        for _ in range(doublings):
            images = average_pool(images)
        return score(images)

    x = image(3, 4, 4)
    large = jnp.repeat(jnp.repeat(x, 2**doublings, 1), 2**doublings, 2)
    np.testing.assert_allclose(r1_penalty(score, x, doublings=doublings), r1_penalty(full, large), rtol=1e-4)
    key = jax.random.key(0)
    ours = gradient_penalty(score, x, -x, key, doublings=doublings)
    np.testing.assert_allclose(ours, gradient_penalty(full, large, -large, key), rtol=1e-4)
