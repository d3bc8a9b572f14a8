"""Convolutions with holes, in the form that each platform is fast at."""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxseg.ops.winograd import holes_pay, winograd_with_holes

__all__ = ["atrous_conv", "interleaved", "interleaving_pays"]

_LAYOUT = ("NHWC", "HWIO", "NHWC")
MOST_BORDER = 2.0  # pixels with the border that holes need, over those without, up to which interleaving pays

Pads = tuple[tuple[int, int], tuple[int, int]]


def _shifted_products(x: Array, kernel: Array, padding: Any, dilation: Any) -> Array:
    n, h, w, _ = x.shape
    kh, kw, _, features = kernel.shape
    (top, bottom), (left, right) = padding
    h2, w2 = h + top + bottom - (kh - 1) * dilation[0], w + left + right - (kw - 1) * dilation[1]
    wide, zero = jnp.promote_types(x.dtype, jnp.float32), (0, 0, 0)
    total = jnp.zeros((n, h2, w2, features), wide)
    for i in range(kh):
        # output pixel y sees x[y + down]: where that is outside, it is a zero that need not be multiplied
        down = i * dilation[0] - top
        y0, y1 = max(0, -down), min(h2, h - down)
        if y0 >= y1:
            continue
        rows = x[:, y0 + down : y1 + down]  # once for a row of the kernel: of a sharded height they are neighbours'
        for j in range(kw):
            along = j * dilation[1] - left
            x0, x1 = max(0, -along), min(w2, w - along)
            if x0 >= x1:
                continue
            # not flattened: XLA's partitioner cannot reshape uneven shares of the height
            part = jnp.matmul(rows[:, :, x0 + along : x1 + along], kernel[i, j], preferred_element_type=wide)
            total += jax.lax.pad(part, jnp.zeros((), wide), [zero, (y0, h2 - y1, 0), (x0, w2 - x1, 0), zero])
    return total.astype(x.dtype)


def _interleaved_size(size: int, taps: int, hole: int, pads: Sequence[int]) -> tuple[int, int]:
    """Outputs along an axis of a convolution with holes, and pixels that each of its `hole` interleaved parts sees."""
    out = size + sum(pads) - (taps - 1) * hole
    return out, -(-out // hole) + taps - 1


def interleaving_pays(x: Any, window: Sequence[int], padding: Any, holes: Sequence[int]) -> bool:
    """Whether the parts of `interleaved` are little more than the image; never where jax.export leaves a size open."""
    pixels = 1
    for size, taps, hole, pads in zip(x.shape[1:3], window, holes, padding, strict=True):
        if not isinstance(size, int):
            return False
        pixels *= _interleaved_size(size, taps, hole, pads)[1] * hole
    return pixels <= MOST_BORDER * x.shape[1] * x.shape[2]


def interleaved(x: Array, kernel: Array, padding: Any, holes: Sequence[int], **options: Any) -> Array:
    """A convolution with holes as one without, of the images of every `holes`-th row and column.

    For a GPU, where cuDNN is fast at holes but XLA does not hand it their gradient for a kernel, which becomes a
    convolution with a window as large as the image (jax 0.11.2).
    """
    n, channels, zero = x.shape[0], x.shape[3], jnp.zeros((), x.dtype)
    (dh, dw), (kh, kw) = holes, kernel.shape[:2]
    (h2, h), (w2, w) = (
        _interleaved_size(size, taps, hole, pads)
        for size, taps, hole, pads in zip(x.shape[1:3], (kh, kw), holes, padding, strict=True)
    )
    border = [(p[0], m * d - s - p[0], 0) for p, m, d, s in zip(padding, (h, w), holes, x.shape[1:3], strict=True)]
    x = jax.lax.pad(x, zero, [(0, 0, 0), *border, (0, 0, 0)])
    x = x.reshape(n, h, dh, w, dw, channels).transpose(0, 2, 4, 1, 3, 5).reshape(n * dh * dw, h, w, channels)
    y = jax.lax.conv_general_dilated(x, kernel, (1, 1), "VALID", **{"dimension_numbers": _LAYOUT} | options)
    h, w = h - kh + 1, w - kw + 1
    y = y.reshape(n, dh, dw, h, w, y.shape[-1]).transpose(0, 3, 1, 4, 2, 5)
    return y.reshape(n, h * dh, w * dw, -1)[:, :h2, :w2]


@functools.partial(jax.custom_jvp, nondiff_argnums=(2, 3))
def _atrous(x: Array, kernel: Array, pads: Pads, holes: tuple[int, int]) -> Array:
    """XLA's convolution with holes, and for its kernel the gradient of `interleaved`."""
    return jax.lax.conv_general_dilated(x, kernel, (1, 1), pads, rhs_dilation=holes, dimension_numbers=_LAYOUT)


@_atrous.defjvp
def _(pads: Pads, holes: tuple[int, int], primals: Any, tangents: Any) -> tuple[Array, Array]:
    (x, kernel), (dx, dkernel) = primals, tangents
    return _atrous(x, kernel, pads, holes), _atrous(dx, kernel, pads, holes) + interleaved(x, dkernel, pads, holes)


def atrous_conv(
    x: Float[Array, "n h w c"],
    kernel: Float[Array, "kh kw c features"],
    window_strides: Sequence[int],
    padding: Sequence[tuple[int, int]],
    *,
    rhs_dilation: Sequence[int],
    **options: Any,
) -> Float[Array, "n h2 w2 features"]:
    """A convolution with holes: `jax.lax.conv_general_dilated`, for `nn.Conv` to call.

    On CPU by `winograd_with_holes` where that pays, as in a dilated ResNet, and else as one product for each of the
    kernel's places, over the pixels that it sees: ASPP's rates of 12 and 24 with 2048 channels on 16x16 pixels take
    10 and 3 ms (PyTorch 12 and 24, jax 0.10.2, one core), and XLA's convolution, which multiplies the border's zeros,
    65 and 112. On a GPU the gradient for the kernel is that of `interleaved`. Raises ValueError for strides or groups.
    """
    groups = options.get("feature_group_count", 1)
    if set(window_strides) != {1} or groups != 1:
        raise ValueError(f"atrous_conv has no strides or groups, got {window_strides} and {groups}")
    pads, dilation = tuple((low, high) for low, high in padding), (rhs_dilation[0], rhs_dilation[1])
    options = {"dimension_numbers": _LAYOUT} | options

    def by_xla(x: Array, kernel: Array) -> Array:
        return jax.lax.conv_general_dilated(x, kernel, window_strides, padding, rhs_dilation=dilation, **options)

    if not all(isinstance(n, int) for n in x.shape):  # jax.export leaves a size open: what a place sees is unknown
        return by_xla(x, kernel)
    on_cpu = functools.partial(_shifted_products, padding=pads, dilation=dilation)
    keeps_size = {*pads[0], *pads[1], *dilation} == {dilation[0]}
    if kernel.shape[:2] == (3, 3) and keeps_size and holes_pay(x, kernel, dilation[0]):
        on_cpu = functools.partial(winograd_with_holes, rate=dilation[0])
    forms = {"cpu": on_cpu}
    if options.get("precision") is None and interleaving_pays(x, kernel.shape[:2], pads, dilation):
        forms["cuda"] = functools.partial(_atrous, pads=pads, holes=dilation)
    return jax.lax.platform_dependent(x, kernel, default=by_xla, **forms)
