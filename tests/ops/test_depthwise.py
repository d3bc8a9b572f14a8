"""Shifted products against XLA's own depthwise convolution."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden.named import image, value

from jaxseg.ops.depthwise import depthwise_conv

CASES = [
    # window, strides, padding, dilation
    (3, (1, 1), [(1, 1), (1, 1)], (1, 1)),
    (3, (2, 2), [(1, 1), (1, 1)], (1, 1)),
    (5, (2, 1), [(2, 2), (2, 2)], (1, 1)),
    (5, (1, 1), [(8, 8), (8, 8)], (4, 4)),
    (3, (1, 1), [(12, 12), (12, 12)], (12, 12)),
    (3, (1, 1), [(20, 9), (7, 8)], (9, 6)),
    (3, (2, 2), [(0, 3), (2, 0)], (2, 3)),
    (3, (2, 2), "SAME", (1, 1)),
    (3, (1, 2), "VALID", (2, 1)),
]


@pytest.mark.parametrize(("window", "strides", "padding", "dilation"), CASES)
def test_values_and_gradients_are_xlas(window, strides, padding, dilation):
    x, kernel = image(2, 11, 14, 6), jnp.asarray(value("depthwise/kernel", (window, window, 1, 6)))
    ours = jax.jit(lambda x, k: depthwise_conv(x, k, strides, padding, rhs_dilation=dilation))
    theirs = jax.jit(
        lambda x, k: jax.lax.conv_general_dilated(
            x,
            k,
            strides,
            padding,
            rhs_dilation=dilation,
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            feature_group_count=6,
        )
    )
    assert ours(x, kernel).shape == theirs(x, kernel).shape
    np.testing.assert_allclose(ours(x, kernel), theirs(x, kernel), atol=1e-5)
    for a, b in zip(*(jax.grad(lambda x, k, f=f: (f(x, k) ** 2).sum(), (0, 1))(x, kernel) for f in (ours, theirs))):  # noqa: B905
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)


def test_it_serves_a_flax_convolution_and_lowers_to_no_convolution_on_cpu():
    x = image(1, 9, 8, 4)
    plain = nn.Conv(4, (3, 3), 2, padding=[(1, 1)] * 2, feature_group_count=4, use_bias=False)
    fast = plain.clone(conv_general_dilated=depthwise_conv)
    variables = {"params": {"kernel": jnp.asarray(value("depthwise/kernel", (3, 3, 1, 4)))}}
    np.testing.assert_allclose(fast.apply(variables, x), plain.apply(variables, x), atol=1e-5)
    assert " convolution(" not in jax.jit(fast.apply).lower(variables, x).compile().as_text()


def test_what_is_not_depthwise_is_refused():
    x, kernel = image(1, 8, 8, 4), jnp.zeros((3, 3, 1, 4))
    with pytest.raises(ValueError, match=r"of 4 channels needs as many groups .* feature_group_count 2"):
        depthwise_conv(x, kernel, feature_group_count=2)
    with pytest.raises(ValueError, match=r"lhs_dilation \(2, 2\)"):
        depthwise_conv(x, kernel, lhs_dilation=(2, 2))
    with pytest.raises(ValueError, match="takes NHWC and HWIO"):
        depthwise_conv(x, kernel, dimension_numbers=("NCHW", "OIHW", "NCHW"))


@pytest.mark.parametrize("strides", [(1, 1), (2, 2)])
def test_gradients_differentiate_again_and_forwards(strides):
    x, kernel = image(1, 7, 8, 3), jnp.asarray(value("depthwise/kernel", (3, 3, 1, 3)))

    def theirs(x, kernel):
        layout = ("NHWC", "HWIO", "NHWC")
        return jax.lax.conv_general_dilated(x, kernel, strides, "SAME", dimension_numbers=layout, feature_group_count=3)

    def slope(f):
        return jax.grad(lambda x, k: (f(x, k) ** 3).sum(), (0, 1))

    def found(f):
        along = jax.jvp(slope(f), (x, kernel), (jnp.sin(x), jnp.cos(kernel)))
        return along, jax.grad(lambda k: sum((s**2).sum() for s in slope(f)(x, k)))(kernel)

    ours = found(lambda x, k: depthwise_conv(x, k, strides, "SAME"))
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(found(theirs)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4 * np.abs(b).max())
