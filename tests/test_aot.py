"""FLOPs by hand, collectives by text, and a sharded step compiled without data."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxseg
from jaxseg import aot, parallel


def flops_of(f, *shapes):
    return aot.matmul_flops(jax.make_jaxpr(f)(*(jax.ShapeDtypeStruct(s, jnp.float32) for s in shapes)).jaxpr)


def conv(x, kernel, **options):
    return jax.lax.conv_general_dilated(x, kernel, dimension_numbers=("NHWC", "HWIO", "NHWC"), **options)


def test_flops_of_products_and_convolutions():
    assert flops_of(jnp.dot, (3, 5), (5, 7)) == 2 * 3 * 5 * 7
    valid = functools.partial(conv, window_strides=(1, 1), padding="VALID")
    assert flops_of(valid, (2, 6, 5, 4), (3, 3, 4, 8)) == 2 * 2 * (4 * 3) * 9 * 4 * 8
    grouped = functools.partial(valid, feature_group_count=4)
    assert flops_of(grouped, (2, 6, 5, 4), (3, 3, 1, 8)) == 2 * 2 * (4 * 3) * 9 * 1 * 8
    scanned = lambda x: jax.lax.scan(lambda c, _: (c @ c, None), x, length=10)[0]  # noqa: E731
    assert flops_of(scanned, (4, 4)) == 10 * 2 * 4**3


def test_zeros_of_padding_and_dilation_cost_nothing():
    same = functools.partial(conv, window_strides=(1, 1), padding="SAME")
    assert flops_of(same, (1, 4, 1, 1), (3, 1, 1, 1)) == 2 * (4 * 3 - 2)
    transposed = functools.partial(conv, window_strides=(1, 1), padding=((1, 1), (0, 0)), lhs_dilation=(2, 1))
    assert flops_of(transposed, (1, 3, 1, 1), (2, 1, 1, 1)) == 2 * 6  # each of 3 samples meets both taps


@pytest.mark.parametrize("stride", [1, 2])
def test_a_gradients_flops_are_those_that_xla_counts(stride):
    loss = lambda x, k: conv(x, k, window_strides=(stride, stride), padding="SAME").sum()  # noqa: E731
    shapes = [jax.ShapeDtypeStruct(s, jnp.float32) for s in ((2, 9, 8, 3), (3, 3, 3, 4))]
    gradient = jax.value_and_grad(loss, (0, 1))
    counted = aot.matmul_flops(jax.make_jaxpr(gradient)(*shapes).jaxpr)
    assert counted == pytest.approx(jax.jit(gradient).lower(*shapes).cost_analysis()["flops"], rel=0.02)


def test_collectives_are_counted_once_with_their_bytes():
    text = """
  %all-reduce.1 = f32[8,4]{1,0} all-reduce(%x), channel_id=1
  %ar = (f32[2]{0}, bf16[3]{0}) all-reduce(%y, %z), channel_id=2
  %cps = (bf16[4,16]{1,0}, bf16[4,16]{1,0}, u32[], u32[]) collective-permute-start(%p), channel_id=3
  %cpd = bf16[4,16]{1,0:T(8,128)(2,1)} collective-permute-done(%cps)
  %fusion = f32[8]{0} fusion(%all-reduce.1), kind=kLoop
"""
    assert aot._collectives(text) == {"all-reduce": (2, 128 + 8 + 6), "collective-permute": (1, 128)}


def test_the_roofline_is_the_slower_of_arithmetic_and_memory():
    cost = aot.Cost(0, 0, 0, flops=197e12, bytes=819e9 / 2, matmul_share=1.0, collectives={})
    assert cost.roofline(aot.CHIPS["v5e"]) == 1.0
    assert cost._replace(bytes=2 * 819e9).roofline(aot.CHIPS["v5e"]) == 2.0


def test_a_sharded_step_compiles_ahead_of_time():
    placement = parallel.over_mesh(parallel.make_mesh(data=4, spatial=2))
    model = jaxseg.create_model("unet_small", 5, features=(4, 6))
    train = aot.compile_train(model, placement, (16, 16), 8, devices=8, platform="cpu")
    apply = aot.compile_apply(model, placement, (16, 16), 8, devices=8, platform="cpu")
    parameters = sum(
        x.size
        for x in jax.tree.leaves(
            jax.eval_shape(functools.partial(model.init, train=False), jax.random.key(0), jnp.zeros((1, 16, 16, 3)))
        )
    )
    assert train.arguments >= 3 * 4 * parameters  # parameters and AdamW's two moments, none of them sharded
    assert 2.5 < train.flops / apply.flops < 3.5  # a backward pass costs two forward passes
    assert train.collectives["all-reduce"][1] >= 4 * parameters  # the gradients
    assert apply.collectives.get("collective-permute", (0, 0))[0] > 0  # the halos of the height's shards
    assert 0.5 < apply.matmul_share <= 1
    assert np.isfinite(train.roofline(aot.CHIPS["v5e"]))
