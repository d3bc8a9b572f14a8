"""Instance masks between the image and the frame of a box: pasted for use, cropped for a loss."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Num

from jaxseg.ops.roi import roi_align

__all__ = [
    "Instances",
    "boxes_of_masks",
    "crop_instances",
    "crop_masks",
    "crop_polygons",
    "instances_of",
    "paste_factors",
    "paste_masks",
]


def _paste_matrix(low: Array, high: Array, m: int, length: int) -> Array:
    """Weights `[k, length, m]` of bilinear interpolation of `m` samples over the pixels `low` to `high`."""
    count = jnp.maximum(high - low + 1, 1).astype(jnp.float32)[:, None]
    offset = jnp.arange(length, dtype=jnp.int32) - low[:, None]
    at = jnp.clip((offset + 0.5) * (m / count) - 0.5, 0, m - 1)
    inside = (offset >= 0) & (offset < count)
    near = jnp.maximum(1 - jnp.abs(at[..., None] - jnp.arange(m)), 0)
    return jnp.where(inside[..., None], near, 0)


def paste_masks(
    masks: Float[Array, "k m m"], boxes: Float[Array, "k 4"], size: tuple[int, int]
) -> Float[Array, "k h w"]:
    """Masks in the frames of their boxes onto an image of `size` (h, w), zero elsewhere.

    As torchvision and Detectron do: a pixel of zeros goes around the mask and the box grows with it, is cut to
    whole pixels, and takes the mask by bilinear interpolation. Values stay probabilities; 0.5 is the usual cut.
    """
    lines, columns = paste_factors(masks, boxes, size)
    return jnp.einsum("khj,kwj->khw", lines, columns, precision=jax.lax.Precision.HIGHEST)


def paste_factors(
    masks: Float[Array, "k m m"], boxes: Float[Array, "k 4"], size: tuple[int, int]
) -> tuple[Float[Array, "k h j"], Float[Array, "k w j"]]:
    """The two whose product over the last axis, m + 2 long, is `paste_masks`: for whom it is too large at once."""
    m = masks.shape[-1]
    padded = jnp.pad(masks.astype(jnp.float32), ((0, 0), (1, 1), (1, 1)))
    centre = (boxes[:, 2:] + boxes[:, :2]) * 0.5
    half = (boxes[:, 2:] - boxes[:, :2]) * 0.5 * ((m + 2) / m)
    (x0, y0), (x1, y1) = (jnp.trunc(corner).astype(jnp.int32).T for corner in (centre - half, centre + half))
    rows, columns = _paste_matrix(y0, y1, m + 2, size[0]), _paste_matrix(x0, x1, m + 2, size[1])
    return jnp.einsum("khi,kij->khj", rows, padded, precision=jax.lax.Precision.HIGHEST), columns


def _crop(mask: Array, box: Array, size: int) -> Array:
    mask = mask.astype(jnp.float32)[None, :, :, None]
    return roi_align(mask, box[None, None], size, sampling_ratio=-1, form="einsum")[0, 0, :, :, 0]


def crop_masks(
    masks: Num[Array, "g h w"] | Bool[Array, "g h w"],
    indices: Int[Array, "k"],
    boxes: Float[Array, "k 4"],
    size: int,
) -> Float[Array, "k size size"]:
    """Targets of a mask head: mask `indices[i]` within `boxes[i]`, as the share of each of `size` x `size` bins.

    RoIAlign of the mask with as many samples as pixels, which is what torchvision trains on.
    """
    return jax.lax.map(lambda a: _crop(masks[a[0]], a[1], size), (indices, boxes), batch_size=8)


def crop_instances(
    instances: Int[Array, "h w"], ids: Int[Array, "k"], boxes: Float[Array, "k 4"], size: int
) -> Float[Array, "k size size"]:
    """`crop_masks` of the pixels of `instances` that have the id `ids[i]`, without a mask for every id."""
    return jax.lax.map(lambda a: _crop(instances == a[0], a[1], size), (ids, boxes), batch_size=8)


def crop_polygons(
    vertices: Float[Array, "k v 2"], counts: Int[Array, "k"], boxes: Float[Array, "k 4"], size: int
) -> Float[Array, "k size size"]:
    """Targets from polygons: 1 where the centre of a bin of `boxes[i]` is inside polygon i by the even-odd rule.

    Polygon i is the first `counts[i]` of its `vertices` (x, y), closed; fewer than three enclose nothing.
    """
    v = vertices.shape[1]
    used = jnp.arange(v) < counts[:, None]
    following = jnp.where(jnp.arange(v) + 1 < counts[:, None], jnp.arange(1, v + 1) % v, 0)
    x0, y0 = vertices[..., 0][:, None, None], vertices[..., 1][:, None, None]
    end = jnp.take_along_axis(vertices, following[..., None], 1)
    x1, y1 = end[..., 0][:, None, None], end[..., 1][:, None, None]
    share: Any = (jnp.arange(size) + 0.5) / size
    extent = boxes[:, 2:] - boxes[:, :2]
    x = (boxes[:, :1] + share * extent[:, :1])[:, None, :, None]
    y = (boxes[:, 1:2] + share * extent[:, 1:])[:, :, None, None]
    spans = (y0 > y) != (y1 > y)
    rise = jnp.where(spans, y1 - y0, 1)
    used &= (counts >= 3)[:, None]
    crossed = spans & (x < x0 + (y - y0) * (x1 - x0) / rise) & used[:, None, None]
    return (jnp.sum(crossed, -1) % 2).astype(jnp.float32)


class Instances(NamedTuple):
    """The objects of an image in a fixed number of places; of an id map, place i holds id i + 1."""

    boxes: Any  # float32 [g, 4] XYXY; 0 where not valid
    classes: Any  # int32 [g]; 0 where not valid
    valid: Any  # bool [g]
    beyond: Any  # int32 []: what has no place: pixels of ids above g, or objects, where they come as arrays


def boxes_of_masks(masks: Bool[Array, "g h w"]) -> tuple[Float[Array, "g 4"], Bool[Array, "g"]]:
    """The box around each mask, and whether it has a pixel; edges lie outside the last pixel, and empty boxes are 0."""
    _, h, w = masks.shape
    rows, columns = masks.any(2), masks.any(1)
    first = jnp.stack([columns.argmax(1), rows.argmax(1)], 1)
    end = jnp.stack([w - columns[:, ::-1].argmax(1), h - rows[:, ::-1].argmax(1)], 1)
    seen = rows.any(1)
    return jnp.where(seen[:, None], jnp.concatenate([first, end], 1), 0).astype(jnp.float32), seen


def instances_of(instances: Int[Array, "h w"], label: Int[Array, "h w"], g: int) -> Instances:
    """Boxes and classes of the ids 1..`g` of an id map, whose pixels have their class in `label`.

    Boxes are those around the pixels that are seen. An id without pixels, or whose pixels are all background or
    255, is not valid.
    """
    seen = instances == jnp.arange(1, g + 1)[:, None, None]
    boxes, _ = boxes_of_masks(seen)
    classes = jnp.max(jnp.where(seen & (label != 255), label, 0), (1, 2)).astype(jnp.int32)
    valid = classes > 0
    return Instances(jnp.where(valid[:, None], boxes, 0), classes, valid, jnp.sum(instances > g))
