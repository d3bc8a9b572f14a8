"""A 3x3 convolution after a doubling by copies, or before a halving by means: together cheaper than one by one.

Of a doubled image's nine pixels under a kernel four at most differ, and the kernel can be summed over copies
first: 16 products for 36. On CPU both are one matrix product whose rows are patches. The kernel may be wider than the
image: its sums are taken first.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxseg.ops.resize import resize_nearest

__all__ = ["conv_after_doubling", "conv_before_halving"]

_LAYOUT = ("NHWC", "HWIO", "NHWC")
# [phase, pixel of two, tap]: what an even and an odd pixel of the doubled image see of two pixels of the small one
_AFTER = np.array([[[1, 0, 0], [0, 1, 1]], [[1, 1, 0], [0, 0, 1]]], np.float32)
# [pixel of four, tap]: what the mean of two neighbours sees
_BEFORE = np.array([[1, 0, 0], [1, 1, 0], [0, 1, 1], [0, 0, 1]], np.float32) / 2


def _windows(x: Array) -> Array:
    """Each 2x2 window of `[n, h, w, c]` as a row: `[n, h - 1, w - 1, 4 c]`."""
    h, w = x.shape[1] - 1, x.shape[2] - 1
    return jnp.concatenate([x[:, i : i + h, j : j + w] for i in (0, 1) for j in (0, 1)], -1)


def _summed(kernel: Array, subscripts: str, sums: np.ndarray, dtype: jnp.dtype) -> Array:
    """The kernel's sums, in its own dtype, and then in that of the image."""
    table = jnp.asarray(sums, kernel.dtype)
    return jnp.einsum(subscripts, table, table, kernel, precision=jax.lax.Precision.HIGHEST).astype(dtype)


def _after_by_product(x: Array, kernel: Array, edge: bool) -> Array:
    n, h, w, c = x.shape
    features = kernel.shape[-1]
    rows = _windows(jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)), mode="edge" if edge else "constant"))
    matrix = _summed(kernel, "art,bsu,tucf->rscabf", _AFTER, x.dtype).reshape(4 * c, 4 * features)
    y = (rows.reshape(-1, 4 * c) @ matrix).reshape(n, h + 1, w + 1, 2, 2, features)
    phases = [jnp.stack([y[:, a : a + h, b : b + w, a, b] for b in (0, 1)], 3) for a in (0, 1)]
    return jnp.stack(phases, 2).reshape(n, 2 * h, 2 * w, features)


def _after(x: Array, kernel: Array, edge: bool) -> Array:
    x = resize_nearest(x, (2 * x.shape[1], 2 * x.shape[2]))
    if edge:
        x = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)), mode="edge")
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
        cpu=lambda x, kernel: _after_by_product(x, kernel, edge),
        default=lambda x, kernel: _after(x, kernel, edge),
    )


def _before_by_product(x: Array, kernel: Array) -> Array:
    n, h, w, c = x.shape
    h, w, features = h // 2, w // 2, kernel.shape[-1]
    blocks = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0))).reshape(n, h + 1, 2, w + 1, 2, c)
    rows = _windows(blocks.transpose(0, 1, 3, 2, 4, 5).reshape(n, h + 1, w + 1, 4 * c))
    matrix = _summed(kernel, "rt,su,tucf->rscf", _BEFORE, x.dtype).reshape(2, 2, 2, 2, c, features)
    matrix = matrix.transpose(0, 2, 1, 3, 4, 5).reshape(16 * c, features)
    return (rows.reshape(-1, 16 * c) @ matrix).reshape(n, h, w, features)


def _before(x: Array, kernel: Array) -> Array:
    kernel = _summed(kernel, "rt,su,tucf->rscf", _BEFORE, x.dtype)
    pad = ((1, 1), (1, 1))
    return jax.lax.conv_general_dilated(x, kernel, (2, 2), pad, dimension_numbers=_LAYOUT)


def conv_before_halving(x: Float[Array, "n h w c"], kernel: Float[Array, "3 3 c f"]) -> Float[Array, "n h2 w2 f"]:
    """Means over 2x2 pixels of `kernel` over `x`, with zeros beyond the border; h and w are even."""
    return jax.lax.platform_dependent(x, kernel, cpu=_before_by_product, default=_before)
