"""Winograd's 3x3 convolution against XLA's own: values, gradients, odd sizes, other dtypes."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxseg.ops.winograd import _winograd, conv3x3


def by_xla(x, kernel, border=1):
    dims = ("NHWC", "HWIO", "NHWC")
    return jax.lax.conv_general_dilated(x, kernel, (1, 1), [(border, border)] * 2, dimension_numbers=dims)


def arrays(size, c=8, features=5):
    rng = np.random.default_rng(0)
    x = rng.standard_normal((2, *size, c), np.float32)
    return jnp.asarray(x), jnp.asarray(rng.standard_normal((3, 3, c, features), np.float32) / (9 * c) ** 0.5)


def unbordered(x, kernel, border):
    """What few channels get without a border."""
    return conv3x3(x, kernel, (1, 1), "VALID")


@pytest.mark.parametrize(
    ("form", "border", "size"),
    [(_winograd, 1, size) for size in [(1, 1), (2, 5), (7, 4), (9, 6)]]
    + [(form, 0, size) for form in (_winograd, unbordered) for size in [(3, 3), (4, 7), (9, 6)]],
)
def test_values_and_gradients_are_xlas(form, border, size):
    x, kernel = arrays(size)

    @functools.partial(jax.jit, static_argnums=0)
    def everything(f, x, kernel):
        gradients = jax.grad(lambda x, kernel: jnp.sin(f(x, kernel, border)).sum(), (0, 1))(x, kernel)
        return f(x, kernel, border), gradients

    ours, theirs = everything(form, x, kernel), everything(by_xla, x, kernel)
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        assert a.shape == b.shape
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-5 * max(1, np.abs(b).max()))


def test_it_is_what_a_large_image_gets():
    x, kernel = arrays((20, 17), 256, 256)
    call = functools.partial(conv3x3, window_strides=(1, 1), padding=[(1, 1)] * 2)
    assert jnp.array_equal(jax.jit(call)(x, kernel), jax.jit(_winograd)(x, kernel))
    np.testing.assert_allclose(jax.jit(call)(x, kernel), by_xla(x, kernel), atol=1e-5)
    assert jnp.array_equal(call(x[:, :5, :5], kernel), by_xla(x[:, :5, :5], kernel))
    half = call(x.astype(jnp.bfloat16), kernel.astype(jnp.bfloat16))
    assert half.dtype == jnp.bfloat16
    np.testing.assert_allclose(half.astype(jnp.float32), by_xla(x, kernel), rtol=0.02, atol=0.02)
    valid = jax.jit(functools.partial(conv3x3, window_strides=(1, 1), padding="VALID"))(x, kernel)
    np.testing.assert_allclose(valid, by_xla(x, kernel, 0), atol=1e-5)
    few = kernel[..., :255]
    assert jnp.array_equal(call(x, few), by_xla(x, few))
    with pytest.raises(ValueError, match=r"no strides, holes or groups, got \(\(1, 1\), \(1, 1\)\), \(2, 2\)"):
        conv3x3(x, kernel, (2, 2), [(1, 1)] * 2)
    with pytest.raises(ValueError, match="border of 1 or 0 and no strides, holes or groups, got SAME"):
        conv3x3(x, kernel, (1, 1), "SAME")


def test_a_huge_image_is_left_to_the_common_form():
    """Which has no tiles to hold, and exchanges a row for each border where the height is sharded."""
    call = functools.partial(conv3x3, window_strides=(1, 1), padding=[(1, 1)] * 2)
    x, kernel = (jax.ShapeDtypeStruct(shape, jnp.float32) for shape in ((1, 128, 128, 256), (3, 3, 256, 256)))
    (inner,) = jax.make_jaxpr(call)(x, kernel).eqns
    assert [eqn.primitive.name for eqn in inner.params["call_jaxpr"].eqns] == ["conv_general_dilated"]
