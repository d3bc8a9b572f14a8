"""Batch norm where the batch is as small as can be, and kernels of which only the shapes are asked."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxseg.layers import BatchNorm, FrozenBatchNorm, GroupNorm
from jaxseg.models import create_model
from jaxseg.ops.batch import BATCH_AXIS
from jaxseg.ops.tracing import blank_kernels


def trained(norm, x):
    variables = norm.init(jax.random.key(0), x, train=True)
    return norm.apply(variables, x, train=True, mutable=["batch_stats"])


def test_one_value_a_channel_is_nothing_to_train_on():
    x = jnp.arange(6.0).reshape(1, 1, 1, 6)
    with pytest.raises(ValueError, match="has one value a channel to train on, of one image at one place"):
        trained(BatchNorm(), x)
    for fine in (jnp.concatenate([x, x]), jnp.concatenate([x, x], 2)):
        assert np.isfinite(trained(BatchNorm(), fine)[0]).all()
    for norm in (GroupNorm(groups=2), FrozenBatchNorm()):
        assert np.isfinite(trained(norm, x)[0]).all()
    variables = BatchNorm().init(jax.random.key(0), x, train=False)
    assert np.isfinite(BatchNorm().apply(variables, x, train=False)).all()


@pytest.mark.parametrize("name", ["deeplabv3_mobilenet_v3_large", "pspnet_resnet18"])
def test_the_image_pooling_of_one_image_is_named(name):
    model = create_model(name, 2)
    images = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)
    variables = jax.eval_shape(functools.partial(model.init, train=False), jax.random.key(0), images)

    def step(variables, images):
        return model.apply(variables, images, train=True, rngs={"dropout": jax.random.key(0)}, mutable=["batch_stats"])

    with pytest.raises(ValueError, match=r"^(aspp/image_pooling|ppm/features_0)/bn has one value a channel"):
        jax.eval_shape(step, variables, images)
    two = jax.ShapeDtypeStruct((2, 32, 32, 3), jnp.float32)
    assert jax.eval_shape(step, variables, two)[0].logits.shape == (2, 32, 32, 2)


@pytest.mark.skipif(jax.device_count() < 2, reason="one device")
def test_an_image_a_device_is_a_batch_of_several():
    n = jax.local_device_count()
    x = jnp.arange(2.0 * n).reshape(n, 1, 1, 1, 2)
    norm = BatchNorm()
    variables = norm.init(jax.random.key(0), x[0], train=True)
    mapped = jax.pmap(lambda x: norm.apply(variables, x, train=True, mutable=["batch_stats"])[0], BATCH_AXIS)
    whole = norm.apply(variables, x[:, 0], train=True, mutable=["batch_stats"])[0]
    np.testing.assert_allclose(mapped(x)[:, 0], whole, rtol=1e-6)


@pytest.mark.parametrize("name", ["pspnet_resnet18", "segnet_basic"])
def test_blank_kernels_have_the_shapes_of_those_that_are_drawn(name):
    model = create_model(name, 3)
    images = jax.ShapeDtypeStruct((1, 64, 64, 3), jnp.float32)

    def traced():
        return jax.make_jaxpr(functools.partial(model.init, train=False), return_shape=True)(jax.random.key(0), images)

    before, shapes = traced()
    with blank_kernels():
        blank, shapes_of_blank = traced()
    assert shapes_of_blank == shapes
    assert str(blank).count("random_bits") < str(before).count("random_bits") / 4
    assert str(traced()[0]) == str(before)
