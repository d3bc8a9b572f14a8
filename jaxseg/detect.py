"""From photographs of any sizes to their objects, in the pixels of each photograph."""

import functools
import math
from collections.abc import Iterator, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PyTree, Shaped

from jaxseg.data.augment import IMAGENET_MEAN, IMAGENET_STD
from jaxseg.data.objects import clean_boxes
from jaxseg.data.proposals import selective_search
from jaxseg.ops.boxes import Proposals, clip_boxes
from jaxseg.ops.masks import paste_masks

__all__ = ["detect", "paste_each", "scaled_size"]

PASTED = 2**28  # bytes of masks that are pasted at once
ROUNDING = 1e-3  # by how much a float image may leave 0..1, as one does that was resampled


def scaled_size(size: tuple[int, int], min_size: int, max_size: int) -> tuple[int, int]:
    """`size` (h, w) scaled until its short side is `min_size`, or its long side `max_size`; rounded down."""
    scale = min(min_size / min(size), max_size / max(size))
    return max(math.floor(size[0] * scale), 1), max(math.floor(size[1] * scale), 1)


def _resize_axis(x: np.ndarray, axis: int, n_out: int) -> np.ndarray:
    """Linear interpolation by pixel centres without antialiasing, as PyTorch's `interpolate`."""
    n_in = x.shape[axis]
    if n_in == n_out:
        return x
    at = np.maximum((np.arange(n_out, dtype=np.float32) + 0.5) * np.float32(n_in / n_out) - np.float32(0.5), 0)
    low = np.minimum(at.astype(np.int64), n_in - 1)
    high = np.minimum(low + 1, n_in - 1)
    part = (at - low).astype(np.float32).reshape([-1 if a == axis else 1 for a in range(x.ndim)])
    below, above = np.take(x, low, axis), np.take(x, high, axis)
    return below + part * (above - below)


def _on_canvas(image: Shaped[np.ndarray, "h w 3"], scaled: tuple[int, int], canvas: np.ndarray) -> None:
    """Normalises, scales and writes an image to the corner of its `canvas` of zeros."""
    x: np.ndarray = image.astype(np.float32)
    x = x / np.float32(255) if image.dtype == np.uint8 else x
    x = (x - np.array(IMAGENET_MEAN, np.float32)) / np.array(IMAGENET_STD, np.float32)
    canvas[: scaled[0], : scaled[1]] = _resize_axis(_resize_axis(x, 0, scaled[0]), 1, scaled[1])


@functools.partial(jax.jit, static_argnums=0)
def _apply(
    model: nn.Module,
    variables: PyTree,
    images: Array,
    sizes: Array,
    ratios: Array,
    originals: Array,
    proposals: Proposals | None,
) -> Any:
    given = () if proposals is None else (proposals,)
    found: Any = model.apply(variables, images, sizes, *given, train=False)
    # a scaled side times the ratio of sides may round to just above the side
    return found.replace(boxes=clip_boxes(found.boxes * ratios[:, None], originals))


@functools.partial(jax.jit, static_argnums=(3, 4))
def _paste(masks: Array, boxes: Array, start: int | Array, count: int, size: tuple[int, int]) -> Array:
    masks, boxes = (jax.lax.dynamic_slice_in_dim(x, start, count) for x in (masks, boxes))
    return paste_masks(masks, boxes, size)


@functools.partial(jax.jit, donate_argnums=0)
def _place(whole: Array, part: Array, start: int | Array) -> Array:
    return jax.lax.dynamic_update_slice_in_dim(whole, part[:, : whole.shape[1], : whole.shape[2]], start, 0)


def _pasted(masks: Any, boxes: Any, size: tuple[int, int]) -> Iterator[tuple[int, Array]]:
    """The place of the first of some masks, and these on the image, on a canvas that may be larger; places overlap.

    As many at once as `PASTED` bytes hold: of a photograph of 12 megapixels a hundred are 5 GB.
    """
    h, w = (-(-side // 128) * 128 for side in size)  # for few programs; where a mask lies does not depend on it
    count = max(min(len(masks), PASTED // (4 * h * w)), 1)
    for start in range(0, len(masks), count):
        start = min(start, len(masks) - count)
        yield start, _paste(masks, boxes, start, count, (h, w))


def _all_pasted(masks: Array, boxes: Array, size: tuple[int, int]) -> Array:
    """Masks `[k, h, w]` on the image, which exist once."""
    whole = None
    for start, part in _pasted(masks, boxes, size):
        if len(part) == len(masks):
            return part[:, : size[0], : size[1]]
        whole = jnp.zeros((len(masks), *size)) if whole is None else whole
        whole = jax.block_until_ready(_place(whole, part, start))  # or all parts would wait in memory
    return jnp.zeros((0, *size)) if whole is None else whole


def paste_each(
    found: Any, size: tuple[int, int], indices: Sequence[int] | Int[np.ndarray, "n"] | None = None
) -> Iterator[Float[np.ndarray, "h w"]]:
    """The masks of `detect(..., paste=False)` on their image of `size` (h, w), one after the other; few exist at once.

    Those at `indices`, by default all.
    """
    chosen = np.arange(len(found.masks)) if indices is None else np.asarray(indices, int)
    if not len(chosen):
        return
    filled = np.resize(chosen, len(found.masks))  # as many as ever: one program
    masks, boxes = (np.asarray(x)[filled] for x in (found.masks, found.boxes))
    given = 0
    for start, part in _pasted(masks, boxes, size):
        pixels = np.asarray(part)
        while start <= given < min(start + len(part), len(chosen)):
            yield pixels[given - start, : size[0], : size[1]]
            given += 1
        if given == len(chosen):
            return


def _proposals(
    detector: Any, images: list[np.ndarray], given: Sequence[np.ndarray] | None, ratios: np.ndarray
) -> Proposals | None:
    """What a detector without a proposal network looks at, in the pixels of the canvas and a fixed number of places."""
    if hasattr(detector, "propose"):
        if given is not None:
            raise ValueError(f"{type(detector).__name__} makes its own proposals; leave them out")
        return None
    if given is None:
        given = [selective_search(_bytes(image), limit=detector.max_proposals) for image in images]
    if len(given) != len(images):
        raise ValueError(f"detect needs the proposals of each image, got {len(given)} for {len(images)}")
    boxes = np.zeros((len(images), detector.max_proposals, 4), np.float32)
    for i, image in enumerate(images):
        found = np.asarray(given[i], np.float32)
        found = found.reshape(0, 4) if found.size == 0 else found
        if found.ndim != 2 or found.shape[1] != 4 or not np.isfinite(found).all():
            raise ValueError(
                f"proposals are finite boxes [k, 4], those of image {i} have shape {found.shape}"
                f"{', and some are not finite' * (not np.isfinite(found).all())}"
            )
        if len(found) > detector.max_proposals:
            raise ValueError(
                f"{len(found)} proposals and max_proposals={detector.max_proposals}: give fewer, or clone the model"
            )
        boxes[i, : len(found)] = clean_boxes(found, (image.shape[0], image.shape[1]))[0] / ratios[i]
    valid = (boxes[..., 2:] > boxes[..., :2]).all(-1)
    return Proposals(boxes, valid.astype(np.float32), valid)


def _bytes(image: np.ndarray) -> np.ndarray:
    return image if image.dtype == np.uint8 else np.round(255 * image).astype(np.uint8)


def _checked(images: Any) -> list[np.ndarray]:
    arrays = [np.asarray(image) for image in images]
    for i, image in enumerate(arrays):
        if image.ndim != 3 or image.shape[2] != 3 or 0 in image.shape:
            raise ValueError(f"detect needs RGB images [h, w, 3], image {i} has shape {image.shape}")
        if image.dtype != np.uint8 and not jnp.issubdtype(image.dtype, jnp.floating):  # bfloat16 too
            raise ValueError(f"detect needs uint8 images, or floats in 0..1, image {i} is {image.dtype}")
        low, high = image.min(), image.max()
        if image.dtype != np.uint8 and not (low >= -ROUNDING and high <= 1 + ROUNDING):  # or NaN
            raise ValueError(f"detect needs floats in 0..1, image {i} has {low}..{high}; divide by 255, or give uint8")
    return arrays


def detect(
    model: nn.Module,
    variables: PyTree,
    images: Sequence[Shaped[np.ndarray, "..."]] | Shaped[np.ndarray, "n h w 3"] | Float[Array, "n h w 3"],
    *,
    min_size: int | None = None,
    max_size: int | None = None,
    canvas: tuple[int, int] | None = None,
    proposals: Sequence[Shaped[np.ndarray, "..."]] | None = None,
    paste: bool = True,
) -> list[Any]:
    """The objects in `images` of any sizes, RGB uint8 or floats in 0..1: one `Detections` an image, in its pixels.

    As torchvision's detectors: each image is scaled (bilinear) until its short side is `min_size` or its long
    side `max_size`, by default the model's own; all go into one batch on a canvas of the largest, rounded up
    to 32. A `canvas` (h, w) given instead keeps the shapes of one program for batches of other sizes. The model
    compiles once for each canvas and number of images. Masks `[k, h, w]` are probabilities on the image; of a large
    photograph they are gigabytes, and with `paste=False` stay in the frames of their boxes, for `paste_each`.

    `proposals` are boxes XYXY `[k, 4]` of each image, in its pixels and cut to it, for a detector without its own
    (R-CNN, Fast R-CNN); by default `jaxseg.data.selective_search` finds them. Those without area are not looked at.

    Raises ValueError for what is not an RGB image, for floats that leave 0..1 or are not finite, for sizes below 1, for
    a canvas that is too small, and for proposals that do not fit.
    """
    arrays = _checked(images)
    if not arrays:
        return []
    detector: Any = model
    short = detector.min_size if min_size is None else min_size
    long = detector.max_size if max_size is None else max_size
    if min(short, long) < 1:
        raise ValueError(f"min_size and max_size are sides of 1 pixel or more, got {short} and {long}")
    scaled = [scaled_size((a.shape[0], a.shape[1]), short, long) for a in arrays]
    largest = tuple(-(-max(s[axis] for s in scaled) // 32) * 32 for axis in (0, 1))
    if canvas is None:
        canvas = (largest[0], largest[1])
    elif canvas[0] < largest[0] or canvas[1] < largest[1]:
        raise ValueError(f"the images need a canvas of {largest} at least, got {canvas}")
    batch = np.zeros((len(arrays), *canvas, 3), np.float32)
    ratios = np.zeros((len(arrays), 4), np.float32)
    for i, (image, size) in enumerate(zip(arrays, scaled, strict=True)):
        _on_canvas(image, size, batch[i])
        down, across = (np.float32(image.shape[a]) / np.float32(size[a]) for a in (0, 1))
        ratios[i] = across, down, across, down
    regions = _proposals(detector, arrays, proposals, ratios)
    originals = np.array([image.shape[:2] for image in arrays], np.int32)
    found = _apply(model, variables, batch, np.array(scaled, np.int32), ratios, originals, regions)
    out = []
    for i, image in enumerate(arrays):
        one = jax.tree.map(lambda x, i=i: x[i], found)
        if one.masks is not None and paste:
            one = one.replace(masks=_all_pasted(one.masks, one.boxes, (image.shape[0], image.shape[1])))
        out.append(one)
    return out
