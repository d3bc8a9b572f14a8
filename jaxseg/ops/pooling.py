"""Max-pooling, with the positions of the maxima, and its inverse.

Arrays are `[N, H, W, C]`. `ceil_mode=False` drops what does not fill a window, as PyTorch does by default;
`ceil_mode=True` keeps a last, truncated window, as Caffe does. Of equal values the first in row-major order
wins, and takes the whole gradient; a NaN wins over any number. Both are PyTorch's rules.
"""

import functools

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float, Num, UInt8

__all__ = ["max_pool", "max_pool_with_indices", "max_unpool", "pooled_size"]


def pooled_size(size: int, window: int, stride: int, padding: int = 0, *, ceil_mode: bool = False) -> int:
    """Length that a pooled axis of `size` has."""
    steps, rest = divmod(size + 2 * padding - window, stride)
    if steps < 0 and not (ceil_mode and steps == -1):
        raise ValueError(f"max-pooling with window {window} needs an axis of at least {window}, got {size}")
    n = steps + 1 + (1 if ceil_mode and rest else 0)
    if ceil_mode and (n - 1) * stride >= size + padding:  # a window must start in the image
        n -= 1
    return n


def _fill_windows(x: Array, axis: int, window: int, stride: int, padding: int, ceil_mode: bool) -> Array:
    """Pads `axis` with -inf, or drops its end, until windows fill it exactly."""
    n = pooled_size(x.shape[axis], window, stride, padding, ceil_mode=ceil_mode)
    length = (n - 1) * stride + max(window, stride)  # whole strides, so that steps divide it
    low = jnp.array(-jnp.inf, x.dtype)
    pad = [(0, 0, 0)] * x.ndim
    pad[axis] = (padding, length - x.shape[axis] - padding, 0)
    return jax.lax.pad(x, low, pad) if pad[axis] != (0, 0, 0) else x


def _taps(x: Array, axis: int, window: int, stride: int, padding: int, ceil_mode: bool) -> list[Array]:
    """The `window` shifted and strided views of `x` whose maximum is the pooled axis."""
    x = _fill_windows(x, axis, window, stride, padding, ceil_mode)
    if window <= stride:  # windows do not overlap: an axis of its own for the place within a window
        shape = (*x.shape[:axis], x.shape[axis] // stride, stride, *x.shape[axis + 1 :])
        x = x.reshape(shape)
        return [jax.lax.index_in_dim(x, k, axis + 1, keepdims=False) for k in range(window)]
    n = (x.shape[axis] - window) // stride + 1
    return [
        jax.lax.slice_in_dim(x, k, k + (n - 1) * stride + 1, stride=stride, axis=axis) for k in range(window)
    ]


def _beats(challenger: Array, holder: Array) -> Array:
    return (challenger > holder) | (challenger != challenger)


def _shifted_max(x: Array, window: int, stride: int, padding: int, ceil_mode: bool) -> Array:
    # Columns before rows: the first of equal values in row-major order then wins.
    for axis in (2, 1):
        best, *others = _taps(x, axis, window, stride, padding, ceil_mode)
        for tap in others:
            best = jnp.where(_beats(tap, best), tap, best)  # a select: its gradient is not shared by ties
        x = best
    return x


def _reduce_window_max(x: Array, window: int, stride: int, padding: int, ceil_mode: bool) -> Array:
    for axis in (1, 2):
        x = _fill_windows(x, axis, window, stride, padding, ceil_mode)
    return nn.max_pool(x, (window, window), (stride, stride), "VALID")


def max_pool(
    x: Float[Array, "n h w c"], window: int = 2, stride: int = 2, padding: int = 0, *, ceil_mode: bool = False
) -> Float[Array, "n ph pw c"]:
    """Largest value of each window.

    On CPU as a maximum of shifted views, elsewhere as a window reduction, with the same values and gradients.
    """
    spec = {"window": window, "stride": stride, "padding": padding, "ceil_mode": ceil_mode}
    return jax.lax.platform_dependent(
        x, cpu=functools.partial(_shifted_max, **spec), default=functools.partial(_reduce_window_max, **spec)
    )


def max_pool_with_indices(
    x: Float[Array, "n h w c"], window: int = 2, *, ceil_mode: bool = False
) -> tuple[Float[Array, "n ph pw c"], UInt8[Array, "n ph pw c"]]:
    """Largest value of each `window` x `window` tile, and its place in the tile, counted row by row.

    Place k of the tile at (i, j) is the pixel `(i * window + k // window, j * window + k % window)`.
    """
    if window > 16:
        raise ValueError(f"max_pool_with_indices counts places in 8 bits: window at most 16, got {window}")
    for axis in (1, 2):
        x = _fill_windows(x, axis, window, window, 0, ceil_mode)
    n, h, w, c = x.shape
    tiles = x.reshape(n, h // window, window, w // window, window, c)
    best = tiles[:, :, 0, :, 0]
    place = jnp.zeros(best.shape, jnp.uint8)
    for k in range(1, window * window):
        tap = tiles[:, :, k // window, :, k % window]
        wins = _beats(tap, best)
        best, place = jnp.where(wins, tap, best), jnp.where(wins, jnp.uint8(k), place)
    return best, place


def max_unpool(
    x: Num[Array, "n ph pw c"], indices: UInt8[Array, "n ph pw c"], size: tuple[int, int], window: int = 2
) -> Num[Array, "n h w c"]:
    """Puts each value back at the place that `max_pool_with_indices` found, zeros elsewhere.

    `size` is the height and width that were pooled, with or without ceil_mode. Raises ValueError for a size
    that does not pool to `x`.
    """
    n, ph, pw, c = x.shape
    for axis, pooled, full in (("height", ph, size[0]), ("width", pw, size[1])):
        if not (pooled - 1) * window < full < (pooled + 1) * window:
            raise ValueError(
                f"max_unpool of {axis} {pooled} with window {window} fills {pooled * window - window + 1} to "
                f"{pooled * window + window - 1} pixels, got size {size}"
            )
    place = jnp.arange(window * window, dtype=jnp.uint8).reshape(window, 1, window, 1)
    chosen = indices[:, :, None, :, None] == place
    full = jnp.where(chosen, x[:, :, None, :, None], jnp.zeros((), x.dtype))
    full = full.reshape(n, ph * window, pw * window, c)[:, : size[0], : size[1]]
    short = (size[0] - full.shape[1], size[1] - full.shape[2])  # what floor pooling dropped
    return jnp.pad(full, ((0, 0), (0, short[0]), (0, short[1]), (0, 0))) if any(short) else full
