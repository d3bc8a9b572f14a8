"""Convolutions beside a doubling or a halving against one after the other, with gradients, and gradients of those."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden.named import image

from jaxseg.ops import doubling
from jaxseg.ops.generation import average_pool
from jaxseg.ops.resize import resize_nearest

KERNEL = image(3, 3, 5, 4)
CONV = functools.partial(
    jax.lax.conv_general_dilated, window_strides=(1, 1), dimension_numbers=("NHWC", "HWIO", "NHWC")
)


def after(x, kernel, mode="constant"):
    x = resize_nearest(x, (2 * x.shape[1], 2 * x.shape[2]))
    return CONV(jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)), mode=mode), kernel, padding="VALID")


def before(x, kernel):
    return average_pool(CONV(x, kernel, padding="SAME"))


def second(f):
    """The value, its gradients, and the gradients of the gradient's square, as R1 has them."""

    def penalty(x, kernel):
        gradient = jax.grad(lambda x: jnp.sum(jnp.sin(f(x, kernel))))(x)
        return jnp.sum(jnp.square(gradient))

    return jax.jit(lambda x, kernel: (f(x, kernel), jax.grad(penalty, (0, 1))(x, kernel)))


X = image(2, 4, 6, 5)


@pytest.mark.parametrize(
    ("ours", "expected"),
    [
        (doubling.conv_after_doubling, after),
        (functools.partial(doubling.conv_after_doubling, edge=True), functools.partial(after, mode="reflect")),
        (functools.partial(doubling._after, edge=False), after),
        (functools.partial(doubling._after, edge=True), functools.partial(after, mode="reflect")),
        (doubling.conv_before_halving, before),
        (doubling._before, before),
    ],
)
def test_together_as_one_after_the_other(ours, expected):
    for a, b in zip(*(jax.tree.leaves(second(f)(X, KERNEL)) for f in (ours, expected)), strict=True):
        assert a.shape == b.shape
        np.testing.assert_allclose(a, b, atol=2e-5 * max(1, np.abs(b).max()))


def test_dtype_is_kept():
    half = X.astype(jnp.bfloat16), KERNEL.astype(jnp.bfloat16)
    for f in (doubling.conv_after_doubling, doubling.conv_before_halving):
        assert jax.eval_shape(f, *half).dtype == jnp.bfloat16
