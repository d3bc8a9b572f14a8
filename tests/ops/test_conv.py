"""Convolutions in both their forms against XLA's own, and under every transformation that jaxseg uses."""

import functools

import flax.linen as nn
import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from jaxseg.layers import ConvTranspose
from jaxseg.ops.atrous import atrous_conv
from jaxseg.ops.batch import batch_sum
from jaxseg.ops.conv import conv, conv_transpose, fully_connected_conv
from jaxseg.parallel import make_mesh, over_mesh

# kernel, strides, padding: U-Net's, FCN's, PyTorch's DCGAN, and what divides badly
CASES = [
    ((2, 2), (2, 2), ((1, 1), (1, 1))),
    ((4, 4), (2, 2), ((3, 3), (3, 3))),
    ((16, 16), (8, 8), ((15, 15), (15, 15))),
    ((4, 4), (2, 2), ((2, 2), (2, 2))),
    ((3, 3), (2, 2), ((1, 2), (1, 2))),
    ((3, 3), (1, 1), ((1, 1), (1, 1))),
    ((5, 2), (3, 2), ((4, 6), (0, 1))),
    ((2, 3), (3, 4), ((1, 1), (2, 5))),
    ((1, 1), (2, 3), ((0, 1), (0, 0))),
]


def arrays(kernel, c=3, features=5, size=(5, 4)):
    rng = np.random.default_rng(0)
    x = rng.standard_normal((2, *size, c), np.float32)
    return jnp.asarray(x), jnp.asarray(rng.standard_normal((*kernel, features, c), np.float32))


def default(x, kernel, strides, padding):
    dims = ("NHWC", "HWIO", "NHWC")
    return jax.lax.conv_transpose(x, kernel, strides, padding, dimension_numbers=dims, transpose_kernel=True)


@pytest.mark.parametrize(("kernel", "strides", "padding"), CASES)
def test_values_and_derivatives_are_those_of_the_default_form(kernel, strides, padding):
    x, w = arrays(kernel)

    @functools.partial(jax.jit, static_argnums=0)
    def everything(f, x, w):
        y = f(x, w, strides, padding)
        gradient = jax.grad(lambda x, w: jnp.sin(f(x, w, strides, padding)).sum(), (0, 1))
        second = jax.grad(lambda x, w: sum((g**2).sum() for g in gradient(x, w)), (0, 1))
        _, forward_mode = jax.jvp(lambda x, w: f(x, w, strides, padding), (x, w), (x, w))
        return y, gradient(x, w), second(x, w), forward_mode

    ours, theirs = everything(conv_transpose, x, w), everything(default, x, w)
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        assert a.shape == b.shape
        np.testing.assert_allclose(a, b, rtol=0, atol=2e-6 * max(1, np.abs(b).max()))


@pytest.mark.parametrize("kernel", [(1, 1), (3, 2)])
def test_fully_connected_conv_is_flax_convolution(kernel):
    x, _ = arrays(kernel)
    fields = {"features": 5, "kernel_size": kernel, "padding": ((0, 0), (0, 0))}
    theirs = nn.Conv(**fields)
    ours = nn.Conv(**fields, conv_general_dilated=fully_connected_conv)
    variables = theirs.init(jax.random.key(0), x)

    def everything(layer):
        gradient = jax.grad(lambda v, x: jnp.sin(layer.apply(v, x)).sum(), (0, 1))
        second = jax.grad(lambda v, x: sum((g**2).sum() for g in jax.tree.leaves(gradient(v, x))), (0, 1))
        y, tangent = jax.jvp(layer.apply, (variables, x), (variables, x))
        return (
            y,
            tangent,
            gradient(variables, x),
            second(variables, x),
            jax.vmap(layer.apply, (None, 0))(variables, x[:, None]),
        )

    for a, b in zip(*(jax.tree.leaves(jax.jit(everything, static_argnums=0)(f)) for f in (ours, theirs)), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=2e-6 * max(1, np.abs(b).max()))
    assert ours.clone(dtype=jnp.bfloat16).apply(variables, x).dtype == jnp.bfloat16
    with pytest.raises(ValueError, match="no strides or padding"):
        ours.clone(strides=2).apply(variables, x)


def test_layer_has_flax_parameters_and_values():
    fields = {"features": 5, "kernel_size": (4, 4), "strides": (2, 2), "padding": [(3, 3)] * 2}
    x, _ = arrays((4, 4))
    for use_bias in (True, False):
        ours = ConvTranspose(**fields, use_bias=use_bias)
        theirs = nn.ConvTranspose(**fields, use_bias=use_bias, transpose_kernel=True)
        variables = ours.init(jax.random.key(0), x)
        jax.tree.map(np.testing.assert_array_equal, variables, theirs.init(jax.random.key(0), x))
        np.testing.assert_allclose(ours.apply(variables, x), theirs.apply(variables, x), atol=2e-6)
    half = ours.clone(dtype=jnp.bfloat16).apply(variables, x)
    assert half.dtype == jnp.bfloat16
    np.testing.assert_allclose(half, theirs.apply(variables, x), atol=0.03)


def test_under_vmap_pmap_a_mesh_and_export():
    x, w = arrays((4, 4), size=(8, 4))
    x = jnp.concatenate([x] * 4)
    f = functools.partial(conv_transpose, strides=(2, 2), padding=((3, 3), (3, 3)))
    y = default(x, w, (2, 2), ((3, 3), (3, 3)))
    gradient = jax.grad(lambda w, x: (f(x, w) ** 2).sum())
    dw = gradient(w, x)
    mapped = jax.vmap(f, (0, None))(x[:, None], w)[:, 0]
    pmapped = jax.pmap(f, in_axes=(0, None))(x[:, None], w)[:, 0]
    mesh = make_mesh(data=4, spatial=2)
    placed = jax.device_put(x, NamedSharding(mesh, PartitionSpec("data", "spatial")))
    for other in (mapped, pmapped, jax.jit(f)(placed, w)):
        np.testing.assert_allclose(other, y, atol=1e-5)
    np.testing.assert_allclose(jax.jit(gradient)(w, placed), dw, rtol=1e-5, atol=1e-3)
    exported = jax.export.export(jax.jit(f), platforms=("cpu", "cuda", "tpu"))(
        jax.ShapeDtypeStruct(jax.export.symbolic_shape("b, h, w, 3"), jnp.float32), w
    )
    np.testing.assert_allclose(exported.call(x, w), y, atol=1e-5)


@pytest.mark.parametrize(("window", "stride"), [(7, 2), (1, 2), (5, 1)])
def test_kernel_gradients_of_a_step_whose_images_share_their_width(window, stride):
    """Within a thousandth of one device's: XLA multiplies by an axis of the mesh that its own form leaves idle."""
    rng = np.random.default_rng(0)
    image = rng.standard_normal((4, 32, 32, 3)).astype(np.float32)
    kernel = rng.standard_normal((window, window, 3, 32)).astype(np.float32)

    def update(kernel, batch, key):
        slope = jax.grad(lambda k: (conv(batch["image"], k, (stride, stride), "SAME") ** 2).sum())(kernel)
        return batch_sum(slope), {}

    slopes = []
    for axes in ({"devices": jax.devices()[:1]}, {"data": 2, "spatial": 2, "width": 2}, {"data": 1, "width": 8}):
        placement = over_mesh(make_mesh(**axes))
        batch = placement.put_batch({"image": image})
        assert batch["image"].addressable_shards[0].data.shape[2] == 32 // axes.get("width", 1)
        step = placement.compile_update(update)
        slopes.append(step(placement.put_state(kernel), batch, jax.random.key(0), np.int32(0))[0])
    for slope in slopes[1:]:
        np.testing.assert_allclose(slope, slopes[0], rtol=1e-3, atol=1e-3 * np.abs(slopes[0]).max())


def with_holes(x, kernel, padding, dilation):
    dims = ("NHWC", "HWIO", "NHWC")
    return jax.lax.conv_general_dilated(x, kernel, (1, 1), padding, rhs_dilation=dilation, dimension_numbers=dims)


# padding and dilation: ResNet's, ASPP's on features smaller than its rate, none, and what is not symmetrical
@pytest.mark.parametrize(
    ("window", "padding", "dilation"),
    [
        ((3, 3), ((2, 2), (2, 2)), (2, 2)),
        ((3, 3), ((6, 6), (6, 6)), (6, 6)),
        ((3, 3), ((0, 0), (0, 0)), (2, 3)),
        ((2, 5), ((3, 0), (1, 7)), (3, 1)),
    ],
)
def test_atrous_conv_is_xlas(window, padding, dilation):
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.standard_normal((2, 5, 8, 3), np.float32))
    kernel = jnp.asarray(rng.standard_normal((*window, 3, 4), np.float32))

    @functools.partial(jax.jit, static_argnums=0)
    def everything(f, x, kernel):
        gradient = jax.grad(lambda x, kernel: jnp.sin(f(x, kernel)).sum(), (0, 1))
        return f(x, kernel), gradient(x, kernel)

    def ours(x, kernel):
        return atrous_conv(x, kernel, (1, 1), padding, rhs_dilation=dilation)

    def theirs(x, kernel):
        return with_holes(x, kernel, padding, dilation)

    for a, b in zip(*(jax.tree.leaves(everything(f, x, kernel)) for f in (ours, theirs)), strict=True):
        assert a.shape == b.shape
        np.testing.assert_allclose(a, b, rtol=0, atol=2e-6 * max(1, np.abs(b).max()))
    half = ours(x.astype(jnp.bfloat16), kernel.astype(jnp.bfloat16))
    assert half.dtype == jnp.bfloat16
    np.testing.assert_allclose(half.astype(jnp.float32), ours(x, kernel), rtol=0.02, atol=0.1)


def test_atrous_conv_refuses_what_it_is_not():
    x, kernel = jnp.zeros((1, 4, 4, 2)), jnp.zeros((3, 3, 2, 2))
    with pytest.raises(ValueError, match=r"no strides or groups, got \(1, 1\) and 2"):
        atrous_conv(x, kernel, (1, 1), ((2, 2), (2, 2)), rhs_dilation=(2, 2), feature_group_count=2)
    with pytest.raises(ValueError, match=r"no strides or groups, got \(2, 2\) and 1"):
        atrous_conv(x, kernel, (2, 2), ((2, 2), (2, 2)), rhs_dilation=(2, 2))


# window, strides, padding, holes, groups, channels: products, strides that leave pixels over, strings, what is XLA's
@pytest.mark.parametrize(
    ("window", "strides", "padding", "holes", "groups", "channels"),
    [
        ((3, 3), (1, 1), ((1, 1), (1, 1)), None, 1, (5, 32)),
        ((3, 3), (1, 1), ((1, 1), (1, 1)), None, 1, (32, 5)),
        ((2, 5), (1, 1), ((0, 2), (3, 1)), None, 1, (40, 40)),  # two columns at once, and one
        ((4, 3), (3, 1), ((1, 0), (0, 2)), None, 1, (100, 100)),  # a column at a time
        ((3, 2), (1, 1), ((0, 0), (2, 0)), None, 1, (50, 100)),
        ((3, 3), (2, 2), ((1, 1), (1, 1)), None, 1, (32, 4)),
        ((2, 5), (3, 2), ((0, 2), (3, 1)), None, 1, (3, 32)),
        ((7, 7), (2, 2), "SAME", None, 1, (3, 32)),
        ((3, 3), (1, 1), "VALID", (1, 1), 1, (3, 32)),
        ((1, 1), (1, 1), "SAME", None, 1, (5, 4)),
        ((1, 1), (2, 2), ((0, 0), (0, 0)), None, 1, (5, 32)),
        ((1, 1), (1, 1), ((1, 1), (1, 1)), (2, 2), 1, (5, 32)),
        ((3, 3), (1, 1), "SAME", (2, 2), 1, (5, 32)),
        ((3, 3), (2, 2), ((2, 2), (2, 2)), (2, 2), 1, (5, 32)),
        ((3, 3), (1, 1), ((1, 1), (1, 1)), None, 4, (8, 32)),
        ((3, 3), (1, 1), ((1, 1), (1, 1)), None, 1, (4, 4)),
    ],
)
def test_conv_is_xlas_with_every_derivative(window, strides, padding, holes, groups, channels):
    """Values, reverse, forward, and reverse over reverse."""
    rng = np.random.default_rng(0)
    c, features = channels
    x = jnp.asarray(rng.standard_normal((2, 17, 19, c), np.float32))
    kernel = jnp.asarray(rng.standard_normal((*window, c // groups, features), np.float32)) / c
    options = {"dimension_numbers": ("NHWC", "HWIO", "NHWC"), "rhs_dilation": holes, "feature_group_count": groups}

    @functools.partial(jax.jit, static_argnums=0)
    def everything(f, x, kernel):
        loss = lambda x, kernel: jnp.sin(f(x, kernel, strides, padding, **options)).mean()  # noqa: E731
        slopes = jax.grad(loss, (0, 1))
        twice = jax.grad(lambda x, kernel: sum((s**2).sum() for s in slopes(x, kernel)), (0, 1))
        along = jax.jvp(loss, (x, kernel), (x, kernel))
        return f(x, kernel, strides, padding, **options), slopes(x, kernel), along, twice(x, kernel)

    ours, theirs = (jax.tree.leaves(everything(f, x, kernel)) for f in (conv, jax.lax.conv_general_dilated))
    for a, b in zip(ours, theirs, strict=True):
        assert (a.shape, a.dtype) == (b.shape, b.dtype)
        np.testing.assert_allclose(a, b, rtol=0, atol=2e-5 * np.abs(b).max())


def test_conv_under_vmap_pmap_a_mesh_and_export():
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.standard_normal((4, 16, 16, 3), np.float32))
    kernel = jnp.asarray(rng.standard_normal((3, 3, 3, 32), np.float32))
    f = functools.partial(conv, window_strides=(1, 1), padding=((1, 1), (1, 1)))
    y = default_conv(x, kernel)
    gradient = jax.grad(lambda f, kernel, x: (f(x, kernel) ** 2).sum(), 1)
    slope = gradient(default_conv, kernel, x)
    mapped = jax.vmap(f, (0, None))(x[:, None], kernel)[:, 0]
    pmapped = jax.pmap(f, in_axes=(0, None))(x[:, None], kernel)[:, 0]
    mesh = make_mesh(data=4, spatial=2)
    placed = jax.device_put(x, NamedSharding(mesh, PartitionSpec("data", "spatial")))
    for other in (mapped, pmapped, jax.jit(f)(placed, kernel)):
        np.testing.assert_allclose(other, y, atol=1e-4)
    each = jax.vmap(functools.partial(gradient, f), (None, 0))(kernel, x[:, None])
    for other in (gradient(f, kernel, x), each.sum(0), jax.jit(functools.partial(gradient, f))(kernel, placed)):
        np.testing.assert_allclose(other, slope, rtol=1e-5, atol=1e-3 * np.abs(slope).max())
    exported = jax.export.export(jax.jit(f), platforms=("cpu", "cuda", "tpu"))(
        jax.ShapeDtypeStruct(jax.export.symbolic_shape("b, h, w, 3"), jnp.float32), kernel
    )
    np.testing.assert_allclose(exported.call(x, kernel), y, atol=1e-4)


def default_conv(x, kernel):
    dims = ("NHWC", "HWIO", "NHWC")
    return jax.lax.conv_general_dilated(x, kernel, (1, 1), ((1, 1), (1, 1)), dimension_numbers=dims)
