"""Max-pooling, with the positions of the maxima, its inverse, and adaptive pooling to a size that one names.

Arrays are `[N, H, W, C]`. `ceil_mode=False` drops what does not fill a window, as PyTorch does by default;
`ceil_mode=True` keeps a last, truncated window, as Caffe does. Of equal values the first in row-major order
wins, and takes the whole gradient; a NaN wins over any number. Both are PyTorch's rules.
"""

import functools
from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Array, Float, Num, UInt8

from jaxseg.ops.dims import Dim

__all__ = [
    "adaptive_average_pool",
    "adaptive_max_pool",
    "dense_max_pool",
    "max_pool",
    "max_pool_with_indices",
    "max_unpool",
    "pooled_size",
]


def pooled_size(
    size: Dim, window: int, stride: int, padding: int = 0, *, ceil_mode: bool = False, dilation: int = 1
) -> Dim:
    """Length that a pooled axis of `size` has."""
    window = (window - 1) * dilation + 1
    steps, rest = divmod(size + 2 * padding - window, stride)
    n = steps + 1 + (1 if ceil_mode and rest else 0)
    if ceil_mode and (n - 1) * stride >= size + padding:  # a window must start in the image
        n -= 1
    if n < 1:
        least = max(1, window - 2 * padding - (stride - 1 if ceil_mode else 0))
        raise ValueError(f"max-pooling with window {window} needs h, w of at least {least}, got {size}")
    return n


def _fill_windows(x: Array, window: int, stride: int, padding: int, ceil_mode: bool, dilation: int = 1) -> Array:
    """Pads height and width with -inf, or drops their end, until windows fill them exactly."""
    pad = [(0, 0, 0)] * x.ndim
    for axis in (1, 2):
        n = pooled_size(x.shape[axis], window, stride, padding, ceil_mode=ceil_mode, dilation=dilation)
        pad[axis] = (padding, (n - 1) * stride + (window - 1) * dilation + 1 - x.shape[axis] - padding, 0)
    return jax.lax.pad(x, jnp.array(-jnp.inf, x.dtype), pad) if any(map(any, pad)) else x


def _beats(challenger: Array, holder: Array) -> Array:
    return (challenger > holder) | (challenger != challenger)


def _best(views: Iterable[Array]) -> Array:
    # A select and not jnp.maximum, whose gradient ties would share.
    return functools.reduce(lambda best, view: jnp.where(_beats(view, best), view, best), views)


def _tiles(x: Array, window: int, ceil_mode: bool) -> list[Array]:
    """The `window ** 2` views of `x`, one for each place in a tile, row by row."""
    x = _fill_windows(x, window, window, 0, ceil_mode)
    n, h, w, c = x.shape
    # rows by strides: a height whose devices' shares are uneven would be gathered to be reshaped
    rows = [jax.lax.slice_in_dim(x, i, h - window + i + 1, window, 1) for i in range(window)]
    rows = [x.reshape(n, h // window, w // window, window, c) for x in rows]
    return [x[:, :, :, j] for x in rows for j in range(window)]


def _max_of_views(x: Array, window: int, stride: int, padding: int, ceil_mode: bool, dilation: int = 1) -> Array:
    if window == stride and padding == 0 and dilation == 1:
        return _best(_tiles(x, window, ceil_mode))
    x = _fill_windows(x, window, stride, padding, ceil_mode, dilation)
    for axis in (2, 1):  # columns before rows: the first of equal values in row-major order then wins
        n = (x.shape[axis] - (window - 1) * dilation - 1) // stride + 1
        stops = [(k, k + (n - 1) * stride + 1) for k in range(0, window * dilation, dilation)]
        x = _best(jax.lax.slice_in_dim(x, start, stop, stride, axis) for start, stop in stops)
    return x


def _reduce_window_max(x: Array, window: int, stride: int, padding: int, ceil_mode: bool) -> Array:
    x = _fill_windows(x, window, stride, padding, ceil_mode)
    return nn.max_pool(x, window_shape=(window, window), strides=(stride, stride), padding="VALID")


def max_pool(
    x: Float[Array, "n h w c"],
    window: int = 2,
    stride: int = 2,
    padding: int = 0,
    *,
    ceil_mode: bool = False,
    dilation: int = 1,
) -> Float[Array, "n ph pw c"]:
    """Largest value of each window, whose pixels lie `dilation` apart.

    On CPU as a maximum of shifted views, and on a GPU where windows do not overlap; elsewhere as a window reduction,
    with the same values and gradients. Of [16, 512, 512, 64] in bfloat16 and windows of 2 the gradient takes 0.9 ms by
    views and 1.8 by the reduction (H200, jax 0.11.2); of windows of 3 that overlap the same.
    """
    by_views = functools.partial(
        _max_of_views, window=window, stride=stride, padding=padding, ceil_mode=ceil_mode, dilation=dilation
    )
    if dilation > 1:  # whose gradient XLA's window reduction lacks
        return by_views(x)
    reduced = functools.partial(_reduce_window_max, window=window, stride=stride, padding=padding, ceil_mode=ceil_mode)
    tiles = window == stride and padding == 0
    forms = {"cpu": by_views, "cuda": by_views} if tiles else {"cpu": by_views}
    return jax.lax.platform_dependent(x, default=reduced, **forms)


def dense_max_pool(
    x: Float[Array, "n h w c"], window: int = 2, padding: int = 0, *, dilation: int = 1
) -> Float[Array, "n h w c"]:
    """A pooling taken at every pixel, of which each second one is what stride 2 and ceil_mode give.

    The pooling of the hole algorithm (Chen et al. 2015, section 3.1), for pixels that lie `dilation` apart.
    """
    start, end = padding * dilation, (window - 1 - padding) * dilation
    x = jax.lax.pad(x, jnp.array(-jnp.inf, x.dtype), [(0, 0, 0), (start, end, 0), (start, end, 0), (0, 0, 0)])
    return max_pool(x, window, 1, dilation=dilation)


def max_pool_with_indices(
    x: Float[Array, "n h w c"], window: int = 2, *, ceil_mode: bool = False
) -> tuple[Float[Array, "n ph pw c"], UInt8[Array, "n ph pw c"]]:
    """Largest value of each `window` x `window` tile, and its place in the tile, counted row by row.

    Place k of the tile at (i, j) is the pixel `(i * window + k // window, j * window + k % window)`.
    """
    if window > 16:
        raise ValueError(f"max_pool_with_indices counts places in 8 bits: window at most 16, got {window}")
    best, *others = _tiles(x, window, ceil_mode)
    place = jnp.zeros(best.shape, jnp.uint8)
    for k, view in enumerate(others, 1):
        wins = _beats(view, best)
        best, place = jnp.where(wins, view, best), jnp.where(wins, jnp.uint8(k), place)
    return best, place


def max_unpool(
    x: Num[Array, "n ph pw c"], indices: UInt8[Array, "n ph pw c"], size: tuple[Dim, Dim], window: int = 2
) -> Num[Array, "n h w c"]:
    """Puts each value back at the place that `max_pool_with_indices` found, zeros elsewhere.

    `size` is the height and width that were pooled, with or without ceil_mode. Raises ValueError for a size
    that does not pool to `x`.
    """
    n, ph, pw, c = x.shape
    for axis, pooled, wanted in (("height", ph, size[0]), ("width", pw, size[1])):
        if not (pooled - 1) * window < wanted < (pooled + 1) * window:
            raise ValueError(
                f"max_unpool of {axis} {pooled} with window {window} fills {pooled * window - window + 1} to "
                f"{pooled * window + window - 1} pixels, got size {size}"
            )
    place = np.arange(window * window, dtype=np.uint8).reshape(window, 1, window, 1)
    chosen = indices[:, :, None, :, None] == place
    full = jnp.where(chosen, x[:, :, None, :, None], jnp.zeros((), x.dtype))
    full = full.reshape(n, ph * window, pw * window, c)[:, : size[0], : size[1]]
    short = (size[0] - full.shape[1], size[1] - full.shape[2])  # what floor pooling dropped
    return jnp.pad(full, ((0, 0), (0, short[0]), (0, short[1]), (0, 0))) if any(short) else full


def _adaptive_windows(n_in: Dim, n_out: int, xp: Any = np) -> tuple[Any, Any]:
    """Starts and ends of PyTorch's `n_out` windows, which cover `n_in` samples and may overlap."""
    return xp.arange(n_out) * n_in // n_out, -(-xp.arange(1, n_out + 1) * n_in // n_out)


def adaptive_average_pool(x: Float[Array, "n h w c"], size: tuple[Dim, Dim]) -> Float[Array, "n ph pw c"]:
    """Means over `size` windows that cover `x`, as PyTorch's AdaptiveAvgPool2d: two products with small matrices."""
    for axis, n_out in ((2, size[1]), (1, size[0])):  # of a sharded height only the last, small product is summed
        n_in = x.shape[axis]
        xp: Any = np if isinstance(n_in, int) else jnp  # jax.export may leave the size open
        starts, stops = _adaptive_windows(n_in, n_out, xp)
        inside = (xp.arange(n_in) >= starts[:, None]) & (xp.arange(n_in) < stops[:, None])
        weights = jnp.asarray(inside / inside.sum(1, keepdims=True), x.dtype)
        x = jnp.moveaxis(jnp.tensordot(weights, x, (1, axis), precision=jax.lax.Precision.HIGHEST), 0, axis)
    return x


def _first_of_the_largest(x: Array, axis: int) -> Array:
    # By its place: ties would share jnp.max's gradient, which is 0 / 0 where XLA computes and rounds `x` twice unlike.
    place = jnp.argmax(x, axis, keepdims=True)
    here = jax.lax.broadcasted_iota(place.dtype, x.shape, axis) == place
    return jnp.where(here, x, 0).sum(axis)


def adaptive_max_pool(x: Float[Array, "n h w c"], size: tuple[Dim, Dim]) -> Float[Array, "n ph pw c"]:
    """Maxima over `size` windows that cover `x`, as PyTorch's AdaptiveMaxPool2d."""
    for axis, n_out in ((2, size[1]), (1, size[0])):  # columns before rows: the first in row-major order then wins
        windows = zip(*_adaptive_windows(x.shape[axis], n_out), strict=True)
        views = (jax.lax.slice_in_dim(x, a, b, axis=axis) for a, b in windows)
        x = jnp.stack([_first_of_the_largest(view, axis) for view in views], axis)
    return x
