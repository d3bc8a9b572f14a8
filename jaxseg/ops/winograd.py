"""3x3 convolutions in the form that CPUs are fast at: of many channels with 4/9 of the multiplications."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

__all__ = ["holes_pay", "tiles_pay", "winograd", "winograd_with_holes"]

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


def tiles_pay(x: Array | jax.ShapeDtypeStruct, kernel: Array) -> bool:
    """Whether a 3x3 convolution of `x [n, h, w, c]` with `kernel [3, 3, c, features]` is faster by tiles on a CPU."""
    n, h, w, _ = x.shape
    return min(kernel.shape[2:]) >= LEAST_CHANNELS and n * h * w >= LEAST_PIXELS and h * w <= MOST_PIXELS


def winograd(
    x: Float[Array, "n h w c"], kernel: Float[Array, "3 3 c features"], border: int = 1
) -> Float[Array, "n h2 w2 features"]:
    """A 3x3 convolution with a border of 1 or 0 by Winograd's F(2x2, 3x3) (Lavin and Gray 2016, section 4.1).

    Results differ from a direct sum by some 4e-6 of their order; tiles and sums are at least float32. Of 512 to 512
    channels on 64x64 pixels it takes 91 ms and both gradients 212 (jax 0.10.2, one core), and XLA's convolution with
    the kernel gradient of `jaxseg.ops.conv` 136 and 278; of 256 to 256 on 128 images of 14x14 203 and 451, and 289
    and 620.
    """
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


def holes_pay(x: Array | jax.ShapeDtypeStruct, kernel: Array, rate: int) -> bool:
    """Whether `winograd_with_holes` is faster on a CPU than a product for each of the kernel's places.

    It multiplies 16 times a tile, borders included; those products, once for each pixel that each place sees.
    """
    _, h, w, _ = x.shape
    tiles = rate**2 * (-(-h // (2 * rate))) * (-(-w // (2 * rate)))
    seen = (h + 2 * max(h - rate, 0)) * (w + 2 * max(w - rate, 0))
    return tiles_pay(x, kernel) and 16 * tiles < 0.8 * seen


def winograd_with_holes(
    x: Float[Array, "n h w c"], kernel: Float[Array, "3 3 c features"], rate: int
) -> Float[Array, "n h w features"]:
    """A 3x3 convolution with holes of `rate` and a border as wide: without holes on each of the `rate`^2 phases.

    Of 512 to 512 channels on 2 images of 32x32 pixels, rate 4, it takes 54 ms and both gradients 124 (PyTorch 51 and
    121, jax 0.10.2, one core), and a product for each of the kernel's places 79 and 219.
    """
    n, h, w, c = x.shape
    rows, columns = -(-h // rate), -(-w // rate)
    x = jnp.pad(x, ((0, 0), (0, rows * rate - h), (0, columns * rate - w), (0, 0)))
    x = x.reshape(n, rows, rate, columns, rate, c).transpose(0, 2, 4, 1, 3, 5)
    y = winograd(x.reshape(-1, rows, columns, c), kernel)
    y = y.reshape(n, rate, rate, rows, columns, -1).transpose(0, 3, 1, 4, 2, 5)
    return y.reshape(n, rows * rate, columns * rate, -1)[:, :h, :w]
