"""A convolution whose trace is kept gives the program that it gives without, and is traced once."""

import re

import jax
import jax.numpy as jnp
import pytest

from jaxseg.ops.conv import conv
from jaxseg.ops.depthwise import depthwise_conv
from jaxseg.ops.tracing import traced_once

OPTIONS = {"dimension_numbers": jax.lax.ConvDimensionNumbers((0, 3, 1, 2), (3, 2, 0, 1), (0, 3, 1, 2))}


def two_layers(convolve, x, kernel, **options):
    return convolve(convolve(x, kernel, [1, 1], [(1, 1), (1, 1)], **options), kernel, (1, 1), "SAME", **options).sum()


def operations(f, *arguments):
    """What the program does, of which jax 0.12 may put the independent in another order."""
    text = jax.jit(f).lower(*arguments).as_text()
    return sorted(re.sub(r"%\w+|@\w+", "", line) for line in text.splitlines())


@pytest.mark.parametrize("channels", [3, 64])
@pytest.mark.parametrize("options", [{}, {"rhs_dilation": [2, 2]}])
def test_the_program_is_the_same(channels, options):
    x, kernel = jnp.ones((2, 24, 20, channels)), jnp.ones((3, 3, channels, channels))
    options = OPTIONS | options
    programs = [
        operations(jax.grad(lambda x, k, f=f: two_layers(f, x, k, **options), (0, 1)), x, kernel)
        for f in (conv, conv.__wrapped__)
    ]
    assert programs[0] == programs[1]


def test_depthwise_it_is_the_same_too():
    x, kernel = jnp.ones((2, 24, 20, 3)), jnp.ones((3, 3, 1, 3))
    programs = [
        operations(lambda x, k, f=f: two_layers(f, x, k, feature_group_count=3), x, kernel)
        for f in (depthwise_conv, depthwise_conv.__wrapped__)
    ]
    assert programs[0] == programs[1]


def test_layers_of_one_shape_are_traced_once_and_anew_for_another_chooser_of_forms(monkeypatch):
    traced = []

    @traced_once
    def convolve(x, kernel, window_strides, padding, **options):
        traced.append((x.shape, padding))
        return jax.lax.conv_general_dilated(x, kernel, window_strides, padding, **options)

    def run(n):
        x, kernel = jnp.ones((n, 6, 6, 4)), jnp.ones((3, 3, 4, 4))
        jax.make_jaxpr(lambda x: convolve(convolve(x, kernel, [1, 1], "SAME", **OPTIONS), kernel, **OPTIONS))(x)

    run(1)
    run(1)
    assert traced == [((1, 6, 6, 4), "SAME")]
    run(2)
    assert len(traced) == 2
    monkeypatch.setattr(jax.lax, "platform_dependent", lambda *arguments, default, **platforms: default(*arguments))
    run(1)
    run(1)
    assert len(traced) == 3
