"""Pooling and its inverse against NumPy written from the definition."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxseg.ops.pooling import (
    _max_of_views,
    _reduce_window_max,
    adaptive_average_pool,
    adaptive_max_pool,
    max_pool,
    max_pool_with_indices,
    max_unpool,
)

quick = settings(max_examples=7, deadline=None, derandomize=True)


def naive_pool(x, window, stride, padding, ceil_mode):
    """Maxima and their flat positions in the plane, as PyTorch: first of equals, the last NaN."""
    n, h, w, c = x.shape
    rounded = np.ceil if ceil_mode else np.floor

    def length(size):
        out = int(rounded((size + 2 * padding - window) / stride)) + 1
        return out - 1 if ceil_mode and (out - 1) * stride >= size + padding else out

    ph, pw = length(h), length(w)
    best = np.full((n, ph, pw, c), -np.inf, x.dtype)
    where = np.zeros((n, ph, pw, c), int)
    for i, j in np.ndindex(ph, pw):
        for y in range(max(i * stride - padding, 0), min(i * stride - padding + window, h)):
            for k in range(max(j * stride - padding, 0), min(j * stride - padding + window, w)):
                v = x[:, y, k]
                wins = (v > best[:, i, j]) | np.isnan(v)
                best[:, i, j] = np.where(wins, v, best[:, i, j])
                where[:, i, j] = np.where(wins, y * w + k, where[:, i, j])
    return best, where


def naive_scatter(values, where, size):
    n, ph, pw, c = values.shape
    out = np.zeros((n, size[0] * size[1], c), values.dtype)
    for b, i, j, k in np.ndindex(n, ph, pw, c):
        out[b, where[b, i, j, k], k] += values[b, i, j, k]
    return out.reshape(n, *size, c)


def images(seed, h, w, *, nan=False):
    rng = np.random.default_rng(seed)
    x = rng.integers(-3, 3, (2, h, w, 3)).astype(np.float32)  # few values: many ties
    if nan:
        x[rng.random(x.shape) < 0.1] = np.nan
    return jnp.asarray(x)


sizes = st.integers(2, 9)


@pytest.mark.parametrize("form", [max_pool, _max_of_views, _reduce_window_max])
@quick
@given(sizes, sizes, st.sampled_from([(2, 2, 0), (3, 2, 1), (3, 2, 0), (3, 3, 0), (2, 1, 0)]), st.booleans())
def test_max_pool_and_its_gradient(form, h, w, windows, ceil_mode):
    window, stride, padding = windows
    h, w = h + 1, w + 1
    x = images(h * w, h, w)
    spec = {"window": window, "stride": stride, "padding": padding, "ceil_mode": ceil_mode}
    best, where = naive_pool(np.asarray(x), **spec)
    pooled, pullback = jax.vjp(functools.partial(form, **spec), x)
    np.testing.assert_array_equal(pooled, best)
    weights = np.arange(best.size, dtype=np.float32).reshape(best.shape)
    np.testing.assert_array_equal(pullback(jnp.array(weights))[0], naive_scatter(weights, where, (h, w)))


@quick
@given(st.integers(1, 11), st.integers(1, 11), st.sampled_from([2, 3]), st.booleans(), st.booleans())
def test_indices_and_unpooling(h, w, window, ceil_mode, nan):
    if not ceil_mode:
        h, w = max(h, window), max(w, window)
    x = images(h * 31 + w, h, w, nan=nan)
    best, where = naive_pool(np.asarray(x), window, window, 0, ceil_mode)
    pooled, place = max_pool_with_indices(x, window, ceil_mode=ceil_mode)
    np.testing.assert_array_equal(pooled, best)
    rows = np.arange(best.shape[1])[:, None, None] * window + np.asarray(place) // window
    columns = np.arange(best.shape[2])[:, None] * window + np.asarray(place) % window
    np.testing.assert_array_equal(rows * w + columns, where)
    full, pullback = jax.vjp(lambda v: max_unpool(v, place, (h, w), window), pooled)
    np.testing.assert_array_equal(full, naive_scatter(best, where, (h, w)))
    np.testing.assert_array_equal(pullback(full)[0], best)  # the transpose of placing is picking


def test_pooling_keeps_the_gradient_of_indices_form():
    x = images(0, 6, 7)
    for ceil_mode in (False, True):
        with_indices = jax.grad(lambda x, c=ceil_mode: (max_pool_with_indices(x, ceil_mode=c)[0] ** 2).sum())(x)
        plain = jax.grad(lambda x, c=ceil_mode: (max_pool(x, ceil_mode=c) ** 2).sum())(x)
        np.testing.assert_array_equal(with_indices, plain)


def test_forms_agree_in_bfloat16_under_jit_and_vmap():
    x = jnp.array(images(1, 8, 6), jnp.bfloat16)
    pooled = jax.jit(jax.vmap(max_pool))(x[None])[0]
    assert pooled.dtype == jnp.bfloat16
    np.testing.assert_array_equal(pooled, _reduce_window_max(x, 2, 2, 0, False))


def test_bad_sizes_are_named():
    pooled, place = max_pool_with_indices(images(0, 4, 4))
    with pytest.raises(ValueError, match=r"height 2 .* fills 3 to 5 pixels, got size \(6, 4\)"):
        max_unpool(pooled, place, (6, 4))
    with pytest.raises(ValueError, match="at least 2, got 1"):
        max_pool(images(0, 1, 4))


@pytest.mark.parity
@pytest.mark.parametrize("ceil_mode", [False, True])
@pytest.mark.parametrize(("h", "w"), [(8, 6), (9, 7), (5, 11), (2, 3)])
def test_against_torch(h, w, ceil_mode):
    torch = pytest.importorskip("torch")
    x = images(3, h, w, nan=True)
    theirs = torch.tensor(np.asarray(x)).permute(0, 3, 1, 2).contiguous()
    pooled, where = torch.nn.functional.max_pool2d(theirs, 2, 2, ceil_mode=ceil_mode, return_indices=True)
    ours, place = max_pool_with_indices(x, ceil_mode=ceil_mode)
    np.testing.assert_array_equal(ours, pooled.permute(0, 2, 3, 1))
    full = torch.nn.functional.max_unpool2d(pooled, where, 2, 2, output_size=(h, w))
    np.testing.assert_array_equal(max_unpool(ours, place, (h, w)), full.permute(0, 2, 3, 1))
    if h > 2:
        pooled = torch.nn.functional.max_pool2d(theirs, 3, 2, 1, ceil_mode=ceil_mode)
        np.testing.assert_array_equal(max_pool(x, 3, 2, 1, ceil_mode=ceil_mode), pooled.permute(0, 2, 3, 1))


@pytest.mark.parametrize("size", [(1, 1), (2, 3), (6, 6), (7, 13)])
@pytest.mark.parametrize("shape", [(5, 11), (6, 4), (13, 7)])
def test_adaptive_windows_by_their_definition(shape, size):
    """Window i of n over m samples goes from floor(i m / n) to ceil((i + 1) m / n)."""
    x = np.random.default_rng(0).standard_normal((2, *shape, 3)).astype(np.float32)

    def edges(i, axis):
        m, n = shape[axis], size[axis]
        return slice(math.floor(i * m / n), math.ceil((i + 1) * m / n))

    average, largest = adaptive_average_pool(jnp.asarray(x), size), adaptive_max_pool(jnp.asarray(x), size)
    assert average.shape == largest.shape == (2, *size, 3)
    for i, j in np.ndindex(size):
        window = x[:, edges(i, 0), edges(j, 1)]
        np.testing.assert_allclose(average[:, i, j], window.mean((1, 2)), atol=1e-6)
        np.testing.assert_array_equal(largest[:, i, j], window.max((1, 2)))


@pytest.mark.parametrize("jitted", [False, True])
def test_the_first_of_equal_values_has_the_whole_gradient_of_an_adaptive_window(jitted):
    x = np.random.default_rng(1).integers(0, 3, (2, 7, 9, 4)).astype(np.float32)  # rectified maps are full of ties

    def picked(x):
        return (adaptive_max_pool(x, (2, 3)) * weights).sum()

    weights = jnp.arange(48, dtype=jnp.float32).reshape(2, 2, 3, 4) + 1
    gradient = (jax.jit(jax.grad(picked)) if jitted else jax.grad(picked))(jnp.asarray(x))
    expected = np.zeros_like(x)
    for n, i, j, c in np.ndindex(weights.shape):
        rows, columns = slice(7 * i // 2, -(-7 * (i + 1) // 2)), slice(3 * j, 3 * j + 3)
        window = x[n, rows, columns, c]
        row, column = np.unravel_index(window.argmax(), window.shape)
        expected[n, rows.start + row, columns.start + column, c] += weights[n, i, j, c]
    np.testing.assert_array_equal(gradient, expected)
    x[0, 3, 4, 0], x[1, 2, 2, 1] = np.nan, np.inf
    assert np.isnan(adaptive_max_pool(jnp.asarray(x), (1, 1))[0, 0, 0, 0])
    assert adaptive_max_pool(jnp.asarray(x), (1, 1))[1, 0, 0, 1] == np.inf
