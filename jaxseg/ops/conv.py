"""Convolutions that XLA is slow at on CPU, in the form that each platform is fast at."""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxseg.ops.atrous import atrous_conv
from jaxseg.ops.tracing import traced_once
from jaxseg.ops.winograd import tiles_pay, winograd

__all__ = ["WIDTH_AXIS", "conv", "conv_transpose", "fully_connected_conv"]

WIDTH_AXIS = "width"  # of a mesh: the images' width is shared out over it

_LAYOUT = ("NHWC", "HWIO", "NHWC")
LEAST_CHANNELS = 16  # below, turning an image round takes what the products save
LEAST_PIXELS = 64
MOST_COLUMNS = 96  # of a kernel times its channels, in one product
_NONE, _BORDER = ((0, 0), (0, 0)), ((1, 1), (1, 1))

Pads = tuple[tuple[int, int], tuple[int, int]]


def _dilated(x: Array, kernel: Array, strides: tuple[int, int], padding: tuple[tuple[int, int], ...]) -> Array:
    return jax.lax.conv_transpose(x, kernel, strides, padding, dimension_numbers=_LAYOUT, transpose_kernel=True)


def _by_product(x: Array, kernel: Array, strides: tuple[int, int], padding: tuple[tuple[int, int], ...]) -> Array:
    n, h, w, c = x.shape
    kh, kw, features, _ = kernel.shape
    (sh, sw), zero = strides, jnp.zeros((), x.dtype)
    # Output pixel i * s + u is the sum over b of x[i - b] * kernel[b * s + u]: the output falls into blocks of
    # s, and each block sees as many pixels of x as it takes blocks to cover the kernel.
    bh, bw = -(-kh // sh), -(-kw // sw)
    seen = jnp.concatenate(
        [
            jax.lax.pad(x, zero, [(0, 0, 0), (i, bh - 1 - i, 0), (j, bw - 1 - j, 0), (0, 0, 0)])
            for i in range(bh)
            for j in range(bw)
        ],
        -1,
    )
    kernel = jax.lax.pad(kernel, zero, [(0, bh * sh - kh, 0), (0, bw * sw - kw, 0), (0, 0, 0), (0, 0, 0)])
    kernel = kernel.reshape(bh, sh, bw, sw, features, c).transpose(0, 2, 5, 1, 3, 4)
    y = seen.reshape(-1, bh * bw * c) @ kernel.reshape(bh * bw * c, -1)
    h, w = h + bh - 1, w + bw - 1
    y = y.reshape(n, h, w, sh, sw, features).transpose(0, 1, 3, 2, 4, 5).reshape(n, h * sh, w * sw, features)
    # what the zeros after the kernel added, and what the padding leaves out
    crop = [
        (low - k + 1, high - k + 1 - (b * s - k), 0)
        for (low, high), k, b, s in zip(padding, (kh, kw), (bh, bw), strides, strict=True)
    ]
    return jax.lax.pad(y, zero, [(0, 0, 0), *crop, (0, 0, 0)])


def conv_transpose(
    x: Float[Array, "n h w c"],
    kernel: Float[Array, "kh kw features c"],
    strides: tuple[int, int],
    padding: Sequence[tuple[int, int]],
) -> Float[Array, "n h2 w2 features"]:
    """`jax.lax.conv_transpose(transpose_kernel=True)`: the gradient of a convolution, PyTorch's ConvTranspose2d.

    `padding` is of the input, between whose pixels lie `strides - 1` zeros: `(kh - 1 - p, kh - 1 - p)` is
    PyTorch's `padding=p`. A height of h gives `(h - 1) * strides[0] + 1 + sum(padding[0]) - (kh - 1)`.

    On CPU as one matrix product whose output is shuffled into place. XLA's own kernel gradient is a dilated
    convolution with a window as large as the image: U-Net's 512 to 256 channels at 16x16 take 607 ms, and the
    product 12 (PyTorch 12, jax 0.10.2, one core); FCN-8s' upsampling by 8 forward 33 and 3.5 (PyTorch 8).
    """
    strides, pads = (strides[0], strides[1]), tuple((low, high) for low, high in padding)
    return jax.lax.platform_dependent(
        x,
        kernel,
        cpu=lambda x, kernel: _by_product(x, kernel, strides, pads),
        default=lambda x, kernel: _dilated(x, kernel, strides, pads),
    )


def _patches_product(x: Array, kernel: Array) -> Array:
    kh, kw, _, features = kernel.shape
    h, w = x.shape[1] - kh + 1, x.shape[2] - kw + 1
    patches = jnp.concatenate([x[:, i : i + h, j : j + w] for i in range(kh) for j in range(kw)], -1)
    return patches @ kernel.reshape(-1, features)


def fully_connected_conv(
    x: Float[Array, "n h w c"],
    kernel: Float[Array, "kh kw c features"],
    window_strides: Sequence[int],
    padding: Sequence[tuple[int, int]],
    **options: Any,
) -> Float[Array, "n h2 w2 features"]:
    """A fully connected layer slid over an image: `jax.lax.conv_general_dilated`, for `nn.Conv` to call.

    For few output pixels and a large kernel. On CPU as one product with the patches: fc6 of VGG-16, halved to
    2048 features, on 9x9 pixels takes 30 ms and its gradients 186 (PyTorch 161 and 430, jax 0.10.2, one core);
    XLA's convolution 74 and 3032, because it flips and transposes the kernel. Raises ValueError for strides or
    padding, which no such layer has.
    """
    if set(window_strides) != {1} or any(low or high for low, high in padding):
        raise ValueError(f"fully_connected_conv has no strides or padding, got {window_strides} and {padding}")
    return jax.lax.platform_dependent(
        x,
        kernel,
        cpu=_patches_product,
        default=lambda x, kernel: jax.lax.conv_general_dilated(x, kernel, window_strides, padding, **options),
    )


def _shifted(x: Array, axis: int, low: int, size: int) -> Array:
    """`x` with `low` zeros before it, or less `-low` of it, cut or filled up to that size along an axis."""
    edges = [(0, 0, 0)] * x.ndim
    edges[axis] = (low, size - low - x.shape[axis], 0)
    return jax.lax.pad(x, jnp.zeros((), x.dtype), edges)


def _kernel_gradient(
    x: Array, slope: Array, strides: tuple[int, int], pads: Pads, window: tuple[int, int]
) -> Float[Array, "kh kw c features"]:
    """The gradient for a kernel: the convolution of `x` along the height whose window is the whole of `slope`.

    A channel's pixels of a row lie side by side. To a column of the kernel they lie shifted against those of `slope`:
    whichever has fewer channels is copied for each, narrow ones for several columns at once.
    """
    (h2, w2, features), (h, w, c), (kh, kw) = slope.shape[1:], x.shape[1:], window
    (top, _), (left, _) = pads
    rows = (h2 - 1) * strides[0] + kh - top  # of x, those that are seen; more than it has are zeros
    still = jax.lax.optimization_barrier  # what is turned round is computed once, and in the order that it lies in
    x = still(still(x[:, :rows]).transpose(3, 1, 0, 2))
    slope = still(slope).transpose(1, 0, 2, 3)
    of_slope = features <= c and strides[1] == 1
    at_once = max(MOST_COLUMNS // min(c, features), 1)
    blocks = []
    for first in range(0, kw, at_once):
        columns = range(first, min(first + at_once, kw))
        seen, under = x, slope
        if of_slope:
            under = still(jnp.concatenate([_shifted(slope, 2, j - left, w) for j in columns], -1))
        else:
            size = (w2 - 1) * strides[1] + 1
            seen = still(jnp.concatenate([_shifted(x, 3, left - j, size)[..., :: strides[1]] for j in columns]))
        block = jax.lax.conv_general_dilated(
            seen.reshape(*seen.shape[:2], -1),
            under.reshape(h2, -1, under.shape[-1]),
            (1,),
            [(top, max(rows - h, 0))],
            rhs_dilation=strides[:1],
            dimension_numbers=("NHC", "HIO", "NHC"),
        )
        if of_slope:
            blocks.append(block.reshape(c, kh, len(columns), features).transpose(1, 2, 0, 3))
        else:
            blocks.append(block.reshape(len(columns), c, kh, features).transpose(2, 0, 1, 3))
    return jnp.concatenate(blocks, 1)


def _pointwise_gradient(x: Array, slope: Array) -> Float[Array, "1 1 c features"]:
    x, slope = x.reshape(-1, x.shape[-1]), slope.reshape(-1, slope.shape[-1])
    return jax.lax.dot_general(x, slope, (((0,), (0,)), ((), ())))[None, None]


def _pointwise(x: Array, kernel: Array) -> Array:
    return jax.lax.dot_general(x, kernel[0, 0], (((3,), (0,)), ((), ())))


def _is_product(kernel: Array, strides: tuple[int, int], pads: Pads) -> bool:
    return (*kernel.shape[:2], *strides, *pads[0], *pads[1]) == (1, 1, 1, 1, 0, 0, 0, 0)


def _by_xla(x: Array, kernel: Array, *, strides: tuple[int, int], pads: Pads) -> Array:
    return jax.lax.conv_general_dilated(x, kernel, strides, pads, dimension_numbers=_LAYOUT)


@functools.partial(jax.custom_jvp, nondiff_argnums=(2, 3))
def _conv(x: Array, kernel: Array, strides: tuple[int, int], pads: Pads) -> Array:
    by_xla = functools.partial(_by_xla, strides=strides, pads=pads)
    if _is_product(kernel, strides, pads):
        return jax.lax.platform_dependent(x, kernel, cpu=_pointwise, default=by_xla)
    return by_xla(x, kernel)


@_conv.defjvp
def _(strides: tuple[int, int], pads: Pads, primals: Any, tangents: Any) -> tuple[Array, Array]:
    (x, kernel), (dx, dkernel) = primals, tangents
    y = _conv(x, kernel, strides, pads)

    def along(x: Array, dkernel: Array) -> Array:
        """The convolution, written as what has the gradient above for its transpose."""
        gradient = functools.partial(_pointwise_gradient, x)
        if not _is_product(kernel, strides, pads):
            gradient = functools.partial(_kernel_gradient, x, strides=strides, pads=pads, window=kernel.shape[:2])
        (out,) = jax.linear_transpose(gradient, y)(dkernel)
        return out

    by_xla = functools.partial(_by_xla, strides=strides, pads=pads)
    if jax.sharding.get_abstract_mesh().shape.get(WIDTH_AXIS, 1) > 1:
        # `along` lays a row's pixels beside the batch, which leaves the axis idle: XLA then multiplies by it
        by_kernel = by_xla(x, dkernel)
    else:
        by_kernel = jax.lax.platform_dependent(x, dkernel, cpu=along, default=by_xla)
    return y, _conv(dx, kernel, strides, pads) + by_kernel


@traced_once
def conv(
    x: Float[Array, "n h w c"],
    kernel: Float[Array, "kh kw c2 features"],
    window_strides: Sequence[int],
    padding: str | Sequence[tuple[int, int]],
    **options: Any,
) -> Float[Array, "n h2 w2 features"]:
    """`jax.lax.conv_general_dilated`, for `nn.Conv` to call, with the forms and gradients that suit a CPU there.

    Holes go to `atrous_conv`, many channels under a 3x3 window to `winograd`, and a 1x1 window is one product. The
    gradient for another kernel is that of convolutions along the height whose channels are a row's pixels: of 256 to
    256 channels on 200x200 pixels it takes 470 ms (PyTorch 437, jax 0.10.2, one core), and XLA's, which takes the
    image's pixels one at a time, 2100; of 128 to 32 on two of 128x128 39 (62) and 61; of a 1x1 window of 1024 to 256
    channels on 50x50 pixels 17 (9) and 90. What has groups, or is small, is XLA's.
    """
    options = {"dimension_numbers": _LAYOUT} | options
    holes = tuple(options.get("rhs_dilation") or (1, 1))
    (kh, kw), strides = kernel.shape[:2], (window_strides[0], window_strides[1])

    def by_xla(x: Array, kernel: Array) -> Array:
        return jax.lax.conv_general_dilated(x, kernel, strides, padding, **options)

    known = all(isinstance(n, int) for n in x.shape)  # jax.export may leave a size open
    plain = options.get("feature_group_count", 1) == 1 and set(options.get("lhs_dilation") or (1, 1)) == {1}
    if not known or not plain or options.get("precision") is not None:
        return by_xla(x, kernel)
    window = [(k - 1) * hole + 1 for k, hole in zip((kh, kw), holes, strict=True)]
    pads = jax.lax.padtype_to_pads(x.shape[1:3], window, strides, padding) if isinstance(padding, str) else padding
    (top, bottom), (left, right) = pads
    if holes != (1, 1):
        dilated = strides == (1, 1) and (kh, kw) != (1, 1)
        return atrous_conv(x, kernel, strides, pads, **options) if dilated else by_xla(x, kernel)
    pads = (top, bottom), (left, right)
    if (kh, kw, *strides) == (3, 3, 1, 1) and pads in (_BORDER, _NONE) and tiles_pay(x, kernel):
        return jax.lax.platform_dependent(x, kernel, cpu=functools.partial(winograd, border=top), default=by_xla)
    small = max(kernel.shape[2:]) < LEAST_CHANNELS or x.shape[0] * x.shape[1] * x.shape[2] < LEAST_PIXELS
    common = functools.partial(_by_xla if small and not _is_product(kernel, strides, pads) else _conv, strides=strides)
    if (kh, kw, *strides) == (3, 3, 1, 1) and pads == _NONE:
        # XLA is slow without a border: 256 to 256 channels on 64x64 pixels take 115 ms, and 37 with a row of zeros
        with_a_row = lambda x, kernel: common(x, kernel, pads=((0, 1), (0, 0)))[:, :-1]  # noqa: E731
        return jax.lax.platform_dependent(x, kernel, cpu=with_a_row, default=by_xla)
    return common(x, kernel, pads=pads)
