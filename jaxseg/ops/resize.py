"""Resizing of `[N, H, W, C]` arrays by PyTorch's rules, none of which filters before it shrinks.

`jax.image.resize` knows no align_corners, and its nearest neighbour rounds where PyTorch's floors.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Num

from jaxseg.ops.dims import Dim

__all__ = ["bilinear_kernel", "resize_bilinear", "resize_nearest", "upsample_bilinear"]


def _bilinear_matrix(n_in: Dim, n_out: Dim, align_corners: bool) -> Any:
    """Weights `[n_out, n_in]` of linear interpolation between `n_in` samples."""
    if not (isinstance(n_in, int) and isinstance(n_out, int)):
        return _symbolic_bilinear_matrix(n_in, n_out, align_corners)
    if align_corners:
        at = np.arange(n_out) * ((n_in - 1) / (n_out - 1) if n_out > 1 else 0.0)
    else:
        at = np.maximum((np.arange(n_out) + 0.5) * (n_in / n_out) - 0.5, 0.0)
    low = np.minimum(at.astype(int), n_in - 1)
    high = np.minimum(low + 1, n_in - 1)
    weight = np.clip(at - low, 0.0, 1.0)
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


def _by_matrices(x: Array, size: tuple[Dim, Dim], align_corners: bool) -> Array:
    for axis, n_out in ((1, size[0]), (2, size[1])):
        if x.shape[axis] != n_out:
            matrix = jnp.asarray(_bilinear_matrix(x.shape[axis], n_out, align_corners), x.dtype)
            x = jnp.moveaxis(jnp.tensordot(matrix, x, (1, axis), precision=jax.lax.Precision.HIGHEST), 0, axis)
    return x


def _double(x: Array, axis: int) -> Array:
    """Twice as many samples along `axis`: each lies a quarter of a step from an old one."""
    n = x.shape[axis]
    first, last = jax.lax.slice_in_dim(x, 0, 1, axis=axis), jax.lax.slice_in_dim(x, n - 1, n, axis=axis)
    before = jax.lax.concatenate([first, jax.lax.slice_in_dim(x, 0, n - 1, axis=axis)], axis)
    after = jax.lax.concatenate([jax.lax.slice_in_dim(x, 1, n, axis=axis), last], axis)
    pair = jnp.stack([0.75 * x + 0.25 * before, 0.75 * x + 0.25 * after], axis + 1)
    return pair.reshape(*x.shape[:axis], 2 * n, *x.shape[axis + 1 :])


def resize_bilinear(
    x: Float[Array, "n h w c"], size: tuple[Dim, Dim], *, align_corners: bool = False
) -> Float[Array, "n h2 w2 c"]:
    """Bilinear interpolation to `size`, as PyTorch's `interpolate(mode="bilinear")`.

    `align_corners` maps corner pixels' centres, instead of their outer corners, onto each other.
    """
    if any(n < 1 for n in (*size, *x.shape[1:3])):
        raise ValueError(f"resize_bilinear needs h, w of at least 1, got {x.shape[1:3]} to {size}")
    if size == (2 * x.shape[1], 2 * x.shape[2]) and not align_corners:
        return jax.lax.platform_dependent(
            x,
            cpu=lambda x: _double(_double(x, 1), 2),
            default=lambda x: _by_matrices(x, size, align_corners),
        )
    return _by_matrices(x, size, align_corners)


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


def upsample_bilinear(x: Float[Array, "n h w c"], factor: int) -> Float[Array, "n h2 w2 c"]:
    """The transposed convolution with `bilinear_kernel(2 * factor)`, stride `factor` and no padding.

    `h2 = (h + 1) * factor`: the border fades to zero over `factor / 2` pixels beyond the image.
    """
    for axis in (1, 2):
        n = x.shape[axis]
        matrix = np.zeros(((n + 1) * factor, n))
        for i in range(n):
            matrix[i * factor : (i + 2) * factor, i] = _bilinear_line(2 * factor)
        # Two products with small matrices in place of k^2 kernels of which k are not zero.
        weights = jnp.asarray(matrix, x.dtype)
        x = jnp.moveaxis(jnp.tensordot(weights, x, (1, axis), precision=jax.lax.Precision.HIGHEST), 0, axis)
    return x
