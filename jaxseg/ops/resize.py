"""Resizing of `[N, H, W, C]` arrays by PyTorch's rules, none of which filters before it shrinks.

`jax.image.resize` knows no align_corners, and its nearest neighbour rounds where PyTorch's floors.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Num

from jaxseg.ops.dims import Dim

__all__ = ["bilinear_kernel", "resize_bilinear", "resize_nearest", "upsample_bilinear"]

FEW = 8  # samples, such as the regions of a pyramid: on every device in any case, and interpolated best by a matrix


def _neighbours(n_in: int, n_out: int, align_corners: bool) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """For each of `n_out` samples the two of `n_in` that it lies between, and the weight of the second."""
    if align_corners:
        at = np.arange(n_out) * ((n_in - 1) / (n_out - 1) if n_out > 1 else 0.0)
    else:
        at = np.maximum((np.arange(n_out) + 0.5) * (n_in / n_out) - 0.5, 0.0)
    low = np.minimum(at.astype(int), n_in - 1)
    return low, np.minimum(low + 1, n_in - 1), np.clip(at - low, 0.0, 1.0)


def _bilinear_matrix(n_in: Dim, n_out: Dim, align_corners: bool) -> Any:
    """Weights `[n_out, n_in]` of linear interpolation between `n_in` samples."""
    if not (isinstance(n_in, int) and isinstance(n_out, int)):
        return _symbolic_bilinear_matrix(n_in, n_out, align_corners)
    low, high, weight = _neighbours(n_in, n_out, align_corners)
    matrix = np.zeros((n_out, n_in))
    np.add.at(matrix, (np.arange(n_out), low), 1.0 - weight)
    np.add.at(matrix, (np.arange(n_out), high), weight)
    return matrix


def _symbolic_bilinear_matrix(n_in: Dim, n_out: Dim, align_corners: bool) -> Array:
    """The same for sizes that jax.export leaves open: made when the exported program runs, in float32."""
    source, target = (jnp.asarray(n, jnp.int32).astype(jnp.float32) for n in (n_in, n_out))
    i = jnp.arange(n_out, dtype=jnp.float32)
    at = i * (source - 1) / jnp.maximum(target - 1, 1) if align_corners else (i + 0.5) * (source / target) - 0.5
    at = jnp.clip(at, 0.0, source - 1)
    return jnp.maximum(1 - jnp.abs(at[:, None] - jnp.arange(n_in, dtype=jnp.float32)), 0.0)


def _by_matrix(x: Array, axis: int, n_out: Dim, align_corners: bool) -> Array:
    matrix = jnp.asarray(_bilinear_matrix(x.shape[axis], n_out, align_corners), x.dtype)
    return jnp.moveaxis(jnp.tensordot(matrix, x, (1, axis), precision=jax.lax.Precision.HIGHEST), 0, axis)


def _by_taps(x: Array, axis: int, taps: Mapping[int, np.ndarray]) -> Array:
    """Blocks of new samples from old ones: `taps[k]`, `[blocks, factor]`, weighs the k-th after its own.

    Beyond the ends lie zeros.
    """
    n, (blocks, factor) = x.shape[axis], next(iter(taps.values())).shape
    zero, own = jnp.zeros((), x.dtype), [(0, 0, 0)] * x.ndim
    beside = []
    for by in taps:
        shift = [*own[:axis], (-by, blocks + by - n, 0), *own[axis + 1 :]]
        beside.append(x if by == 0 and blocks == n else jax.lax.pad(x, zero, shift))

    def part(j: int) -> Array:
        """The j-th of each `factor` new samples."""
        weights = [tap[:, j].reshape(blocks, *(1,) * (x.ndim - axis - 1)) for tap in taps.values()]
        used = [jnp.asarray(w, x.dtype) * y for w, y in zip(weights, beside, strict=True) if w.any()]
        return sum(used[1:], used[0])

    parts = jnp.stack([part(j) for j in range(factor)], axis + 1)
    return parts.reshape(*x.shape[:axis], factor * blocks, *x.shape[axis + 1 :])


def _by_shifts(x: Array, axis: int, factor: int, align_corners: bool) -> Array:
    """`factor` times as many samples along `axis`: each lies between an old one and one of the two beside it."""
    n = x.shape[axis]
    (low, high, weight), own = _neighbours(n, n * factor, align_corners), np.arange(n).repeat(factor)
    taps = np.zeros((3, n * factor))  # of the sample before, of the own one, of the one after
    np.add.at(taps, (low - own + 1, np.arange(n * factor)), 1.0 - weight)
    np.add.at(taps, (high - own + 1, np.arange(n * factor)), weight)
    return _by_taps(x, axis, {by: taps[by + 1].reshape(n, factor) for by in (1, 0, -1)})


def _resize_axis(x: Array, axis: int, n_out: Dim, align_corners: bool) -> Array:
    n_in = x.shape[axis]
    if n_in == n_out:
        return x
    known = isinstance(n_in, int) and isinstance(n_out, int)  # jax.export may leave a size open
    if not known or n_in <= FEW or n_out % n_in or n_out < n_in:
        return _by_matrix(x, axis, n_out, align_corners)
    if axis == 1:  # a device exchanges two rows for the shifts of a sharded height; a matrix sums all of it on each
        return _by_shifts(x, axis, n_out // n_in, align_corners)
    return jax.lax.platform_dependent(
        x,
        cpu=lambda x: _by_shifts(x, axis, n_out // n_in, align_corners),
        default=lambda x: _by_matrix(x, axis, n_out, align_corners),
    )


def resize_bilinear(
    x: Float[Array, "n h w c"], size: tuple[Dim, Dim], *, align_corners: bool = False
) -> Float[Array, "n h2 w2 c"]:
    """Bilinear interpolation to `size`, as PyTorch's `interpolate(mode="bilinear")`.

    `align_corners` maps corner pixels' centres, instead of their outer corners, onto each other.
    """
    if any(n < 1 for n in (*size, *x.shape[1:3])):
        raise ValueError(f"resize_bilinear needs h, w of at least 1, got {x.shape[1:3]} to {size}")
    return _resize_axis(_resize_axis(x, 1, size[0], align_corners), 2, size[1], align_corners)


def resize_nearest(x: Num[Array, "n h w c"], size: tuple[Dim, Dim]) -> Num[Array, "n h2 w2 c"]:
    """Nearest neighbour to `size`, as PyTorch's `interpolate(mode="nearest")`.

    Output i of n is input `i * n_in // n`.
    """
    if any(n < 1 for n in (*size, *x.shape[1:3])):
        raise ValueError(f"resize_nearest needs h, w of at least 1, got {x.shape[1:3]} to {size}")
    for axis, n_out in ((1, size[0]), (2, size[1])):
        n_in = x.shape[axis]
        if n_out % n_in == 0:  # copies, whose gradient is a sum and no scatter
            shape = (*x.shape[: axis + 1], n_out // n_in, *x.shape[axis + 1 :])
            x = jnp.broadcast_to(jnp.expand_dims(x, axis + 1), shape)
            x = x.reshape(*shape[:axis], n_out, *shape[axis + 2 :])
        else:
            x = jnp.take(x, np.arange(n_out) * n_in // n_out, axis=axis)
    return x


def _bilinear_line(size: int) -> np.ndarray:
    factor = (size + 1) // 2
    centre = factor - 1 if size % 2 else factor - 0.5
    return 1 - np.abs(np.arange(size) - centre) / factor


def bilinear_kernel(size: int, channels: int) -> Float[np.ndarray, "size size channels channels"]:
    """Kernel of a transposed convolution that interpolates each channel bilinearly (Long et al. 2015).

    With stride s, a kernel of `size` 2s - s % 2 upsamples by s: Caffe's `bilinear` filler and FCN's surgery.
    """
    line = _bilinear_line(size)
    return (np.outer(line, line)[:, :, None, None] * np.eye(channels)).astype(np.float32)


def upsample_bilinear(
    x: Float[Array, "n h w c"], factor: int, *, offset: int = 0, size: tuple[int, int] | None = None
) -> Float[Array, "n h2 w2 c"]:
    """The transposed convolution with `bilinear_kernel(2 * factor)`, stride `factor` and no padding.

    Of it the part of `size` from (offset, offset); by default all, `h2 = (h + 1) * factor`: the border fades to zero
    over `factor / 2` pixels beyond the image.
    """
    h, w = x.shape[1:3]
    size = size or ((h + 1) * factor - offset, (w + 1) * factor - offset)
    line, blocks = _bilinear_line(2 * factor), -(-size[0] // factor)
    at = offset + np.arange(factor)  # of a block's samples, in samples after the first of its own
    taps = {
        by: np.tile([line[i] if 0 <= i < 2 * factor else 0.0 for i in at - by * factor], (blocks, 1))
        for by in range(offset // factor - 1, (offset + factor - 1) // factor + 1)
    }
    x = _by_taps(x, 1, taps)[:, : size[0]]  # a device needs its neighbour's row; a matrix would sum all of the height
    matrix = np.zeros(((w + 1) * factor, w))
    for i in range(w):
        matrix[i * factor : (i + 2) * factor, i] = line
    matrix = matrix[offset : offset + size[1]]
    return jnp.moveaxis(
        jnp.tensordot(jnp.asarray(matrix, x.dtype), x, (1, 2), precision=jax.lax.Precision.HIGHEST), 0, 2
    )
