"""Depthwise convolution of `[N, H, W, C]` arrays: on CPU as a sum of shifted products.

XLA's depthwise convolution on CPU is some fifty times slower than the sum of kh * kw multiply-adds. On a GPU one with
holes is taken as one without of interleaved images: 5x5 with holes of 2 over [16, 32, 32, 960] took 2.0 ms, and without
holes over as many pixels 0.2 (H200, jax 0.11.2).
"""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxseg.ops.atrous import interleaved, interleaving_pays
from jaxseg.ops.tracing import traced_once

__all__ = ["depthwise_conv"]

_LAYOUT = ("NHWC", "HWIO", "NHWC")
# Pixels with the border over those without, above which it is left out: 3x3 with holes of 24 over [32, 32, 2048] takes
# 25 ms with it and 6 without, and its gradients 94 and 41 (jax 0.10.2, one core); with holes of 12 it is the other way.
MOST_BORDER = 4.0


def _shifted_products(x: Array, kernel: Array, strides: Any, padding: Any, dilation: Any) -> Array:
    kh, kw, _, c = kernel.shape
    x = jax.lax.pad(x, jnp.zeros((), x.dtype), [(0, 0, 0), *((a, b, 0) for a, b in padding), (0, 0, 0)])
    h, w = (
        (x.shape[axis + 1] - (size - 1) * dilation[axis] - 1) // strides[axis] + 1 for axis, size in enumerate((kh, kw))
    )
    total = jnp.zeros((x.shape[0], h, w, c), x.dtype)
    for i in range(kh):
        # rows before columns: of a sharded height each device then takes its neighbours' rows kh times, not kh * kw
        top = i * dilation[0]
        rows = jax.lax.slice_in_dim(x, top, top + (h - 1) * strides[0] + 1, strides[0], 1)
        for j in range(kw):
            left = j * dilation[1]
            seen = jax.lax.slice_in_dim(rows, left, left + (w - 1) * strides[1] + 1, strides[1], 2)
            total += seen * kernel[i, j, 0]
    return total


def _cropped_products(x: Array, kernel: Array, padding: Any, dilation: Any) -> Array:
    """The same without strides, of the pixels that each place of the kernel sees, and no border."""
    (n, h, w, c), (kh, kw) = x.shape, kernel.shape[:2]
    (top, bottom), (left, right) = padding
    h2, w2 = h + top + bottom - (kh - 1) * dilation[0], w + left + right - (kw - 1) * dilation[1]
    total, zero = jnp.zeros((n, h2, w2, c), x.dtype), jnp.zeros((), x.dtype)
    for i in range(kh):
        down = i * dilation[0] - top  # output row y sees row y + down
        y0, y1 = max(0, -down), min(h2, h - down)
        line = jnp.zeros((n, max(0, y1 - y0), w2, c), x.dtype)
        for j in range(kw):
            along = j * dilation[1] - left
            x0, x1 = max(0, -along), min(w2, w - along)
            if y0 < y1 and x0 < x1:
                seen = x[:, y0 + down : y1 + down, x0 + along : x1 + along] * kernel[i, j, 0]
                line += jax.lax.pad(seen, zero, [(0, 0, 0), (0, 0, 0), (x0, w2 - x1, 0), (0, 0, 0)])
        if y0 < y1:
            total += jax.lax.pad(line, zero, [(0, 0, 0), (y0, h2 - y1, 0), (0, 0, 0), (0, 0, 0)])
    return total


def _products(x: Array, kernel: Array, strides: Any, padding: Any, dilation: Any) -> Array:
    (h, w), (top, left) = x.shape[1:3], map(sum, padding)
    known = isinstance(h, int) and isinstance(w, int)  # jax.export may leave a size open
    if known and tuple(strides) == (1, 1) and (h + top) * (w + left) > MOST_BORDER * h * w:
        return _cropped_products(x, kernel, padding, dilation)
    return _shifted_products(x, kernel, strides, padding, dilation)


def _image_gradient(
    slope: Array, kernel: Array, size: tuple[int, int], strides: Any, padding: Any, dilation: Any
) -> Array:
    """The gradient for an image of `size`: the slope, zeros between its pixels, under the kernel turned round."""
    axes = list(zip(size, slope.shape[1:3], kernel.shape[:2], strides, padding, dilation, strict=True))
    before = [(k - 1) * hole - low for _, _, k, _, (low, _), hole in axes]
    after = [n + low - (m - 1) * stride - 1 for n, m, _, stride, (low, _), _ in axes]
    kernel = kernel[::-1, ::-1]
    if tuple(strides) == (1, 1):
        return _products(slope, kernel, strides, tuple(zip(before, after, strict=True)), dilation)
    between = [(low, high, stride - 1) for low, high, stride in zip(before, after, strides, strict=True)]
    slope = jax.lax.pad(slope, jnp.zeros((), slope.dtype), [(0, 0, 0), *between, (0, 0, 0)])
    return _shifted_products(slope, kernel, (1, 1), ((0, 0), (0, 0)), dilation)


@functools.partial(jax.custom_jvp, nondiff_argnums=(2, 3, 4))
def _on_cpu(x: Array, kernel: Array, strides: Any, padding: Any, dilation: Any) -> Array:
    return _products(x, kernel, strides, padding, dilation)


@_on_cpu.defjvp
def _(strides: Any, padding: Any, dilation: Any, primals: Any, tangents: Any) -> tuple[Array, Array]:
    """What is learned from is computed once: XLA's fusions compute both it and its slope at every place of the kernel.

    MobileNetV3's block of 672 channels on 50x50 pixels takes 191 ms with its gradients, and 455 without this rule; of
    72 channels on 200x200 256 and 384 (jax 0.11.2, one core).
    """
    (x, kernel), (dx, dkernel) = primals, tangents
    still = jax.lax.optimization_barrier
    y = still(_on_cpu(x, kernel, strides, padding, dilation))
    gradient = functools.partial(
        _image_gradient, kernel=kernel, size=x.shape[1:3], strides=strides, padding=padding, dilation=dilation
    )
    (along,) = jax.linear_transpose(gradient, y)(dx)  # the convolution, as what has this gradient for its transpose
    return y, still(along + _products(x, dkernel, strides, padding, dilation))


@traced_once
def depthwise_conv(
    x: Float[Array, "n h w c"],
    kernel: Float[Array, "kh kw 1 c"],
    window_strides: Sequence[int] = (1, 1),
    padding: str | Sequence[tuple[int, int]] = "SAME",
    *,
    rhs_dilation: Sequence[int] | None = None,
    **rest: Any,
) -> Float[Array, "n h2 w2 c"]:
    """Convolves each channel with its own kernel.

    Arguments are those of `jax.lax.conv_general_dilated`, so that it serves `nn.Conv` as
    `conv_general_dilated=depthwise_conv`; results agree to rounding on every platform, and so do gradients.
    Raises ValueError for a convolution that is not depthwise, has another layout, or dilates its input.
    """
    channels = x.shape[-1]
    groups = rest.pop("feature_group_count", channels)
    precision = rest.pop("precision", None)
    lhs_dilation = tuple(rest.pop("lhs_dilation", None) or (1, 1))
    layout = rest.pop("dimension_numbers", None)
    if layout is not None:
        expected = jax.lax.conv_dimension_numbers(x.shape, kernel.shape, _LAYOUT)
        if jax.lax.conv_dimension_numbers(x.shape, kernel.shape, layout) != expected:
            raise ValueError(f"depthwise_conv takes NHWC and HWIO arrays, got {layout}")
    if groups != channels or lhs_dilation != (1, 1) or rest:
        raise ValueError(
            f"depthwise_conv of {channels} channels needs as many groups and no dilated input, got "
            f"feature_group_count {groups}, lhs_dilation {lhs_dilation}, {sorted(rest)}"
        )
    dilation = tuple(rhs_dilation or (1, 1))
    if isinstance(padding, str):
        effective = [(k - 1) * d + 1 for k, d in zip(kernel.shape[:2], dilation, strict=True)]
        padding = jax.lax.padtype_to_pads(x.shape[1:3], effective, window_strides, padding)
    fields: Any = {"strides": tuple(window_strides), "padding": tuple(map(tuple, padding)), "dilation": dilation}

    def by_xla(x: Array, kernel: Array) -> Array:
        return jax.lax.conv_general_dilated(
            x,
            kernel,
            fields["strides"],
            fields["padding"],
            rhs_dilation=dilation,
            dimension_numbers=_LAYOUT,
            feature_group_count=channels,
            precision=precision,
        )

    forms: dict[str, Any] = {"cpu": lambda x, kernel: _on_cpu(x, kernel, *fields.values())}
    holes = fields["strides"] == (1, 1) != dilation and all(isinstance(n, int) for n in x.shape[1:3])
    if holes and interleaving_pays(x, kernel.shape[:2], padding, dilation):
        forms["cuda"] = functools.partial(
            interleaved, padding=padding, holes=dilation, feature_group_count=channels, precision=precision
        )
    return jax.lax.platform_dependent(x, kernel, default=by_xla, **forms)
