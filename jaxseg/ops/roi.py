"""Features of boxes: RoIAlign, RoIPool, and which level of a pyramid a box reads.

Features are `[N, H, W, C]`, boxes `[N, K, 4]` XYXY in pixels, those of each image with that image; `scale` is
features over pixels. Boxes get no gradient.
"""

import functools
import math
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jaxseg.ops.boxes import box_area

__all__ = ["pyramid_levels", "pyramid_roi_align", "roi_align", "roi_pool"]

Form = Literal["gather", "einsum"]
POOL_EXTENTS = 4096  # of boxes in pixels of the features, up to which RoIPool rounds as a float32 does


class _Sampling(NamedTuple):
    """How a box is sampled; static."""

    size: int  # bins a side
    ratio: int  # samples a side of a bin; -1: as many as the bin has pixels, up to `bound`
    aligned: bool  # pixel i covers i - 0.5 to i + 0.5; otherwise i to i + 1, off by half a pixel
    bound: int
    border: bool  # samples more than a pixel outside take the border's value; otherwise they are zero


def _samples(start: Array, stop: Array, length: Any, how: _Sampling) -> tuple[Array, Array]:
    """Coordinates, cut to 0..length - 1, and weights of the samples along one axis, each `[..., size, s]`.

    `start`, `stop` and `length` are `[...]`, in pixels of the features. The weights of a bin sum to 1 where all
    its samples are inside.
    """
    shift = 0.5 if how.aligned else 0.0
    start, extent = start - shift, stop - start
    if not how.aligned:
        extent = jnp.maximum(extent, 1.0)
    bin_size = extent / how.size
    count: Any = how.ratio if how.ratio > 0 else jnp.clip(jnp.ceil(bin_size), 0, how.bound)[..., None, None]
    s = jnp.arange(how.ratio if how.ratio > 0 else how.bound)
    step = (s + 0.5) * (bin_size[..., None, None] / jnp.maximum(count, 1))
    at = start[..., None, None] + jnp.arange(how.size)[:, None] * bin_size[..., None, None] + step
    last = jnp.asarray(length, jnp.float32)
    last = last[..., None, None] if last.ndim else last
    counts = s < count if how.border else (s < count) & (at >= -1) & (at <= last)
    weight = jnp.where(counts, 1.0 / jnp.maximum(count, 1), 0.0)
    return jnp.clip(at, 0, last - 1), weight


def _matrix(start: Array, stop: Array, length: int, how: _Sampling) -> Array:
    """Interpolation weights `[..., size, length]` of the bins' means along one axis."""
    at, weight = _samples(start, stop, length, how)
    total = jnp.zeros((*at.shape[:-1], length))
    for s in range(at.shape[-1]):
        near = jnp.maximum(1 - jnp.abs(at[..., s, None] - jnp.arange(length)), 0)
        total += weight[..., s, None] * near
    return total


def _matrices(boxes: Any, shape: tuple[int, ...], scale: float, how: _Sampling) -> tuple[Array, Array]:
    x0, y0, x1, y1 = jnp.moveaxis(boxes * scale, -1, 0)
    return _matrix(y0, y1, shape[1], how), _matrix(x0, x1, shape[2], how)


_einsum = functools.partial(jnp.einsum, precision=jax.lax.Precision.HIGHEST)


def _align_by_matrices(features: Any, boxes: Any, scale: float, how: _Sampling, chosen: Any) -> Array:
    rows, columns = _matrices(boxes, features.shape, scale, how)
    rows = jnp.where(chosen[..., None, None], rows, 0).astype(features.dtype)
    lines = _einsum("nkph,nhwc->nkpwc", rows, features)
    return _einsum("nkqw,nkpwc->nkpqc", columns.astype(features.dtype), lines)


def _spread_by_matrices(
    cotangent: Any, boxes: Any, shape: tuple[int, ...], scale: float, how: _Sampling, chosen: Any
) -> Array:
    """The transpose of `_align_by_matrices`: every box's gradient back onto the features."""
    rows, columns = _matrices(boxes, shape, scale, how)
    rows = jnp.where(chosen[..., None, None], rows, 0).astype(cotangent.dtype)
    lines = _einsum("nkqw,nkpqc->nkpwc", columns.astype(cotangent.dtype), cotangent)
    return _einsum("nkph,nkpwc->nhwc", rows, lines)


def _corners(
    boxes: Any, levels: Any, shapes: Sequence[tuple[int, ...]], scales: Sequence[float], how: _Sampling
) -> tuple[Array, Array]:
    """Where each bin reads the levels laid end to end, and with what weight: `[n, k, size, size, reads]`."""
    heights, widths = (np.array([s[axis] for s in shapes]) for axis in (1, 2))
    first = np.concatenate([[0], np.cumsum(heights * widths)[:-1]])
    h, w = jnp.asarray(heights)[levels], jnp.asarray(widths)[levels]
    x0, y0, x1, y1 = jnp.moveaxis(boxes * jnp.asarray(scales, jnp.float32)[levels][..., None], -1, 0)

    def pairs(start: Array, stop: Array, length: Array) -> tuple[Array, Array]:
        at, weight = _samples(start, stop, length, how)
        low = jnp.floor(at).astype(jnp.int32)
        high = jnp.minimum(low + 1, length[..., None, None] - 1)
        part = at - low
        return jnp.concatenate([low, high], -1), jnp.concatenate([weight * (1 - part), weight * part], -1)

    y, wy = pairs(y0, y1, h)
    x, wx = pairs(x0, x1, w)
    y, wy = y[..., :, None, :, None], wy[..., :, None, :, None]
    x, wx = x[..., None, :, None, :], wx[..., None, :, None, :]
    place = jnp.asarray(first)[levels][..., None, None, None, None] + y * w[..., None, None, None, None] + x
    weight = wy * wx
    reads = (*place.shape[:4], place.shape[4] * place.shape[5])  # said, not -1: there may be no box
    return place.reshape(reads), weight.reshape(reads)


def _align_by_gather(features: Any, boxes: Any, levels: Any, scales: Sequence[float], how: _Sampling) -> Array:
    n, _, _, c = features[0].shape
    flat = jnp.concatenate([f.reshape(n, -1, c) for f in features], 1)
    place, weight = _corners(boxes, levels, [f.shape for f in features], scales, how)
    place += (jnp.arange(n) * flat.shape[1])[:, None, None, None, None]
    flat = flat.reshape(-1, c)

    def seen(read: int) -> Array:
        values = flat.at[place[..., read]].get(mode="promise_in_bounds")
        return weight[..., read, None].astype(flat.dtype) * values

    return functools.reduce(jnp.add, map(seen, range(place.shape[-1])))


def _spread_by_scatter(
    cotangent: Any, boxes: Any, levels: Any, shapes: Sequence[tuple[int, ...]], scales: Any, how: _Sampling
) -> list[Array]:
    n, c = cotangent.shape[0], cotangent.shape[-1]
    sizes = [s[1] * s[2] for s in shapes]
    place, weight = _corners(boxes, levels, shapes, scales, how)
    place += (jnp.arange(n) * sum(sizes))[:, None, None, None, None]
    values = weight[..., None].astype(cotangent.dtype) * cotangent[..., None, :]
    flat = jnp.zeros((n * sum(sizes), c), cotangent.dtype).at[place.reshape(-1)].add(values.reshape(-1, c))
    parts = jnp.split(flat.reshape(n, -1, c), np.cumsum(sizes)[:-1], 1)
    return [part.reshape(s) for part, s in zip(parts, shapes, strict=True)]


def _gathers(shapes: Sequence[tuple[int, ...]], boxes: Any, how: _Sampling, backward: bool) -> bool:
    """Whether reading single pixels beats products with matrices, on CPU, by their counts of operations.

    A pixel read, or worse added to, out of order costs as much as many multiply-adds in a product: to be even took
    18 products a pixel on maps of 25 and 50 pixels a side and 33 on 100, of 256 channels (jax 0.10.2, one core).
    """
    k = boxes.shape[1]
    reads = k * (2 * how.size * (how.ratio if how.ratio > 0 else how.bound)) ** 2
    products = sum(k * how.size * s[2] * (s[1] + how.size) for s in shapes)
    return products > (24 if backward else 4) * reads


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4, 5))
def _align(features: Any, boxes: Any, levels: Any, scales: Any, how: _Sampling, form: Form | None) -> Array:
    def by_gather(features: Any, boxes: Any, levels: Any) -> Array:
        return _align_by_gather(features, boxes, levels, scales, how)

    def by_matrices(features: Any, boxes: Any, levels: Any) -> Array:
        parts = [
            _align_by_matrices(f, boxes, scale, how, levels == i)
            for i, (f, scale) in enumerate(zip(features, scales, strict=True))
        ]
        return functools.reduce(jnp.add, parts)

    forms = {"gather": by_gather, "einsum": by_matrices}
    if form is not None:
        return forms[form](features, boxes, levels)
    few = _gathers([f.shape for f in features], boxes, how, backward=False)
    gathers = {"cpu": few, "cuda": how.ratio > 0, "onnx": how.ratio > 0}
    chosen: Any = {platform: by_gather for platform, wins in gathers.items() if wins}
    return jax.lax.platform_dependent(features, boxes, levels, default=by_matrices, **chosen)


def _align_forward(features: Any, boxes: Any, levels: Any, scales: Any, how: _Sampling, form: Any) -> Any:
    shapes = tuple(jax.ShapeDtypeStruct(f.shape, f.dtype) for f in features)
    # RoIAlign is linear in the features: its gradient needs their shapes alone, which zeros of no size carry
    empty = tuple(jnp.zeros((0, *s.shape), s.dtype) for s in shapes)
    return _align(features, boxes, levels, scales, how, form), (empty, boxes, levels)


def _align_backward(scales: Any, how: _Sampling, form: Form | None, saved: Any, cotangent: Any) -> Any:
    empty, boxes, levels = saved
    shapes = [e.shape[1:] for e in empty]

    def by_scatter(cotangent: Any, boxes: Any, levels: Any) -> list[Array]:
        return _spread_by_scatter(cotangent, boxes, levels, shapes, scales, how)

    def by_matrices(cotangent: Any, boxes: Any, levels: Any) -> list[Array]:
        return [
            _spread_by_matrices(cotangent, boxes, shape, scale, how, levels == i)
            for i, (shape, scale) in enumerate(zip(shapes, scales, strict=True))
        ]

    forms = {"gather": by_scatter, "einsum": by_matrices}
    if form is not None:
        gradient = forms[form](cotangent, boxes, levels)
    else:
        few = _gathers(shapes, boxes, how, backward=True)
        gradient = jax.lax.platform_dependent(
            cotangent, boxes, levels, cpu=by_scatter if few else by_matrices, default=by_matrices
        )
    features = tuple(g.astype(e.dtype) for g, e in zip(gradient, empty, strict=True))
    return features, jnp.zeros_like(boxes), np.zeros(levels.shape, jax.dtypes.float0)


_align.defvjp(_align_forward, _align_backward)


def _sampling(
    size: int, sampling_ratio: int, aligned: bool, max_sampling: int | None, border: bool, shapes: Any
) -> _Sampling:
    if size < 1 or (sampling_ratio < 1 and sampling_ratio != -1):
        raise ValueError(f"RoIAlign needs size >= 1 and sampling_ratio >= 1, or -1, got {size} and {sampling_ratio}")
    if max_sampling is not None and max_sampling < 1:
        raise ValueError(f"RoIAlign takes a sample or more: max_sampling >= 1, or None, got {max_sampling}")
    bound = math.ceil(max(max(s[1:3]) for s in shapes) / size) if max_sampling is None else max_sampling
    return _Sampling(size, sampling_ratio, aligned, bound, border)


def roi_align(
    features: Float[Array, "n h w c"],
    boxes: Float[Array, "n k 4"],
    size: int,
    *,
    scale: float = 1.0,
    sampling_ratio: int = 2,
    aligned: bool = False,
    max_sampling: int | None = None,
    border: bool = False,
    form: Form | None = None,
) -> Float[Array, "n k size size c"]:
    """RoIAlign (He et al. 2017, section 3): means of bilinear samples in `size` x `size` bins of each box.

    A bin has `sampling_ratio` x `sampling_ratio` samples; with -1 as many as it has pixels, rounded up, at
    most `max_sampling` a side. That bound is by default the feature map's longer side over `size`: enough for
    every box within the map. `aligned` takes pixel centres at halves, as Detectron2; otherwise as Detectron
    and torchvision's detectors, where boxes are a pixel long at least. Samples within a pixel outside take
    the border's value, and those beyond are zero, as in the kernels of Detectron and torchvision; with `border`
    they take it too, as in torchvision's RoIAlign in Python (`torchvision.ops.roi_align._roi_align`).

    `form` says how: reading pixels, or products with one-hot interpolation weights; forward and gradient each by
    themselves. By default the cheaper by count on CPU; pixels on a GPU and in ONNX, but for the adaptive ratio, whose
    bound has many, and for the gradient, which would add in no fixed order; and products on a TPU.
    """
    levels = jnp.zeros(boxes.shape[:2], jnp.int32)
    how = _sampling(size, sampling_ratio, aligned, max_sampling, border, [features.shape])
    return _align((features,), boxes.astype(jnp.float32), levels, (scale,), how, form)


def pyramid_levels(
    boxes: Float[Array, "*n 4"], low: int, high: int, *, canonical_size: float = 224.0, canonical_level: int = 4
) -> Int[Array, "*n"]:
    """The level of a pyramid, from `low` to `high`, for each box (Lin et al. 2017, equation 1).

    A box of `canonical_size` squared has `canonical_level`, and one of twice the side the next. Boxes without
    area have the lowest.
    """
    side = jnp.sqrt(jnp.maximum(box_area(boxes), 0))
    level = jnp.floor(canonical_level + jnp.log2(side / canonical_size) + 1e-6)  # torchvision's epsilon
    return jnp.clip(jnp.nan_to_num(level, neginf=low), low, high).astype(jnp.int32)


def pyramid_roi_align(
    features: Sequence[Float[Array, "n _ _ c"]],
    boxes: Float[Array, "n k 4"],
    size: int,
    *,
    strides: Sequence[int],
    sampling_ratio: int = 2,
    aligned: bool = False,
    border: bool = False,
    form: Form | None = None,
) -> Float[Array, "n k size size c"]:
    """RoIAlign of each box on its own level of a pyramid, from the finest, whose `strides` are powers of 2."""
    if len(features) != len(strides):
        raise ValueError(f"a pyramid of {len(features)} levels needs as many strides, got {tuple(strides)}")
    low, high = (round(math.log2(stride)) for stride in (strides[0], strides[-1]))
    # MobileNet's two have one stride, and its second is never read
    features, strides = features[: high - low + 1], strides[: high - low + 1]
    levels = jnp.clip(pyramid_levels(boxes, low, high) - low, 0, len(features) - 1)
    how = _sampling(size, sampling_ratio, aligned, None, border, [f.shape for f in features])
    return _align(tuple(features), boxes.astype(jnp.float32), levels, tuple(1 / s for s in strides), how, form)


@functools.cache
def _pool_edges(size: int) -> tuple[np.ndarray, np.ndarray]:
    """First pixel and end `[POOL_EXTENTS, size]` of each bin of as many pixels, as float32 rounds them in Caffe."""
    extents, bins = np.arange(POOL_EXTENTS, dtype=np.float32), np.arange(size + 1, dtype=np.float32)
    edges = bins * (extents[:, None] / np.float32(size))
    return np.floor(edges[:, :-1]).astype(np.int32), np.ceil(edges[:, 1:]).astype(np.int32)


def _pool_windows(start: Array, stop: Array, size: int, length: int) -> Array:
    """Which pixels `[k, size, length]` each bin covers along an axis, after Caffe's roundings.

    Looked up: 57 pixels are seven bins of which the last ends in a 58th, by IEEE's division, which is not XLA's.
    """

    def whole(x: Array) -> Array:  # C's round: halves off zero
        down = jnp.trunc(x)
        away = jnp.where(jnp.abs(x - down) >= 0.5, jnp.sign(x), 0)
        return jnp.clip(down + away, -(2**20), 2**20).astype(jnp.int32)[:, None]

    first, last = whole(start), whole(stop)
    extent, bins = jnp.maximum(last - first + 1, 1), jnp.arange(size, dtype=jnp.int32)
    exact = bins * extent // size, ((bins + 1) * extent + size - 1) // size
    low, high = (
        jnp.where(extent < POOL_EXTENTS, jnp.asarray(edges)[jnp.minimum(extent[:, 0], POOL_EXTENTS - 1)], beyond)
        for edges, beyond in zip(_pool_edges(size), exact, strict=True)
    )
    pixels = jnp.arange(length, dtype=jnp.int32) - first[..., None]
    return (pixels >= low[..., None]) & (pixels < high[..., None])


def roi_pool(
    features: Float[Array, "n h w c"], boxes: Float[Array, "n k 4"], size: int, *, scale: float = 1.0
) -> Float[Array, "n k size size c"]:
    """RoIPool (Girshick 2015, section 2.1): the maxima of `size` x `size` bins of each box.

    Boxes are rounded to whole pixels of the features, both ends inside; bins overlap by up to a pixel, and an
    empty bin is 0. The gradient goes to the first maximum in row-major order, as in Caffe and torchvision.
    """
    h, w = features.shape[1:3]

    def one(x: Array, box: Array) -> Array:
        x0, y0, x1, y1 = box[:, None] * scale
        rows, columns = _pool_windows(y0, y1, size, h)[0], _pool_windows(x0, x1, size, w)[0]
        # minima with infinities, and no choice of -inf, which ONNX would hold written out in full
        by_row, by_column = (jnp.where(bins, jnp.inf, -jnp.inf).astype(x.dtype) for bins in (rows, columns))
        wide = jnp.minimum(jax.lax.stop_gradient(x)[:, None], by_column[None, :, :, None])  # [h, size, w, c]
        at_x, best = jnp.argmax(wide, 2), wide.max(2)
        tall = jnp.minimum(best[None], by_row[:, :, None, None])  # [size, h, size, c]
        at_y = jnp.argmax(tall, 1)
        at_x = jnp.take_along_axis(at_x, at_y, 0)
        value = x[at_y, at_x, jnp.arange(x.shape[-1])]
        some = rows.any(-1)[:, None, None] & columns.any(-1)[None, :, None]
        return jnp.where(some, value, 0)

    def image(x: Array, boxes: Array) -> Array:
        return jax.lax.map(functools.partial(one, x), boxes, batch_size=16)

    return jax.vmap(image)(features, boxes.astype(jnp.float32))
