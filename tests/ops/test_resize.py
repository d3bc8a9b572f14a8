"""Resizing against NumPy written from the definition, and against PyTorch."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import NamedSharding, PartitionSpec

from jaxseg.ops.resize import (
    _by_matrix,
    bilinear_kernel,
    resize_bilinear,
    resize_nearest,
    upsample_bilinear,
)
from jaxseg.parallel import make_mesh

quick = settings(max_examples=8, deadline=None, derandomize=True)
sizes = st.tuples(st.integers(1, 8), st.integers(1, 8))


def naive_bilinear(x, size, align_corners):
    x = np.asarray(x)
    out = np.zeros((x.shape[0], *size, x.shape[3]))

    def at(i, n_in, n_out):
        if align_corners:
            return i * (n_in - 1) / (n_out - 1) if n_out > 1 else 0.0
        return min(max((i + 0.5) * n_in / n_out - 0.5, 0), n_in - 1)

    for i, j in np.ndindex(*size):
        y, k = at(i, x.shape[1], size[0]), at(j, x.shape[2], size[1])
        y0, k0 = int(y), int(k)
        y1, k1 = min(y0 + 1, x.shape[1] - 1), min(k0 + 1, x.shape[2] - 1)
        top = x[:, y0, k0] * (1 - (k - k0)) + x[:, y0, k1] * (k - k0)
        bottom = x[:, y1, k0] * (1 - (k - k0)) + x[:, y1, k1] * (k - k0)
        out[:, i, j] = top * (1 - (y - y0)) + bottom * (y - y0)
    return out


def image(size, channels=3):
    return jnp.asarray(np.random.default_rng(size).normal(size=(2, *size, channels)), jnp.float32)


@quick
@given(sizes, sizes, st.booleans())
def test_bilinear(size_in, size_out, align_corners):
    x = image(size_in)
    ours = resize_bilinear(x, size_out, align_corners=align_corners)
    np.testing.assert_allclose(ours, naive_bilinear(x, size_out, align_corners), atol=1e-5)


@quick
@given(st.integers(9, 12), st.integers(2, 9), st.booleans())
def test_a_whole_factor_by_shifts_is_that_by_matrices(n, factor, align_corners):
    x, size = image((n, n + 1)), (factor * n, factor * (n + 1))

    @jax.jit
    def both(x, weights):
        shifted, back = jax.vjp(lambda x: resize_bilinear(x, size, align_corners=align_corners), x)
        by_rows = functools.partial(_by_matrix, axis=1, n_out=size[0], align_corners=align_corners)
        by_columns = functools.partial(_by_matrix, axis=2, n_out=size[1], align_corners=align_corners)
        product, back_product = jax.vjp(lambda x: by_columns(by_rows(x)), x)
        return shifted, product, back(weights)[0], back_product(weights)[0]

    shifted, product, gradient, product_gradient = both(x, image(size))
    np.testing.assert_allclose(shifted, product, atol=2e-6)
    np.testing.assert_allclose(gradient, product_gradient, atol=1e-5 * factor)


@pytest.mark.parametrize("align_corners", [False, True])
def test_a_sharded_height_stays_where_it_is(align_corners):
    mesh = make_mesh(data=1, spatial=8)
    x = jax.ShapeDtypeStruct((1, 64, 16, 3), jnp.float32, sharding=NamedSharding(mesh, PartitionSpec(None, "spatial")))

    def gradient(x):
        return jax.grad(lambda x: (resize_bilinear(x, (512, 128), align_corners=align_corners) ** 2).sum())(x)

    for f in (lambda x: resize_bilinear(x, (512, 128), align_corners=align_corners), gradient):
        compiled = jax.jit(f, out_shardings=x.sharding).lower(x).compile()
        assert " collective-permute(" in compiled.as_text()
        assert not re.search(" all-(reduce|gather|to-all)", compiled.as_text())


@quick
@given(sizes, sizes)
def test_nearest(size_in, size_out):
    x = image(size_in)
    rows = [i * size_in[0] // size_out[0] for i in range(size_out[0])]
    columns = [j * size_in[1] // size_out[1] for j in range(size_out[1])]
    np.testing.assert_array_equal(resize_nearest(x, size_out), np.asarray(x)[:, rows][:, :, columns])


@pytest.mark.parametrize("factor", [2, 8])
def test_upsampling_is_the_transposed_convolution_with_the_bilinear_kernel(factor):
    x = image((4, 3), 2)
    k = 2 * factor
    kernel = bilinear_kernel(k, 2)
    full = np.zeros((2, 5 * factor, 4 * factor, 2))
    for i, j in np.ndindex(4, 3):  # from the definition: every input stamps the kernel
        stamp = np.einsum("nc,yxdc->nyxd", x[:, i, j], kernel)
        full[:, i * factor : i * factor + k, j * factor : j * factor + k] += stamp
    np.testing.assert_allclose(upsample_bilinear(x, factor), full, atol=1e-5)
    for offset, size in ((1, (7, 5)), (factor + 1, (2 * factor, 3)), (2 * factor, (2 * factor + 1, 2 * factor))):
        part = full[:, offset : offset + size[0], offset : offset + size[1]]
        np.testing.assert_allclose(upsample_bilinear(x, factor, offset=offset, size=size), part, atol=1e-5)
    flat = upsample_bilinear(jnp.ones((1, 5, 5, 1)), factor)[0, factor:-factor, factor:-factor]
    np.testing.assert_allclose(flat, 1, atol=1e-6)


def test_bilinear_kernel_as_in_the_fcn_release():
    np.testing.assert_allclose(bilinear_kernel(4, 1)[:, :, 0, 0][0], [0.0625, 0.1875, 0.1875, 0.0625])
    np.testing.assert_allclose(bilinear_kernel(3, 1)[:, :, 0, 0][1], [0.5, 1, 0.5])
    assert not bilinear_kernel(4, 3)[:, :, 0, 1].any()


@pytest.mark.parity
@pytest.mark.parametrize("size", [(10, 14), (7, 3), (5, 7), (1, 1), (20, 15)])
def test_against_torch(size):
    torch = pytest.importorskip("torch")
    x = image((5, 7))
    theirs = torch.tensor(np.asarray(x)).permute(0, 3, 1, 2)
    interpolate = torch.nn.functional.interpolate
    for align_corners in (False, True):
        full = interpolate(theirs, size, mode="bilinear", align_corners=align_corners).permute(0, 2, 3, 1)
        ours = resize_bilinear(x, size, align_corners=align_corners)
        np.testing.assert_allclose(ours, full, atol=1e-5)
    np.testing.assert_array_equal(resize_nearest(x, size), interpolate(theirs, size).permute(0, 2, 3, 1))
