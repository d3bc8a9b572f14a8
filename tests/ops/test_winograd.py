"""Winograd's 3x3 convolution against XLA's own: values, gradients, odd sizes, other dtypes."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxseg.ops.conv import conv
from jaxseg.ops.winograd import holes_pay, winograd, winograd_with_holes


def by_xla(x, kernel, border=1):
    dims = ("NHWC", "HWIO", "NHWC")
    return jax.lax.conv_general_dilated(x, kernel, (1, 1), [(border, border)] * 2, dimension_numbers=dims)


def arrays(size, c=8, features=5):
    rng = np.random.default_rng(0)
    x = rng.standard_normal((2, *size, c), np.float32)
    return jnp.asarray(x), jnp.asarray(rng.standard_normal((3, 3, c, features), np.float32) / (9 * c) ** 0.5)


def unbordered(x, kernel, border):
    """What few channels get without a border."""
    return conv(x, kernel, (1, 1), "VALID")


def demand_same(ours, theirs, x, kernel, how):
    """Values and gradients; `how` is the border or the rate."""

    @functools.partial(jax.jit, static_argnums=0)
    def everything(f, x, kernel):
        return f(x, kernel, how), jax.grad(lambda x, kernel: jnp.sin(f(x, kernel, how)).sum(), (0, 1))(x, kernel)

    for a, b in zip(*(jax.tree.leaves(everything(f, x, kernel)) for f in (ours, theirs)), strict=True):
        assert a.shape == b.shape
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-5 * max(1, np.abs(b).max()))


@pytest.mark.parametrize(
    ("form", "border", "size"),
    [(winograd, 1, size) for size in [(1, 1), (2, 5), (7, 4), (9, 6)]]
    + [(form, 0, size) for form in (winograd, unbordered) for size in [(3, 3), (4, 7), (9, 6)]],
)
def test_values_and_gradients_are_xlas(form, border, size):
    x, kernel = arrays(size)

    demand_same(form, by_xla, x, kernel, border)


def test_it_is_what_a_large_image_gets():
    x, kernel = arrays((20, 17), 256, 256)
    call = functools.partial(conv, window_strides=(1, 1), padding=[(1, 1)] * 2)
    assert jnp.array_equal(jax.jit(call)(x, kernel), jax.jit(winograd)(x, kernel))
    np.testing.assert_allclose(jax.jit(call)(x, kernel), by_xla(x, kernel), atol=1e-5)
    assert jnp.array_equal(call(x[:, :5, :5], kernel), by_xla(x[:, :5, :5], kernel))
    half = call(x.astype(jnp.bfloat16), kernel.astype(jnp.bfloat16))
    assert half.dtype == jnp.bfloat16
    np.testing.assert_allclose(half.astype(jnp.float32), by_xla(x, kernel), rtol=0.02, atol=0.02)
    valid = jax.jit(functools.partial(conv, window_strides=(1, 1), padding="VALID"))(x, kernel)
    np.testing.assert_allclose(valid, by_xla(x, kernel, 0), atol=1e-5)
    few = kernel[..., :255]
    assert jnp.array_equal(jax.jit(call)(x, few), by_xla(x, few))
    for options in ({"window_strides": (2, 2)}, {"padding": [(1, 0), (0, 1)]}, {"rhs_dilation": (2, 2)}):
        options = {"window_strides": (1, 1), "padding": [(1, 1)] * 2} | options
        theirs = jax.lax.conv_general_dilated(x, kernel, dimension_numbers=("NHWC", "HWIO", "NHWC"), **options)
        np.testing.assert_allclose(conv(x, kernel, **options), theirs, atol=1e-5)


def test_a_huge_image_is_left_to_the_common_form():
    """Which has no tiles to hold, and exchanges a row for each border where the height is sharded."""
    call = functools.partial(conv, window_strides=(1, 1), padding=[(1, 1)] * 2)
    x, kernel = (jax.ShapeDtypeStruct(shape, jnp.float32) for shape in ((1, 128, 128, 256), (3, 3, 256, 256)))
    assert "dot_general" not in str(jax.make_jaxpr(call)(x, kernel))
    assert "dot_general" in str(jax.make_jaxpr(call)(jax.ShapeDtypeStruct((1, 64, 64, 256), jnp.float32), kernel))


def with_holes(x, kernel, rate):
    dims = ("NHWC", "HWIO", "NHWC")
    pads, holes = [(rate, rate)] * 2, (rate, rate)
    return jax.lax.conv_general_dilated(x, kernel, (1, 1), pads, rhs_dilation=holes, dimension_numbers=dims)


@pytest.mark.parametrize(("size", "rate"), [((1, 1), 2), ((8, 12), 2), ((9, 7), 2), ((13, 18), 4), ((3, 11), 6)])
def test_holes_are_phases_without_any(size, rate):
    x, kernel = arrays(size)

    demand_same(winograd_with_holes, with_holes, x, kernel, rate)


def test_holes_of_a_dilated_resnet_go_by_phases_and_aspps_do_not():
    x, kernel = arrays((20, 18), 256, 256)
    for rate, pays in ((2, True), (12, False)):
        assert holes_pay(x, kernel, rate) == pays
        call = functools.partial(conv, window_strides=(1, 1), padding=[(rate, rate)] * 2, rhs_dilation=(rate, rate))
        phases = jax.jit(functools.partial(winograd_with_holes, rate=rate))
        assert jnp.array_equal(jax.jit(call)(x, kernel), phases(x, kernel)) == pays
        np.testing.assert_allclose(call(x, kernel), with_holes(x, kernel, rate), atol=1e-5)
    for pads in ([(2, 2), (2, 1)], [(0, 0)] * 2):
        y = conv(x, kernel, (1, 1), pads, rhs_dilation=(2, 2))
        dims = ("NHWC", "HWIO", "NHWC")
        theirs = jax.lax.conv_general_dilated(x, kernel, (1, 1), pads, rhs_dilation=(2, 2), dimension_numbers=dims)
        np.testing.assert_allclose(y, theirs, atol=1e-5)
