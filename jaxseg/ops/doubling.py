"""A 3x3 convolution after a doubling by copies, or before a halving by means: together cheaper than one by one.

Of a doubled image's nine pixels under a kernel four at most differ, and the kernel can be summed over copies
first: 16 products for 36. On CPU differences of neighbours are taken first, and 9 products are left (Winograd's
F(2x2, 3x3) has 16 for four pixels, of which the copies, or the means, spare 7). The kernel may be wider than the
image: its sums are taken first.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxseg.ops.resize import resize_nearest

__all__ = ["conv_after_doubling", "conv_before_halving"]

_LAYOUT = ("NHWC", "HWIO", "NHWC")
# [pixel of four, tap]: what the mean of two neighbours sees
_BEFORE = np.array([[1, 0, 0], [1, 1, 0], [0, 1, 1], [0, 0, 1]], np.float32) / 2


def _wide(dtype: jnp.dtype) -> jnp.dtype:
    return jnp.promote_types(dtype, jnp.float32)


def _taps(kernel: Array, dtype: jnp.dtype) -> list[list[Array]]:
    """Along each axis the first tap, the sum of the three, and the last: of differences, pixels, and differences."""
    # by name: on two threads XLA's sum over a first axis of three takes 5.8 ms of 512 x 512 channels, and this 0.1
    lines = kernel[0], kernel[0] + kernel[1] + kernel[2], kernel[2]
    return [[tap.astype(dtype) for tap in (line[0], line[0] + line[1] + line[2], line[2])] for line in lines]


def _product(x: Array, *taps: Array) -> Array:
    """Rows, which XLA multiplies faster than an image; the last axis but one is that of `taps`."""
    y = x.reshape(-1, x.shape[-1]) @ jnp.concatenate(taps, 1)
    return y.reshape(*x.shape[:-1], len(taps), taps[0].shape[-1])


def _after_by_differences(x: Array, kernel: Array, edge: bool) -> Array:
    n, h, w, _ = x.shape
    features = kernel.shape[-1]
    dtype, x = x.dtype, x.astype(_wide(x.dtype))
    wide = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)), mode="edge" if edge else "constant")
    k = _taps(kernel, x.dtype)
    # Along an axis pixel 2 i is (k0 + k1 + k2) x[i] - k0 (x[i] - x[i - 1]), and the next k2 (x[i + 1] - x[i]) more.
    down = wide[:, 1:] - wide[:, :-1]
    along = wide[:, 1:-1, 1:] - wide[:, 1:-1, :-1]
    both = down[:, :, 1:] - down[:, :, :-1]
    centre = _product(x, k[1][1])
    rows = _product(down[:, :, 1:-1], -k[0][1], k[2][1])
    columns = _product(along, -k[1][0], k[1][2])
    corners = _product(both, k[0][0], -k[0][2], -k[2][0], k[2][2])

    def phase(a: int, b: int) -> Array:
        y, x = slice(a, a + h), slice(b, b + w)
        return centre[..., 0, :] + rows[:, y, :, a] + columns[:, :, x, b] + corners[:, y, x, 2 * a + b]

    phases = [jnp.stack([phase(a, b) for b in (0, 1)], 3) for a in (0, 1)]
    return jnp.stack(phases, 2).reshape(n, 2 * h, 2 * w, features).astype(dtype)


def _after(x: Array, kernel: Array, edge: bool) -> Array:
    x = resize_nearest(x, (2 * x.shape[1], 2 * x.shape[2]))
    if edge:  # the same, and jax2onnx knows it
        x = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)), mode="reflect")
    padding = "VALID" if edge else "SAME"
    return jax.lax.conv_general_dilated(x, kernel.astype(x.dtype), (1, 1), padding, dimension_numbers=_LAYOUT)


def conv_after_doubling(
    x: Float[Array, "n h w c"], kernel: Float[Array, "3 3 c f"], *, edge: bool = False
) -> Float[Array, "n h2 w2 f"]:
    """`kernel` over `x` doubled by copies. Beyond the border lie zeros, or with `edge` the border again.

    Of a doubled image reflection is the border again: with `edge` this is PyTorch's ReflectionPad2d(1) too.
    """
    return jax.lax.platform_dependent(
        x,
        kernel,
        cpu=lambda x, kernel: _after_by_differences(x, kernel, edge),
        default=lambda x, kernel: _after(x, kernel, edge),
    )


def _halves(x: Array, axis: int) -> list[Array]:
    """What the first tap, the sum of the three, and the last see along an axis that has a border of one."""
    pairs = x.reshape(*x.shape[:axis], x.shape[axis] // 2, 2, *x.shape[axis + 1 :])
    odd, even = (jax.lax.index_in_dim(pairs, i, axis + 1, keepdims=False) for i in (0, 1))
    before, after = ((slice(None),) * axis + (at,) for at in (slice(None, -1), slice(1, None)))
    return [odd[before] - odd[after], even[before] + odd[after], even[after] - even[before]]


def _before_by_differences(x: Array, kernel: Array) -> Array:
    n, h, w, _ = x.shape
    k, features = _taps(kernel / 4, _wide(x.dtype)), kernel.shape[-1]
    wide = jnp.pad(x.astype(_wide(x.dtype)), ((0, 0), (1, 1), (1, 1), (0, 0)))
    # Of neighbours a, b, c, d the means b and c have k0 (a - c) + (k0 + k1 + k2) (b + c) + k2 (d - b), halved.
    y = jnp.zeros((), wide.dtype)
    for line, taps in zip(_halves(wide, 1), k, strict=True):
        for seen, tap in zip(_halves(line, 2), taps, strict=True):
            y = y + _product(seen, tap)
    return y.reshape(n, h // 2, w // 2, features).astype(x.dtype)


def _before(x: Array, kernel: Array) -> Array:
    table = jnp.asarray(_BEFORE, kernel.dtype)
    kernel = jnp.einsum("rt,su,tucf->rscf", table, table, kernel, precision=jax.lax.Precision.HIGHEST)
    pad = ((1, 1), (1, 1))
    return jax.lax.conv_general_dilated(x, kernel.astype(x.dtype), (2, 2), pad, dimension_numbers=_LAYOUT)


def conv_before_halving(x: Float[Array, "n h w c"], kernel: Float[Array, "3 3 c f"]) -> Float[Array, "n h2 w2 f"]:
    """Means over 2x2 pixels of `kernel` over `x`, with zeros beyond the border; h and w are even."""
    return jax.lax.platform_dependent(x, kernel, cpu=_before_by_differences, default=_before)
