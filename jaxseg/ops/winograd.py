"""3x3 convolutions in the form that CPUs are fast at: of many channels with 4/9 of the multiplications."""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxseg.ops.conv import conv

__all__ = ["conv3x3"]

LEAST_CHANNELS = 256  # in and out: below, transforming the image takes what the products save
LEAST_PIXELS = 512  # below, transforming the kernel takes what the products save
MOST_PIXELS = 2**13  # of an image; above, its tiles, four times its size, are worth more than the time they save


def _tiles(x: Array, axis: int) -> list[Array]:
    """B^T along one axis: each tile of four samples, two apart, as four combinations of them."""
    n = x.shape[axis] // 2 - 1
    a, b, c, d = (jax.lax.slice_in_dim(x, i, i + 2 * n - 1, 2, axis) for i in range(4))
    return [a - c, b + c, c - b, b - d]


def _kernels(taps: Sequence[Array]) -> list[Array]:
    """G: three taps as four."""
    a, b, c = taps
    return [a, (a + b + c) / 2, (a - b + c) / 2, c]


def _pixels(m: Sequence[Array]) -> list[Array]:
    """A^T: four products as two pixels."""
    return [m[0] + m[1] + m[2], m[1] - m[2] - m[3]]


def _winograd(x: Array, kernel: Array, border: int = 1) -> Array:
    n, c = x.shape[0], x.shape[-1]
    h, w = x.shape[1] + 2 * border - 2, x.shape[2] + 2 * border - 2
    dtype, features = x.dtype, kernel.shape[-1]
    wide = jnp.promote_types(dtype, jnp.float32)
    rows, columns = -(-h // 2), -(-w // 2)
    ends = [(border, 2 * (tiles + 1) - size - border, 0) for tiles, size in ((rows, x.shape[1]), (columns, x.shape[2]))]
    x = jax.lax.pad(x.astype(wide), jnp.zeros((), wide), [(0, 0, 0), *ends, (0, 0, 0)])
    kernel = kernel.astype(wide)
    tiles = [_tiles(line, 2) for line in _tiles(x, 1)]
    taps = [_kernels([line[j] for j in range(3)]) for line in _kernels([kernel[i] for i in range(3)])]
    products = [[tiles[i][j].reshape(-1, c) @ taps[i][j] for j in range(4)] for i in range(4)]
    lines = [_pixels(row) for row in products]
    pixels = [_pixels([line[b] for line in lines]) for b in (0, 1)]  # of column b: of both rows
    stacked = jnp.stack([jnp.stack([pixels[b][a] for b in (0, 1)], 1) for a in (0, 1)], 1)  # tile, row, column, c
    y = stacked.reshape(n, rows, columns, 2, 2, features).transpose(0, 1, 3, 2, 4, 5)
    return y.reshape(n, 2 * rows, 2 * columns, features)[:, :h, :w].astype(dtype)


def conv3x3(
    x: Float[Array, "n h w c"],
    kernel: Float[Array, "3 3 c features"],
    window_strides: Sequence[int],
    padding: str | Sequence[tuple[int, int]],
    **options: Any,
) -> Float[Array, "n h2 w2 features"]:
    """A 3x3 convolution with a border of 1 or none: `jax.lax.conv_general_dilated`, for `nn.Conv` to call.

    On CPU by Winograd's F(2x2, 3x3) (Lavin and Gray 2016, section 4.1), whose results differ by some 4e-6 of
    their order: 2048 to 512 channels on 32x32 pixels take 155 ms (PyTorch 198, jax 0.10.2, one core), and XLA's
    convolution 242; four images of 512 to 512 channels and both gradients 223, and 816. Not of fewer than
    LEAST_CHANNELS, nor on images beyond MOST_PIXELS. What XLA does is not without a border, where it is slow: 256
    to 256 channels on 64x64 pixels take 115 ms, and 37 with one row of zeros, which is cut off again. Raises
    ValueError for strides, another border, holes or groups.
    """
    holes, groups = options.get("rhs_dilation") or (1, 1), options.get("feature_group_count", 1)
    pads = {"VALID": ((0, 0), (0, 0))}.get(padding) if isinstance(padding, str) else tuple(map(tuple, padding))
    if set(window_strides) | set(holes) | {groups} != {1} or pads not in (((0, 0),) * 2, ((1, 1),) * 2):
        raise ValueError(
            f"conv3x3 has a border of 1 or 0 and no strides, holes or groups, got {padding if pads is None else pads}, "
            f"{tuple(window_strides)}, {tuple(holes)}, {groups}"
        )
    border = pads[0][0]
    options = {"dimension_numbers": ("NHWC", "HWIO", "NHWC")} | options

    def by_xla(x: Array, kernel: Array) -> Array:
        return jax.lax.conv_general_dilated(x, kernel, window_strides, pads, **options)

    def with_a_row(x: Array, kernel: Array) -> Array:
        return conv(x, kernel, window_strides, ((0, 1), (0, 0)), **options)[:, :-1]

    known = all(isinstance(n, int) for n in x.shape)  # jax.export may leave a size open
    many = min(kernel.shape[2:]) >= LEAST_CHANNELS
    if (
        known
        and many
        and x.shape[0] * x.shape[1] * x.shape[2] >= LEAST_PIXELS
        and x.shape[1] * x.shape[2] <= MOST_PIXELS
    ):
        return jax.lax.platform_dependent(x, kernel, cpu=functools.partial(_winograd, border=border), default=by_xla)
    if border == 0:
        return jax.lax.platform_dependent(x, kernel, cpu=with_a_row, default=by_xla)
    return conv(x, kernel, window_strides, pads, **options)
