"""On a GPU what a CPU computes, in float32: `python -m pytest tests/test_gpu.py -n 0` on a machine that has one."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxseg
from jaxseg.export import export_stablehlo, forward
from jaxseg.losses import cross_entropy
from jaxseg.ops.atrous import atrous_conv
from jaxseg.ops.depthwise import depthwise_conv
from jaxseg.ops.nms import nms
from jaxseg.ops.roi import pyramid_roi_align

jax.config.update("jax_disable_most_optimizations", False)
CPU = jax.devices("cpu")[0]


@pytest.fixture(scope="module", autouse=True)
def gpu():
    try:
        device = jax.devices("gpu")[0]
    except RuntimeError:
        pytest.skip("there is no GPU")
    with jax.default_matmul_precision("highest"):
        yield device


def on_both(f, gpu, *args):
    """Outputs of `f`, compiled for either, as NumPy arrays."""
    for device in (CPU, gpu):
        yield [np.asarray(x) for x in jax.tree.leaves(jax.jit(f)(*jax.device_put(args, device)))]


def demand_close(f, gpu, *args, atol=1e-4):
    """Within `atol` of outputs scaled to order 1: sums of thousands of products, in another order."""
    for a, b in zip(*on_both(f, gpu, *args), strict=True):
        np.testing.assert_allclose(b, a, rtol=0, atol=atol * max(1.0, np.abs(a).max()))


@pytest.fixture(scope="module")
def made(gpu):
    @functools.cache
    def make(name, **fields):
        model = jaxseg.create_model(name, **fields)
        with jax.default_device(CPU):
            images = jax.random.normal(jax.random.key(1), (2, 80, 112, 3))
            given = jax.random.normal(jax.random.key(2), (2, 512)) if name.startswith("stylegan") else images
            variables = jax.jit(lambda x: model.init(jax.random.key(0), x, train=False))(given)
        return model, variables, given

    return make


@pytest.mark.parametrize("name", ["fcn_resnet50", "deeplabv3_mobilenet_v3_large", "unet_small"])
def test_logits(made, gpu, name):
    model, variables, images = made(name, num_classes=5)
    demand_close(lambda v, x: model.apply(v, x, train=False).logits, gpu, variables, images)


def test_gradients_of_a_training_step(made, gpu):
    """Of a shallow network: fifty untrained layers make 4e-2 of a 1e-6 in the images."""
    model, variables, images = made("unet_small", num_classes=5)
    labels = np.arange(2 * 80 * 112).reshape(2, 80, 112) % 5

    def loss(params, rest, x):
        output, _ = model.apply({"params": params, **rest}, x, train=True, mutable=["batch_stats"])
        return cross_entropy(output.logits, jnp.asarray(labels, jnp.int32))

    rest = {k: v for k, v in variables.items() if k != "params"}
    demand_close(jax.grad(loss), gpu, variables["params"], rest, images, atol=1e-3)


@pytest.mark.parametrize(("size", "holes"), [(40, 2), (41, 4), (24, 12)])
def test_gradients_of_convolutions_with_holes(gpu, size, holes):
    rng = np.random.default_rng(0)
    x, pads = rng.standard_normal((2, size, size, 32), np.float32), ((holes, holes),) * 2
    for f, kernel in ((atrous_conv, (3, 3, 32, 16)), (depthwise_conv, (3, 3, 1, 32))):
        args = x, rng.standard_normal(kernel, np.float32)
        demand_close(
            jax.grad(lambda x, k, f=f: (f(x, k, (1, 1), pads, rhs_dilation=(holes, holes)) ** 2).sum(), (0, 1)),
            gpu,
            *args,
        )


def test_generated_images(made, gpu):
    model, variables, latents = made("stylegan_generator", resolution=32)
    demand_close(lambda v, z: model.apply(v, z, train=False), gpu, variables, latents)


def test_suppression_and_features_of_boxes(gpu):
    rng = np.random.default_rng(0)
    corners = rng.uniform(0, 200, (3, 1000, 2))
    boxes = np.concatenate([corners, corners + rng.uniform(4, 90, (3, 1000, 2))], -1).astype(np.float32)
    scores = rng.random((3, 1000), np.float32)
    for a, b in zip(*on_both(jax.vmap(lambda b, s: nms(b, s, 0.5, 500)), gpu, boxes, scores), strict=True):
        np.testing.assert_array_equal(a, b)
    features = [rng.standard_normal((3, 80 >> i, 72 >> i, 16), np.float32) for i in range(4)]
    align = functools.partial(pyramid_roi_align, size=7, strides=(4, 8, 16, 32))
    demand_close(align, gpu, features, boxes)
    demand_close(jax.grad(lambda f, b: (align(f, b) ** 2).sum()), gpu, features, boxes)


def test_an_exported_detector_runs_there(gpu):
    model = jaxseg.create_model("maskrcnn_resnet50_fpn", 5, min_size=96, max_size=128)
    with jax.default_device(CPU):
        images = jax.random.normal(jax.random.key(1), (1, 96, 128, 3))
        variables = jax.jit(lambda x: model.init(jax.random.key(0), x, train=False))(images)
    program = export_stablehlo(model, variables, size=(96, 128), batch=1, platforms=("cpu", "cuda"))
    inputs = jax.device_put((images, jnp.array([[96, 128]])), gpu)
    ours, found = jax.jit(forward(model, variables))(*inputs), jax.export.deserialize(program.serialize()).call(*inputs)
    assert ours["valid"].any()
    for name, array in ours.items():
        np.testing.assert_allclose(found[name], array, rtol=0, atol=1e-4 * max(1.0, float(jnp.abs(array).max())))
