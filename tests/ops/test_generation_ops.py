"""ProGAN's and StyleGAN's operations against NumPy."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden.named import image

from jaxseg.layers import EqualizedConv, EqualizedDense
from jaxseg.ops.batch import BATCH_AXIS
from jaxseg.ops.generation import average_pool, blur, minibatch_stddev, pixel_norm


def test_pixel_norm_is_by_the_mean_square():
    x = image(2, 3, 4, 5) + 2
    expected = np.asarray(x) / np.sqrt(np.mean(np.asarray(x) ** 2, -1, keepdims=True) + 1e-8)
    np.testing.assert_allclose(pixel_norm(x), expected, atol=1e-6)
    assert (pixel_norm(jnp.zeros((1, 3))) == 0).all()


def test_blur_is_the_binomial_filter_with_zeros_around():
    x = np.asarray(image(1, 5, 6, 2))
    padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    weights = np.outer((1, 2, 1), (1, 2, 1)) / 16
    expected = sum(weights[i, j] * padded[:, i : i + 5, j : j + 6] for i in range(3) for j in range(3))
    np.testing.assert_allclose(blur(jnp.asarray(x)), expected, atol=1e-6)


def test_average_pool():
    x = np.asarray(image(1, 4, 6, 2))
    expected = (x[:, ::2, ::2] + x[:, 1::2, ::2] + x[:, ::2, 1::2] + x[:, 1::2, 1::2]) / 4
    np.testing.assert_allclose(average_pool(jnp.asarray(x)), expected, atol=1e-6)


def by_groups(x, size):
    out = np.empty(len(x))
    m = len(x) // size
    for group in range(m):
        members = x[group::m].astype(np.float64)
        out[group::m] = np.sqrt(members.var(0) + 1e-8).mean()
    return out


def test_minibatch_stddev_is_of_strided_groups():
    x = image(8, 3, 2, 4)
    y = minibatch_stddev(x)
    np.testing.assert_array_equal(y[..., :4], x)
    expected = np.broadcast_to(by_groups(np.asarray(x), 4)[:, None, None], (8, 3, 2))
    np.testing.assert_allclose(y[..., 4], expected, rtol=1e-5)
    np.testing.assert_allclose(
        minibatch_stddev(x[:2])[..., 4], by_groups(np.asarray(x[:2]), 2)[:, None, None] + 0 * y[:2, ..., 4], rtol=1e-5
    )
    gradient = jax.grad(lambda x: minibatch_stddev(x)[..., 4].sum())(jnp.ones((4, 2, 2, 3)))
    assert np.isfinite(gradient).all()
    with pytest.raises(ValueError, match="groups of 4 examples, got 6; use a batch of 8"):
        minibatch_stddev(x[:6])
    with pytest.raises(ValueError, match="groups of 1 example or more, got 0"):
        minibatch_stddev(x, 0)
    with pytest.raises(ValueError, match=r"divisible by 2, got \(5, 4\); pad to \(6, 4\)"):
        average_pool(jnp.ones((1, 5, 4, 3)))


def test_minibatch_stddev_under_a_map_sees_the_global_batch():
    x = image(8, 3, 2, 4)
    mapped = jax.vmap(minibatch_stddev, axis_name=BATCH_AXIS)(x.reshape(4, 2, 3, 2, 4))
    np.testing.assert_allclose(mapped.reshape(8, 3, 2, 5), minibatch_stddev(x), rtol=1e-5)


def test_equalized_layers_scale_at_run_time():
    x = image(2, 4, 4, 6)
    for layer, inputs, fan_in in (
        (EqualizedConv(5, 3), x, 54),
        (EqualizedConv(5, 1, gain=1.0), x, 6),
        (EqualizedDense(5), x[:, 0, 0], 6),
        (EqualizedDense(5, gain=1.0, lr_multiplier=0.01), x[:, 0, 0], 6),
    ):
        params = layer.init(jax.random.key(0), inputs)["params"]
        multiplier = getattr(layer, "lr_multiplier", 1.0)
        kernel = params["kernel"] * (layer.gain / np.sqrt(fan_in)) * multiplier
        params["bias"] = params["bias"] + 3.0
        if inputs.ndim == 4:
            expected = jax.lax.conv_general_dilated(
                inputs, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
            )
        else:
            expected = inputs @ kernel
        np.testing.assert_allclose(layer.apply({"params": params}, inputs), expected + 3 * multiplier, atol=1e-5)
    wide = functools.partial(EqualizedDense(200, lr_multiplier=0.01).init, jax.random.key(0))
    assert 95 < wide(x[:, 0, 0])["params"]["kernel"].std() < 105
